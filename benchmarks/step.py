"""What a joint training step consists of, in each family, and how near it comes to the machine's matrix rate.

The parts are timed inside `train_jointly` itself, by clocks around the functions that it calls; a part counts without
the parts that it calls in turn. FLOPs are those of matrix products and convolutions, forward and backward.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Result, spread
from benchmarks.device import Row, device, matrix_rates, now, peak_rate
from benchmarks.training import FAMILIES, Arm, Trainer, prepared
from benchmarks.whole import LARGE, whole_steps
from infotok.information import bottleneck
from infotok.training import joint
from infotok.training.runtime import uses_bf16
from pipeline.config.params import Params

ARM = Arm("vib", 0.01, 1.0)
SKIPPED = 2  # steps at the start of a round, in which memory is allocated
PARTS = (
    "data", "encoder", "quantizer", "backbone", "heads and losses", "decoder", "distortion", "priors and rates",
    "regularizer", "backward", "clip and optimizer", "rest",
)  # fmt: skip


class PartClock:
    """Seconds of each step by part."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self._within: list[float] = []  # seconds spent in timed calls inside each call that is under way

    def next_step(self, step: int) -> None:
        self.steps.append(defaultdict(float))

    def around(self, owner: object, name: str, part: str) -> mock._patch:
        """A patch of a function or method that times its calls."""
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = now()
            self._within.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                taken = now() - start
                own = taken - self._within.pop()
                if self.steps:  # none before the first step's data are asked for
                    self.steps[-1][part] += own
                if self._within:
                    self._within[-1] += taken

        return mock.patch.object(owner, name, timed)

    def of(self, trainer: Trainer) -> ExitStack:
        """Clocks around the parts of this trainer's steps."""
        model, tokenizer = trainer.model, trainer.model.tokenizer
        places = [
            (trainer.batches, "texts", "data"),
            (trainer.batches, "images", "data"),
            (joint, "to_unit", "data"),
            (tokenizer.encoder, "forward", "encoder"),
            (tokenizer, "encode", "quantizer"),
            (tokenizer, "sample", "quantizer"),
            (model.backbone, "forward", "backbone"),
            (model.backbone, "embed_text", "backbone"),
            (model.backbone, "read", "backbone"),
            (model, "forward", "heads and losses"),
            (tokenizer, "decode", "decoder"),
            (joint, "perceptual_distortion", "distortion"),
            (model.priors, "forward", "priors and rates"),
            (bottleneck, "code_cost", "priors and rates"),
            (bottleneck.InformationBottleneck, "forward", "regularizer"),
            (torch.Tensor, "backward", "backward"),
            (torch.nn.utils, "clip_grad_norm_", "clip and optimizer"),
            (torch.optim.Optimizer, "zero_grad", "clip and optimizer"),
            (torch.optim.AdamW, "step", "clip and optimizer"),
        ]
        stack = ExitStack()
        for place in places:
            stack.enter_context(self.around(*place))
        return stack


def measure(params: Params, quick: bool) -> Result:
    rounds, steps = (1, 3) if quick else (8, 17)
    batch = params.train.batch
    apart = params.train.model_copy(update={"compile": "never"})  # in a graph a step has no parts
    with tempfile.TemporaryDirectory() as folder:
        images = 4 * batch if device().type == "cpu" or quick else max(4 * batch, 2 * LARGE)
        data = prepared(params, Path(folder) / "data", images)
        parted = params.model_copy(update={"train": apart})
        trainers = {family: Trainer.create(parted, family, data, batch) for family in FAMILIES}
        flops = {family: step_flops(trainer, steps) for family, trainer in trainers.items()}
        parts, totals = _times(trainers, rounds, steps)
        whole = whole_steps(params, data, ARM, quick)
    matrices = matrix_rates(batch, params.backbone.width, quick)
    used = "bf16" if uses_bf16(device(), params.train.precision) else "fp32"
    summary = []
    for family, seconds in totals.items():
        median = float(np.median(seconds))
        gflops = flops[family] / median / 1e9
        rates = {"images_per_s": batch / median, "MFLOP_per_image": flops[family] / batch / 1e6}
        shares = {"GFLOP/s": gflops, "of_peak_%": 100 * gflops / peak_rate(matrices, used)}
        summary.append({"family": family} | spread(seconds) | rates | shares)
    settings = {"batch": batch, "tokens": max(params.grid.tokens), "arm": vars(ARM)}
    settings |= {"precision": used, "rounds": rounds, "steps": steps}
    settings |= {"tokenizer": params.tokenizer.model_dump(), "backbone": params.backbone.model_dump()}
    return Result(
        settings,
        {
            f"A joint training step, {batch} images, {used}": summary,
            "Its parts, median ms": [_row(part, parts) for part in PARTS],
            "Matrix products on this machine": matrices,
            "A whole step, nothing timed inside it": whole,
        },
    )


def _times(
    trainers: dict[str, Trainer], rounds: int, steps: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, list[float]]]:
    """By family the parts and the seconds of every step that counts; families in turns."""
    parts, totals = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for family, trainer in trainers.items():
            clock = PartClock()
            with clock.of(trainer):
                seconds = trainer.run(ARM, steps, begin=clock.next_step)[SKIPPED:]
            found = clock.steps[SKIPPED:-1]
            for step, total in zip(found, seconds, strict=True):
                step["rest"] = total - sum(step.values())
            parts[family] += found
            totals[family] += seconds
    return parts, totals


def _row(part: str, parts: dict[str, list[dict[str, float]]]) -> Row:
    row: Row = {"part": part}
    for family, found in parts.items():
        median = float(np.median([step[part] for step in found]))
        share = median / float(np.median([sum(step.values()) for step in found]))
        row |= {family: 1000 * median, f"{family}_%": 100 * share}
    return row


def step_flops(trainer: Trainer, steps: int) -> float:
    """Mean FLOPs of a step; it runs the steps once, so that everything is warm."""
    with FlopCounterMode(display=False) as counter:
        trainer.run(ARM, steps)
    return counter.get_total_flops() / (steps + 1)
