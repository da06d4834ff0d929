"""Train cells of one shape side by side in one process, ahead of DVC: what `infotok sweep` starts before their stages.

It leaves nothing but their checkpoints, the last of which is of the end. The stage `train` of a cell, which DVC runs
afterwards, goes on from there: it has no step left to do, and writes the outputs that it would have written alone.
So DVC says what is done as ever, and whatever ends this process costs what it costs a single training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from infotok.errors import InfotokError
from infotok.training.joint import JointConfig, StepData
from infotok.training.loop import Training
from infotok.training.runtime import start
from infotok.training.together import many_streams, room, side_by_side
from pipeline.config.cells import Cell
from pipeline.config.study import Study
from pipeline.running.stage import running
from pipeline.sweep.due import due
from pipeline.sweep.jobs import select
from stages.common import StudyOption, clear_errors, single
from stages.train import begun

STAGE = "train"


def ahead(study: Study, cell: Cell, shared: dict[int, StepData]) -> Training:
    """The training of a cell to its end, without a result; shared: batches by seed."""
    with running(STAGE, study, cell) as stage:
        if stage is None:  # another process has done it meanwhile
            return []
        with stage.progress(stage.config(JointConfig).steps, beside=True):
            return (yield from begun(stage, keep_end=True, shared=shared).training)


@clear_errors
def together(
    cells: Annotated[list[str], typer.Argument(metavar="CELL...", help="Such as ar-ceb-0.01-1-8-0.")],
    most: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at once.", show_default="on a GPU as many as pay, on a CPU 1"),
    ] = None,
    study: StudyOption = "default",
) -> None:
    """Train cells side by side into checkpoints, from which their own stages go on."""
    many_streams()
    chosen = Study(study)
    wanted = due(chosen, STAGE, select(chosen, cells))
    shared: dict[int, StepData] = {}
    failed: list[str] = []

    def ended(name: str, outcome: list[dict] | str) -> None:
        if isinstance(outcome, str):
            failed.append(name)
            print(f"{name}: {outcome}; it is left to its own stage", flush=True)
        else:
            print(f"{name}: trained", flush=True)

    trainings: list[tuple[str, Callable[[], Training]]] = [
        (cell.key, partial(ahead, chosen, cell, shared)) for cell in wanted
    ]
    device = start()
    side_by_side(trainings, room(most, device), device, ended)
    if failed:
        raise InfotokError(f"{len(failed)} of {len(wanted)} trainings have failed: {', '.join(failed)}")


if __name__ == "__main__":
    single(together)
