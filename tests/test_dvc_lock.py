"""The entries of dvc.lock that jobs of a sweep keep for themselves, against what the real DVC writes for the same
stages: three that take no time, in a repository of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.study import Study
from pipeline.sweep import dvc_lock as module
from pipeline.sweep.dvc_lock import DvcLock, dvc_lock

ROOT = Path(__file__).parent.parent
STAGES = {
    "first": {
        "cmd": "mkdir out && cp given out/first",
        "deps": ["given"],
        "params": [{"p.yaml": None}],
        "outs": ["out"],
    },
    "second": {
        "matrix": {"number": [1, 2]},
        "cmd": "cp out/first made-${item.number} && echo ${item.number} >> ran",
        "deps": ["out"],
        "outs": ["made-${item.number}"],
    },
}
# Values that a text may write in several ways.
VALUES = {
    "small": 1e-05,
    "whole": 3,
    "words": ["1e5", "on", "null", "1.0"],
    "none": None,
    "long": "a b " * 40,
    "β": "é",
}
NAMES = ["first", "second@1", "second@2"]


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A repository with these stages, which is the current directory."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    # Values that a text may write in several ways.
    (root / "p.yaml").write_text(
        "{small: 1e-05, whole: 3, words: ['1e5', 'on', 'null'], none: null, long: '%s'}" % ("a b " * 40)
    )
    (root / "given").write_text("given")
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc("init", "--quiet")
    return Study(root=root)


def dvc(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def job(entries: Path, *stages: str) -> str:
    """What a job of these stages says."""
    command = [sys.executable, "-m", "pipeline.sweep.repro", str(entries), "dvc.yaml", *stages]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def of_dvc(study: Study, tmp_path: Path) -> bytes:
    """The dvc.lock that DVC writes of all stages, in another copy of the repository."""
    copy = tmp_path / "by DVC"
    shutil.copytree(study.root, copy)
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "--single-item", *NAMES]  # in this order
    done = subprocess.run(command, cwd=copy, check=False)
    assert done.returncode == 0
    return (copy / "dvc.lock").read_bytes()


def test_jobs_leave_dvc_lock_alone_and_together_it_gets_the_bytes_that_dvc_writes(study, tmp_path):
    expected = of_dvc(study, tmp_path)
    with dvc_lock(study) as lock:
        for name in NAMES:
            assert f"Running stage '{name}'" in job(lock.lend(name, [name]), name)
        assert not Path("dvc.lock").exists()
    assert Path("dvc.lock").read_bytes() == expected
    assert list(study.scratch.rglob("*.json")) == []
    assert "Data and pipelines are up to date" in dvc("status")

    # As a job knows what stands in dvc.lock, it runs what has changed and nothing else.
    Path("given").write_text("other")
    with dvc_lock(study) as lock:
        said = job(lock.lend("one", NAMES[:2]), *NAMES[:2])
        assert "Running stage 'first'" in said
        assert "Running stage 'second@1'" in said
        lock.add()
        assert "Stage 'second@1' didn't change, skipping" in job(lock.lend("again", ["second@1"]), "second@1")
        assert "Running stage 'second@2'" in job(lock.lend("two", ["second@2"]), "second@2")
    assert "Data and pipelines are up to date" in dvc("status")


def test_what_others_have_written_into_dvc_lock_meanwhile_stays_there(study):
    with dvc_lock(study) as lock:
        job(lock.lend("first", ["first"]), "first")
        lock.add()
        dvc("repro", "--quiet", "second@2")
        job(lock.lend("one", ["second@1"]), "second@1")
    assert list(yaml.safe_load(Path("dvc.lock").read_text())["stages"]) == ["first", "second@2", "second@1"]
    assert "Data and pipelines are up to date" in dvc("status")


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_sweep_loses_nothing(study, changed):
    killed = DvcLock(study)
    job(killed.lend("first", ["first"]), "first")
    killed.add()
    job(killed.lend("both", NAMES[1:]), *NAMES[1:])
    del killed  # which writes nothing
    (left,) = study.scratch.rglob("both.json")
    if changed:  # since then, as by a checkout of another commit
        os.utime("dvc.lock", (left.stat().st_mtime + 1,) * 2)
    with dvc_lock(study):
        pass
    found = list(yaml.safe_load(Path("dvc.lock").read_text())["stages"])
    assert found == (["first"] if changed else NAMES)
    said = dvc("repro")
    assert "Running stage" not in said
    assert said.count("is cached - skipping run, checking out outputs") == (2 if changed else 0)
    assert Path("ran").read_text().split() == ["1", "2"]


def test_between_two_writings_passes_some_time(study, monkeypatch):
    with dvc_lock(study) as lock:
        job(lock.lend("first", ["first"]), "first")
        lock.add_from_time_to_time()
        assert not Path("dvc.lock").exists()
        monkeypatch.setattr(module, "EVERY", 0.0)
        lock.add_from_time_to_time()
        assert list(yaml.safe_load(Path("dvc.lock").read_text())["stages"]) == ["first"]
        # A job that has begun is not disturbed.
        assert list(json.loads(next(study.scratch.rglob("first.json")).read_text())) == ["first"]
