"""What every command has around its work: its options, the checkout it works in, one clear error."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from infotok.errors import DamagedDataError, InfotokError, SettingError
from infotok.stopping import stoppable
from pipeline.config.study import Study, find_root
from pipeline.config.variables import check_variables
from pipeline.graph import CONFIGURE, FROM_SCRATCH, PRETRAINED, REPORT, STAGES, Spec

if TYPE_CHECKING:
    from pipeline.config.cells import Cell

StudyOption = Annotated[
    str, typer.Option("--study", "-s", help="A folder of studies/; `default` is the params.yaml of the repository.")
]
FamilyOption = Annotated[str, typer.Option(help="Family of unified model, as in grid.family.")]
ArmOption = Annotated[
    str, typer.Option(help="<estimator>-<beta>-<gamma>, such as ceb-0.01-1; the baseline is none-0-0.")
]
TokensOption = Annotated[int, typer.Option(help="Token budget K of one image.")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, data order and sampling noise.")]
AXES = {
    "family": (FamilyOption, "ar"),
    "arm": (ArmOption, "none-0-0"),
    "tokens": (TokensOption, 8),
    "seed": (SeedOption, 0),
}
# Where families are a study's own models, none of these can be guessed.
TO_NAME = {
    "family": (
        Annotated[str | None, typer.Option(help="Of the study's models; to be given.", show_default=False)],
        None,
    ),
    "tokens": (
        Annotated[
            int | None, typer.Option(help="Of grid.tokens, those of an image at most; to be given.", show_default=False)
        ],
        None,
    ),
}

COMMANDS = {CONFIGURE.name: CONFIGURE, **STAGES, REPORT.name: REPORT}

# What the disk says when it takes no more: full, over quota, over a file's allowed size, read-only.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

PATIENCE = 10.0  # seconds

USAGE = typer.BadParameter.__base__  # of all that typer has against a command line

errors = Console(stderr=True, soft_wrap=True, highlight=False)


def clear_errors(command: Callable) -> Callable:
    """Run a command in the root of its checkout, wherever it was started.

    An InfotokError or a full disk becomes one line on standard error and exit code 2, a setting of the study in the
    option `study` with file and line; SIGTERM and Ctrl-C one line that says how to go on, and the exit code 143 or 130
    that shells give them.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal of few letters loses some, and no result
        handler = RichHandler(console=errors, show_time=False, show_path=False, markup=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
        here, root = Path.cwd(), find_root()
        if here != root:
            os.chdir(root)
            kwargs = {name: here / value if isinstance(value, Path) else value for name, value in kwargs.items()}
        try:
            with stoppable():
                check_variables()
                return command(*args, **kwargs)
        except InfotokError as error:
            if os.environ.get("WORLD_SIZE") and os.environ.get("RANK", "0") != "0":
                time.sleep(PATIENCE)  # if the first process failed too, it has said so and all are ended by then
            if isinstance(error, SettingError) and "study" in kwargs:
                error = Study(kwargs["study"]).located(error)
            say("error", str(error))
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            place = f"{error.filename}: " if error.filename else ""
            say("error", f"{place}cannot be written ({error.strerror or error}); make room and run the same again")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            say(str(stopped) or "stopped", "the same command, or `dvc repro`, goes on; what was finished stays")
            raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None

    return wrapped


def say(kind: str, text: str) -> None:
    """One line on standard error."""
    kind, text = (part.replace("[", chr(92) + "[") for part in (kind, text))
    errors.print(f"[bold {'yellow' if kind == 'note' else 'red'}]{kind}:[/] {text}")


def stage_command(spec: Spec) -> Callable[..., None]:
    """The command of a stage: an option for each of its axes, and the study.

    What the stage does, `stages.<name>.<name>`, and all that it imports are loaded when the command runs: its help
    comes from the table of stages alone. It is called with the running stage; those that look over the whole grid,
    configure and report, with the study.
    """

    def command(**options: Any) -> None:
        _run(spec, Study(options.pop("study")), options)

    of_models = spec.name in PRETRAINED.stages and spec.name not in FROM_SCRATCH.stages
    axes = AXES | TO_NAME if of_models else AXES
    given = [(name, *axes[name]) for name in spec.axes] + [("study", StudyOption, "default")]
    command.__name__, command.__doc__ = spec.name, spec.help
    command.__signature__ = inspect.Signature(  # what typer reads
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, kind, default in given
        ]
    )
    return clear_errors(command)


