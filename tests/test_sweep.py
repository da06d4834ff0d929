"""Which jobs a sweep makes of a grid, in which order they start, what it shows of them, and when it closes with the
report; two sweeps at once, and the end of one. DVC is not run."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from infotok.errors import InfotokError
from infotok.files import write_text
from pipeline.config.cells import Cell
from pipeline.config.dvc_yaml import write_dvc_file
from pipeline.config.params import load_params
from pipeline.config.study import Study
from pipeline.graph import FROM_SCRATCH
from pipeline.running import progress
from pipeline.sweep import jobs as module
from pipeline.sweep import watch
from pipeline.sweep.engines.local import local
from pipeline.sweep.jobs import Times, jobs, select, sweep
from stages.cli import app

ROOT = Path(__file__).parent.parent


def grid(root: Path = Path(), **axes) -> Study:
    """The default study with another grid."""
    params = load_params(ROOT / "params.yaml")
    update = {"family": ["ar"], "arm": ["none-0-0", "ceb-0.01-1"], "tokens": [4, 8], "seed": [0, 1]} | axes
    study = Study(root=root)
    study.__dict__["params"] = params.model_copy(update={"grid": params.grid.model_copy(update=update)})
    return study


def cells(**axes) -> list[Cell]:
    return grid(**axes).params.cells()


def looks_like_a_checkout(folder: Path) -> None:
    """With the default study's params.yaml and dvc.yaml."""
    for name in ("pipeline", "stages", ".git", ".dvc"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    write_dvc_file(Study(root=folder))


def test_seeds_complete_one_after_the_other_largest_budgets_first():
    assert [job.name for job in jobs(FROM_SCRATCH, cells())] == [
        "configure", "prepare", "perceptual", "judge",
        "pretrain@ar-8-0", "ar-none-0-0-8-0", "ar-ceb-0.01-1-8-0",
        "pretrain@ar-4-0", "ar-none-0-0-4-0", "ar-ceb-0.01-1-4-0",
        "pretrain@ar-8-1", "ar-none-0-0-8-1", "ar-ceb-0.01-1-8-1",
        "pretrain@ar-4-1", "ar-none-0-0-4-1", "ar-ceb-0.01-1-4-1",
    ]  # fmt: skip


def measured(study: Study, stage: str, cell: Cell, seconds: float) -> None:
    """Leave how long a stage took, as a stage does."""
    write_text(study.duration_file(stage, cell), f"{seconds}\n")


def test_of_equal_budgets_what_took_longest_before_starts_first(tmp_path):
    study = grid(tmp_path, family=["ar", "flow", "mask"], arm=["none-0-0"], tokens=[8], seed=[0, 1])
    for family, train, generate in (("ar", 80.0, 10.0), ("flow", 90.0, 30.0), ("mask", 95.0, 5.0)):
        cell = Cell(family, "none", 0.0, 0.0, 8, 0)
        measured(study, "train", cell, train)
        measured(study, "generate", cell, generate)
    times = Times(study)
    made = [job for job in jobs(FROM_SCRATCH, study.params.cells(), times.of) if "-none-" in job.name]
    assert [job.name.split("-")[0] for job in made] == ["flow", "mask", "ar"] * 2
    # A cell takes what the stages of its family and budget took on average: seed 1 as seed 0.
    assert [times.of(job) for job in made] == [120.0, 100.0, 90.0] * 2
    assert times.after(made[0], "train") == 30.0
    assert times.of(jobs(FROM_SCRATCH, cells(tokens=[4]))[-1]) is None


def test_time_left_counts_the_steps_since_a_stage_was_first_seen(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
    watched = watch.Watched("ar-none-0-0-8-0", tmp_path / "job.json", started=90.0)
    monkeypatch.setenv(progress.VARIABLE, str(watched.path))
    watched.look()
    assert watched.left_in_stage() is None
    progress.leave("train", 200, 600)  # it goes on from a checkpoint
    watched.look()
    assert watched.left_in_stage() is None
    clock.now = 130.0
    progress.leave("train", 300, 600)
    watched.look()
    assert watched.left_in_stage() == pytest.approx(90.0)  # 100 steps took 30 s, 300 are left
    progress.leave("understand")
    watched.look()
    assert watched.left_in_stage() is None
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(watch.table([watched], lambda one: 250.0, "1 of 9 jobs done, about 2 h 05 min left"))
    text = console.export_text()
    assert re.search(r"ar-none-0-0-8-0 +understand +40 s +4 min", text)
    assert "1 of 9 jobs done, about 2 h 05 min left" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (99.4, "99 s"), (150, "2 min"), (7500, "2 h 05 min")]
)
def test_durations_as_text(seconds, text):
    assert watch.duration(seconds) == text


