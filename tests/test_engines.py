"""Engines of a sweep without a cluster: the loop that submits a lost job again, places on GPUs, what other machines get
of a checkout, and what is refused."""

import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from origin import clone, commit, run, stages
from typer.testing import CliRunner

from infotok.errors import InfotokError
from pipeline.config.params import load_params
from pipeline.config.study import Study
from pipeline.sweep import jobs as loop
from pipeline.sweep.dvc_lock import DvcLock
from pipeline.sweep.engines.checkout import checkout
from pipeline.sweep.engines.devices import Devices, visible
from pipeline.sweep.engines.engine import Ended, Submitted
from pipeline.sweep.engines.local import Local
from pipeline.sweep.engines.ray import cluster
from pipeline.sweep.engines.slurm import slurm
from pipeline.sweep.jobs import TRIES, Job, sweep
from stages.cli import app

ROOT = Path(__file__).parent.parent


def one_cell():
    """A study of one cell, and its cells."""
    params = load_params(ROOT / "params.yaml")
    study = Study()
    grid = params.grid.model_copy(update={"family": ["ar"], "arm": ["none-0-0"], "tokens": [4], "seed": [0]})
    study.__dict__["params"] = params.model_copy(update={"grid": grid})
    return study, study.params.cells()


class Scripted:
    """An engine whose every job ends as told: by name, one end a try; well where nothing is told."""

    def __init__(self, ends):
        self.ends, self.submitted = ends, []

    def submit(self, job):
        self.submitted.append(job.name)
        return Submitted(job, Path(".ckpt/default/logs"))

    def poll(self, one):
        one.log.write_text("error: so it is\n")
        return self.ends[one.name].pop(0) if self.ends.get(one.name) else Ended(0)

    def cancel(self, running):
        raise AssertionError


@contextmanager
def opened(engine, lock, ahead):
    yield engine


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.time, "sleep", lambda _: None)
    monkeypatch.setattr(loop, "fill_in", lambda *_: None)


@pytest.mark.parametrize(
    ("ends", "tries", "fails"),
    [
        ([Ended(1, lost="the machine is gone")] * (TRIES - 1), TRIES, False),
        ([Ended(1, lost="the machine is gone")] * TRIES, TRIES, True),
        ([Ended(2)], 1, True),  # bad input, which another try would not mend
    ],
)
def test_a_lost_job_is_submitted_again_and_bad_input_is_not(elsewhere, ends, tries, fails):
    study, cells = one_cell()
    (key,) = (cell.key for cell in cells)
    engine, said = Scripted({key: list(ends)}), []
    assert sweep(study, cells, partial(opened, engine), said.append) == ([key] if fails else [])
    assert engine.submitted.count(key) == tries
    assert len(engine.submitted) == tries + 5  # what cells share runs once
    again = [line for line in said if line.startswith(f"{key}: lost (the machine is gone)")]
    assert len(again) == (tries - 1)
    assert all(line.endswith("it is run again, training from the start") for line in again)
    assert any(line.startswith(f"{key}: failed") and line.endswith("error: so it is") for line in said) == fails


