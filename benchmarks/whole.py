"""How long a whole joint training step takes where nothing is timed inside it, and how busy the device is meanwhile.

Windows of ten steps are timed: after every tenth the numbers of the last ten are read, so that a window ends when the
device has done it. In one more window, the last, the device is watched.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from benchmarks.common import spread
from benchmarks.device import Row, Work, device, watched
from benchmarks.training import FAMILIES, Arm, Prepared, Trainer
from infotok.training.loop import LOG_EVERY
from pipeline.config.params import Params

UNCOUNTED = 3  # windows, in which kernels are chosen, recorded or compiled
LARGE = 512  # images a step, beside the study's own number
COMPILE = {"cpu": ("never",), "cuda": ("never", "record", "fuse")}


@dataclass
class Steps:
    """seconds: of a step, by window. work: of the device in `watched` steps, of one more window."""

    seconds: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    watched: int = 0

    def row(self, batch: int) -> Row:
        """Columns of a table: wall time, images/s, what the device did, how often it was waited for."""
        wall = float(np.median(self.seconds))
        row = spread(self.seconds) | {"images_per_s": batch / wall}
        return row | self.work.row(self.watched, wall) | {"waits": self.work.waits / self.watched}


def whole_steps(params: Params, data: Prepared, arm: Arm, quick: bool) -> list[Row]:
    """A row for each family, batch and setting of `train.compile` that the device has."""
    kind = device().type
    batches = [params.train.batch] + [LARGE] * (kind == "cuda" and not quick)
    return [
        {"family": family, "batch": batch, "compile": compile}
        | measured(trainer(params, family, data, batch, compile), arm, windows=1 if quick else 10).row(batch)
        for family in FAMILIES
        for batch in batches
        for compile in COMPILE[kind]
    ]


def trainer(params: Params, family: str, data: Prepared, batch: int, compile: str) -> Trainer:
    """A trainer whose steps are compiled so."""
    train = params.train.model_copy(update={"compile": compile})
    return Trainer.create(params.model_copy(update={"train": train}), family, data, batch)


def measured(trainer: Trainer, arm: Arm, windows: int, uncounted: int = UNCOUNTED, watch: bool = True) -> Steps:
    """One training: windows that do not count, windows that are timed, and the one in which the device is watched."""
    # Training does one step beyond the last that is asked for.
    found, marks, last = Steps(watched=LOG_EVERY + 1), [], LOG_EVERY * (uncounted + windows)
    with ExitStack() as end:

        def begin(step: int) -> None:
            if LOG_EVERY * uncounted <= step <= last and step % LOG_EVERY == 0:
                marks.append(time.perf_counter())
            if step == last and watch:
                found.work = end.enter_context(watched())

        trainer.run(arm, last + LOG_EVERY, begin, waits=False)
    found.seconds = [(later - earlier) / LOG_EVERY for earlier, later in itertools.pairwise(marks)]
    return found
