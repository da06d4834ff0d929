"""The console script `infotok`: the stages as subcommands, and what looks over the whole grid.

Heavy imports wait inside the commands, so that help and plan answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stages.common import ParamsOption, clear_errors
from stages.draw import draw
from stages.generate import generate
from stages.judge import judge
from stages.perceptual import perceptual
from stages.prepare import prepare
from stages.pretrain import pretrain
from stages.report import report
from stages.train import train
from stages.understand import understand

app = typer.Typer(
    name="infotok",
    help="Information-Bottleneck regularized visual tokens, as a pipeline of DVC stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (prepare, judge, perceptual, pretrain, train, understand, generate, report):
    app.command(rich_help_panel="Stages, one cell at a time")(command)
app.command(rich_help_panel="A trained cell")(draw)
GRID = "The whole grid"
MARKS = {"done": "[green]●[/]", "stale": "[yellow]◐[/]", "missing": "[dim]○[/]"}


def _table(states, title):
    """Rows: arm and seed; columns: token budgets; a mark per stage."""
    from rich.table import Table

    budgets = sorted({cell.tokens for cell in states})
    table = Table(title=title)
    for name in ("family", "arm", "seed", *(f"K={tokens}" for tokens in budgets)):
        table.add_column(name)
    rows = dict.fromkeys((cell.family, cell.arm, cell.seed) for cell in states)
    for row in rows:
        marks = []
        for tokens in budgets:
            found = [s for c, s in states.items() if (c.family, c.arm, c.seed) == row and c.tokens == tokens]
            marks.append(" ".join(MARKS[value] for value in found[0].values()) if found else "")
        table.add_row(row[0], row[1], str(row[2]), *marks)
    return table


@app.command(rich_help_panel=GRID)
@clear_errors
def status(params: ParamsOption = "params.yaml") -> None:
    """What is done: pretrain, train, understand, generate of every cell."""
    from rich.console import Console

    from pipeline.config.params import load_params
    from pipeline.running.results import Layout
    from pipeline.sweep.jobs import cell_states

    layout, console = Layout(load_params(params)), Console()
    states = cell_states(layout)
    console.print(_table(states, "pretrain · train · understand · generate"))
    counts = [value for found in states.values() for value in found.values()]
    console.print("  ".join(f"{mark} {name} {counts.count(name)}" for name, mark in MARKS.items()))


@app.command(rich_help_panel=GRID)
@clear_errors
def plan(params: ParamsOption = "params.yaml") -> None:
    """What `dvc repro` would run, without running it."""
    from rich.console import Console

    from pipeline.config.params import load_params
    from pipeline.running.results import Layout
    from pipeline.sweep.jobs import cell_states, check_profile, dvc_file, state

    layout, console = Layout(load_params(params)), Console()
    check_profile(layout.params, params)
    states = cell_states(layout)
    todo = [name for name in ("prepare", "judge", "perceptual") if state(layout, name, None) != "done"]
    # Cells that share a tokenizer pretrain it once.
    todo += dict.fromkeys(f"pretrain@{c.tokenizer_key}" for c, found in states.items() if found["pretrain"] != "done")
    for cell, found in states.items():
        todo += [f"{name}@{cell.key}" for name in ("train", "understand", "generate") if found[name] != "done"]
    console.print(_table(states, "pretrain · train · understand · generate"))
    for name in todo:
        console.print(f"  {name}", highlight=False)
    console.print(f"{len(todo)} stages would run, then report:  dvc repro {dvc_file(layout.params)}", highlight=False)


@app.command(rich_help_panel=GRID)
@clear_errors
def sweep(
    params: ParamsOption = "params.yaml",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes side by side, one thread each.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Cells to run with what they need, such as 'ar-ceb-*-8-0'; repeatable."),
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Take from DVC's remote what other machines have made.")] = False,
) -> None:
    """Run the grid's cells side by side over DVC, then the report; goes on past a failed cell."""
    import subprocess
    import sys
    from contextlib import nullcontext

    from rich.console import Console
    from rich.live import Live

    from pipeline.config.params import load_params
    from pipeline.report.analysis import read_analysis
    from pipeline.report.summary import headline_table
    from pipeline.running.results import Layout
    from pipeline.sweep.jobs import cell_states, check_profile, dvc_file, environment, select
    from pipeline.sweep.jobs import sweep as run
    from pipeline.tracking.mirror import initialise

    layout, console = Layout(load_params(params)), Console(highlight=False)
    check_profile(layout.params, params)
    cells, options = select(layout.params, only or []), ["--pull"] if pull else []
    initialise(layout)
    # Lines alone where there is no terminal.
    live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else nullcontext()
    with live as shown:
        show = shown.update if shown else lambda table: None
        failed = run(layout, cells, jobs, lambda line: console.print(line, markup=False), show, options)
    if failed:
        console.print(f"failed: {', '.join(failed)}", markup=False)
        raise typer.Exit(1)
    if only:
        # The closing `dvc repro` would run whatever else the grid lacks.
        states = [set(found.values()) == {"done"} for found in cell_states(layout).values()]
        if not all(states):
            console.print(f"No report: it needs every cell of the grid, and {sum(states)} of {len(states)} are done.")
            return
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--quiet", *options, dvc_file(layout.params)]
    finished = subprocess.run(command, env=environment(), check=False)
    if finished.returncode:
        raise typer.Exit(finished.returncode)
    console.print(headline_table(read_analysis(layout, layout.params)))
    console.print(f"Tables and figures: {layout.reports}/page/index.html, {layout.reports}/ablation.md")
    console.print("Compare the runs in MLflow: infotok ui")


@app.command(rich_help_panel=GRID)
@clear_errors
def track(params: ParamsOption = "params.yaml") -> None:
    """Rebuild MLflow from the stages' outputs, where it lacks them."""
    from pipeline.config.params import load_params
    from pipeline.running.results import Layout
    from pipeline.tracking.mirror import rebuild

    print(f"{rebuild(Layout(load_params(params)))} stages filled in")


@app.command(rich_help_panel=GRID)
@clear_errors
def ui(
    params: ParamsOption = "params.yaml",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's page on the saved comparison of beta and token budget."""
    from pipeline.config.params import load_params
    from pipeline.running.results import Layout
    from pipeline.tracking.view import serve

    serve(Layout(load_params(params)), port)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