def test_cells_are_placed_on_the_freest_gpu_and_wait_where_none_has_room(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-b")
    quarters = Devices.here(0.25)
    given = [quarters.take() for _ in range(9)]
    assert given == [["0"], ["GPU-b"]] * 4 + [None]
    quarters.give_back(["GPU-b"])
    assert quarters.take() == ["GPU-b"]
    thirds = Devices.here(1 / 3)
    assert [thirds.take() for _ in range(7)] == [["0"], ["GPU-b"]] * 3 + [None]
    pairs = Devices.here(2)
    assert [pairs.take(), pairs.take()] == [["0", "GPU-b"], None]
    even = Devices.here(None)  # nothing is asked for: spread, and as many as the sweep has
    assert [even.take() for _ in range(5)] == [["0"], ["GPU-b"], ["0"], ["GPU-b"], ["0"]]


@pytest.mark.parametrize(("text", "found"), [("", []), ("-1", []), ("1, 3", ["1", "3"]), ("2,-1,0", ["2"])])
def test_visible_gpus_are_those_that_cuda_would_show(monkeypatch, text, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert visible() == found


@pytest.mark.parametrize(
    ("share", "variables", "says"),
    [
        (0.0, {}, "is no share of GPUs"),
        (1.5, {}, "is no share of GPUs"),
        (0.5, {"CUDA_VISIBLE_DEVICES": ""}, "0 are visible here"),
        (3, {"CUDA_VISIBLE_DEVICES": "0,1"}, "2 are visible here"),
        (0.5, {"CUDA_VISIBLE_DEVICES": "0", "INFOTOK_DEVICE": "cuda:0"}, "already says where cells run"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(monkeypatch, share, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InfotokError, match=says):
        Devices.here(share)


def test_jobs_here_see_the_gpu_that_they_have(monkeypatch, tmp_path):
    started = []

    def popen(command, env, **_):
        started.append(env.get("CUDA_VISIBLE_DEVICES"))
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    study, (cell,) = one_cell()
    study = Study(root=tmp_path)
    (study.scratch / "logs").mkdir(parents=True)
    engine = Local(study, 8, Devices.here(0.5), DvcLock(study))
    submitted = [engine.submit(Job(str(number), [("train", cell)])) for number in range(5)]
    assert started == ["0", "1", "0", "1"]
    assert submitted[4] is None
    engine.poll(submitted[1])
    assert engine.submit(Job("5", [("train", cell)])).devices == ["1"]


@pytest.fixture
def driver(tmp_path):
    """A clone of a repository that machines of a sweep could use."""
    return clone(stages(tmp_path, {"well": "echo well > well.txt"}), tmp_path / "driver")


def test_other_machines_get_the_commit_and_the_variables_of_this_project(driver, monkeypatch):
    monkeypatch.setenv("INFOTOK_THREADS", "2")
    monkeypatch.setenv("INFOTOK_WORKER", "/tmp/of/this/machine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///of/this/machine.db")
    found = checkout(study_of(driver))
    assert found.commit == run(driver, "git", "rev-parse", "HEAD").strip()
    assert found.url == str(driver.parent / "origin")
    # A file that only this machine has is no store for others: MLflow is filled in here.
    assert found.environment.items() >= {"INFOTOK_THREADS": "2", "INFOTOK_TRACKING": "off"}.items()
    assert not {"INFOTOK_WORKER", "MLFLOW_TRACKING_URI"} & found.environment.keys()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.delenv("INFOTOK_TRACKING", raising=False)
    found = checkout(study_of(driver))
    assert found.environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert found.environment["INFOTOK_TRACKING"] == "training"


def test_what_dvc_records_is_no_change_of_the_code(driver):
    (driver / "dvc.lock").write_text("schema: '2.0'\n")
    run(driver, "git", "add", "dvc.lock")
    (driver / "reports").mkdir()
    (driver / "reports/table.csv").touch()
    checkout(study_of(driver))


def study_of(driver, data=None):
    """A study in a clone, whose data lie at a path."""
    study = Study(root=driver)
    params = load_params(ROOT / "params.yaml")
    section = SimpleNamespace(path=data) if data else params.data
    study.__dict__["params"] = params.model_copy(update={"data": section})
    return study


def test_data_that_clones_would_lack_are_named(driver):
    checkout(study_of(driver, "/mnt/shared/data"))
    with pytest.raises(InfotokError, match=r"data/mine is in this checkout alone; .* or `dvc add data/mine`"):
        checkout(study_of(driver, "data/mine"))
    (driver / "data").mkdir()
    (driver / "data/mine.dvc").touch()
    run(driver.parent / "origin", "git", "checkout", "--quiet", "--detach")
    commit(driver)
    run(driver, "git", "push", "--quiet")
    checkout(study_of(driver, "data/mine"))


def set_remote(driver, address):
    text = (driver / ".dvc/config").read_text()
    (driver / ".dvc/config").write_text(text.replace(str(driver.parent / "remote"), address))
    commit(driver)
    run(driver, "git", "push", "--quiet")


SPOIL = {
    "dvc.yaml: not committed": lambda driver: (driver / "dvc.yaml").write_text("stages: {}\n"),
    "new.py: not committed": lambda driver: (driver / "new.py").touch(),
    "names no default remote": lambda driver: set_config(driver, "[core]\n    analytics = false\n"),
    "has no address of its default remote 'gone'": lambda driver: set_config(driver, "[core]\n    remote = gone\n"),
    "relative to this checkout": lambda driver: set_remote(driver, "../remote"),
    "is in no branch of `origin`": lambda driver: ((driver / "new.py").touch(), commit(driver)),
    "git has no remote `origin`": lambda driver: run(driver, "git", "remote", "remove", "origin"),
    "cannot be reached": lambda driver: run(driver, "git", "remote", "set-url", "origin", "/nowhere/at/all"),
}


def set_config(driver, text):
    (driver / ".dvc/config").write_text(text)
    commit(driver)
    run(driver, "git", "push", "--quiet")


@pytest.mark.parametrize("says", SPOIL)
def test_a_checkout_that_others_cannot_have_is_refused(driver, says):
    run(driver.parent / "origin", "git", "checkout", "--quiet", "--detach")  # so that it can be pushed to
    SPOIL[says](driver)
    with pytest.raises(InfotokError) as raised:
        checkout(study_of(driver))
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engine", "kubernetes"], "--engine: 'kubernetes' is unknown; known: local, ray, slurm"),
        (["--clones", "/scratch"], "--clones: is of the engines ray and slurm"),
        (["--slurm", "partition=gpu"], "--slurm: is of `--engine slurm` alone"),
    ],
)
def test_options_of_other_engines_are_refused(words, says):
    done = CliRunner().invoke(app, ["sweep", "--study", "smoke", *words])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {says}")


def refusal(engine, **options):
    with pytest.raises(InfotokError) as raised, engine(-1, [], checkout=None, **options):
        pass
    return str(raised.value)


@pytest.mark.parametrize(("engine", "module"), [(cluster, "ray"), (slurm, "submitit")])
def test_an_engine_that_is_not_installed_says_so(monkeypatch, engine, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(engine).endswith("is not installed; `pip install -r requirements.lock`")


def test_slurm_without_slurm_and_with_parts_of_gpus_is_refused(monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert refusal(slurm).startswith("--engine slurm: there is no sbatch here")
    assert refusal(slurm, gpus=0.5).startswith("--gpus-per-cell: 0.5 of a GPU is nothing that Slurm gives out")