def test_a_cell_waits_for_judge_and_its_own_tokenizer():
    made = {job.name: job for job in jobs(FROM_SCRATCH, cells(family=["ar", "mask"]))}
    assert made["mask-ceb-0.01-1-4-1"].after == ("prepare", "perceptual", "pretrain@mask-4-1", "judge")
    assert made["mask-ceb-0.01-1-4-1"].targets == [
        f"{stage}@mask-ceb-0.01-1-4-1" for stage in ("train", "understand", "generate")
    ]
    assert made["pretrain@mask-4-1"].after == ("prepare", "perceptual")
    assert made["judge"].after == ("configure", "prepare")


def test_globs_choose_cells_and_what_they_need():
    study = grid(family=["ar", "mask"], tokens=[4, 8, 16])
    chosen = select(study, ["ar-none-0-0-8-*", "ar-ceb-0.01-1-8-1"])
    assert [cell.key for cell in chosen] == ["ar-none-0-0-8-0", "ar-none-0-0-8-1", "ar-ceb-0.01-1-8-1"]
    assert [job.name for job in jobs(FROM_SCRATCH, chosen)] == [
        "configure", "prepare", "perceptual", "judge",
        "pretrain@ar-8-0", "ar-none-0-0-8-0", "pretrain@ar-8-1", "ar-none-0-0-8-1", "ar-ceb-0.01-1-8-1",
    ]  # fmt: skip
    assert select(study, []) == study.params.cells()
    # A glob spans the whole key: seed 1 alone, not 11.
    assert [cell.seed for cell in select(grid(seed=[1, 11], tokens=[8], arm=["none-0-0"]), ["*-1"])] == [1]


def test_a_glob_without_a_cell_names_the_nearest_keys():
    with pytest.raises(InfotokError) as raised:
        select(grid(), ["ar-none-0-0-8-*", "ar-ceb-0.02-1-8-*"])
    text = str(raised.value)
    assert text.startswith("--only 'ar-ceb-0.02-1-8-*' matches no cell of the grid of params.yaml; nearest: ")
    assert "ar-ceb-0.01-1-8-0" in text
    assert len(re.findall(r"ar-[a-z]+-[0-9.]+-\d+-\d", text.split("nearest: ")[1])) == 3


