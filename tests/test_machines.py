"""Cells made on several machines: clones that share nothing but a DVC remote, and a third that combines them."""

import hashlib
import sys
from pathlib import Path

import pytest
from origin import clone, project, run


def dvc(folder: Path, *command: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *command)


@pytest.fixture
def clones(tmp_path):
    """Three clones of a repository with a grid of two cells and a remote that all reach."""
    origin = project(tmp_path, steps=1)
    return [clone(origin, tmp_path / name) for name in ("first", "second", "third")]


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
