"""What the regularizer costs: whole training steps of every estimator against those of the beta = 0 baseline, and how
the cost of HSIC by itself grows with the batch.

On a CPU arms take turns of a few steps. On a GPU a step is one graph, which every turn would have to make anew: there
each arm trains once, and windows of ten steps are compared.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Result, extra_percent, in_turns, spread, timed
from benchmarks.device import Row, device, watched
from benchmarks.training import Arm, Trainer, prepared
from benchmarks.whole import LARGE, measured
from infotok.random import stream
from pipeline.config.params import Params

BASELINE = "none"
BETA, GAMMA = 0.01, 1.0  # their values do not change the time
ESTIMATORS = {"vib": "unbiased", "dib": "unbiased", "ceb": "unbiased", "hsic": "unbiased", "hsic, rff": "rff"}
SKIPPED = 1  # steps at the start of a turn, in which memory is allocated
TARGETS = {"vib": 5, "hsic": 10}  # percent of a step


def measure(params: Params, quick: bool) -> Result:
    gpu = device().type == "cuda"
    # Batch: rounds and steps a turn.
    sizes = {params.train.batch: (1, 2)} if quick or gpu else {64: (40, 6), 1024: (8, 3)}
    sizes |= {LARGE: (1, 2)} if gpu and not quick else {}
    family = params.grid.family[0]
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(params, Path(folder) / "data", 2 * max(sizes))
        for batch, repeats in sizes.items():
            trainer = Trainer.create(params, family, data, batch)
            found = in_windows(trainer, _arms()) if gpu else in_arms_turns(trainer, _arms(), *repeats)
            tables[f"A training step of {family}, batch {batch}"] = _compared(found)
    batches = (16, 32) if quick else (64, 256, 1024, 4096)
    tables["HSIC and its permuted baseline"] = _hsic(params, batches, quick)
    settings = {"family": family, "tokens": max(params.grid.tokens), "gamma": GAMMA}
    settings |= {"batch: rounds, steps in a turn": sizes, "targets_%": TARGETS, "kernels": params.kernels.model_dump()}
    return Result(settings, tables)


Arms = dict[str, tuple[str, str, Arm]]


def _arms() -> Arms:
    """Estimator, consistency and arm of what is compared; the baseline twice, which shows the noise."""
    arms = {name: (name, "", Arm()) for name in (BASELINE, "none, again")}
    for name, kernels in ESTIMATORS.items():
        for gamma in (0.0, GAMMA):
            arm = Arm(name.split(",")[0], BETA, gamma, kernels)
            arms[f"{name} {gamma}"] = (name, "yes" if gamma else "no", arm)
    return arms


Found = dict[str, tuple[list[float], Row]]  # by arm the seconds of steps, and what the device does in one


def in_arms_turns(trainer: Trainer, arms: Arms, rounds: int, steps: int) -> Found:
    """Arms take turns of a few steps, all on the same batches."""
    seconds: dict[str, list[float]] = defaultdict(list)
    trainer.run(Arm(), 2)
    for _ in range(rounds):
        for name, (_, _, arm) in arms.items():
            seconds[name] += trainer.run(arm, SKIPPED + steps)[SKIPPED:]
    found = {}
    for name, (_, _, arm) in arms.items():
        with watched() as work:
            trainer.run(arm, steps)
        found[name] = seconds[name], work.row(steps + 1, float(np.median(seconds[name])))
    return found


def in_windows(trainer: Trainer, arms: Arms, windows: int = 5) -> Found:
    """Each arm trains once."""
    found = {}
    for name, (_, _, arm) in arms.items():
        steps = measured(trainer, arm, windows)
        found[name] = steps.seconds, steps.work.row(steps.watched, float(np.median(steps.seconds)))
    return found


def _compared(found: Found) -> list[Row]:
    baseline = found[BASELINE][0]
    return [
        {"estimator": name, "consistency": consistency}
        | spread(found[key][0])
        | found[key][1]
        | extra_percent(found[key][0], baseline)
        for key, (name, consistency, _) in _arms().items()
    ]


def _hsic(params: Params, batches: tuple[int, ...], quick: bool) -> list[Row]:
    """Dependence of images and tokens and its permuted baseline, as a step computes them, exact and in linear time."""
    size = params.data.image_size
    generator = stream(device(), 0)
    rows = []
    for batch in batches:
        images = torch.rand(batch, 3, size, size, device=device(), generator=generator)
        shape = (batch, max(params.grid.tokens), params.tokenizer.dimension)
        vectors = torch.randn(shape, device=device(), generator=generator, requires_grad=True)

        def forward_and_backward(estimator: str, images=images, vectors=vectors) -> None:
            vectors.grad = None
            kernels = params.kernels.model_copy(update={"estimator": estimator})
            both = kernels.pair(images, vectors, generator)
            both.dependence().backward()
            both.permuted(generator)

        actions = {name: lambda name=name: forward_and_backward(name) for name in ("unbiased", "rff")}
        seconds = in_turns(actions, rounds=2 if quick else 20, warmup=1 if quick else 3)
        rows += [{"batch": batch, "estimator": name} | row for name, row in timed(actions, seconds).items()]
    return rows
