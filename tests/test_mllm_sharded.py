"""Two processes tune as one does with the whole batch, with all weights each or with weights spread over both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_mllm
import together_mllm
from transformers import AutoModelForImageTextToText

from infotok.distributed import ALONE
from infotok.mllm.loading import load
from infotok.training import loop

ROOT = Path(__file__).parent.parent
TUNINGS = list(together_mllm.TUNINGS)
SHARDED = [name for name, (_, _, how) in together_mllm.TUNINGS.items() if how.get("parallel") == "shard"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes leave, and beside it what this one leaves."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in tiny_mllm.SHARED:
        tiny_mllm.make(name, folder / name)
    for part in ("alone", "both"):
        (folder / part).mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "together_mllm.py"]
    settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, rank, folder, folder / "both"], **settings) for rank in "01"]
    before = loop.LOG_EVERY
    try:
        together_mllm.all_of_it(folder, folder / "alone", ALONE)
        for process in processes:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said
    finally:
        loop.LOG_EVERY = before
        for process in processes:
            process.kill()
    return folder


def left(folder, part, name, rank=0):
    return json.loads((folder / part / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", TUNINGS)
def test_two_processes_tune_as_one_with_the_whole_batch(folder, name):
    both, alone = left(folder, "both", name), left(folder, "alone", name)
    assert len(both["history"]) == together_mllm.SETTINGS["steps"]
    for line, expected in zip(both["history"], alone["history"], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)  # a gradient's norm, and parts near 0
    assert left(folder, "both", name, 1)["history"] == both["history"]
    assert both["psnr"] == pytest.approx(alone["psnr"], rel=1e-3)


def test_two_processes_warm_up_as_one_with_the_whole_batch(folder):
    both, alone = left(folder, "both", "warmed")["history"], left(folder, "alone", "warmed")["history"]
    assert len(both) == 3
    for line, expected in zip(both, alone, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_two_processes_make_known_tokens_a_share_each(folder):
    alone, both = left(folder, "alone", "frozen"), [left(folder, "both", "frozen", rank) for rank in (0, 1)]
    assert alone["made"] == 4
    assert [one["made"] for one in both] == [2, 2]
    for one in both:
        for line, plain, expected in zip(one["history"], one["plain"], alone["history"], strict=True):
            assert line == pytest.approx(plain, rel=1e-3, abs=1e-4)
            assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", SHARDED)
def test_each_process_holds_its_part_of_the_weights(folder, name):
    parts = [left(folder, "both", name, rank)["numbers"] for rank in (0, 1)]
    whole = left(folder, "alone", name)["numbers"]
    assert sum(parts) == whole
    assert max(parts) < 0.6 * whole


@pytest.mark.parametrize("name", TUNINGS)
def test_what_is_saved_is_an_ordinary_folder_with_the_same_weights(folder, name):
    one, other = (AutoModelForImageTextToText.from_pretrained(folder / part / name) for part in ("both", "alone"))
    assert one.state_dict().keys() == other.state_dict().keys()
    start = load(str(folder / together_mllm.TUNINGS[name][0])).model.state_dict()
    moved = 0.0
    for key, weights in other.state_dict().items():
        if weights.is_floating_point():
            moved += float((weights - start[key]).square().sum())
            # Adam makes steps of gradients that are rounding alone, as those of biases that a norm takes out again.
            assert (one.state_dict()[key] - weights).norm() <= 2e-3 * weights.norm() + 2e-3, key
    assert moved > 0.01
    drawn = [load(str(folder / part / name)) for part in ("both", "alone")]
    assert all(not adapter.extra_is_new for adapter in drawn)


@pytest.mark.parametrize("fault", ["none", "damaged", "partial"])
def test_a_sharded_tuning_resumes_bit_for_bit(folder, fault):
    for rank in (0, 1):
        said = left(folder, "both", "said", rank)[fault]
        assert said["kept"] == ["step-00000003", "step-00000004"]
        assert said["same"]
        assert said["aside"] == ([] if fault == "none" else ["step-00000004.damaged"])


def test_processes_that_start_unlike_are_named(folder):
    said = [left(folder, "both", "said", rank)["unlike"] for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("the processes do not start from the same weights")


def test_checkpoints_that_cannot_be_written_or_do_not_fit_stop_both(folder):
    said = [left(folder, "both", "said", rank) for rank in (0, 1)]
    assert "step-00000001: cannot be written (" in said[0]["unwritable"]
    assert "another process says why" in said[1]["unwritable"]
    assert all("does not fit this configuration (first at '" in one["unfit"] for one in said)


def test_sharded_checkpoints_hold_what_is_trained_and_moments_alone(folder):
    from torch.distributed.checkpoint import FileSystemReader

    kept = max((folder / "both" / "kept-none").glob("step-????????"))
    names = FileSystemReader(kept).read_metadata().state_dict_metadata.keys()
    assert {name.split("/")[0] for name in names} == {"model", "optimizer"}
