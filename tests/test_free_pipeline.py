"""Free scenes through every stage, at the smoke study's size."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from smoke import ROOT, copy_of_the_code, run_all_stages

from infotok.evaluation.geneval_prompts import TAGS

ARM = "ceb-0.01-1"
DATA = {"source": "free_scenes", "objects": 3, "objects_at_least": 2, "shapes": 5, "colors": 7, "materials": 2}
STRUCTURE = ("presence", "shape", "size", "material", "column", "row")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = copy_of_the_code(tmp_path_factory.mktemp("free"))
    params = yaml.safe_load((ROOT / "studies" / "smoke" / "params.yaml").read_text())
    params["data"] = DATA | {name: params["data"][name] for name in ("train", "validation", "test", "novel")}
    params["grid"] = {"family": ["ar"], "arm": ["none-0-0", ARM], "tokens": [4], "seed": [0]}
    run_all_stages(folder, params)
    return folder


def metrics(folder, stage, cell=f"ar-{ARM}-4-0"):
    return json.loads((folder / "runs/mine" / stage / cell / "metrics.json").read_text())


def test_every_score_of_scenes_is_measured(folder):
    frame = pd.read_csv(folder / "reports/mine/ablation.csv")
    families = ("exist", "count", "color", "shape", "size", "material", "where", "relation", "compare")
    wanted = [f"understanding/family/{name}" for name in families]
    wanted += [f"information/factor/{name}" for name in (*STRUCTURE, "hue", "gradient", "texture", "noise")]
    wanted += [f"generation/tag/{tag}" for tag in TAGS] + ["generation/geneval_novel", "reconstruction/objects"]
    assert len(frame) == 2
    assert np.isfinite(frame[wanted].to_numpy()).all()


def test_the_judge_detects_and_says_its_ceiling(folder):
    judge = metrics(folder, "judge", "")["metrics"]
    names = ("objects", "found", "spurious", "shape", "color", "size", "material", "objects_novel")
    assert set(judge) == {f"judge/{name}" for name in names}
    assert all(0 <= value <= 1 for value in judge.values())
    assert judge["judge/found"] > 0.1  # after 40 steps
    assert "detects them and their places" in metrics(folder, "generate")["protocol"]["judge"]
    assert "detects them" in (folder / "reports/mine/page/index.html").read_text()


def test_prompts_are_open_where_no_scene_holds_one_object(folder):
    samples = json.loads((folder / f"runs/mine/generate/ar-{ARM}-4-0/samples.json").read_text())
    assert samples["prompts"]
    assert all(prompt.startswith("a picture with ") for prompt in samples["prompts"])
