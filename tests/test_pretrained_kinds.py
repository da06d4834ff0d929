"""A study of pretrained models whose folders bring code of their own, one of masked diffusion and one with continuous
tokens, run whole by the real `dvc repro`."""

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pretrained import finished_study, line_of, refused, result

from infotok.errors import SettingError
from infotok.mllm.loading import load, open_model
from infotok.mllm.options import ModelConfig
from pipeline.config.params import PretrainedParams
from stages.opening import check_settings

NAME, FAMILIES, ARMS = "kinds", ("llada", "continuous"), ("none-0-0", "vib-0.01-0")
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
    folder = tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(folder / "modules"))  # not the user's
        yield finished_study(folder, NAME, PARAMS, "--with-code")


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
    found = result(finished, NAME, "inspect", "continuous-16")
    assert found["protocol"]["tokens"] == "vectors of 8 dimensions"
    assert found["metrics"]["inspect/tokens"] == 16
    assert 0 < found["metrics"]["inspect/active_dimensions"] <= 16 * 8
    assert result(finished, NAME, "inspect", "llada-16")["protocol"]["tokens"] == "64 codes of 8 dimensions"
    tuned = result(finished, NAME, "tune", "continuous-vib-0.01-0-16-0")["metrics"]
    assert tuned["train/drift"] > 0
    assert {"train/spread", "train/reference_spread", "train/psnr"} <= tuned.keys()


def test_pictures_are_drawn_from_vectors_too(finished):
    for family in FAMILIES:
        folder = finished / f"runs/{NAME}/render/{family}-none-0-0-16-0"
        for name in ("samples.png", "reconstructions.png"):
            with Image.open(folder / name) as image:
                assert len(set(image.convert("RGB").getdata())) > 10


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("calibrate", "settle", True, "calibrate.settle: is of codes, and this model has continuous tokens"),
        ("generation", "top_k", 5, "generation.top_k: is of codes"),
        ("generation", "guidance", [1.0, 3.0], "generation.guidance: the `draw` of TinyModel takes no guidance"),
        ("grid", "tokens", [64], "grid.tokens[0]: this model's images have 16 tokens, not 64"),
    ],
)
def test_what_continuous_tokens_do_not_have_is_refused_at_the_first_stage(finished, section, key, value, says):
    content = PARAMS | {section: PARAMS[section] | {key: value}}
    line = line_of(content, f"  {key}:") + (key == "tokens")  # whose one entry stands in the next
    axes = ["--family", "continuous", "--tokens", "64" if key == "tokens" else "16"]
    said = refused(finished, NAME, content, "inspect", *axes)
    assert said.startswith(f"error: params.yaml:{line}: {says}")


# What each kind of model makes of each key of a study: x it has a use for it, - it is refused.
KINDS = ("chameleon", "emu3", "llada", "continuous", "janus")
SOME = """
models.decoder         ./tiny/decoder.ckpt  x - - - -
models.trust           true                 - - x x -
models.control         true                 - - - - x
grid.arm               [ceb-0.1-0]          x x x - x
calibrate.tokenizer    new                  x - - - -
calibrate.settle       true                 x x x - -
calibrate.entropy_bits 1.0                  x x x - x
calibrate.commitment   0.5                  x x x - x
tune.commitment        0.5                  x x x - x
tune.relaxation        2.0                  x x x - x
tune.lm_gradient       0.1                  x x x x -
tune.prior             low_rank             x x x - x
tune.prior             model                x x - - x
tune.prior_rank        4                    x x x - x
tune.cache             false                x x x - -
generation.guidance    [1.0,3.0]            x x x - x
generation.top_k       5                    x x x - x
"""
ALL = """
calibrate: {images: 8, steps: 5, batch: 4, rate: 1e-3, warmup: 1, final_fraction: 0.5, clip: 2.0, weight_decay: 0.1,
  precision: fp32, checkpoint_every: 7}
tune: {understanding: 0.5, generation: 0.5, reconstruction: 0.5, steps: 5, batch: 4, accumulate: 2, train: lora,
  rank: 4, alpha: 8, tokenizer: encoder, lm_rate: 1e-3, tokenizer_rate: 1e-3, prior_rate: 0.1, warmup: 1,
  final_fraction: 0.5, beta_warmup: 0.5, clip: 2.0, weight_decay: 0.1, caption_dropout: 0.2, precision: fp32,
  recompute: true, parallel: shard, checkpoint_every: 7}
kernels: {estimator: rff, bandwidth: median, normalized: false, consistency: kernels}
understanding: {answers: vqa, batch: 4, longest_answer: 4, images: 4}
generation: {prompts: 4, images: 1, temperatures: [1.0], batch: 4, seed: 1}
"""


def test_every_key_is_of_use_to_a_model_or_refused(finished, trusted_code, monkeypatch):
    monkeypatch.chdir(finished)
    state = {f"decoder.{name}": value for name, value in load("./tiny/chameleon").extra.state_dict().items()}
    torch.save(state, "tiny/decoder.ckpt")
    rows = [line.split() for line in SOME.split("\n") if line]
    cases = [(key, yaml.safe_load(value), "".join(marks)) for key, value, *marks in rows]
    for section, values in yaml.safe_load(ALL).items():
        cases += [(f"{section}.{key}", value, "x" * len(KINDS)) for key, value in values.items()]
    sections = {name: PretrainedParams.model_fields[name].annotation for name in yaml.safe_load(ALL)}
    known = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    known |= {f"models.{key}" for key in ModelConfig.model_fields if key not in ("name", "revision")}
    assert known | {"grid.arm"} == {key for key, *_ in cases}
    for number, kind in enumerate(KINDS):
        own = {"name": f"./tiny/{kind}", "trust": kind in FAMILIES, "control": kind == "janus"}
        base = PARAMS | {"models": {kind: own}, "grid": PARAMS["grid"] | {"family": [kind], "arm": ["none-0-0"]}}
        adapter = open_model(PretrainedParams.model_validate(base).models[kind], 16, torch.device("cpu"))
        for key, value, marks in cases:
            section, name = key.split(".")
            change = {kind: own | {name: value}} if section == "models" else base.get(section, {}) | {name: value}
            params = PretrainedParams.model_validate(base | {section: change})
            refused_key = ()
            try:
                if section == "models":
                    open_model(params.models[kind], 16, torch.device("cpu"))
                check_settings(adapter, params)
            except SettingError as error:
                refused_key = error.key
            assert (name in refused_key, bool(refused_key)) == (marks[number] == "-",) * 2, (kind, key, value)
