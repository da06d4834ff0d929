"""What sections of a params file are made of: strict models, and numbers that YAML and DVC read alike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _number(value):
    """YAML reads `1e-3` as text and DVC reads it as a number: take both for a number, and nothing else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole(value: str) -> str:
    """No shell reads a params file, which DVC compares between machines: `~` would be another folder on each."""
    if value.startswith("~"):
        raise ValueError("~ stands for no folder here; write the whole path")
    return value


Count = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
BelowOne = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Scale = Annotated[float, BeforeValidator(_number), Field(ge=1)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_whole)]  # a file or folder, or a name on the hub
Precision = Literal["bf16", "fp32", "auto"]


class Section(BaseModel):
    """A section whose every key is known and of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