def main(name: str) -> None:
    """Run one stage as a program: `python -m stages.<name>`."""
    single(stage_command(COMMANDS[name]))


def single(command: Callable) -> None:
    """Run one command as a program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_program(app)


def run_program(app: typer.Typer) -> NoReturn:
    """Run a command line. One that it does not understand is one line on standard error, and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except USAGE as error:
        more = f"; `{error.ctx.command_path} --help` shows what it takes" if error.ctx else ""
        if said := " ".join(error.format_message().split()).rstrip("."):  # else help was asked for by no word at all
            say("error", f"{said[0].lower()}{said[1:]}{more}")
        sys.exit(error.exit_code)
    sys.exit(code or 0)


def _run(spec: Spec, study: Study, options: dict[str, Any]) -> None:
    try:
        _work(spec, study, options)
    except DamagedDataError as error:
        raise InfotokError(f"{error}; {study.remedy('prepare')}") from None


def _work(spec: Spec, study: Study, options: dict[str, Any]) -> None:
    from pipeline.running.processes import check_batch, joined, launch, wanted
    from pipeline.running.stage import running

    work = getattr(import_module(f"stages.{spec.name}"), spec.name)
    if spec.name not in STAGES:
        return work(study)
    if spec.name not in study.graph.stages:
        raise InfotokError(
            f"{spec.name}: is no stage of {study.params_file}, whose own are {', '.join(study.graph.stages)}; name "
            "another study by --study"
        )
    for name in (name for name in spec.axes if options.get(name, "") is None):
        known = ", ".join(map(str, getattr(study.params.grid, name)))
        raise InfotokError(f"--{name}: is missing; grid.{name} of {study.params_file} has {known}")
    cell = cell_of(study, **options) if spec.axes else None
    if spec.shared and (count := wanted()) > 1:
        check_batch(spec.name, study, count)
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return launch(spec.name, [*given, *study.options], count)
    if cell is not None and os.environ.get("RANK", "0") == "0":
        _tell_outside(spec, study, cell)
    with running(spec.name, study, cell, joined(spec.name, study)) as stage:
        if stage is not None:
            work(stage)


def _tell_outside(spec: Spec, study: Study, cell: Cell) -> None:
    """Say where a cell is none of the grid: it may be meant, or mistyped."""
    outside = [axis for axis in spec.axes if getattr(cell, axis) not in getattr(study.params.grid, axis)]
    if outside:
        given = ", ".join(f"--{axis} {getattr(cell, axis)}" for axis in outside)
        say(
            "note",
            f"{given}: not in the grid of {study.params_file}; it runs all the same, and the report leaves it out",
        )


def cell_of(study: Study, family: str, tokens: int, seed: int = 0, arm: str = "none-0-0") -> Cell:
    """The cell of command-line options; it need not be in the grid.

    Raises:
        InfotokError: an option says something that no grid may say.
    """
    from pipeline.config.cells import Cell, parse_arm

    if wrong := study.params.check_family(family):
        raise InfotokError(f"--family: '{family}' is {wrong}")
    if wrong := study.params.check_tokens(tokens):
        raise InfotokError(f"--tokens: {wrong}")
    if not 0 <= seed < 2**63:
        raise InfotokError(f"--seed: {seed} is no seed; use 0 or more, below 2^63")
    return Cell(family, *parse_arm(arm, "--arm"), tokens, seed)
