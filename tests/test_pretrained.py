"""A study of pretrained models, run whole by the real `dvc repro`: tiny Chameleon and tiny Emu3, from JSON lines with
images, captions and questions to the paired report and two saved models of each."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pretrained import finished_study, line_of, refused, result, write
from smoke import ROOT, one_line_error, ran, run

from infotok.mllm.loading import load
from pipeline.config.cells import Cell
from pipeline.config.study import Study

NAME, FAMILIES, ARMS = "tiny-mllm", ("chameleon", "emu3"), ("none-0-0", "dib-0.03-0")
FILE, STUDY = f"studies/{NAME}/dvc.yaml", ["--study", NAME]
CELLS = {(family, arm): f"{family}-{arm}-16-0" for family in FAMILIES for arm in ARMS}
FEW = {
    "grid": {"arm": list(ARMS)},
    "judge": {"steps": 20, "batch": 32},
    "calibrate": {"steps": 10, "warmup": 2, "images": 16, "checkpoint_every": 5},
    "tune": {"steps": 20, "warmup": 2, "batch": 8, "checkpoint_every": 5},
    "understanding": {"images": 12},
    "generation": {"prompts": 4, "images": 1},
}
OWN = yaml.safe_load((ROOT / f"studies/{NAME}/params.yaml").read_text())
PARAMS = OWN | {section: OWN.get(section, {}) | values for section, values in FEW.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_study(tmp_path_factory.mktemp("pretrained"), NAME, PARAMS)


def test_the_report_pairs_the_arms_of_both_models(finished):
    reports = finished / f"reports/{NAME}"
    table = pd.read_csv(reports / "ablation.csv")
    assert [tuple(row) for row in table[["family", "estimator"]].to_numpy()] == [
        (family, estimator) for family in FAMILIES for estimator in ("none", "dib")
    ]
    shown = ["understanding/accuracy", "understanding/question_only", "generation/retrieval", "generation/own_codes"]
    shown += ["generation/own_codes_guessed"]
    shown += ["information/rate_bits", "information/generator_nll_bits", "information/dead_codes"]
    shown += ["reconstruction/psnr", "reconstruction/ssim"]
    assert table[shown].notna().all().all()
    assert (table["information/rate_bits"] > 0).all()
    paired = pd.read_csv(reports / "paired.csv").set_index(["family", "metric"])
    rates = table.set_index(["family", "estimator"])["information/rate_bits"]
    for family in FAMILIES:
        difference = rates[family, "dib"] - rates[family, "none"]
        assert paired.loc[(family, "rate_bits"), "difference"] == pytest.approx(difference, abs=1e-4)
    for name in ("samples", "training"):
        with Image.open(reports / f"figures/{name}.png") as image:
            assert image.width >= 820
    assert "tiny/chameleon" in (reports / "ablation.md").read_text()


def test_a_second_repro_does_nothing(finished):
    done = run(finished, "dvc", "repro", FILE)
    assert done.returncode == 0, done.stderr
    assert ran(done.stdout) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_both_arms_start_from_the_same_and_leave_a_model_that_answers_and_draws(finished, family):
    pixels = Image.open(finished / "tiny/data/images/red-cross-large-center-middle.png")
    tuned = {arm: load(str(finished / f"runs/{NAME}/tune/{CELLS[family, arm]}/model")) for arm in ARMS}
    for adapter in tuned.values():
        assert len(adapter.answer([pixels], ["what color?"])) == 1
        assert adapter.draw(["a small red cross at the top left"], 4, 4).shape == (1, 4, 4)
        assert not adapter.extra_is_new
    first, second = (adapter.model.state_dict() for adapter in tuned.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)
    histories = [
        [json.loads(line) for line in (finished / f"runs/{NAME}/tune/{CELLS[family, arm]}/history.jsonl").open()]
        for arm in ARMS
    ]
    assert [line["step"] for line in histories[0]] == [line["step"] for line in histories[1]] == [10, 20]
    assert histories[0][0]["train/loss"] != histories[1][0]["train/loss"]


def test_what_is_known_of_a_model_before_it_is_trained(finished):
    found = result(finished, NAME, "inspect", "chameleon-16")
    assert found["metrics"]["inspect/tokens"] == 16
    assert found["metrics"]["inspect/capacity_bits"] == 16 * 6
    assert any("has no decoder" in warning for warning in found["warnings"])
    assert result(finished, NAME, "inspect", "emu3-16")["warnings"] == []
    calibrated = result(finished, NAME, "calibrate", "emu3-16-0")
    assert calibrated["metrics"]["pretrain/variance"] > 0
    assert len(calibrated["protocol"]["weights"]) == 64


def test_mlflow_has_a_run_of_every_cell_and_tokenizer(finished):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    named = {found.info.run_name: found for found in runs}
    assert sorted(named) == sorted([*CELLS.values(), *(f"tokenizer-{family}-16-0" for family in FAMILIES)])
    cell = named[CELLS["emu3", "dib-0.03-0"]]
    assert cell.data.params["tune.steps"] == "20"
    assert cell.data.params["models.name"] == "./tiny/emu3"
    assert {"train/loss", "understanding/accuracy", "generation/retrieval", "pretrain/psnr"} <= set(cell.data.metrics)


def test_an_interrupted_tuning_goes_on_and_gives_the_same_bytes(finished, tmp_path):
    """The weights of an undisturbed one, from a checkpoint in the middle."""
    folder, key = tmp_path / "copy", CELLS["emu3", "dib-0.03-0"]
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db"))
    study = Study(NAME, folder)
    cell = Cell("emu3", "dib", 0.03, 0.0, 16, 0)
    shutil.rmtree(study.output("tune", cell))
    axes = ["--family", "emu3", "--arm", "dib-0.03-0", "--tokens", "16", "--seed", "0"]
    stop = (
        "import os, signal, infotok.mllm.tuning as t; own = t.Tuner.gradients\n"
        "def stopping(self, *given, step, **more):\n"
        "    if step == 12: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return own(self, *given, step=step, **more)\n"
        "t.Tuner.gradients = stopping\n"
        "import sys; sys.argv[0] = 'tune'\n"
        "from stages.common import main; main('tune')\n"
    )
    (folder / "stopping.py").write_text(stop)
    stopped = run(folder, "stopping", *STUDY, *axes, INFOTOK_TRACKING="off", INFOTOK_WORKER="")
    assert stopped.returncode == 143, stopped.stderr
    again = run(folder, "stages.tune", *STUDY, *axes, INFOTOK_TRACKING="off")
    assert again.returncode == 0, again.stderr
    assert "goes on from" in again.stderr
    one, other = (base / f"runs/{NAME}/tune/{key}/model/model.safetensors" for base in (finished, folder))
    assert one.read_bytes() == other.read_bytes()


def test_two_processes_that_share_the_weights_leave_what_one_leaves(finished):
    """But for the order of sums, in bfloat16 where the processor has it."""
    write(finished, "shared", PARAMS | {"tune": PARAMS["tune"] | {"parallel": "shard"}})
    for stage in ("prepare", "calibrate"):
        shutil.copytree(finished / f"runs/{NAME}/{stage}", finished / f"runs/shared/{stage}")
    axes = ["--study", "shared", "--family", "emu3", "--arm", "dib-0.03-0", "--tokens", "16", "--seed", "0"]
    done = run(finished, "stages.tune", *axes, INFOTOK_PROCESSES="2", INFOTOK_TRACKING="off", INFOTOK_WORKER="")
    assert done.returncode == 0, done.stderr
    folders = [finished / f"runs/{study}/tune/{CELLS['emu3', 'dib-0.03-0']}" for study in (NAME, "shared")]
    alone, shared = ([json.loads(line) for line in (folder / "history.jsonl").open()] for folder in folders)
    assert [line["step"] for line in shared] == [10, 20]
    for name in ("train/loss", "train/rate_bits", "train/reconstruction"):
        assert [line[name] for line in shared] == pytest.approx([line[name] for line in alone], rel=0.02), name
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    assert load(str(folders[1] / "model")).draw(["a small red cross at the top left"], 4, 4).shape == (1, 4, 4)


def test_a_frozen_tokenizer_trains_alike_whether_its_tokens_are_kept_or_made_in_every_step(finished):
    grid = PARAMS["grid"] | {"arm": ["none-0-0"]}
    axes = ["--family", "chameleon", "--arm", "none-0-0", "--tokens", "16", "--seed", "0"]
    found = {}
    for cache in (True, False):
        name = f"frozen-{cache}"
        tune = PARAMS["tune"] | {"tokenizer": "frozen", "cache": cache}
        write(finished, name, PARAMS | {"grid": grid, "tune": tune})
        for stage in ("prepare", "calibrate"):
            shutil.copytree(finished / f"runs/{NAME}/{stage}", finished / f"runs/{name}/{stage}")
        done = run(finished, "stages.tune", "--study", name, *axes, INFOTOK_TRACKING="off")
        assert done.returncode == 0, done.stderr
        folder = finished / f"runs/{name}/tune/{CELLS['chameleon', 'none-0-0']}"
        found[cache] = [json.loads(line) for line in (folder / "history.jsonl").open()]
        assert not list((finished / ".ckpt").rglob("tokens*"))
    for one, other in zip(found[True], found[False], strict=True):
        assert one == pytest.approx(other, rel=0.02)  # in bfloat16, where the processor has it


def test_damaged_weights_are_told_with_what_makes_them_again(finished, tmp_path):
    model = finished / f"runs/{NAME}/tune/{CELLS['chameleon', 'none-0-0']}/model"
    axes = ["--family", "chameleon", "--arm", "none-0-0", "--tokens", "16", "--seed", "0"]
    for name, content in (("model.safetensors", b"\x10 damaged"), ("processor_config.json", None)):
        kept = (model / name).read_bytes()
        try:
            (model / name).unlink()  # a link into DVC's cache, perhaps
            if content is not None:
                (model / name).write_bytes(content)
            said = one_line_error(run(finished, "stages.answer", *STUDY, *axes))
        finally:
            (model / name).write_bytes(kept)
        assert f"delete runs/{NAME}/tune/{CELLS['chameleon', 'none-0-0']} and run `dvc repro {FILE}:tune@" in said
        assert "copy" not in said  # what would help a pretrained one


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--family", "emu3", "--tokens", "16"], "tune: is no stage of params.yaml, whose own are prepare, "),
        (
            [*STUDY, "--tokens", "16"],
            f"--family: is missing; grid.family of studies/{NAME}/params.yaml has chameleon, ",
        ),
        ([*STUDY, "--family", "emu3"], f"--tokens: is missing; grid.tokens of studies/{NAME}/params.yaml has 16"),
    ],
)
def test_an_option_that_was_not_typed_is_named(finished, options, says):
    said = one_line_error(run(finished, "stages.tune", *options))
    assert says in said
    assert "'ar'" not in said
    assert ("--study" in said) == (options[0] == "--family")


def test_the_command_of_small_models_names_the_one_of_pretrained_ones(finished):
    (finished / "prompts.jsonl").write_text('{"prompt": "a red cross"}\n')
    axes = ["--family", "emu3", "--tokens", "16", "--prompts", "prompts.jsonl", "--out", "drawn"]
    assert "`infotok draw-model --model runs/tiny-mllm/tune/" in one_line_error(
        run(finished, "stages.draw", *STUDY, *axes)
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "stage", "says"),
    [
        (
            "chameleon",
            "name",
            "./nowhere",
            "configure",
            "name: ./nowhere: there is no such folder; give one that save_",
        ),
        ("chameleon", "name", "./tiny/data", "configure", "name: ./tiny/data: holds no config.json; give a folder"),
        ("chameleon", "name", "./llama", "inspect", "name: ./llama is of the type 'llama', for which there is no"),
        ("chameleon", "name", "./tiny/janus", "inspect", "control: ./tiny/janus reads images by another encoder"),
        ("chameleon", "control", True, "inspect", "control: ./tiny/chameleon draws with the tokens that it reads"),
        ("chameleon", "decoder", "no.ckpt", "configure", "decoder: no.ckpt: there is no such file; give a VQGAN's"),
        ("chameleon", "decoder", "./dvc.yaml", "inspect", "decoder: ./dvc.yaml is no checkpoint, or is damaged; give"),
        ("tune", "batch", 1000, "inspect", "batch: 1000 images of one size are needed, and there are "),
        ("calibrate", "batch", 999, "inspect", "batch: 999 images of one size are needed, and there are "),
        ("grid", "tokens", [15], "inspect", "tokens[0]: Chameleon's images are square, and 15 is no square"),
    ],
)
def test_bad_input_is_one_line_with_file_and_line(finished, section, key, value, stage, says):
    (finished / "llama").mkdir(exist_ok=True)
    (finished / "llama/config.json").write_text('{"model_type": "llama"}')
    content = OWN | {"models": dict(OWN["models"]), "grid": OWN["grid"] | {"family": ["chameleon"]}}
    sections, place, indent = (content["models"], "models.", 4) if section == "chameleon" else (content, "", 2)
    sections[section] = sections[section] | {key: value}
    axes = ["--family", "chameleon", "--tokens", str(content["grid"]["tokens"][0])]
    said = refused(finished, NAME, content, stage, *([] if stage == "configure" else axes))
    written = " " * indent + yaml.safe_dump({key: value}).splitlines()[-1]
    # What the file does not say is named with the section that lacks it.
    line = line_of(content, written if says.startswith(key) else f"  {section}:")
    assert said.startswith(f"error: params.yaml:{line}: {place}{section}.{says}")


def test_a_missing_model_is_told_before_anything_runs(finished):
    content = OWN | {"models": OWN["models"] | {"emu3": {"name": "./nowhere"}}}
    write(finished, "bad", content)
    says = (
        f"studies/bad/params.yaml:{line_of(content, '    name: ./nowhere')}: models.emu3.name: ./nowhere: there is no"
    )
    made = run(finished, "stages.cli", "study", "bad")  # which may be for another machine
    assert made.returncode == 0
    assert made.stderr.startswith(f"note: {says}")
    for command in ("plan", "sweep"):
        assert one_line_error(run(finished, "stages.cli", command, "--study", "bad")).startswith(f"error: {says}")


def test_only_what_depends_on_a_changed_parameter_runs_again(finished):
    """As DVC itself says once the recipes are written, and of the report as it does."""
    for section, values, stage in (("understanding", {"batch": 5}, "answer"), ("generation", {"seed": 8}, "render")):
        write(finished, NAME, PARAMS | {section: PARAMS[section] | values})
        assert run(finished, "stages.configure", *STUDY).returncode == 0
        told = json.loads(run(finished, "dvc", "status", "--json", FILE).stdout)
        wanted = {f"{stage}@{cell}" for cell in CELLS.values()} | {"report"}
        assert {name.split(":")[-1] for name in told} - {"configure"} == wanted
    write(finished, NAME, PARAMS | {"report": {"title": "Another"}})
    assert ran(run(finished, "dvc", "repro", FILE).stdout) == ["configure", "report"]
    assert "Another" in (finished / f"reports/{NAME}/ablation.md").read_text()


@pytest.mark.parametrize("stage", ["train", "understand"])
def test_a_stage_of_small_models_is_none_of_this_study(finished, stage):
    axes = ["--family", "chameleon", "--tokens", "16"]
    said = one_line_error(run(finished, f"stages.{stage}", *STUDY, *axes))
    assert f"{stage}: is no stage of studies/{NAME}/params.yaml, whose own are prepare, judge, inspect" in said
