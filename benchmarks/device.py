"""What the device does while something is measured: how long it works, in how many kernels, and the rate at which it
multiplies matrices.

On a GPU these are the device's own events, which the profiler collects: kernels, copies and fills, on all streams. A
CPU works for as long as the process has the processor.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from infotok.training.runtime import start

Row = dict[str, str | int | float]
UNSEEN = "unseen"  # what stands for numbers of a device whose events the profiler did not get
LONGEST = 0.5  # seconds that an action is repeated for while the device is watched, unless once takes longer
WAITED = "called a synchronizing CUDA operation"


@functools.cache
def device() -> torch.device:
    """The device that is measured: that of all stages, which INFOTOK_DEVICE chooses."""
    return start()


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Work:
    """seconds: in which the device worked; None where they were not seen. elapsed: from the first of what it was given
    to the last, by CUDA's events; at least as much. kernels: that a GPU ran; 0 on a CPU. waits: how often an operation
    made the processor wait for a GPU. They are there when the watch has ended."""

    seconds: float | None = None
    elapsed: float = 0.0
    kernels: int = 0
    waits: int = 0

    def row(self, calls: int, wall: float) -> Row:
        """Columns of a table: of one call of `calls`, which takes `wall` seconds where nobody watches."""
        if self.seconds is None:
            return {"device_ms": UNSEEN, "busy_%": UNSEEN, "kernels": UNSEEN}
        seconds = self.seconds / calls
        return {"device_ms": 1000 * seconds, "busy_%": 100 * seconds / wall, "kernels": self.kernels / calls}


@contextmanager
def watched() -> Iterator[Work]:
    """What the device does from here to the end of the context, where it is waited for."""
    work = Work()
    if device().type == "cpu":
        begin = time.process_time()
        yield work
        work.seconds = work.elapsed = time.process_time() - begin
        return
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with _events(ProfilerActivity.CUDA) as events, _waits() as caught:
        first.record()
        yield work
        last.record()
    work.elapsed = first.elapsed_time(last) / 1000  # both have been: the device was waited for
    spans = spans_of(events, DeviceType.CUDA)
    work.seconds, work.kernels, work.waits = (covered(spans) / 1e6 if spans else None), len(spans), _counted(caught)


@contextmanager
def _events(activity: ProfilerActivity) -> Iterator[list]:
    """The profiler's events of what is done in the context, in the list when it has ended."""
    found: list = []
    profiler = profile(activities=[activity])
    now()
    profiler.start()
    try:
        yield found
        now()
    finally:
        profiler.stop()
    found += profiler.events() or []


@contextmanager
def _waits() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings that a GPU's synchronizing operations give in the context. PyTorch knows most of them, not all."""
    cuda = device().type == "cuda"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")


def _counted(caught: list[warnings.WarningMessage]) -> int:
    return sum(str(warning.message).startswith(WAITED) for warning in caught)


def spans_of(events: Iterable, kind: DeviceType) -> list[tuple[float, float]]:
    """Beginning and end in microseconds of what ran on a kind of device: no parts of other events, and no spans that
    programs have named."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind and event.cpu_parent is None and not getattr(event, "is_user_annotation", False)
    ]


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of what spans cover together: where two overlap, as on two streams, it counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def work_of(action: Callable[[], object], wall: float) -> Row:
    """What the device does in one call of an action, which takes `wall` seconds: columns of a table."""
    calls = max(1, min(20, int(LONGEST / wall)))
    with watched() as work:
        for _ in range(calls):
            action()
    return work.row(calls, wall)


def matrix_rates(batch: int, width: int, quick: bool) -> list[Row]:
    """GFLOP/s of products of large matrices, and of thin ones as in a backbone of this width with 64 columns an image,
    which no step of it can exceed: over the time in which the device works, or where that is unseen over the time that
    it needed for all."""
    large = (256,) * 3 if quick else (1536,) * 3 if device().type == "cpu" else (8192,) * 3
    shapes = {"large": large, "as the backbone's MLP": (64 * batch, width, 8 * width // 3)}
    rows: list[Row] = []
    for name, (n, k, m) in shapes.items():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = (torch.randn(shape, device=device()).to(dtype) for shape in ((n, k), (k, m)))
            for _ in range(3):
                a @ b
            calls = 2 if quick else 20
            with watched() as work:
                for _ in range(calls):
                    a @ b
            rate = 2 * n * k * m * calls / (work.seconds or work.elapsed) / 1e9
            rows.append({"matrices": f"{name}: {n} x {k} x {m}", "precision": precision, "GFLOP/s": rate})
    return rows


def peak_rate(rates: list[Row], precision: str) -> float:
    """The highest of `matrix_rates` at a precision, GFLOP/s."""
    return max(float(row["GFLOP/s"]) for row in rates if row["precision"] == precision)
