"""Cells that train side by side in one process: jobs of a sweep that go before those of the cells.

Such a job leaves checkpoints alone (`stages.together`); each cell's own job goes on from there. So a cell needs none of
it: where it fails, cells train by themselves.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from infotok.errors import InfotokError
from pipeline.config.cells import Cell
from pipeline.config.study import Study, stage_name
from pipeline.graph import FROM_SCRATCH, STAGES
from pipeline.results import state
from pipeline.running.processes import VARIABLE, wanted
from pipeline.sweep.engines.devices import visible
from pipeline.sweep.jobs import Job

STAGE = FROM_SCRATCH.trains
Arrange = Callable[[list[Job]], list[Job]]


def arrangement(study: Study, *, together: int | None, engine: str, gpus: float | None, pull: bool) -> Arrange:
    """What puts such jobs among those of a sweep.

    Args:
        together: trainings at once in a process; None: on GPUs as many as pay, elsewhere one.
        engine, gpus, pull: the sweep's options. Where one of them excludes such jobs, there are none.

    Raises:
        InfotokError: `together` was asked for, and there can be none.
    """
    reasons = {
        "--together: is of `--engine local`; elsewhere --gpus-per-cell lets cells share a GPU": engine != "local",
        "--together: trains before DVC looks into its remote; leave out --together or --pull": pull,
        f"--together: the models of {study.params_file} are tuned, not trained; leave it out": STAGE
        not in study.graph.stages,
        f"--together: {VARIABLE} lets every training take several processes; unset it or leave out --together": wanted()
        > 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if together is None:
        return list if found or gpus is not None else partial(_on_gpus, study=study)
    if found and together > 1:
        raise InfotokError(found[0])
    return partial(grouped, study=study, most=together) if together > 1 else list


def _on_gpus(jobs: list[Job], *, study: Study) -> list[Job]:
    count = _gpus()
    return grouped(jobs, study=study, groups=count) if count else jobs


def _gpus() -> int:
    """How many GPUs cells would use."""
    device = os.environ.get("INFOTOK_DEVICE", "")
    return len(visible()) if device in ("", "cuda") else int(device.startswith("cuda"))


def grouped(jobs: list[Job], *, study: Study, groups: int = 1, most: int | None = None) -> list[Job]:
    """The jobs of a sweep, and before those of cells of one family and budget that are still to be trained the jobs
    that train them side by side: `groups` of them, or with `most` as many as give each of them so many cells."""
    alike: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for job in jobs:
        for stage, cell in job.stages:
            if stage == STAGE and cell is not None and state(study, STAGE, cell) != "done":
                alike[cell.family, cell.tokens].append(cell)
    first: dict[str, Job] = {}  # cell -> the job that trains it
    for (family, tokens), cells in alike.items():
        size = most or -(-len(cells) // groups)
        for number, start in enumerate(range(0, len(cells), size)):
            together = cells[start : start + size]
            if len(together) > 1:
                needed = [stage_name(name, cell) for name in STAGES[STAGE].inputs for cell in together]
                stages = [(STAGE, cell) for cell in together]
                name = f"together-{family}-{tokens}" + (f"-{number + 1}" if len(cells) > size else "")
                job = Job(name, stages, tuple(dict.fromkeys(needed)), ahead=True, most=most)
                first |= {cell.key: job for cell in together}
    found: list[Job] = []
    for job in jobs:
        if (before := first.get(job.name)) is None:
            found.append(job)
            continue
        if before not in found:
            found.append(before)
        found.append(replace(job, after=(*job.after, before.name)))
    return found
