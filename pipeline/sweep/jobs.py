"""The grid over DVC: what is done, what would run, and cells side by side."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rich.table import Table

from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from pipeline.config.cells import Cell
from pipeline.config.recipes import runs_of
from pipeline.config.study import Study, stage_name
from pipeline.graph import CONFIGURE, STAGES, Graph
from pipeline.results import state
from pipeline.sweep import watch
from pipeline.sweep.dvc_files import mend
from pipeline.sweep.engines.engine import Engine, Opener, Submitted
from pipeline.sweep.processes import only_sweep
from pipeline.tracking.mirror import fill_in

POLL = 0.2  # seconds between looks at the running jobs
TRIES = 4  # of a job whose machine is lost
DEFAULTS = {"INFOTOK_THREADS": "1", "OMP_NUM_THREADS": "1", "INFOTOK_TRACKING": "training"}


def cell_states(study: Study) -> dict[Cell, dict[str, str]]:
    """State of every stage of every cell, those included that cells share."""
    stages = study.graph.with_axes
    return {cell: {stage: state(study, stage, cell) for stage in stages} for cell in study.params.cells()}


def to_do(study: Study) -> list[str]:
    """The stages that are not done, as DVC names them, in order; what cells share stands once."""
    return list(dict.fromkeys(stage_name(*run) for run in runs_of(study) if state(study, *run) != "done"))


@dataclass
class Job:
    """One `dvc repro` of some stages, started once the jobs it waits for have ended well.

    ahead: its stages train side by side in one process instead, at most `most` at once, into checkpoints from which
    other jobs go on, in which they are the stages' `dvc repro` (`pipeline.sweep.groups`)."""

    name: str
    stages: list[tuple[str, Cell | None]]
    after: tuple[str, ...] = ()
    ahead: bool = False
    most: int | None = None

    @property
    def targets(self) -> list[str]:
        return [stage_name(stage, cell) for stage, cell in self.stages]


def select(study: Study, globs: Sequence[str]) -> list[Cell]:
    """The grid's cells whose key (`ar-ceb-0.01-1-8-0`) matches any of the globs; all of them without a glob.

    Raises:
        InfotokError: a glob matches no cell.
    """
    cells = {cell.key: cell for cell in study.params.cells()}
    for glob in globs:
        if not any(fnmatchcase(key, glob) for key in cells):
            near = ", ".join(difflib.get_close_matches(glob, cells, n=3, cutoff=0))
            raise InfotokError(f"--only '{glob}' matches no cell of the grid of {study.params_file}; nearest: {near}")
    return [cell for key, cell in cells.items() if not globs or any(fnmatchcase(key, glob) for glob in globs)]


class Times:
    """What stages took when they last ran here, which foretells what others of the same family and budget will take."""

    def __init__(self, study: Study):
        self.study = study
        self._seconds: dict[tuple, list[float]] = defaultdict(list)
        for cell in study.params.cells():
            for stage in study.graph.with_axes:
                self.take(stage, cell)

    def take(self, stage: str, cell: Cell | None) -> None:
        """Count a stage, if it has run."""
        try:
            seconds = float(self.study.duration_file(stage, cell).read_text())
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


def jobs(graph: Graph, cells: Iterable[Cell], times: Callable[[Job], float | None] = lambda job: None) -> list[Job]:
    """Cells and what they need as jobs, in the order in which free workers take them.

    Cells go by seed, so that paired seeds complete early and there is something to compare, and within a seed the
    longest first, so that no worker stands idle at the end: the largest budgets, and of these what took longest so
    far. What several cells share, such as their tokenizer, stands before the first that needs it.
    """
    out = [Job(CONFIGURE.name, [(CONFIGURE.name, None)])]
    out += [Job(name, [(name, None)], (CONFIGURE.name, *STAGES[name].inputs)) for name in graph.once]
    shared = [name for name in graph.with_axes if name not in graph.of_cells]

    def job(cell: Cell) -> Job:
        needed = dict.fromkeys(name for stage in graph.of_cells for name in STAGES[stage].inputs)
        needed = {name: None for name in needed if name not in graph.of_cells}
        after = tuple(stage_name(name, cell) for name in needed)
        return Job(cell.key, [(stage, cell) for stage in graph.of_cells], after)

    def place(cell: Cell) -> tuple:
        return cell.seed, -cell.tokens, -(times(job(cell)) or 0.0)

    for cell in sorted(cells, key=place):
        for name in shared:
            if all(stage_name(name, cell) != one.name for one in out):
                after = tuple(stage_name(needed, cell) for needed in STAGES[name].inputs)
                out.append(Job(stage_name(name, cell), [(name, cell)], after))
        out.append(job(cell))
    return out


def addresses(study: Study, job: Job) -> list[str]:
    """A job's stages as DVC takes them on its command line."""
    return [f"{study.dvc_file}:{target}" for target in job.targets]


