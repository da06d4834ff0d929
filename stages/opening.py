"""The pretrained model of a stage's cell, opened: what its settings cannot have is named with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from infotok.errors import InfotokError, SettingError
from infotok.mllm import suiting
from infotok.mllm.adapter import Adapter
from infotok.mllm.loading import open_model
from infotok.mllm.options import ModelConfig
from infotok.mllm.tuned import Tuned, load_tuned
from pipeline.config.cells import parse_arm
from pipeline.config.params import PretrainedParams
from pipeline.running.stage import Stage


def open_pretrained(run: Stage, model: ModelConfig, device: torch.device) -> Adapter:
    """The model of `run.model`, as it was pretrained.

    Raises:
        SettingError: it cannot be loaded, or as of `check_settings`.
    """
    with _model_of(run):
        adapter = open_model(model, run.cell.tokens, device)
    check_settings(adapter, _params(run))
    return adapter


def open_tuned(run: Stage, model: ModelConfig, folder: Path, remedy: str, device: torch.device) -> Tuned:
    """The model of `run.model`, as the stage `tune` has left it in its folder; remedy: where that is damaged.

    Raises:
        SettingError: as of `open_pretrained`. InfotokError: it is missing or damaged.
    """
    with _model_of(run):
        tuned = load_tuned(folder, remedy, model, run.cell.tokens, device)
    check_settings(tuned.adapter, _params(run), calibrated=True)
    return tuned


def check_settings(adapter: Adapter, params: PretrainedParams, calibrated: bool = False) -> None:
    """That all settings suit a model, those of later stages too, so that none is refused after hours.

    Args:
        calibrated: what it may have lacked is there, so that nothing is said of how that is trained.

    Raises:
        SettingError: one changes nothing for it, or cannot be done with it.
    """
    with section("calibrate"):
        (suiting.check_used if calibrated else suiting.check_calibration)(adapter, params.calibrate)
    with section("tune"):
        suiting.check_used(adapter, params.tune)
        suiting.check_prior(adapter, params.tune.prior)
    with section("generation"):
        suiting.check_used(adapter, params.generation)
        suiting.check_sampling(adapter, params.generation)
    for index, arm in enumerate(params.grid.arm):
        try:
            suiting.check_estimator(adapter, parse_arm(arm, "grid.arm")[0])
        except InfotokError as error:
            raise SettingError(("grid", "arm", index), str(error)) from None


@contextmanager
def section(name: str) -> Iterator[None]:
    """In which a setting that cannot be used is one of this section."""
    try:
        yield
    except SettingError as error:
        raise error.within(name) from None


@contextmanager
def _model_of(run: Stage) -> Iterator[None]:
    """In which it is one of the section of this stage's model, or its number of tokens."""
    try:
        yield
    except SettingError as error:
        if error.key != ("tokens",):
            raise error.within("models", run.cell.family) from None
        budgets, asked = run.study.params.grid.tokens, run.cell.tokens
        if asked in budgets:
            raise SettingError(("grid", "tokens", budgets.index(asked)), error.problem) from None
        raise InfotokError(f"--tokens: {error.problem}") from None


def _params(run: Stage) -> PretrainedParams:
    """All of the study's, on some of which the stage's result does not depend."""
    params = run.study.params
    assert isinstance(params, PretrainedParams)
    return params
