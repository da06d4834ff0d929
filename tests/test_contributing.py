"""CONTRIBUTING.md as it is written: what it shows is put into a copy of the repository, and run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from smoke import ROOT, copy_of_the_code, environment, run

pytestmark = pytest.mark.xdist_group("contributing")  # one copy, to which one section after the other is added

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^`([\w./-]+)`\n\n```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
STUDY = "studies/usage-or-prior/params.yaml"
# What every recipe of the smoke study says.
RECIPES = """
import json
from pipeline.config.recipes import recipe_of, runs_of
from pipeline.config.study import Study
study = Study("smoke")
runs = [*runs_of(study), ("report", None)]
print(json.dumps([[stage, recipe_of(study, stage, cell)] for stage, cell in runs]))
"""


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def changed(text: str, diff: str) -> str:
    """A file with a diff's additions; the lines around them must stand in it once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        old = "\n".join(line[1:] for line in lines if line.startswith(" "))
        new = "\n".join(line[1:] for line in lines)
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def add(folder: Path, title: str) -> set[str]:
    """Do what a section says; returns the files that it names."""
    blocks = BLOCK.findall(section(title))
    assert blocks, title
    for name, language, code in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(changed(path.read_text(), code) if language == "diff" else code)
    return {name for name, _, _ in blocks}


def recipes(folder: Path) -> list:
    command = [sys.executable, "-c", RECIPES]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    copy = copy_of_the_code(tmp_path_factory.mktemp("contributing"))
    git(copy, "add", ".")
    git(copy, "-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "before")
    return copy


@pytest.fixture(scope="module")
def before(folder):
    return recipes(folder)


@pytest.fixture(scope="module")
def added(folder, before):
    """All plug-ins and the study, and which files the page names for them."""
    return {title: add(folder, title) for title in ("An estimator", "A family", "A source of data", "A study")}


def write_table(folder: Path, images: int) -> None:
    """Squares of two colors, and which they are."""
    folder.mkdir(parents=True)
    lines, rng = [], np.random.default_rng(0)
    for index in range(images):
        color = ("red", "blue")[index % 2]
        pixels = rng.integers(0, 60, (32, 32, 3), np.uint8)
        pixels[8:24, 8:24, 0 if color == "red" else 2] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png\ta {color} square")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")


def test_plug_ins_run_nothing_again(folder, before, added):
    assert recipes(folder) == before


def test_the_additions_pass_style_and_types(folder, added):
    files = sorted(name for names in added.values() for name in names if name.endswith(".py"))
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = run(folder, *tool, "--config", str(ROOT / "pyproject.toml"), *files)
        assert done.returncode == 0, done.stdout
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]  # where `make test` has left one
    done = run(folder, "mypy", "--config-file", str(ROOT / "pyproject.toml"), *cache)
    assert done.returncode == 0, done.stdout


def test_the_study_as_written_is_one_and_takes_the_files_that_are_named(folder, added):
    done = run(folder, "infotok", "study", "usage-or-prior")
    assert done.returncode == 0, done.stderr
    plan = run(folder, "infotok", "plan", "--study", "usage-or-prior")
    assert plan.returncode == 0, plan.stderr
    assert "train@ar-usage-0.03-1-8-5" in plan.stdout
    named = set().union(*added.values()) | {"studies/usage-or-prior/dvc.yaml"}
    listed = git(folder, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert {line[3:] for line in listed} == named
    assert {line[:2] for line in listed} == {"??"}  # nothing that was there is edited


def test_estimator_family_and_source_go_through_the_whole_pipeline(folder, added):
    write_table(folder / "data" / "squares", 120)
    params = yaml.safe_load((folder / "studies" / "smoke" / "params.yaml").read_text())
    params["grid"] |= {"family": ["parallel"], "arm": ["none-0-0", "usage-0.03-1"]}
    params["data"] = {"source": "table", "path": "data/squares", "test": 0.2, "validation": 0.2}
    for name in ("judge", "perceptual", "pretrain", "train"):
        params[name] |= {"steps": 20}
    (folder / "studies" / "squares").mkdir()
    (folder / "studies" / "squares" / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert run(folder, "infotok", "study", "squares").returncode == 0
    done = run(folder, "dvc", "repro", "studies/squares/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = pd.read_csv(folder / "reports" / "squares" / "ablation.csv")
    assert cells.estimator.tolist() == ["none", "usage"]
    assert cells["generation/retrieval"].notna().all()
    assert cells["train/penalty"].notna().tolist() == [False, True]


def test_a_metric_measures_again_and_trains_nothing(folder, before, added):
    names = add(folder, "A metric")
    edited = {line[3:] for line in git(folder, "status", "--porcelain").splitlines() if line[:2] == " M"}
    assert edited == names - {"infotok/evaluation/distinct.py"}
    old, new = (
        [(stage, json.dumps(recipe, sort_keys=True)) for stage, recipe in found] for found in (before, recipes(folder))
    )
    assert {stage for stage, _ in set(old) ^ set(new)} == {"understand", "report"}
    done = run(folder, "dvc", "repro", "studies/squares/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'studies/squares/dvc.yaml:understand@" in done.stdout
    for name in ("prepare", "judge", "pretrain", "train", "generate"):
        assert f"Running stage 'studies/squares/dvc.yaml:{name}" not in done.stdout
    cells = pd.read_csv(folder / "reports" / "squares" / "ablation.csv")
    assert cells["information/distinct"].between(0, 1).all()
    assert "distinct images" in (folder / "reports" / "squares" / "ablation.md").read_text()
