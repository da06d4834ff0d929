"""How long a whole joint training step takes where nothing is timed inside it, and how busy the device is meanwhile.

Windows of ten steps are timed: after every tenth the numbers of the last ten are read, so that a window ends when the
device has done it.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Row, spread
from benchmarks.training import FAMILIES, Arm, Prepared, Trainer
from infotok.training.loop import LOG_EVERY
from infotok.training.runtime import start
from pipeline.config.params import Params

UNCOUNTED = 3  # windows, in which kernels are chosen, recorded or compiled
LARGE = 512  # images a step, beside the study's own number
COMPILE = {"cpu": ("never",), "cuda": ("never", "record", "fuse")}


def whole_steps(params: Params, data: Prepared, arm: Arm, quick: bool) -> list[Row]:
    """A row for each family, batch and setting of `train.compile` that the device has."""
    cuda = start().type == "cuda"
    batches = [params.train.batch] + [LARGE] * (cuda and not quick)
    windows = 1 if quick else 10
    return [
        {"family": family, "batch": batch, "compile": compile}
        | _row(_trainer(params, family, data, batch, compile), arm, batch, windows)
        for family in FAMILIES
        for batch in batches
        for compile in COMPILE[start().type]
    ]


def _trainer(params: Params, family: str, data: Prepared, batch: int, compile: str) -> Trainer:
    train = params.train.model_copy(update={"compile": compile})
    return Trainer.create(params.model_copy(update={"train": train}), family, data, batch)


def _row(trainer: Trainer, arm: Arm, batch: int, windows: int) -> Row:
    """Wall time, images/s, busy: on a GPU the share of the wall time in which a kernel runs, on a CPU processor time
    over wall time; kernels of a step, 0 on a CPU."""
    clocks: list[tuple[float, float]] = []
    steps = LOG_EVERY * (UNCOUNTED + windows)
    trainer.run(arm, steps, begin=lambda: clocks.append((time.perf_counter(), time.process_time())), waits=False)
    marks = np.array(clocks[-1::-LOG_EVERY][: windows + 1][::-1])
    wall, processor = (np.diff(marks, axis=0) / LOG_EVERY).T
    row = spread(wall.tolist()) | {"images_per_s": batch / float(np.median(wall))}
    if start().type != "cuda":
        return row | {"busy_%": 100 * float(processor.sum() / wall.sum()), "kernels": 0.0}
    return row | _device(trainer, arm, float(np.median(wall)))


def _device(trainer: Trainer, arm: Arm, wall: float) -> Row:
    """What the device's own events say of the last ten of thirty steps; wall: seconds of a step without profiler."""
    calls, profiler = 0, profile(activities=[ProfilerActivity.CUDA])

    def begin() -> None:
        nonlocal calls
        calls += 1
        if calls == 2 * LOG_EVERY + 2:  # after the rehearsal, and when the device has done all that it was given
            torch.cuda.synchronize()
            profiler.start()
            begun.append(calls)

    begun: list[int] = []
    trainer.run(arm, 3 * LOG_EVERY, begin=begin, waits=False)
    torch.cuda.synchronize()
    profiler.stop()
    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    steps = calls - begun[0] + 1
    seconds = sum(event.device_time_total for event in kernels) / 1e6 / steps
    return {"busy_%": 100 * seconds / wall, "kernels": len(kernels) / steps}
