"""Whether settings suit a model, told before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infotok.errors import InfotokError, SettingError
from infotok.information.objective import load_estimator
from infotok.mllm.adapter import Adapter
from infotok.options import Section

if TYPE_CHECKING:
    from infotok.mllm.options import RenderConfig
    from infotok.mllm.warming import CalibrateConfig


def check_used(adapter: Adapter, config: Section) -> None:
    """
    Raises:
        SettingError: a setting is not its default, and changes nothing for this model.
    """
    fields = type(config).model_fields
    for key, why in adapter.unused.items():
        if key in fields and getattr(config, key) != fields[key].default:
            raise SettingError(key, f"{why}; leave it out")


def check_calibration(adapter: Adapter, config: CalibrateConfig) -> None:
    """
    Raises:
        SettingError: as of `check_used`, or steps are to train what the model does not lack.
    """
    check_used(adapter, config)
    if config.steps and config.tokenizer == "new" and not adapter.extra_is_new:
        raise SettingError(
            "tokenizer", "is new, but this model's tokenizer lacks nothing; train all of it (full), or leave steps out"
        )


def check_sampling(adapter: Adapter, config: RenderConfig) -> None:
    """
    Raises:
        SettingError: the model does not sample in one of the ways that are to be tried.
    """
    for guidance in config.guidance:
        for temperature in config.temperatures:
            adapter.sampling(temperature, guidance, config.top_k)


def check_prior(adapter: Adapter, prior: str) -> None:
    """
    Raises:
        SettingError: the prior is to be the language model, which is none here.
    """
    if prior == "model" and not adapter.is_prior:
        raise SettingError(
            "prior",
            "model needs one that says of every token how likely it is after those before it, and this one draws "
            "otherwise; choose shared or low_rank",
        )


def check_estimator(adapter: Adapter, name: str) -> None:
    """
    Raises:
        InfotokError: the estimator needs a density that the model has not.
    """
    if "conditional" in load_estimator(name).needs and not adapter.has_density:
        raise InfotokError(
            f"{name} pays what the model says of the tokens, and this one's head draws them without saying how likely "
            "they are; choose vib or hsic"
        )
