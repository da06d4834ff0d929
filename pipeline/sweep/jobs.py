"""The grid over DVC: what is done, what would run, and cells side by side."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rich.table import Table

from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from pipeline.config.cells import Cell, stage_name
from pipeline.config.params import Params
from pipeline.running.results import Layout, read_result
from pipeline.sweep import progress
from pipeline.sweep.dvc_files import mend
from pipeline.sweep.processes import only_sweep, start, stop
from pipeline.tracking.mirror import fill_in

CELL_STAGES = ("train", "understand", "generate")
POLL = 0.2  # seconds between looks at the running jobs
DEFAULTS = {"INFOTOK_THREADS": "1", "OMP_NUM_THREADS": "1", "INFOTOK_TRACKING": "training"}


def dvc_file(params: Params) -> str:
    """The dvc.yaml that runs this configuration, relative to the repository's root."""
    return str(Path(params.paths.params).parent / "dvc.yaml")


def check_profile(params: Params, path: str | Path) -> None:
    """That DVC would run these parameters, read from `path`, and no others.

    Raises:
        InfotokError: `paths.params` names another file, as in a copied profile, or no dvc.yaml lies beside it.
    """
    named = Path(params.paths.params)
    if named.resolve() != Path(path).resolve():
        raise InfotokError(f"{path}: 'paths.params' is {named}, which DVC would run instead; name this file there")
    if not Path(dvc_file(params)).exists():
        link = os.path.relpath("dvc.yaml", named.parent)
        raise InfotokError(f"{dvc_file(params)}: is missing; make it with  ln -sf {link} {dvc_file(params)}")


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
    """One `dvc repro` of some stages, started once the jobs it waits for have ended well."""

    name: str
    stages: list[tuple[str, Cell | None]]
    after: tuple[str, ...] = ()

    @property
    def targets(self) -> list[str]:
        return [stage_name(stage, cell) for stage, cell in self.stages]


def select(params: Params, globs: Sequence[str]) -> list[Cell]:
    """The grid's cells whose key (`ar-ceb-0.01-1-8-0`) matches any of the globs; all of them without a glob.

    Raises:
        InfotokError: a glob matches no cell.
    """
    cells = {cell.key: cell for cell in params.cells()}
    for glob in globs:
        if not any(fnmatchcase(key, glob) for key in cells):
            near = ", ".join(difflib.get_close_matches(glob, cells, n=3, cutoff=0))
            raise InfotokError(f"--only '{glob}' matches no cell of the grid of {params.paths.params}; nearest: {near}")
    return [cell for key, cell in cells.items() if not globs or any(fnmatchcase(key, glob) for glob in globs)]


class Times:
    """What stages took when they last ran here, which foretells what others of the same family and budget will take."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._seconds: dict[tuple, list[float]] = defaultdict(list)
        for cell in layout.params.cells():
            for stage in ("pretrain", *CELL_STAGES):
                self.take(stage, cell)

    def take(self, stage: str, cell: Cell | None) -> None:
        """Count a stage, if it has run."""
        try:
            seconds = float(self.layout.took(stage, cell).read_text())
        except (OSError, ValueError):
            return
        self._seconds[self._like(stage, cell)].append(seconds)

    def of(self, job: Job) -> float | None:
        """Seconds that a job takes, 0 of what no other has shown; None where that is all of it."""
        known = [self._mean(*stage) for stage in job.stages]
        return None if all(seconds is None for seconds in known) else sum(seconds or 0.0 for seconds in known)

    def after(self, job: Job, stage: str) -> float:
        """Seconds of a job's stages that come after the named one, 0 of what no other has shown."""
        names = [name for name, _ in job.stages]
        later = job.stages[names.index(stage) + 1 :] if stage in names else []
        return sum(self._mean(*one) or 0.0 for one in later)

    def _mean(self, stage: str, cell: Cell | None) -> float | None:
        found = self._seconds[self._like(stage, cell)]
        return sum(found) / len(found) if found else None

    @staticmethod
    def _like(stage: str, cell: Cell | None) -> tuple:
        return (stage, cell.family, cell.tokens) if cell else (stage,)


def jobs(cells: Iterable[Cell], times: Callable[[Job], float | None] = lambda job: None) -> list[Job]:
    """Cells and what they need as jobs, in the order in which free workers take them.

    Cells go by seed, so that paired seeds complete early and there is something to compare, and within a seed the
    longest first, so that no worker stands idle at the end: the largest budgets, and of these what took longest so
    far. A tokenizer stands before the first cell that needs it.
    """
    out = [
        Job("prepare", [("prepare", None)]),
        Job("perceptual", [("perceptual", None)], ("prepare",)),
        Job("judge", [("judge", None)], ("prepare",)),
    ]

    def job(cell: Cell) -> Job:
        stages = [(stage, cell) for stage in CELL_STAGES]
        return Job(cell.key, stages, ("judge", stage_name("pretrain", cell)))

    def place(cell: Cell) -> tuple:
        return cell.seed, -cell.tokens, -(times(job(cell)) or 0.0)

    for cell in sorted(cells, key=place):
        tokenizer = stage_name("pretrain", cell)
        if all(tokenizer != one.name for one in out):
            out.append(Job(tokenizer, [("pretrain", cell)], ("perceptual",)))
        out.append(job(cell))
    return out


