"""The pretrained model of a stage's cell, opened: each of its settings suits it, or is named with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from infotok.errors import InfotokError, SettingError
from infotok.mllm import suiting
from infotok.mllm.adapter import Adapter
from infotok.mllm.loading import open_model
from infotok.mllm.tuned import Tuned, load_tuned
from pipeline.config.cells import parse_arm
from pipeline.config.params import PretrainedParams
from pipeline.running.stage import Stage


def open_pretrained(run: Stage, device: torch.device) -> Adapter:
    """The model as it was pretrained.

    Raises:
        SettingError: it cannot be loaded, or a setting does not suit it; of other stages' settings too, on which the
            result does not depend, so that none is refused after hours.
    """
    with _model_of(run):
        adapter = open_model(run.model, run.cell.tokens, device)
    _check(run, adapter)
    return adapter


def open_tuned(run: Stage, device: torch.device) -> Tuned:
    """The model as the stage `tune` has left it.

    Raises:
        SettingError: as of `open_pretrained`. InfotokError: it is missing or damaged.
    """
    with _model_of(run):
        tuned = load_tuned(run.input("tune"), run.remedy("tune"), run.model, run.cell.tokens, device)
    _check(run, tuned.adapter, pretrained=False)
    return tuned


@contextmanager
def _model_of(run: Stage) -> Iterator[None]:
    """In which a setting that cannot be used is one of the section of this stage's model, or its number of tokens."""
    try:
        yield
    except SettingError as error:
        if error.key != ("tokens",):
            raise error.within("models", run.cell.family) from None
        budgets, asked = run.study.params.grid.tokens, run.cell.tokens
        if asked in budgets:
            raise SettingError(("grid", "tokens", budgets.index(asked)), error.problem) from None
        raise InfotokError(f"--tokens: {error.problem}") from None


def _check(run: Stage, adapter: Adapter, pretrained: bool = True) -> None:
    """Raises SettingError for the first setting that does not suit the model."""
    params = run.study.params
    assert isinstance(params, PretrainedParams)
    with section("calibrate"):
        if pretrained:
            suiting.check_calibration(adapter, params.calibrate)
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
