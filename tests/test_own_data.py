"""Data without known objects through every stage, at the smoke study's size."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from smoke import ROOT, copy_of_the_code, run_all_stages

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "white": (240, 240, 240)}
SIDES = {"left": 6, "right": 20}
SIZE = 40  # neither of the sizes that are trained at, so that images are scaled


def squares(folder, captions, questions, count=400):
    """Colored squares at the left or right of a noisy ground, with what may be said of them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with open(folder / "data.jsonl", "w") as file:
        for index in range(count):
            color, side = list(COLORS)[rng.integers(4)], list(SIDES)[rng.integers(2)]
            pixels = rng.integers(60, 100, (SIZE, SIZE, 3)).astype(np.uint8)
            pixels[12:28, SIDES[side] : SIDES[side] + 14] = COLORS[color]
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
            line = {"image": f"images/{index}.png"}
            if captions:
                line["caption"] = f"a {color} square at the {side} number {index}"
            if questions:
                line["questions"] = [
                    {"question": "what color is it?", "answer": color, "family": "hue"},
                    {"question": "where is it?", "answer": side},
                ]
            file.write(json.dumps(line) + "\n")


@pytest.fixture(scope="module", params=["captions", "questions", "both"])
def finished(request, tmp_path_factory):
    """(what was said, folder in which all stages have run)."""
    folder = copy_of_the_code(tmp_path_factory.mktemp(request.param))
    squares(folder / "data" / "mine", request.param != "questions", request.param != "captions")
    params = yaml.safe_load((ROOT / "studies" / "smoke" / "params.yaml").read_text())
    size = 64 if request.param == "both" else 32
    params["data"] = {"source": "jsonl", "path": "data/mine", "image_size": size, "vocabulary": 400}
    params["tokenizer"]["encoder"] = "convolution" if request.param == "captions" else "patch"
    params["grid"] = {"family": ["ar"], "arm": ["none-0-0", "ceb-0.01-1"], "tokens": [4], "seed": [0]}
    run_all_stages(folder, params)
    return request.param, folder


def test_the_tasks_that_the_data_allow_are_scored_and_no_others(finished):
    said, folder = finished
    frame = pd.read_csv(folder / "reports" / "mine" / "ablation.csv")
    assert len(frame) == 2
    generation = {"generation/retrieval", "generation/retrieval_t1", "generation/validation", "generation/gfid"}
    understanding = {"understanding/accuracy", "understanding/validation", "understanding/question_only"}
    understanding |= {"understanding/majority", "understanding/family/hue", "understanding/family/question"}
    wanted = {"reconstruction/psnr", "information/rate_bits", "information/generator_nll_bits"}
    wanted |= generation if said != "questions" else set()
    wanted |= understanding if said != "captions" else set()
    assert wanted <= set(frame)
    assert np.isfinite(frame[sorted(wanted)].to_numpy()).all()
    foreign = generation | understanding | {"generation/geneval", "reconstruction/objects", "information/nuisance_bits"}
    assert not (foreign - wanted) & set(frame)
    paired = pd.read_csv(folder / "reports" / "mine" / "paired.csv")
    scored = {"captions": {"retrieval"}, "questions": {"accuracy"}, "both": {"retrieval", "accuracy"}}[said]
    assert {"geneval", "retrieval", "accuracy"} & set(paired.metric) == scored


def test_the_report_says_which_task_is_missing_and_why(finished):
    said, folder = finished
    text = (folder / "reports" / "mine" / "ablation.md").read_text()
    assert ("the data have no questions" in text) == (said == "captions")
    assert ("the data have no captions" in text) == (said == "questions")
    page = (folder / "reports" / "mine" / "page" / "index.html").read_text()
    assert "jsonl" in page
    judge = json.loads((folder / "runs" / "mine" / "judge" / "metrics.json").read_text())
    if said == "questions":
        assert judge["metrics"] == {}
    else:
        # Four colors at two places; the number of the image is in no picture.
        assert judge["metrics"]["judge/retrieval"] > 2 * judge["metrics"]["judge/retrieval_chance"]


def test_one_question_an_image_and_step_is_learned_beside_its_caption(tmp_path):
    """600 images with captions and questions, as docs/own_data.md has them, and the defaults of what a step shows."""
    folder = copy_of_the_code(tmp_path)
    squares(folder / "data" / "mine", captions=True, questions=True, count=600)
    params = yaml.safe_load((ROOT / "studies" / "smoke" / "params.yaml").read_text())
    params["data"] = {"source": "jsonl", "path": "data/mine", "vocabulary": 400}
    params["grid"] = {"family": ["ar"], "arm": ["none-0-0"], "tokens": [4], "seed": [0]}
    params["pretrain"]["steps"], params["train"] = 200, {"steps": 400, "batch": 32}
    run_all_stages(folder, params)
    found = json.loads((folder / "runs/mine/understand/ar-none-0-0-4-0/metrics.json").read_text())["metrics"]
    assert found["understanding/accuracy"] > 0.9
    assert found["understanding/question_only"] < 0.7
