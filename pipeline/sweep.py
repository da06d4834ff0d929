"""The grid over DVC: what is done, what would run, and cells side by side."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from pipeline.cells import Cell
from pipeline.params import Params
from pipeline.processes import only_sweep, start, stop
from pipeline.results import Layout, read_result
from pipeline.tracking import fill_in

CELL_STAGES = ("train", "understand", "generate")
DEFAULTS = {"INFOTOK_THREADS": "1", "OMP_NUM_THREADS": "1", "INFOTOK_TRACKING": "training"}


def dvc_file(params: Params) -> str:
    """The dvc.yaml that runs this configuration, relative to the repository's root."""
    return str(Path(params.paths.params).parent / "dvc.yaml")


def state(layout: Layout, stage: str, cell: Cell | None) -> str:
    """`done`, `missing`, or `stale`: made by another configuration or other code."""
    folder = layout.folder(stage, cell)
    if not (folder / "metrics.json").exists():
        return "missing"
    try:
        read_result(folder, layout.params, stage, cell)
    except InfotokError:
        return "stale"
    return "done"


def cell_states(layout: Layout) -> dict[Cell, dict[str, str]]:
    """State of every stage of every cell, pretraining included."""
    stages = ("pretrain", *CELL_STAGES)
    return {cell: {stage: state(layout, stage, cell) for stage in stages} for cell in layout.params.cells()}


@dataclass
class Job:
    """One `dvc repro` of named stages, started once the jobs it waits for have ended well."""

    name: str
    targets: list[str]
    after: tuple[str, ...] = ()


def select(params: Params, globs: Sequence[str]) -> list[Cell]:
    """The grid's cells whose key (`ar-ceb-0.01-8-0`) matches any of the globs; all of them without a glob.

    Raises:
        InfotokError: a glob matches no cell.
    """
    cells = {cell.key: cell for cell in params.cells()}
    for glob in globs:
        if not any(fnmatchcase(key, glob) for key in cells):
            near = ", ".join(difflib.get_close_matches(glob, cells, n=3, cutoff=0))
            raise InfotokError(f"--only '{glob}' matches no cell of the grid of {params.paths.params}; nearest: {near}")
    return [cell for key, cell in cells.items() if not globs or any(fnmatchcase(key, glob) for glob in globs)]


def jobs(cells: Iterable[Cell]) -> list[Job]:
    """Cells and what they need as jobs, in the order in which free workers take them.

    Cells go by seed, so that paired seeds complete early and there is something to compare, then largest budgets
    first, since they take longest. A tokenizer stands before the first cell that needs it.
    """
    out = [
        Job("prepare", ["prepare"]),
        Job("perceptual", ["perceptual"], ("prepare",)),
        Job("judge", ["judge"], ("prepare",)),
    ]
    pretrained = set()
    for cell in sorted(cells, key=lambda cell: (cell.seed, -cell.tokens)):
        tokenizer = f"pretrain@{cell.tokenizer_key}"
        if tokenizer not in pretrained:
            out.append(Job(tokenizer, [tokenizer], ("perceptual",)))
            pretrained.add(tokenizer)
        targets = [f"{stage}@{cell.key}" for stage in CELL_STAGES]
        out.append(Job(cell.key, targets, ("judge", tokenizer)))
    return out


def environment() -> dict[str, str]:
    """Of a `dvc` whose stages' `python` is the one that runs this, activated environment or not."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return DEFAULTS | dict(os.environ) | {"PATH": path}


def sweep(layout: Layout, chosen: Iterable[Cell], workers: int, say: Callable[[str], None]) -> list[str]:
    """Run the jobs of these cells, `workers` at a time, going on past failures.

    Each is `dvc --wait-for-lock repro --single-item`, which takes DVC's lock only around its bookkeeping; results equal
    those of one `dvc repro`. Training logs to MLflow as it goes, evaluations of a cell are filled in when it is done.
    Logs of the jobs lie in `.ckpt/logs`. On SIGTERM and Ctrl-C the jobs end, their training with checkpoints.

    Returns:
        names of jobs that failed or that waited for one that failed.

    Raises:
        InfotokError: another sweep is running in this workspace.
        Stopped: a signal came, and all jobs have ended.
    """
    with only_sweep(layout.root) as lock, deferred() as signals:
        return _run(layout, chosen, workers, say, lock, signals)


def _run(
    layout: Layout, chosen: Iterable[Cell], workers: int, say: Callable[[str], None], lock: int, signals: list[int]
) -> list[str]:
    """`sweep`, under the workspace's lock."""
    params = layout.params
    cells = {cell.key: cell for cell in chosen}
    waiting, running, done, failed = jobs(cells.values()), {}, set(), []
    file, logs = dvc_file(params), Path(".ckpt") / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    total = len(waiting)
    while waiting or running:
        if signals:
            say(f"waiting for the checkpoints of {', '.join(running)}")
            stop((process, log) for process, log, _ in running.values())
            raise Stopped(signals[0])
        lost = [job for job in waiting if any(name in failed for name in job.after)]
        for job in lost:
            waiting.remove(job)
            failed.append(job.name)
            say(f"{job.name}: not run, since {next(n for n in job.after if n in failed)} failed")
        ready = [job for job in waiting if all(name in done for name in job.after)]
        for job in ready[: max(0, workers - len(running))]:
            waiting.remove(job)
            prefix = "" if file == "dvc.yaml" else f"{file}:"
            command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
            command += [f"{prefix}{target}" for target in job.targets]
            log = logs / f"{params.paths.results.replace('/', '-')}-{job.name}.log"
            running[job.name] = (start(command, log, lock, environment()), log, time.monotonic())
        for name, (process, log, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode == 0:
                done.add(name)
                say(f"[{len(done)}/{total}] {name} ({time.monotonic() - started:.0f} s)")
                if name in cells:
                    fill_in(layout, [cells[name]])
            else:
                failed.append(name)
                say(f"{name}: failed, see {log}")
        time.sleep(0.2)
    return failed