@pytest.fixture
def dvc(monkeypatch, tmp_path):
    """Instead of processes, the targets of each command; the one with the target `failing` ends with 1, and the closing
    `dvc repro` with 3, before a report is printed."""
    record = SimpleNamespace(commands=[], closing=[], failing=None)

    def start(command, **_):
        if "dvc" in command:
            record.closing.append(command[-1])
            return SimpleNamespace(wait=lambda: 3, returncode=3)
        targets = [word for word in command[command.index("dvc.yaml") + 1 :] if word != "--pull"]
        record.pulled = "--pull" in command
        record.commands.append(targets)
        return SimpleNamespace(poll=lambda: 0, returncode=int(record.failing in targets))

    monkeypatch.chdir(tmp_path)
    looks_like_a_checkout(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("INFOTOK_WORKER", "elsewhere")  # else one would be started
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(module, "fill_in", lambda *_: None)
    return record


def test_a_failed_tokenizer_takes_only_its_own_cells_with_it(dvc):
    study, said = grid(seed=[0], tokens=[4, 8]), []
    dvc.failing = "pretrain@ar-8-0"
    failed = sweep(study, study.params.cells(), partial(local, study=study, workers=2), said.append)
    assert sorted(failed) == ["ar-ceb-0.01-1-8-0", "ar-none-0-0-8-0", "pretrain@ar-8-0"]
    ran = [target for targets in dvc.commands for target in targets]
    assert "train@ar-ceb-0.01-1-4-0" in ran
    assert "train@ar-ceb-0.01-1-8-0" not in ran
    assert "ar-none-0-0-8-0: not run, since pretrain@ar-8-0 failed" in said


@pytest.mark.parametrize("left", [[], ["generate@ar-none-0-0-4-0"]])
def test_a_grid_that_is_done_takes_one_dvc_repro(dvc, monkeypatch, left):
    filled = []
    monkeypatch.setattr("pipeline.config.params.load_params", lambda _: grid(seed=[0]).params)
    monkeypatch.setattr("pipeline.tracking.mirror.initialise", lambda _: None)
    monkeypatch.setattr("pipeline.tracking.mirror.fill_in", lambda study, cells: filled.extend(cells))
    monkeypatch.setattr(module, "to_do", lambda study: left)
    assert CliRunner().invoke(app, ["sweep"]).exit_code == 3
    assert dvc.closing == ["dvc.yaml:report"]
    assert bool(dvc.commands) == bool(left)
    assert len(filled) == (0 if left else 4)


@pytest.mark.parametrize("changed", [set(), {"MLflow"}, {"inputs"}])
def test_dvc_is_not_asked_while_nothing_has_changed(dvc, monkeypatch, changed):
    filled, kept = [], []
    monkeypatch.setattr("pipeline.config.params.load_params", lambda _: grid(seed=[0]).params)
    monkeypatch.setattr("pipeline.tracking.mirror.fill_in", lambda study, cells: filled.extend(cells))
    monkeypatch.setattr("pipeline.sweep.unchanged.changed", lambda study: changed)
    monkeypatch.setattr("pipeline.sweep.unchanged.keep", lambda *_, **__: kept.append(True))
    monkeypatch.setattr("stages.cli._print_headline", lambda *_: None)
    monkeypatch.setattr(module, "to_do", lambda study: [])
    asked = changed == {"inputs"}
    assert CliRunner().invoke(app, ["sweep"]).exit_code == (3 if asked else 0)
    assert dvc.closing == (["dvc.yaml:report"] if asked else [])
    assert len(filled) == (4 if changed else 0)
    assert len(kept) == (1 if changed == {"MLflow"} else 0)
    assert CliRunner().invoke(app, ["sweep", "--pull"]).exit_code == 3  # DVC looks into its remote
    assert dvc.commands == []


@pytest.mark.parametrize(("missing", "closes"), [(1, False), (0, True)])
def test_a_chosen_part_closes_with_the_report_only_when_the_grid_is_done(dvc, monkeypatch, missing, closes):
    params = grid(seed=[0]).params

    def states(study):
        done = dict.fromkeys(("pretrain", *FROM_SCRATCH.of_cells), "done")
        return {
            cell: done | ({"generate": "stale"} if i < missing else {}) for i, cell in enumerate(study.params.cells())
        }

    monkeypatch.setattr("pipeline.config.params.load_params", lambda _: params)
    monkeypatch.setattr("pipeline.tracking.mirror.initialise", lambda _: None)
    monkeypatch.setattr(module, "cell_states", states)
    finished = CliRunner().invoke(app, ["sweep", "--only", "ar-ceb-*", "--only", "*-8-0"])
    trained = [target for targets in dvc.commands for target in targets if target.startswith("train@")]
    assert trained == ["train@ar-none-0-0-8-0", "train@ar-ceb-0.01-1-8-0", "train@ar-ceb-0.01-1-4-0"]
    assert dvc.closing == (["dvc.yaml:report"] if closes else [])
    assert finished.exit_code == (3 if closes else 0)
    line = "No report: it needs every cell of the grid, and 3 of 4 are done."
    assert (line in finished.output.splitlines()) == (not closes)


def test_other_machines_results_are_pulled_when_asked_for(dvc):
    study = grid(seed=[0], tokens=[4], arm=["none-0-0"])
    for options in ([], ["--pull"]):
        engine = partial(local, study=study, workers=2, options=options)
        assert sweep(study, study.params.cells(), engine, lambda line: None) == []
        assert dvc.pulled == bool(options)


def test_a_wrong_glob_is_one_line_and_runs_nothing(dvc, monkeypatch):
    monkeypatch.setattr("pipeline.config.params.load_params", lambda _: grid().params)
    finished = CliRunner().invoke(app, ["sweep", "--only", "flow-*"])
    assert finished.exit_code == 2
    assert dvc.commands == []
    assert finished.stderr.startswith("error: --only 'flow-*' matches no cell")
    assert len(finished.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["sweep", "plan"])
def test_a_copied_study_that_dvc_would_not_run_is_told_what_to_do(dvc, command):
    smoke, mine = Study("smoke"), Study("mine")
    shutil.copytree(ROOT / "studies/smoke", smoke.folder)
    write_dvc_file(smoke)
    shutil.copytree(smoke.folder, mine.folder)  # a copy, whose dvc.yaml would run smoke again
    said = "does not fit this study's folder and its data.path"
    assert refusal(command, "mine") == f"studies/mine/dvc.yaml: {said}; write it with `infotok study mine`"
    mine.dvc_file.unlink()
    assert refusal(command, "mine") == "studies/mine/dvc.yaml: is missing; write it with `infotok study mine`"
    mine.dvc_file.symlink_to("../../dvc.yaml")
    assert said in refusal(command, "mine")
    finished = CliRunner().invoke(app, ["study", "mine"])
    assert finished.output == "studies/mine/dvc.yaml: written\n"
    assert not mine.dvc_file.is_symlink()
    assert "--study mine" in mine.dvc_file.read_text()
    assert refusal(command, "nowhere").startswith("--study: there is no folder studies/nowhere; known: default, mine, ")
    assert dvc.commands == []


def refusal(command: str, study: str) -> str:
    """The one line of a command that refuses."""
    finished = CliRunner().invoke(app, [command, "--study", study])
    assert finished.exit_code == 2, finished.output
    (line,) = finished.stderr.strip().splitlines()
    return line.removeprefix("error: ")


# Instead of DVC: like it, it runs its stage as a process and leaves SIGINT to that. The stage takes its time to stop.
FAKE = """
import signal, subprocess, sys, time
from pathlib import Path

def main(words):
    with open("dvc.log", "a") as log:
        print(*words, file=log)
    stage = subprocess.Popen([sys.executable, __file__])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stage.wait()

if __name__ == "__main__":
    from infotok.stopping import Stopped, stoppable
    try:
        with stoppable():
            Path("at work").touch()
            while not Path("go on").exists():
                time.sleep(0.01)
    except Stopped:
        time.sleep(0.3)
        Path("checkpoint").touch()
        sys.exit(130)
"""
FAKE_PACKAGE = {
    "__init__.py": "",
    "cli.py": FAKE,
    "dvcfile.py": "class Lockfile: ...",
    "stage/serialize.py": "def to_lockfile(stage): ...",
}


@pytest.fixture
def sweeping(tmp_path):
    """Start `infotok sweep` in a workspace where `dvc` is the program above. It ignores SIGINT, as a script's
    `infotok sweep &` does."""
    for name, text in FAKE_PACKAGE.items():
        write_text(tmp_path / "fake/dvc" / name, text)
    looks_like_a_checkout(tmp_path)
    shutil.copy(ROOT / "studies/smoke/params.yaml", tmp_path / "params.yaml")
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.cli", "sweep"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}/fake{os.pathsep}{ROOT}", "INFOTOK_TRACKING": "off"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        started.append(process)
        return process

    yield start
    (tmp_path / "go on").touch()
    for process in started:
        process.kill()
        process.communicate()


def appears(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


def is_refused(process):
    _, complained = process.communicate()
    assert process.returncode == 2, complained
    (line,) = complained.splitlines()
    assert re.match(r"error: another sweep, process \d+, or a job that it left is running in this workspace; ", line)


def test_a_second_sweep_is_refused_and_a_stopped_one_waits_for_the_checkpoints_of_its_jobs(sweeping, tmp_path):
    first = sweeping()
    appears(tmp_path / "at work", first)
    is_refused(sweeping())
    first.send_signal(signal.SIGTERM)
    said, complained = first.communicate()
    assert first.returncode == 143, complained
    assert (tmp_path / "checkpoint").exists()
    assert "waiting for the checkpoints of configure" in said
    (line,) = complained.splitlines()
    assert line.startswith("stopped by SIGTERM (0 of 7 jobs are done): ")
    assert len((tmp_path / "dvc.log").read_text().splitlines()) == 1  # nothing was started after it


def test_what_a_killed_sweep_left_running_keeps_the_next_one_out_until_it_has_ended(sweeping, tmp_path):
    first = sweeping()
    appears(tmp_path / "at work", first)
    first.kill()
    first.wait()
    is_refused(sweeping())
    (tmp_path / "go on").touch()
    with open(tmp_path / ".ckpt/sweep.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "go on").unlink()
    (tmp_path / "at work").unlink()
    appears(tmp_path / "at work", sweeping())
