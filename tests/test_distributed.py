"""Several processes compute what one computes with the whole batch."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from infotok.distributed import ALONE, World
from infotok.errors import InfotokError
from infotok.random import shared_random, stream
from infotok.training import loop
from infotok.training.batches import Batches
from infotok.training.checkpoints import Checkpoints, read_tensors
from infotok.training.joint import JointConfig
from pipeline.config.study import Study
from pipeline.running.processes import check_batch, wanted

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TRAININGS = [f"{family}-{arm}" for family in together.FAMILIES for arm in together.ARMS]
TRAININGS += ["pretrain-ar", "pretrain-flow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes leave, and beside it what this one leaves."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "alone").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "together.py"]
    settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, rank, folder], **settings) for rank in "01"]
    before = loop.LOG_EVERY
    try:
        together.all_of_it(ALONE, folder / "alone")
        for process in processes:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said
    finally:
        loop.LOG_EVERY = before
        for process in processes:
            process.kill()
    return folder


def left(path):
    tensors, meta = read_tensors(path, "")
    return tensors, meta["history"]


def assert_close(one, other):
    """Weights and histories equal up to rounding, of which sharp codes and an unbiased HSIC, a small difference of
    large sums, make 0.0002 to 0.0007 of a value, on one processor more than on another."""
    assert len(one[1]) == len(other[1])
    for line, expected in zip(one[1], other[1], strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=5e-4)
    for name, tensor in one[0].items():
        # A bias of keys moves no softmax: its gradient is rounding alone, which Adam makes steps of. So it does of
        # single gradients near zero, hence norms.
        if not name.endswith("qkv.bias"):
            assert (tensor - other[0][name]).norm() <= 1e-3 * tensor.norm(), name


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_with_the_whole_batch(folder, name):
    assert_close(left(folder / f"{name}-0"), left(folder / "alone" / f"{name}-0"))


@pytest.mark.parametrize("name", TRAININGS)
def test_both_processes_end_with_the_same_bits(folder, name):
    (first, history), (second, other) = left(folder / f"{name}-0"), left(folder / f"{name}-1")
    assert history == other
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_the_pretraining_that_is_compared_revives_codes(folder):
    split, _ = together.material()
    unrevived, _ = together.pretrained(split, "ar", revive_every=0)
    moved = (left(folder / "pretrain-ar-0")[0]["codebook"] - unrevived.codebook.detach()).norm(dim=-1)
    assert (moved > 0.5).sum() >= 5


def test_what_two_processes_began_one_ends_as_if_it_had_been_alone(folder, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    assert not (folder / "kept-1").exists()  # the first process writes for all
    kept = Checkpoints(folder / "kept-0")
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000002.safetensors"]
    split, codec = together.material()
    model, history = together.joint(split, codec, "mask", "vib", checkpoints=kept)
    assert_close((model.state_dict(), history), left(folder / "alone" / "mask-vib-0"))


def test_a_loss_that_is_not_finite_in_one_process_stops_both(folder):
    said = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    assert "step 6: loss is not finite" in said[0]["spoiled"]
    assert said[0]["spoiled"].endswith("step-00000004.safetensors)")
    assert said[0]["unlike"].startswith("the processes do not start from the same weights and step; let")


@pytest.mark.parametrize("how", [torch.rand, torch.randn, functools.partial(torch.randint, 0, 99)])
@pytest.mark.parametrize("dim", [0, 1])
def test_draws_of_all_processes_are_those_of_one(how, dim):
    shapes = [[6, 6, 5], [6, 6, 5]]
    shapes[1][dim] = 2
    whole = [shared_random(how, shapes[0], generator, dim) for generator in [stream(CPU, 3)] * 2]
    generators = [stream(CPU, 3, world=World(rank, 3, CPU)) for rank in range(3)]
    for expected in whole:  # the second draw too: every generator has gone on alike
        assert torch.equal(torch.cat([shared_random(how, shapes[1], g, dim) for g in generators], dim), expected)


def test_rows_of_all_processes_are_the_batch():
    split, codec = together.material()
    config = JointConfig(batch=12, caption_dropout=0.5)
    whole = Batches(split, codec, config, seed=0)
    parts = [Batches(split, codec, config, seed=0, world=World(rank, 3, CPU)) for rank in range(3)]
    assert torch.equal(torch.cat([part.images(7) for part in parts]), whole.images(7))
    texts = whole.texts(7)

    def rows(ids, valid):
        return [row[kept].tolist() for row, kept in zip(ids, valid, strict=True)]

    said = [part.texts(7) for part in parts]
    found = [row for part in said for row in rows(part.captions, part.captions_valid)]
    assert found == rows(texts.captions, texts.captions_valid)
    for index, asked in enumerate(texts.questions):
        shares = [part.questions[index] for part in said]
        found = [row for share in shares for row in rows(share.ids, share.valid)]
        assert found == rows(asked.ids, asked.valid)
        found = [row for share in shares for row in rows(share.answers, share.answers > 0)]
        assert found == rows(asked.answers, asked.answers > 0)


@pytest.mark.parametrize("text", ["eight", "0", "-2", "2.5", " ", "²"])
def test_a_wrong_number_of_processes_is_named(monkeypatch, text):
    monkeypatch.setenv("INFOTOK_PROCESSES", text)
    with pytest.raises(InfotokError, match=f"INFOTOK_PROCESSES: '{text}' is no number of processes; set it to 1"):
        wanted()


def test_processes_that_run_already_start_no_others(monkeypatch):
    monkeypatch.setenv("INFOTOK_PROCESSES", "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert wanted() == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert wanted() == 1


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_a_batch_that_processes_cannot_share_names_key_and_remedy(stage):
    study = Study("smoke", ROOT)
    check_batch(stage, study, 4)
    says = rf"studies/smoke/params.yaml: '{stage}.batch' is \d+, which 5 processes cannot share .*multiple of 5"
    with pytest.raises(InfotokError, match=says):
        check_batch(stage, study, 5)
