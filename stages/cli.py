"""The console script `infotok`: the stages as subcommands, and what looks over the whole grid.

Heavy imports wait inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from infotok import __version__
from pipeline.graph import REPORT, STAGES
from stages.common import COMMANDS, StudyOption, clear_errors, run_program, say, stage_command
from stages.draw import draw, draw_model

app = typer.Typer(
    name="infotok",
    help="Information-Bottleneck regularized visual tokens, as a pipeline of DVC stages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
GRID, ONE = "The whole grid", "Stages, one cell at a time"
for spec in COMMANDS.values():
    app.command(rich_help_panel=ONE if spec.name in STAGES else GRID)(stage_command(spec))
app.command(rich_help_panel="A trained cell")(draw)
app.command(rich_help_panel="A pretrained model")(draw_model)
MARKS = {"done": "[green]●[/]", "stale": "[yellow]◐[/]", "missing": "[dim]○[/]"}
PLAIN = {"done": "x", "stale": "~", "missing": "-"}  # where the terminal has no such letters


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"infotok {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    """What all commands share."""


def _marks() -> dict[str, str]:
    try:
        "".join(MARKS.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return PLAIN
    return MARKS


def _table(states, title):
    """Rows: arm and seed; columns: token budgets; a mark per stage."""
    from rich.table import Table

    shown, budgets = _marks(), sorted({cell.tokens for cell in states})
    table = Table(title=title)
    for name in ("family", "arm", "seed", *(f"K={tokens}" for tokens in budgets)):
        table.add_column(name)
    rows = dict.fromkeys((cell.family, cell.arm, cell.seed) for cell in states)
    for row in rows:
        marks = []
        for tokens in budgets:
            found = [s for c, s in states.items() if (c.family, c.arm, c.seed) == row and c.tokens == tokens]
            marks.append(" ".join(shown[value] for value in found[0].values()) if found else "")
        table.add_row(row[0], row[1], str(row[2]), *marks)
    return table


def _title(study) -> str:
    return " · ".join(study.graph.with_axes)


@app.command("study", rich_help_panel=GRID)
@clear_errors
def make_study(
    name: Annotated[str, typer.Argument(help="Of the folder in studies/; `default` is the repository's root.")],
    like: Annotated[
        str | None, typer.Option(help="The study whose params.yaml a new one begins with.", show_default="smoke")
    ] = None,
) -> None:
    """Make the folder of a study, or bring the dvc.yaml of one up to date with its params.yaml."""
    import shutil

    from infotok.errors import InfotokError, SettingError
    from pipeline.config.dvc_yaml import write_dvc_file
    from pipeline.config.study import Study

    study, begin = Study(name), Study(like or "smoke")
    if like and study.params_file.exists():
        raise InfotokError(f"--like: {study.params_file} exists and stays as it is; name a new study or omit --like")
    if not study.params_file.exists():
        if not begin.params_file.exists():
            raise InfotokError(f"--like: there is no study '{begin.name}'; `ls studies` shows them")
        study.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(begin.params_file, study.params_file)
        print(f"{study.params_file}: a copy of that of {begin.name}; edit it, then `infotok study {name}` again")
    changed = write_dvc_file(study)
    print(f"{study.dvc_file}: {'written' if changed else 'is up to date'}")
    try:
        study.params.check_files()
    except SettingError as error:  # which may come later, or lie on another machine
        say("note", str(study.located(error)))


@app.command(rich_help_panel=GRID)
@clear_errors
def tiny(
    folder: Annotated[Path, typer.Argument(help="Where they are written.")] = Path("tiny"),
    with_code: Annotated[
        bool,
        typer.Option(
            "--with-code",
            help="Write also models whose folders bring code of their own: one of masked diffusion, in the form of "
            "Lumina-DiMOO, and one with continuous tokens.",
        ),
    ] = False,
) -> None:
    """Write tiny random models of real classes, and images that they can learn, to try a study of pretrained models."""
    from infotok.errors import InfotokError
    from infotok.mllm.tiny import MODELS, WITH_CODE, write_data, write_models

    if folder.exists() and any(folder.iterdir()):
        raise InfotokError(f"{folder}: is not empty; name a new folder")
    names = [*MODELS, *(WITH_CODE if with_code else [])]
    write_models(folder, names)
    count = write_data(folder / "data")
    print(f"{folder}: {', '.join(names)}, and {count} images in {folder / 'data'}")


@app.command(rich_help_panel=GRID)
@clear_errors
def params(study: StudyOption = "default") -> None:
    """Show all parameters, those of params.yaml and the defaults of all others."""
    import yaml

    from pipeline.config.study import Study

    print(yaml.safe_dump(Study(study).params.model_dump(mode="json"), sort_keys=False), end="")


@app.command(rich_help_panel=GRID)
@clear_errors
def status(study: StudyOption = "default") -> None:
    """What is done, stage by stage, of every cell."""
    from rich.console import Console

    from pipeline.config.study import Study
    from pipeline.sweep.jobs import cell_states

    console = Console()
    chosen = Study(study)
    states = cell_states(chosen)
    console.print(_table(states, _title(chosen)))
    counts = [value for found in states.values() for value in found.values()]
    console.print("  ".join(f"{mark} {name} {counts.count(name)}" for name, mark in _marks().items()))


@app.command(rich_help_panel=GRID)
@clear_errors
def plan(study: StudyOption = "default") -> None:
    """What `dvc repro` would run, without running it."""
    from rich.console import Console

    from pipeline.config.dvc_yaml import check_dvc_file
    from pipeline.config.study import Study
    from pipeline.config.workspace import check_workspace
    from pipeline.sweep.jobs import cell_states, to_do

    console, chosen = Console(), Study(study)
    check_workspace(chosen)
    check_dvc_file(chosen)
    chosen.params.check_files()
    console.print(_table(cell_states(chosen), _title(chosen)))
    names = to_do(chosen)
    for name in names:
        console.print(f"  {name}", highlight=False)
    console.print(f"{len(names)} stages would run, then report:  {chosen.repro}", highlight=False)


@app.command(rich_help_panel=GRID)
@clear_errors
def sweep(
    study: StudyOption = "default",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Jobs side by side, one thread each.",
            show_default="2; on other machines as many as there is room for",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Cells to run with what they need, such as 'ar-ceb-*-8-0'; repeatable."),
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Take from DVC's remote what other machines have made.")] = False,
    engine: Annotated[str, typer.Option(help="Where jobs run: local (here), ray (a Ray cluster), slurm.")] = "local",
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="GPUs of a job, such as 0.25 for four on one.",
            show_default="here all are shared evenly; in a Ray cluster with GPUs 1",
        ),
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="CELLS",
            help="Cells of one family and budget that train side by side in one process.",
            show_default="on a GPU as many as pay, else 1",
        ),
    ] = None,
    clones: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Where machines of ray and slurm clone to.", show_default="~/.cache/infotok/clones"
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION=VALUE", help="For sbatch, such as partition=gpu or time=10:00:00; repeatable."),
    ] = None,
) -> None:
    """Run the grid's cells side by side over DVC, then the report; goes on past a failed cell."""
    import os
    import sys
    from contextlib import nullcontext

    from rich.console import Console
    from rich.live import Live

    from infotok.errors import InfotokError
    from pipeline.config.dvc_yaml import check_dvc_file
    from pipeline.config.study import Study
    from pipeline.config.workspace import check_workspace
    from pipeline.running.processes import ANNOUNCING, announced
    from pipeline.sweep import unchanged
    from pipeline.sweep.collect import collect
    from pipeline.sweep.dvc_files import mend
    from pipeline.sweep.dvc_lock import dvc_lock
    from pipeline.sweep.engines.choice import choose
    from pipeline.sweep.groups import arrangement
    from pipeline.sweep.jobs import cell_states, environment, select, to_do
    from pipeline.sweep.jobs import sweep as run
    from pipeline.sweep.processes import beside, only_sweep
    from pipeline.tracking.mirror import fill_in, initialise

    chosen, console = Study(study), Console(highlight=False, file=sys.stdout)
    if announced():
        raise InfotokError(
            f"WORLD_SIZE: {os.environ['WORLD_SIZE']} processes are announced, but a sweep starts its own; unset "
            f"{', '.join(ANNOUNCING)}, or run one stage by torchrun"
        )
    check_workspace(chosen)
    check_dvc_file(chosen)
    chosen.params.check_files()
    elsewhere = engine != "local"
    cells, options = select(chosen, only or []), ["--pull"] if pull or elsewhere else []

    def say(line: str) -> None:
        console.print(line, markup=False)

    opened = choose(
        engine,
        chosen,
        say,
        workers=jobs,
        gpus=gpus_per_cell,
        options=options,
        clones=clones,
        settings=slurm or [],
    )
    arrange = arrangement(chosen, together=together, engine=engine, gpus=gpus_per_cell, pull=pull)
    if not options and (changed := unchanged.changed(chosen)) <= {unchanged.MLFLOW}:
        with only_sweep(chosen.root):
            if changed:
                unchanged.keep(chosen, unchanged.look(chosen), mirrored=fill_in(chosen, chosen.params.cells()))
        _print_headline(chosen, console)
        return
    # Lines alone where there is no terminal.
    live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else nullcontext()
    with live as shown:
        show = shown.update if shown else lambda table: None
        if swept := bool(only or to_do(chosen)):
            initialise(chosen)
            failed = run(chosen, cells, opened, say, show, arrange)
            if elsewhere:
                collect(chosen, cells, failed)
        else:  # one `dvc repro`, below, sees as well that all is up to date
            failed = []
            for line in mend(chosen.root, chosen.dvc_file):
                say(line)
            with only_sweep(chosen.root), dvc_lock(chosen):  # adds what a killed sweep has left
                pass
    if failed:
        console.print(f"failed: {', '.join(failed)}", markup=False)
        raise typer.Exit(1)
    if only:
        # The closing `dvc repro` would run whatever else the grid lacks.
        states = [set(found.values()) == {"done"} for found in cell_states(chosen).values()]
        if not all(states):
            console.print(f"No report: it needs every cell of the grid, and {sum(states)} of {len(states)} are done.")
            return
    # Of which all stages are inputs, so that DVC makes them all; a file's name would have it read dvc.lock twice.
    target, before = f"{chosen.dvc_file}:{REPORT.name}", unchanged.look(chosen)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--quiet", *options, target]
    with beside(command, environment()) as closing:
        mirrored = not swept and fill_in(chosen, cells)
    if closing.returncode:
        raise typer.Exit(closing.returncode)
    unchanged.keep(chosen, before, mirrored)
    _print_headline(chosen, console)


def _print_headline(study, console) -> None:
    """How a sweep ends."""
    from pipeline.report.analysis import read_analysis
    from pipeline.report.summary import headline_table

    console.print(headline_table(read_analysis(study)))
    console.print(f"Tables and figures: {study.reports}/page/index.html, {study.reports}/ablation.md")
    console.print("Compare the runs in MLflow: infotok ui")


@app.command(rich_help_panel=GRID)
@clear_errors
def track(study: StudyOption = "default") -> None:
    """Rebuild MLflow from the stages' outputs, where it lacks them."""
    from pipeline.config.study import Study
    from pipeline.tracking.mirror import rebuild

    print(f"{rebuild(Study(study))} stages filled in")


@app.command(rich_help_panel=GRID)
@clear_errors
def ui(
    study: StudyOption = "default",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's page on the saved comparison of beta, gamma and token budget."""
    from pipeline.config.study import Study
    from pipeline.tracking.server import serve

    serve(Study(study), port)


def main() -> None:
    """Entry point of the console script."""
    run_program(app)


if __name__ == "__main__":
    main()
