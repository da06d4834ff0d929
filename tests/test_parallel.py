"""Two processes that hold a part of the weights each train as one that holds all of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import together
import together_parallel
import torch
import yaml
from smoke import copy_of_the_code, environment, run

from infotok.distributed import ALONE
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.files import load_model, load_tokenizer
from infotok.tensors import read_tensors
from infotok.training import loop
from infotok.training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent
JOINT = list(together_parallel.CASES)
PRETRAININGS = ["pretrain-ar", "pretrain-flow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes leave, and beside it what this one leaves, from one of whose checkpoints they go on."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "alone").mkdir()
    before = loop.LOG_EVERY
    try:
        together_parallel.all_of_it(ALONE, folder / "alone")
    finally:
        loop.LOG_EVERY = before
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "together_parallel.py"]
    settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, rank, folder], **settings) for rank in "01"]
    try:
        for process in processes:
            printed, _ = process.communicate(timeout=600)
            assert process.returncode == 0, printed
            assert "Warning" not in printed
    finally:
        for process in processes:
            process.kill()
    return folder


def left(path):
    tensors, meta = read_tensors(path, "")
    return tensors, meta["history"]


def said(folder, rank=0):
    return json.loads((folder / f"said-{rank}.json").read_text())


def assert_same_bits(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name


def assert_close(one, other):
    """Of trainings of a few steps, but for biases of keys, whose gradient is rounding alone."""
    assert len(one[1]) == len(other[1])
    for line, expected in zip(one[1], other[1], strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)  # six digits are written
    assert {n: t.shape for n, t in one[0].items()} == {n: t.shape for n, t in other[0].items()}
    for name, tensor in one[0].items():
        if not name.endswith("qkv.bias"):
            assert (tensor - other[0][name]).norm() <= 1e-4 * tensor.norm(), name


@pytest.mark.parametrize("name", JOINT)
def test_losses_are_those_of_one_process(folder, name):
    both, alone = said(folder)[name], said(folder / "alone")[name]
    assert len(both) == together_parallel.FEW["steps"]
    for values, expected in zip(both, alone, strict=True):
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert values["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert said(folder, 1)[name] == both


@pytest.mark.parametrize("name", [*JOINT, *PRETRAININGS])
def test_weights_are_those_of_one_process_and_whole_in_both(folder, name):
    assert_close(left(folder / f"{name}-0"), left(folder / "alone" / f"{name}-0"))
    assert_same_bits(left(folder / f"{name}-1"), left(folder / f"{name}-0"))


def test_a_stopped_training_goes_on_bit_for_bit(folder):
    for rank in (0, 1):
        assert_same_bits(left(folder / f"resumed-{rank}"), left(folder / f"{together_parallel.KILLED}-0"))


def test_checkpoints_are_those_of_one_process_and_written_once(folder):
    files = [list((base / "kept").iterdir()) for base in (folder, folder / "alone")]
    assert [[path.name for path in some] for some in files] == [["step-00000002.safetensors"]] * 2
    (both, meta), (alone, expected) = (read_tensors(some[0], "") for some in files)
    assert {n: (t.shape, t.dtype) for n, t in both.items()} == {n: (t.shape, t.dtype) for n, t in alone.items()}
    assert {name.split("/")[0] for name in both} == {"model", "optimizer"}
    assert meta.keys() == expected.keys()


def test_one_process_ends_what_two_began_and_two_what_one_began(folder, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    undisturbed = left(folder / "alone" / f"{together_parallel.KILLED}-0")
    model, history = together_parallel.joint(
        together.material(), together_parallel.KILLED, ALONE, checkpoints=Checkpoints(folder / "kept")
    )
    assert_close((model.state_dict(), history), undisturbed)
    assert_close(left(folder / "taken-over-0"), undisturbed)


@pytest.mark.parametrize("how", ["shard", "replicate", "parts"])
def test_gradients_are_averaged_and_what_no_loss_reaches_has_none(folder, how):
    """Without a gradient a weight does not decay, in one process or in several."""
    alone, both = said(folder / "alone")[how], [said(folder, rank)[how] for rank in (0, 1)]
    for kind in ("gradients", "weights"):
        found = both[0][kind]
        if how == "shard":  # rows of each tensor, in order; scalars are whole in both
            found = {n: v if n == "scale" else v + both[1][kind][n] for n, v in found.items()}
        else:
            assert both[1][kind] == found
        assert found.keys() == alone[kind].keys()
        for name, values in alone[kind].items():
            assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert both[0]["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    assert not any(name.startswith("unused") for name in both[0]["gradients"])


def test_each_process_holds_its_part_of_the_weights(folder):
    parts = [sum(map(len, said(folder, rank)["shard"]["weights"].values())) for rank in (0, 1)]
    assert parts == [39, 23]  # of 61 numbers: 15 + 3 + 10 + 2 + 6 + 2 and the scalar, and the rest of the rows with it


def test_gathered_rows_have_the_gradients_of_all_processes(folder):
    """Of sum_p (1 + p) sum_i i x_i^2, of whose gradient row i gets 2 (1 + 2) i x_i."""
    first, second = (said(folder, rank)["gathered"] for rank in (0, 1))
    rows = torch.cat([torch.arange(6.0).view(2, 3).T + 10 * rank for rank in (0, 1)])
    assert first["rows"] == second["rows"] == rows.tolist()
    expected = 2 * 3 * torch.arange(1.0, 13.0).view(6, 2) * rows
    assert first["gradient"] + second["gradient"] == expected.tolist()
    assert first["flags"] == second["flags"] == [True, False]


def test_processes_that_start_unlike_are_named(folder):
    for rank in (0, 1):
        assert said(folder, rank)["unlike"].startswith("the processes do not start from the same weights")


def test_one_process_with_either_setting_does_the_same(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    material = together.material()
    monkeypatch.setitem(together.ARMS, "whole", together.ARMS["ar-ceb"] | {"parallel": "replicate"})
    (one, history), (other, expected) = (together.joint(*material, "ar", name) for name in ("ar-ceb", "whole"))
    assert_same_bits((one.state_dict(), history), (other.state_dict(), expected))


STUDY = {
    "grid": {"family": ["ar"], "arm": ["none-0-0"], "tokens": [4], "seed": [0]},
    "data": {"source": "scenes", "train": 200, "validation": 50, "test": 50, "novel": 50},
    "perceptual": {"steps": 2, "batch": 32},
    "tokenizer": {"codebook": 64, "width": 32, "hidden": 96, "blocks": 1},
    "pretrain": {"steps": 4, "warmup": 1, "revive_every": 2, "parallel": "shard"},
    "backbone": {"width": 32, "layers": 2},
    "train": {"steps": 60, "batch": 16, "checkpoint_every": 3, "parallel": "shard"},
}


def test_a_stage_that_two_processes_began_one_ends_with_the_ordinary_files(tmp_path):
    folder, axes = copy_of_the_code(tmp_path), ["--study", "shared", "--family", "ar", "--tokens", "4", "--seed", "0"]
    (folder / "studies/shared").mkdir()
    (folder / "studies/shared/params.yaml").write_text(yaml.safe_dump(STUDY))
    two = {"INFOTOK_PROCESSES": "2", "INFOTOK_TRACKING": "off", "INFOTOK_WORKER": ""}
    for stage in ("prepare", "perceptual"):
        assert run(folder, f"stages.{stage}", "--study", "shared", INFOTOK_TRACKING="off").returncode == 0
    done = run(folder, "stages.pretrain", *axes, **two)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "stages.train", *axes, "--arm", "ceb-0.01-1"]
    settings = {"cwd": folder, "stderr": subprocess.PIPE, "text": True}
    began = subprocess.Popen(command, env=environment() | two, **settings)
    while began.poll() is None and not list(folder.glob(".ckpt/shared/checkpoints/train/*/*/step-*.safetensors")):
        time.sleep(0.05)
    began.terminate()
    assert began.wait(60) == 143, began.communicate()[1]
    one = {"INFOTOK_TRACKING": "off", "INFOTOK_WORKER": ""}
    ended = subprocess.run(command, env=environment() | one, check=False, timeout=300, **settings)
    assert ended.returncode == 0, ended.stderr
    assert "train.parallel: shard changes nothing for one process; INFOTOK_PROCESSES or torchrun" in ended.stderr
    assert "goes on from .ckpt/shared/checkpoints/train/" in ended.stderr
    result = folder / "runs/shared/train/ar-ceb-0.01-1-4-0"
    names = {"history.jsonl", "metrics.json", "model.safetensors", "text.json"}
    assert {path.name for path in result.iterdir()} == names
    assert load_model(result, "")[0].backbone.width == 32
    assert load_tokenizer(folder / "runs/shared/pretrain/ar-4-0", "").tokens == 4


def test_the_layers_of_a_backbone_are_found():
    backbone = Backbone.create(BackboneConfig(width=16, layers=3, heads=2), 20)
    assert backbone.layers == list(backbone.model.model.layers)
    assert len(backbone.layers) == 3