def environment() -> dict[str, str]:
    """Of a `dvc` whose stages' `python` is the one that runs this, activated environment or not."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return DEFAULTS | dict(os.environ) | {"PATH": path}


def sweep(
    study: Study,
    chosen: Iterable[Cell],
    engine: Opener,
    say: Callable[[str], None],
    show: Callable[[Table], None] = lambda table: None,
    arrange: Callable[[list[Job]], list[Job]] = list,
) -> list[str]:
    """Run the jobs of these cells on an engine, going on past failures.

    What a kill cut off of DVC's own files is set aside first. A job whose machine was lost is submitted again, at most
    TRIES times in all; training goes on from the checkpoint that is to be found. Evaluations of a cell whose results
    are here are filled in in MLflow when it is done. Logs of the jobs lie in `.ckpt/<study>/logs`. On SIGTERM and
    Ctrl-C the jobs end, their training with checkpoints.

    Args:
        say: takes a line for every job that ends. show: takes a table of the running jobs, several times a second.
        arrange: puts further jobs among those planned, such as of cells that train in one process.

    Returns:
        names of jobs that failed or that waited for one that failed.

    Raises:
        InfotokError: another sweep is running in this workspace, or the engine refuses.
        Stopped: a signal came, and all jobs have ended.
    """
    times, cells = Times(study), {cell.key: cell for cell in chosen}
    waiting, done, failed = arrange(jobs(study.graph, cells.values(), times.of)), set(), []
    running: list[Submitted] = []
    tries: Counter[str] = Counter()
    kept = {job.name for job in waiting if all(n in STAGES and state(study, n, c) == "done" for n, c in job.stages)}
    (study.scratch / "logs").mkdir(parents=True, exist_ok=True)
    total = len(waiting)
    ahead = [job for job in waiting if job.name not in kept]
    with ExitStack() as entered:
        lock, signals = entered.enter_context(only_sweep(study.root)), entered.enter_context(deferred())
        for line in mend(study.root, study.dvc_file):
            say(line)
        at = entered.enter_context(engine(lock, ahead))
        while waiting or running:
            if signals:
                say(f"waiting for the checkpoints of {', '.join(one.name for one in running)}")
                at.cancel(running)
                raise Stopped(signals[0], f"{len(done)} of {total} jobs are done")
            for job in [job for job in waiting if any(name in failed for name in job.after)]:
                waiting.remove(job)
                failed.append(job.name)
                say(f"{job.name}: not run, since {next(n for n in job.after if n in failed)} failed")
            ready = [job for job in waiting if all(name in done for name in job.after)]
            for job in ready:
                if (taken := _submitted(at, job, running)) is None:
                    break
                waiting.remove(job)
                running.append(taken)
            for one in list(running):
                if (ended := at.poll(one)) is None:
                    continue
                running.remove(one)
                tries[one.name] += 1
                if ended.code == 0:
                    done.add(one.name)
                    on = f" on {one.place}" if one.place else ""
                    say(f"[{len(done)}/{total}] {one.name} ({watch.duration(one.elapsed)}{on})")
                    for stage in one.job.stages:
                        times.take(*stage)
                    if one.name in cells:
                        fill_in(study, [cells[one.name]])
                elif ended.lost and tries[one.name] < TRIES:
                    waiting.insert(0, one.job)
                    place = "its last checkpoint" if study.params.paths.checkpoints else "the start"
                    say(f"{one.name}: lost ({ended.lost}); it is run again, training from {place}")
                elif one.job.ahead:
                    done.add(one.name)
                    say(f"{one.name}: ended early, and its cells go on one by one; see {one.log}{one.reason()}")
                else:
                    failed.append(one.name)
                    lost = f" {tries[one.name]} times ({ended.lost})" if ended.lost else ""
                    say(f"{one.name}: failed{lost}, see {one.log}{one.reason()}")
            for one in running:
                one.look()
            seconds = [0.0 if job.name in kept else times.of(job) for job in waiting]
            show(_table(running, seconds, times, f"{len(done)} of {total} jobs done", failed))
            time.sleep(POLL)
    return failed


def _submitted(engine: Engine, job: Job, running: Sequence[Submitted]) -> Submitted | None:
    """A job, submitted; where the engine refuses it, the others end first."""
    try:
        return engine.submit(job)
    except InfotokError:
        engine.cancel(running)
        raise


def _table(running: list[Submitted], ahead: list[float | None], times: Times, count: str, failed: list[str]) -> Table:
    """Of the running jobs, and of the time that all may take where the grid has shown that yet. ahead: seconds of each
    waiting job."""

    def left(one: Submitted) -> float | None:
        stage, whole = one.left_in_stage(), times.of(one.job)
        if stage is not None:
            return stage + times.after(one.job, one.stage)
        return None if whole is None else max(0.0, whole - one.elapsed)

    todo = ahead + [left(one) for one in running]
    if todo and None not in todo:
        count += f", about {watch.duration(sum(todo) / max(1, len(running)))} left"
    if failed:
        count += f"; failed: {', '.join(failed)}"
    return watch.table(running, left, count)
