"""Cells made on several machines: clones that share nothing but a DVC remote, and a third that combines them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.overhead import copied, smallest_params
from pipeline.config.params import load_params
from pipeline.sweep.jobs import environment

ROOT = Path(__file__).parent.parent
VARIABLES = {"PYTHONPATH": "", "INFOTOK_TRACKING": "off", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
VARIABLES |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def run(folder: Path, *command: str) -> str:
    """What a command says that must end well; it imports its folder's code."""
    done = subprocess.run(
        command, cwd=folder, env=environment() | VARIABLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *command: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *command)


@pytest.fixture
def clones(tmp_path):
    """Three clones of a repository with a grid of two cells and a remote that all reach."""
    origin = tmp_path / "origin"
    origin.mkdir()
    content = smallest_params(load_params(ROOT / "params.yaml"), 1)
    content["grid"]["arm"] = ["none-0-0", "vib-0.01-1"]
    copied(origin, content)
    dvc(origin, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    run(origin, "git", "add", "--all")
    run(origin, "git", "commit", "--quiet", "--message", "all")
    names = ("first", "second", "third")
    for name in names:
        run(tmp_path, "git", "clone", "--quiet", str(origin), name)
    return [tmp_path / name for name in names]


def ran(said: str) -> list[str]:
    """The stages that DVC ran, rather than restored."""
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


def weights(folder: Path, cell: str) -> str:
    return hashlib.sha256((folder / "runs/default/train" / cell / "model.safetensors").read_bytes()).hexdigest()


def test_two_machines_share_a_grid_and_a_third_combines_it(clones):
    first, second, third = clones
    none, vib = "train@ar-none-0-0-4-0", "train@ar-vib-0.01-1-4-0"
    assert ran(dvc(first, "repro", "--pull", none)) == ["configure", "prepare", "perceptual", "pretrain@ar-4-0", none]
    dvc(first, "push", "--run-cache", "--quiet")
    assert ran(dvc(second, "repro", "--pull", vib)) == [vib]  # what both need comes from the first
    dvc(second, "push", "--run-cache", "--quiet")

    assert ran(dvc(third, "repro", "--pull", none, vib)) == []
    assert weights(third, "ar-none-0-0-4-0") == weights(first, "ar-none-0-0-4-0")
    assert weights(third, "ar-vib-0.01-1-4-0") == weights(second, "ar-vib-0.01-1-4-0")
