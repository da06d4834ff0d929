"""What every stage does around its work: options, one clear error, a lock, a progress line, the result."""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from infotok.errors import InfotokError
from infotok.stopping import stoppable
from pipeline.config.cells import Cell, parse_arm, stage_key
from pipeline.files import remove_leftovers
from pipeline.sweep import progress
from stages.processes import SHARING, Processes, check_batch, launch, wanted

if TYPE_CHECKING:  # half of what `infotok --help` would take
    from pipeline.config.params import Params
    from pipeline.running.results import Layout

ParamsOption = Annotated[str, typer.Option("--params", help="The parameters, checked on reading.")]
FamilyOption = Annotated[str, typer.Option(help="Family of unified model, as in grid.family.")]
ArmOption = Annotated[str, typer.Option(help="<estimator>-<beta>, such as ceb-0.01-1; the baseline is none-0.")]
TokensOption = Annotated[int, typer.Option(help="Token budget K of one image.")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, data order and sampling noise.")]

# What the disk says when it takes no more: full, over quota, over a file's allowed size, read-only.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

errors = Console(stderr=True, soft_wrap=True, highlight=False)


def clear_errors(command: Callable) -> Callable:
    """Turn an InfotokError or a full disk into one line on standard error and exit code 2; SIGTERM and Ctrl-C into one
    line that says how to go on, and the exit code 143 or 130 that shells give them."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        handler = RichHandler(console=errors, show_time=False, show_path=False, markup=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
        try:
            with stoppable():
                return command(*args, **kwargs)
        except InfotokError as error:
            if os.environ.get("RANK", "0") != "0":
                time.sleep(10)  # if the first process failed too, it has said so and all are ended by then
            _say("error", str(error))
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            place = f"{error.filename}: " if error.filename else ""
            _say("error", f"{place}cannot be written ({error.strerror or error}); make room and run the same again")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            _say(str(stopped) or "stopped", "the same command, or `dvc repro`, goes on; what was finished stays")
            raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None

    return wrapped


def _say(kind: str, text: str) -> None:
    kind, text = (part.replace("[", chr(92) + "[") for part in (kind, text))
    errors.print(f"[bold red]{kind}:[/] {text}")


def single(command: Callable) -> None:
    """Run one stage as a program: `python -m stages.<name>`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def _command(body: Callable[[Stage], None], command: Callable) -> Callable:
    command.__name__, command.__doc__ = body.__name__, body.__doc__
    return clear_errors(command)


def shared_stage(body: Callable[[Stage], None]) -> Callable:
    """Make `body(run)` the command of a stage that runs once for the whole grid; it bears the stage's name."""

    def command(params: ParamsOption = "params.yaml") -> None:
        _run(body, params, None)

    return _command(body, command)


def tokenizer_stage(body: Callable[[Stage], None]) -> Callable:
    """Make `body(run)` the command of a stage that runs once for all arms of a family, budget and seed."""

    def command(
        family: FamilyOption = "ar",
        tokens: TokensOption = 8,
        seed: SeedOption = 0,
        params: ParamsOption = "params.yaml",
    ) -> None:
        _run(body, params, (family, "none-0-0", tokens, seed))

    return _command(body, command)


def cell_stage(body: Callable[[Stage], None]) -> Callable:
    """Make `body(run)` the command of a stage that runs once for every cell of the grid."""

    def command(
        family: FamilyOption = "ar",
        arm: ArmOption = "none-0-0",
        tokens: TokensOption = 8,
        seed: SeedOption = 0,
        params: ParamsOption = "params.yaml",
    ) -> None:
        _run(body, params, (family, arm, tokens, seed))

    return _command(body, command)


def _run(body: Callable[[Stage], None], params: str, cell_options: tuple | None) -> None:
    name = body.__name__
    if name in SHARING and (count := wanted()) > 1:
        from pipeline.config.params import load_params

        checked = load_params(params)
        check_batch(name, checked, count)
        cell_of(checked, *cell_options)
        options = zip(("--family", "--arm", "--tokens", "--seed"), map(str, cell_options), strict=True)
        given = [part for option in options if name != "pretrain" or option[0] != "--arm" for part in option]
        return launch(name, [*given, "--params", params], count)
    with stage(name, params, cell_options) as run:
        if run is not None:
            body(run)


def cell_of(params: Params, family: str, arm: str, tokens: int, seed: int) -> Cell:
    """The cell of command-line options; it need not be in the grid.

    Raises:
        InfotokError: an option says something that no grid may say.
    """
    from infotok.models import family_names
    from infotok.tokenizer import patch_grid

    if family not in family_names():
        raise InfotokError(f"--family: '{family}' is unknown; known: {', '.join(family_names())}")
    try:
        patch_grid(params.data.image_size, tokens)
    except InfotokError as error:
        raise InfotokError(f"--tokens: {error}") from None
    if seed < 0:
        raise InfotokError(f"--seed: {seed} is negative; use 0 or more")
    return Cell(family, *parse_arm(arm, "--arm"), tokens, seed)


class Stage:
    """One running stage: its layout, its progress and its result."""

    def __init__(self, name: str, params: Params, cell: Cell | None, key: str, folder: Path, tracker, processes):
        from pipeline.running.results import Layout, source_digest

        self.name, self.params, self.cell, self.key, self.folder = name, params, cell, key, folder
        self.layout = Layout(params)
        self.source = source_digest(name, cell.family if cell else "")
        self.warnings: list[str] = []
        self.tracker, self.started, self.steps = tracker, time.monotonic(), 0
        self.processes, self._progress, self._task = processes, None, None
        self._planned = 0
        if processes.first:
            progress.leave(name)

    def checkpoints(self):
        """Where this stage keeps its resumable state; says so where there is some to go on from."""
        from infotok.training.checkpoints import Checkpoints
        from pipeline.running.results import fingerprint

        # By the code too: weights of two states of it in one training would pass as those of the second.
        mark = f"{fingerprint(self.params, self.name, self.cell)}-{self.source}"
        kept = Checkpoints(self.layout.checkpoints(self.name, self.key, mark))
        if self.processes.first and (path := kept.latest()):
            errors.print(f"{self.name} {self.key}: goes on from {path}", markup=False)
        return kept

    def warn(self, message: str) -> None:
        """Log a warning and keep it in the result, where MLflow and the report show it."""
        logging.getLogger("infotok").warning("%s %s: %s", self.name, self.key, message)
        self.warnings.append(message)

    def observe(self, step: int, values: dict[str, float]) -> None:
        """Show and track the values of one logged training step."""
        progress.leave(self.name, step, self._planned)
        self.tracker.log(step, {f"{self.name}/{name}": value for name, value in values.items()})
        if self._progress is not None:
            shown = ("loss", "understanding", "generation", "reconstruction", "rate_bits")
            text = "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)
            self._progress.update(self._task, completed=step, values=text)

    @contextmanager
    def progress(self, steps: int) -> Iterator[None]:
        """A progress line while training; nothing when the output is not a terminal."""
        self._planned = steps
        console = Console(stderr=True)
        if not console.is_terminal or not self.processes.first:
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, TextColumn("{task.fields[values]}"), console=console) as self._progress:
            self._task = self._progress.add_task(f"{self.name} {self.key}", total=steps, values="")
            yield
        self._progress = None

    def finish(self, metrics: dict[str, float], protocol: dict, history: list[dict] | None = None) -> dict:
        """Write history.jsonl and, last of all, metrics.json, which makes the result valid; mirror it in MLflow."""
        import json

        from pipeline.files import write_text
        from pipeline.running.results import write_result

        if history is not None:
            lines = [{k if k == "step" else f"{self.name}/{k}": v for k, v in line.items()} for line in history]
            write_text(self.folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        result = write_result(
            self.folder,
            self.params,
            self.name,
            self.cell,
            source=self.source,
            metrics=metrics,
            protocol=protocol,
            warnings=self.warnings,
        )
        write_text(self.layout.took(self.name, self.cell), f"{time.monotonic() - self.started:.2f}\n")
        images = {name: self.folder / f"{name}.png" for name in ("samples", "reconstructions")}
        self.tracker.finish(result, {name: path for name, path in images.items() if path.exists()})
        return result


@contextmanager
def stage(name: str, params_path: str, cell_options: tuple | None = None) -> Iterator[Stage | None]:
    """Run one stage alone in its cell.

    A second process for the same stage and cell waits for the first (training goes on when its parent is killed),
    and yields None when that one has finished the work.
    """
    from pipeline.config.params import load_params
    from pipeline.running.results import Layout
    from pipeline.tracking.mirror import track_stage

    params = load_params(params_path)
    cell = cell_of(params, *cell_options) if cell_options else None
    layout = Layout(params)
    folder, key, processes = layout.folder(name, cell), stage_key(name, cell), Processes(name, params)
    if not processes.first:
        if processes.hear():
            yield None
            return
        with track_stage(layout, None, name) as silent:
            yield Stage(name, params, cell, key, folder, silent, processes)
        processes.leave()
        return
    with _alone(layout, name, key) as waited:
        done = waited and _is_done(folder, params, name, cell)
        processes.tell(done)
        if done:
            yield None
            return
        remove_leftovers(folder)
        with track_stage(layout, cell, name) as tracker:
            yield Stage(name, params, cell, key, folder, tracker, processes)
        processes.leave()


def _is_done(folder: Path, params: Params, name: str, cell: Cell | None) -> bool:
    from pipeline.running.results import read_result

    try:
        read_result(folder, params, name, cell)
    except InfotokError:
        return False
    return True


@contextmanager
def _alone(layout: Layout, name: str, key: str) -> Iterator[bool]:
    """Hold the lock of one stage and cell; yields whether another process held it first."""
    path = layout.root / ".ckpt" / "locks" / f"{str(layout.params.paths.results).replace('/', '-')}-{name}-{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        waited = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            print(f"{name} {key} is running in another process; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield waited
