"""What the regularizer costs: whole training steps of every estimator against those of the beta = 0 baseline, and how
the cost of HSIC by itself grows with the batch."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.common import Result, Row, extra_percent, in_turns, spread
from benchmarks.training import Arm, Prepared, Trainer, prepared
from infotok.random import stream
from infotok.training.runtime import start
from pipeline.config.params import Params

BASELINE = "none"
BETA, GAMMA = 0.01, 1.0  # their values do not change the time
ESTIMATORS = {"vib": "unbiased", "dib": "unbiased", "ceb": "unbiased", "hsic": "unbiased", "hsic, rff": "rff"}
SKIPPED = 1  # steps at the start of a turn, in which memory is allocated
TARGETS = {"vib": 5, "hsic": 10}  # percent of a step


def measure(params: Params, quick: bool) -> Result:
    sizes = {params.train.batch: (1, 2)} if quick else {64: (40, 6), 1024: (8, 3)}  # batch: (rounds, steps a turn)
    family = params.grid.family[0]
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(params, Path(folder) / "data", 2 * max(sizes))
        for batch, repeats in sizes.items():
            tables[f"A training step of {family}, batch {batch}"] = _steps(params, family, data, batch, *repeats)
    batches = (16, 32) if quick else (64, 256, 1024, 4096)
    tables["HSIC and its permuted baseline"] = _hsic(params, batches, quick)
    settings = {"family": family, "tokens": max(params.grid.tokens), "gamma": GAMMA}
    settings |= {"batch: rounds, steps in a turn": sizes, "targets_%": TARGETS, "kernels": params.kernels.model_dump()}
    return Result(settings, tables)


def _arms() -> dict[str, tuple[str, str, Arm]]:
    """Estimator, consistency and arm of what is compared; the baseline twice, which shows the noise."""
    arms = {name: (name, "", Arm()) for name in (BASELINE, "none, again")}
    for name, kernels in ESTIMATORS.items():
        for gamma in (0.0, GAMMA):
            arm = Arm(name.split(",")[0], BETA, gamma, kernels)
            arms[f"{name} {gamma}"] = (name, "yes" if gamma else "no", arm)
    return arms


def _steps(params: Params, family: str, data: Prepared, batch: int, rounds: int, steps: int) -> list[Row]:
    """Arms take turns of a few steps, all on the same batches, and are compared step by step."""
    trainer = Trainer.create(params, family, data, batch)
    arms, seconds = _arms(), defaultdict(list)
    trainer.run(arms[BASELINE][2], 2)
    for _ in range(rounds):
        for arm, (_, _, chosen) in arms.items():
            seconds[arm] += trainer.run(chosen, SKIPPED + steps)[SKIPPED:]
    return [
        {"estimator": name, "consistency": consistency}
        | spread(seconds[arm])
        | extra_percent(seconds[arm], seconds[BASELINE])
        for arm, (name, consistency, _) in arms.items()
    ]


def _hsic(params: Params, batches: tuple[int, ...], quick: bool) -> list[Row]:
    """Dependence of images and tokens and its permuted baseline, as a step computes them, exact and in linear time."""
    device, size = start(), params.data.image_size
    generator = stream(device, 0)
    rows = []
    for batch in batches:
        images = torch.rand(batch, 3, size, size, device=device, generator=generator)
        shape = (batch, max(params.grid.tokens), params.tokenizer.dimension)
        vectors = torch.randn(shape, device=device, generator=generator, requires_grad=True)

        def forward_and_backward(estimator: str, images=images, vectors=vectors) -> None:
            vectors.grad = None
            kernels = params.kernels.model_copy(update={"estimator": estimator})
            both = kernels.pair(images, vectors, generator)
            both.dependence().backward()
            both.permuted(generator)

        actions = {name: lambda name=name: forward_and_backward(name) for name in ("unbiased", "rff")}
        seconds = in_turns(actions, rounds=2 if quick else 20, warmup=1 if quick else 3)
        rows += [{"batch": batch, "estimator": name} | spread(taken) for name, taken in seconds.items()]
    return rows
