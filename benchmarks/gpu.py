"""All figures of a GPU by one command, in under ten minutes on an H200: steps of every family at two batches, operation
by operation, recorded and compiled, then regularizer, quantizer, drawing, data and memory of the information terms.

Every piece is a process of its own: `Pieces` says what became of each. The tables are kept after every piece, as JSON
and as Markdown. On a CPU the same is done at small sizes, to see that it runs.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import data, whole
from benchmarks.common import Result, peak_mib
from benchmarks.device import Row, device, matrix_rates, peak_rate
from benchmarks.pieces import Piece, done_one_by_one
from benchmarks.step import ARM, step_flops
from benchmarks.training import FAMILIES, prepared
from infotok.training.runtime import uses_bf16
from pipeline.config.params import Params

# Other benchmarks, and how many seconds each has at most.
OTHERS = {"together": 120, "quantizer": 60, "regularizer": 120, "generation": 120, "chunked": 60, "frozen": 60}
STEPS, RATES, PIECES = "A whole step", "Matrix products on this device", "Pieces"
LIMIT, COMPILING = 60, 150  # seconds of a piece, and of one that compiles
Tables = dict[str, list[Row]]


def measure(params: Params, quick: bool, minutes: float) -> Iterator[Result]:
    """The result as it grows."""
    cuda = device().type == "cuda"
    quick = quick or not cuda
    settings = {"arm": vars(ARM), "tokens": max(params.grid.tokens), "precision": params.train.precision}
    settings |= {"minutes": minutes, "quick": quick, "backbone": params.backbone.model_dump()}
    pieces = planned(params, ("cuda" if cuda else "cpu"), quick)
    yield from grown(pieces, settings, 60 * minutes)


def grown(pieces: list[Piece], settings: dict, seconds: float, imports: str = "benchmarks.step") -> Iterator[Result]:
    """The tables of pieces, those of one title together, and last what became of the pieces."""
    tables: Tables = {}
    outcomes = []
    for found, outcome in done_one_by_one(pieces, seconds, imports):
        outcomes.append(outcome)
        for title, rows in found.items():
            tables[title] = tables.get(title, []) + rows
        yield Result(settings, tables | {PIECES: outcomes}, markdown=True)


def planned(params: Params, kind: str, quick: bool) -> list[Piece]:
    """What is measured, the most important first; what compiles last, since it takes longest."""
    batches = [params.train.batch] if quick else [params.train.batch, whole.LARGE]

    def steps(compile: str, limit: int) -> list[Piece]:
        return [of_steps(family, batch, compile, limit) for batch in batches for family in FAMILIES]

    def of_steps(family: str, batch: int, compile: str, limit: int) -> Piece:
        """If it fails, again without a profiler: some versions of CUDA's have crashed on recorded graphs."""
        name, given = f"step: {family}, batch {batch}, {compile}", (params, family, batch, compile, quick)
        return Piece(name, step, given, limit, Piece(f"{name}, not watched", step, (*given, False), limit))

    first = [compile for compile in whole.COMPILE[kind] if compile != "fuse"]
    return [
        Piece("matrix products", rates, (params, quick), LIMIT),
        *(piece for compile in reversed(first) for piece in steps(compile, LIMIT)),
        *(Piece(name, other, (name, params, quick), limit) for name, limit in OTHERS.items()),
        Piece("data", bringing, (params, quick), LIMIT),
        *(steps("fuse", COMPILING) if "fuse" in whole.COMPILE[kind] else []),
    ]


def rates(params: Params, quick: bool) -> Tables:
    return {RATES: matrix_rates(params.train.batch, params.backbone.width, quick)}


def step(params: Params, family: str, batch: int, compile: str, quick: bool, watch: bool = True) -> Tables:
    """A row for one form of a step. watch: the device. peak_MiB: of a GPU, what its tensors took at once."""
    with tempfile.TemporaryDirectory() as folder:
        given = prepared(params, Path(folder) / "data", 2 * batch)
        trainer = whole.trainer(params, family, given, batch, compile)
        windows, uncounted = (1, 1) if quick else (5, whole.UNCOUNTED)
        steps = whole.measured(trainer, ARM, windows, uncounted, watch)
        row = {"family": family, "batch": batch, "compile": compile} | steps.row(batch) | {"peak_MiB": peak_mib()}
        apart = whole.trainer(params, family, given, batch, "never")  # what is compiled hides its operators
        gflops = step_flops(apart, 2) / (row["median_ms"] / 1000) / 1e9
    used = "bf16" if uses_bf16(device(), params.train.precision) else "fp32"
    matrices = matrix_rates(params.train.batch, params.backbone.width, quick)
    return {STEPS: [row | {"GFLOP/s": gflops, "of_peak_%": 100 * gflops / peak_rate(matrices, used)}]}


def other(name: str, params: Params, quick: bool) -> Tables:
    """The tables of another benchmark."""
    return importlib.import_module(f"benchmarks.{name}").measure(params, quick).tables


def bringing(params: Params, quick: bool) -> Tables:
    """What a step is given, brought to the device, at both batches."""
    rows = []
    for batch in [params.train.batch] if quick else [params.train.batch, whole.LARGE]:
        train = params.train.model_copy(update={"batch": batch})
        with tempfile.TemporaryDirectory() as folder:
            prepared(params, Path(folder) / "data", 4 * batch)
            chosen = params.model_copy(update={"train": train})
            rows += data.bringing(chosen, Path(folder) / "data", 2 if quick else 50)
    return {"Bringing a step to the device": rows}
