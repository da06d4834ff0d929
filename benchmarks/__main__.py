"""`python -m benchmarks step regularizer ...`: run benchmarks by name, show their tables and keep them as JSON."""

from __future__ import annotations

import importlib
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stages.common import StudyOption, clear_errors, single


class Name(StrEnum):
    """The benchmarks: modules of this package."""

    step = "step"
    regularizer = "regularizer"
    quantizer = "quantizer"
    data = "data"
    generation = "generation"
    overhead = "overhead"
    books = "books"
    sweep = "sweep"
    rounding = "rounding"
    chunked = "chunked"
    memory = "memory"
    cells = "cells"
    frozen = "frozen"
    gpu = "gpu"
    together = "together"


@clear_errors
def main(
    names: Annotated[list[Name], typer.Argument(help="Which to run, one after the other.")],
    study: StudyOption = "default",
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats at small sizes, to see that it runs.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="At most this long for all pieces of gpu.")] = 9.5,
    out: Annotated[str, typer.Option(help="Folder of the JSON files; benchmarks/results by default.")] = "",
) -> None:
    """Speed and cost of training, regularizer, quantizer, data, drawing and pipeline, on a quiet machine; rounding; all
    figures of a GPU, by `gpu`."""
    from benchmarks.common import RESULTS, Result, keep, machine, show
    from infotok.training.runtime import start
    from infotok.training.together import many_streams
    from pipeline.config.study import Study

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders go away
    many_streams()
    on_cpu = start().type == "cpu"
    settings, console = Study(study).params, Console()
    folder = Path(out) if out else RESULTS
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    for name in names:
        module, about = importlib.import_module(f"benchmarks.{name}"), machine()
        own = {Name.gpu: [minutes], Name.overhead: [folder]}
        found = module.measure(settings, quick, *own.get(name, []))
        for result in [found] if isinstance(found, Result) else found:
            small = quick or (on_cpu and name == Name.gpu)
            path = keep(name, result, command, small, about, folder)
        show(result, console)
        console.print(path, highlight=False)


if __name__ == "__main__":
    single(main)