def environment() -> dict[str, str]:
    """Of a `dvc` whose stages' `python` is the one that runs this, activated environment or not."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return DEFAULTS | dict(os.environ) | {"PATH": path}


class Running(progress.Watched):
    """A job's process."""

    def __init__(self, job: Job, params: Params, logs: Path, lock: int, options: Sequence[str]):
        label = f"{params.paths.results.replace('/', '-')}-{job.name}"
        super().__init__(job.name, logs / f"{label}.json")
        self.job, self.log = job, logs / f"{label}.log"
        self.path.unlink(missing_ok=True)
        file = dvc_file(params)
        prefix = "" if file == "dvc.yaml" else f"{file}:"
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *options]
        command += [f"{prefix}{target}" for target in job.targets]
        variables = environment() | {progress.VARIABLE: str(self.path.absolute())}
        self.process = start(command, self.log, lock, variables)

    def ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.path.unlink(missing_ok=True)
        return True


def sweep(
    layout: Layout,
    chosen: Iterable[Cell],
    workers: int,
    say: Callable[[str], None],
    show: Callable[[Table], None] = lambda table: None,
    options: Sequence[str] = (),
) -> list[str]:
    """Run the jobs of these cells, `workers` at a time, going on past failures.

    Each is `dvc --wait-for-lock repro --single-item`, which takes DVC's lock only around its bookkeeping; results equal
    those of one `dvc repro`. What a kill cut off of DVC's own files is set aside first. Training logs to MLflow as it
    goes, evaluations of a cell are filled in when it is done. Logs of the jobs lie in `.ckpt/logs`. On SIGTERM and
    Ctrl-C the jobs end, their training with checkpoints.

    Args:
        say: takes a line for every job that ends. show: takes a table of the running jobs, several times a second.
        options: more of `dvc repro`, such as `--pull`.

    Returns:
        names of jobs that failed or that waited for one that failed.

    Raises:
        InfotokError: another sweep is running in this workspace.
        Stopped: a signal came, and all jobs have ended.
    """
    times, cells = Times(layout), {cell.key: cell for cell in chosen}
    waiting, running, done, failed = jobs(cells.values(), times.of), [], set(), []
    kept = {job.name for job in waiting if all(state(layout, *stage) == "done" for stage in job.stages)}
    logs = Path(".ckpt") / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    total = len(waiting)
    with only_sweep(layout.root) as lock, deferred() as signals:
        for line in mend(layout.root, dvc_file(layout.params)):
            say(line)
        while waiting or running:
            if signals:
                say(f"waiting for the checkpoints of {', '.join(one.name for one in running)}")
                stop((one.process, one.log) for one in running)
                raise Stopped(signals[0], f"{len(done)} of {total} jobs are done")
            for job in [job for job in waiting if any(name in failed for name in job.after)]:
                waiting.remove(job)
                failed.append(job.name)
                say(f"{job.name}: not run, since {next(n for n in job.after if n in failed)} failed")
            ready = [job for job in waiting if all(name in done for name in job.after)]
            for job in ready[: max(0, workers - len(running))]:
                waiting.remove(job)
                running.append(Running(job, layout.params, logs, lock, options))
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                if one.process.returncode == 0:
                    done.add(one.name)
                    say(f"[{len(done)}/{total}] {one.name} ({progress.duration(one.elapsed)})")
                    for stage in one.job.stages:
                        times.take(*stage)
                    if one.name in cells:
                        fill_in(layout, [cells[one.name]])
                else:
                    failed.append(one.name)
                    say(f"{one.name}: failed, see {one.log}")
            for one in running:
                one.look()
            ahead = [0.0 if job.name in kept else times.of(job) for job in waiting]
            show(_table(running, ahead, times, workers, f"{len(done)} of {total} jobs done", failed))
            time.sleep(POLL)
    return failed


def _table(
    running: list[Running], ahead: list[float | None], times: Times, workers: int, count: str, failed: list[str]
) -> Table:
    """Of the running jobs, and of the time that all may take where the grid has shown that yet. ahead: seconds of each
    waiting job."""

    def left(one: Running) -> float | None:
        stage, whole = one.left_in_stage(), times.of(one.job)
        if stage is not None:
            return stage + times.after(one.job, one.stage)
        return None if whole is None else max(0.0, whole - one.elapsed)

    todo = ahead + [left(one) for one in running]
    if todo and None not in todo:
        count += f", about {progress.duration(sum(todo) / workers)} left"
    if failed:
        count += f"; failed: {', '.join(failed)}"
    return progress.table(running, left, count)
