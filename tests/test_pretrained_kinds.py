"""A study of pretrained models whose folders bring code of their own, one of masked diffusion and one with continuous
tokens, run whole by the real `dvc repro`."""

import json

import pandas as pd
import pytest
import yaml
from PIL import Image
from smoke import copy_of_the_code, one_line_error, run

NAME, FAMILIES, ARMS = "kinds", ("llada", "continuous"), ("none-0-0", "vib-0.01-0")
FILE = f"studies/{NAME}/dvc.yaml"
PARAMS = {
    "models": {family: {"name": f"./tiny/{family}", "trust": True} for family in FAMILIES},
    "grid": {"family": list(FAMILIES), "arm": list(ARMS), "tokens": [16], "seed": [0]},
    "data": {"source": "jsonl", "path": "tiny/data", "validation": 0.15, "test": 0.15},
    "judge": {"steps": 20, "batch": 32},
    "calibrate": {"tokenizer": "full", "steps": 10, "warmup": 2, "images": 16, "rate": 1e-3},
    "tune": {"steps": 10, "warmup": 2, "batch": 8, "tokenizer_rate": 1e-3, "beta_warmup": 0.0},
    "understanding": {"images": 6, "longest_answer": 4},
    "generation": {"prompts": 4, "images": 1, "temperatures": [1.0], "guidance": [1.0]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = copy_of_the_code(tmp_path_factory.mktemp("kinds"))
    (folder / "studies" / NAME).mkdir()
    (folder / f"studies/{NAME}/params.yaml").write_text(yaml.safe_dump(PARAMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(folder / "modules"))  # not the user's
        for command in (["tiny", "tiny", "--with-code"], ["study", NAME]):
            done = run(folder, "stages.cli", *command)
            assert done.returncode == 0, done.stderr
        done = run(folder, "dvc", "repro", FILE)
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder


def result(folder, stage, key):
    return json.loads((folder / f"runs/{NAME}/{stage}/{key}/metrics.json").read_text())


def test_the_report_pairs_the_arms_of_both(finished):
    table = pd.read_csv(finished / f"reports/{NAME}/ablation.csv").set_index(["family", "estimator"])
    assert set(table.index) == {(family, estimator) for family in FAMILIES for estimator in ("none", "vib")}
    shown = ["understanding/accuracy", "generation/retrieval", "information/rate_bits", "reconstruction/psnr"]
    assert table[shown].notna().all().all()
    assert (table["information/rate_bits"] > 0).all()
    assert table["information/active_dimensions"].notna().tolist() == [False, False, True, True]
    for name in ("generation/own_codes", "information/generator_nll_bits", "information/capacity_bits"):
        assert table[name].notna().tolist() == [True, True, False, False], name
    paired = pd.read_csv(finished / f"reports/{NAME}/paired.csv").set_index(["family", "metric"])
    for family in FAMILIES:
        rates = table.loc[family]["information/rate_bits"]
        difference = paired.loc[(family, "rate_bits"), "difference"]
        assert difference == pytest.approx(rates["vib"] - rates["none"], abs=0.01)


def test_what_is_known_of_tokens_without_codes(finished):
    found = result(finished, "inspect", "continuous-16")
    assert found["protocol"]["tokens"] == "vectors of 8 dimensions"
    assert found["metrics"]["inspect/tokens"] == 16
    assert 0 < found["metrics"]["inspect/active_dimensions"] <= 16 * 8
    assert result(finished, "inspect", "llada-16")["protocol"]["tokens"] == "64 codes of 8 dimensions"
    tuned = result(finished, "tune", "continuous-vib-0.01-0-16-0")["metrics"]
    assert tuned["train/drift"] > 0
    assert {"train/spread", "train/reference_spread", "train/psnr"} <= tuned.keys()


def test_pictures_are_drawn_from_vectors_too(finished):
    for family in FAMILIES:
        folder = finished / f"runs/{NAME}/render/{family}-none-0-0-16-0"
        for name in ("samples.png", "reconstructions.png"):
            with Image.open(folder / name) as image:
                assert len(set(image.convert("RGB").getdata())) > 10


@pytest.mark.parametrize(
    ("section", "values", "stage", "says"),
    [
        ("calibrate", {"settle": True}, "calibrate", "settle: is of codes"),
        ("calibrate", {"entropy_bits": 1.0}, "calibrate", "entropy_bits: is of codes"),
        ("generation", {"guidance": [1.0, 3.0]}, "render", "takes no guidance"),
        ("generation", {"top_k": 5}, "render", "top_k: is of codes"),
        ("grid", {"tokens": [64]}, "inspect", "grid.tokens: this model's images have 16 tokens, not 64"),
    ],
)
def test_what_continuous_tokens_do_not_have_is_one_line(finished, section, values, stage, says):
    path = finished / f"studies/{NAME}/params.yaml"
    kept = path.read_text()
    try:
        path.write_text(yaml.safe_dump(PARAMS | {section: PARAMS[section] | values}))
        axes = ["--family", "continuous", "--tokens", str(values.get("tokens", [16])[0])]
        assert says in one_line_error(run(finished, f"stages.{stage}", "--study", NAME, *axes))
    finally:
        path.write_text(kept)
