"""A round of several cells of a grid that train side by side in one process, in which each makes a step, against the
sum of the work that these steps give to the device. On a CPU that is processor time, of which a round can save nothing.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Result, forget_peak, peak_mib, spread
from benchmarks.device import Row, now
from benchmarks.training import Arm, Prepared, Trainer, new_model, prepared
from benchmarks.whole import UNCOUNTED, measured
from infotok.errors import InfotokError
from infotok.examiners.perceptual import Perceptual
from infotok.training.batches import Batches, Remembered
from infotok.training.joint import StepData, joint_steps
from infotok.training.loop import LOG_EVERY, Training
from infotok.training.runtime import start
from infotok.training.together import Places, side_by_side
from pipeline.config.params import Params

FAMILY = "ar"
ARMS = (Arm(), Arm("vib", 0.01), Arm("dib", 0.01, 1.0), Arm("hsic", 0.1))  # of one seed each, as a study has them
COUNTS = {"cpu": (1, 4), "cuda": (1, 2, 4, 8, 20)}
QUICK = (1, 3)


class Clock(Places):
    """Places, and the time after every tenth round in which all were taken: wall and processor seconds."""

    def __init__(self, most: int):
        super().__init__(most)
        self.rounds, self.marks = 0, np.empty((0, 2))

    def went_round(self, at_work: int) -> None:
        if at_work < self.most:
            return
        if self.rounds % LOG_EVERY == 0:
            self.marks = np.append(self.marks, [[now(), time.process_time()]], 0)
        self.rounds += 1


def measure(params: Params, quick: bool) -> Result:
    device, batch = start(), params.train.batch
    windows, uncounted = (1, 1) if quick else (10, UNCOUNTED)
    counts = QUICK if quick else COUNTS[device.type]
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(params, Path(folder) / "data", 4 * batch)
        work = {arm: _work(params, data, arm, quick) for arm in ARMS}
        rows = [_row(params, data, count, work, windows, uncounted) for count in counts]
    settings = {"family": FAMILY, "batch": batch, "tokens": max(params.grid.tokens), "compile": params.train.compile}
    settings |= {"arms": [vars(arm) for arm in ARMS], "windows": windows, "device": device.type}
    settings |= {"tokenizer": params.tokenizer.model_dump(), "backbone": params.backbone.model_dump()}
    return Result(settings, {f"A round of cells side by side, {batch} images each": rows})


def _work(params: Params, data: Prepared, arm: Arm, quick: bool) -> float:
    """Seconds that a step of an arm alone keeps the device busy; where its events were not seen, from the first of
    them to the last."""
    trainer = Trainer.create(params, FAMILY, data, params.train.batch)
    found = measured(trainer, arm, windows=1, uncounted=1 if quick else UNCOUNTED)
    seconds = found.work.elapsed if found.work.seconds is None else found.work.seconds
    return seconds / found.watched


def _row(params: Params, data: Prepared, count: int, work: dict[Arm, float], windows: int, uncounted: int) -> Row:
    """Times of a round; steps and images a second of all; the sum of the device's work, and how much of a round it is;
    peak memory."""
    clock, batches = Clock(count), {}
    cells = [(ARMS[index % len(ARMS)], index // len(ARMS)) for index in range(count)]
    for _, seed in cells:
        if seed not in batches:
            batches[seed] = Remembered(Batches(data.split, data.codec, params.train, seed=seed))
    steps = LOG_EVERY * (uncounted + windows) + 2 + count  # cells begin one after the other
    forget_peak()

    def ended(name: str, outcome: list[dict] | str) -> None:
        if isinstance(outcome, str):
            raise InfotokError(f"{name}: {outcome}")

    trainings = [
        (f"{arm.estimator} {seed}", partial(_training, params, data, arm, seed, batches[seed], steps))
        for arm, seed in cells
    ]
    side_by_side(trainings, clock, start(), ended)
    wall, processor = (np.diff(clock.marks[uncounted : uncounted + windows + 1], axis=0) / LOG_EVERY).T
    total, median = sum(work[arm] for arm, _ in cells), float(np.median(wall))
    if start().type == "cpu":  # on a machine that others use too, what counts is this process's own time
        median = float(np.median(processor))
    return {
        "cells": count, **spread(wall.tolist()), "steps_per_s": count / float(np.median(wall)),
        "images_per_s": count * params.train.batch / float(np.median(wall)), "device_work_ms": 1000 * total,
        "work_of_round_%": 100 * total / median, "peak_MiB": peak_mib(),
    }  # fmt: skip


def _training(params: Params, data: Prepared, arm: Arm, seed: int, batches: StepData, steps: int) -> Training:
    torch.manual_seed(seed)
    return joint_steps(
        new_model(params, FAMILY, max(params.grid.tokens), data.codec),
        Perceptual(data.classes),
        batches,
        params.train.model_copy(update={"steps": steps}),
        estimator=arm.estimator,
        beta=arm.beta,
        gamma=arm.gamma,
        kernels=params.kernels.model_copy(update={"estimator": arm.kernels}),
        distortion=params.reconstruction,
        seed=seed,
        device=start(),
    )
