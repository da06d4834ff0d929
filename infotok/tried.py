"""What of sampling validation chooses among: the same rules for models that are built here and for pretrained ones."""

from typing import Annotated

from pydantic import AfterValidator, Field

from infotok.options import Positive, Scale


def _shows_temperature_1(values: list[float]) -> list[float]:
    if 1.0 not in values:
        raise ValueError("must contain 1.0, at which every score is also shown")
    return values


def _begins_without_guidance(values: list[float]) -> list[float]:
    if values[0] != 1.0:
        raise ValueError("must begin with 1.0, no guidance")
    return values


Temperatures = Annotated[list[Positive], Field(min_length=1), AfterValidator(_shows_temperature_1)]
Guidance = Annotated[list[Scale], Field(min_length=1), AfterValidator(_begins_without_guidance)]
