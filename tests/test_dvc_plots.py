"""DVC's own plots of a report: the project's two templates fit the CSV files that the report writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from synthetic import FOUR, ROOT, analysed, leave_images, study_with, synthetic

from pipeline.report.analysis import analyse
from pipeline.report.curves import training_table
from pipeline.report.write import csv_text


def dvc(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc(folder, "init", "--quiet")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)
    params, results, judge = synthetic(arms=FOUR, seeds=(0, 1))
    study = study_with(params, folder)
    leave_images(study, results)
    study.reports.mkdir(parents=True)
    (study.reports / "ablation.csv").write_text(csv_text(analysed(arms=FOUR, seeds=(0, 1)).frame))
    (study.reports / "training.csv").write_text(csv_text(training_table(analyse(results, judge, study))))
    # The plots of the default study as they are, without its stages.
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    return folder


@pytest.mark.parametrize(
    ("plot", "x", "y", "color", "rows"),
    [
        ("scores over beta", "beta", "understanding/accuracy", "curve", 4 * 2),  # arms and seeds
        ("training", "step", "train/loss", "arm", 4 * 20),  # arms and steps
    ],
)
def test_dvc_shows_a_line_per_arm(repository, plot, x, y, color, rows):
    chart = json.loads(dvc(repository, "plots", "show", "--show-vega", plot))
    encoding = chart["spec"]["encoding"]
    assert (encoding["x"]["field"], encoding["y"]["field"], encoding["color"]["field"]) == (x, y, color)
    data = chart["data"]["values"]
    assert len(data) == rows
    made = {step["as"] for step in chart["transform"]}
    assert {x, y, "family", "tokens", "rev"} <= data[0].keys()
    assert color in data[0] or color in made
    assert "<DVC" not in json.dumps(chart)
