"""`infotok draw-model`: folders of GenEval by models of transformers, stopped and gone on with, and bad input."""

import json
import shutil

import numpy as np
import pytest
import tiny_mllm
import torch
from PIL import Image
from test_draw import PROMPTS, as_the_evaluator_reads, everything, official_prompts, written
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from infotok.mllm.harness.geneval import prompt_room, square
from infotok.mllm.loading import load
from stages.cli import app


@pytest.fixture(scope="module")
def folders(folders, tmp_path_factory):
    """Beside Chameleon as transformers has it, one with the decoder that a tuning saves."""
    tuned = tmp_path_factory.mktemp("tuned")
    load(folders["chameleon"]).save(tuned)
    return folders | {"tuned": str(tuned)}


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch):
    monkeypatch.setenv("INFOTOK_DEVICE", "cpu")
    monkeypatch.setattr("infotok.training.runtime.has_bf16", lambda device: False)
    yield
    torch.set_flush_denormal(False)


def invoked(model, prompts, out, *options):
    words = ["draw-model", "--model", model, "--prompts", prompts, "--out", out, "--images", 2, *options]
    return CliRunner().invoke(app, [str(word) for word in words])


def drawn(*given) -> str:
    finished = invoked(*given)
    assert finished.exit_code == 0, finished.output
    return finished.output


def refused(*given) -> str:
    finished = invoked(*given)
    assert finished.exit_code == 2, finished.output
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", ["tuned", "emu3", "janus"])
def test_the_evaluator_finds_every_prompt_and_what_is_missing_comes_back_the_same(folders, tmp_path, name):
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:5]), tmp_path / "out"
    options = ["--guidance", 3, "--temperature", 0.9, "--together", 2, *(["--tokens", 16] if name == "emu3" else [])]
    said = drawn(folders[name], prompts, out, *options)
    assert "4 x 4 tokens, 32 x 32 pixels, temperature 0.9, guidance 3" in said
    found = as_the_evaluator_reads(out)
    assert [metadata for metadata, _ in found.values()] == PROMPTS[:5]
    assert {tuple(images) for _, images in found.values()} == {("00000.png", "00001.png")}
    images = [np.asarray(Image.open(path)) for path in sorted(out.glob("*/samples/*.png"))]
    assert {image.shape for image in images} == {(32, 32, 3)}
    assert len({image.tobytes() for image in images}) == 10
    before = everything(out)
    shutil.rmtree(out / "00001")
    (out / "00004/samples/00000.png").unlink()
    assert "goes on from 3 of 5 prompts" in " ".join(drawn(folders[name], prompts, out, *options).split())
    assert everything(out) == before
    drawn(folders[name], prompts, tmp_path / "other", *options, "--sampling-seed", 8)
    assert everything(tmp_path / "other")["00000/samples/00000.png"] != before["00000/samples/00000.png"]


def test_a_sharp_distribution_gives_what_the_model_s_own_generate_draws_greedily(folders, tmp_path):
    """And its tokens become pixels by transformers' own decoder."""
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:2]), tmp_path / "out"
    drawn(folders["emu3"], prompts, out, "--tokens", 16, "--top-k", 1)
    adapter = load(folders["emu3"])
    codes = adapter.draw([prompt["prompt"] for prompt in PROMPTS[:2]], 4, 4)
    model = AutoModelForImageTextToText.from_pretrained(folders["emu3"]).eval()
    with torch.no_grad():
        pixels = model.model.vqmodel.decode(codes).view(2, -1, 3, 32, 32)  # frames that stand still
    wanted = (adapter.unit_pixels(pixels[:, 0]) * 255).round().byte().permute(0, 2, 3, 1)
    for row, image in enumerate(wanted):
        for sample in (out / f"{row:05}/samples").iterdir():
            difference = np.asarray(Image.open(sample)).astype(int) - image.numpy().astype(int)
            assert np.abs(difference).max() <= 1


def test_the_record_names_all_that_images_depend_on(folders, tmp_path):
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:1]), tmp_path / "out"
    drawn(folders["tuned"], prompts, out)
    record = json.loads((out / "export.json").read_text())
    assert record["command"] == "infotok draw-model"
    assert record["sampling"] == {"temperature": 1.0, "guidance": 1.0, "top_k": 0}
    for options, says in (
        (["--guidance", 2], "sampling.guidance is 1.0 there and 2.0 now"),
        (["--top-k", 9], "sampling.top_k is 0 there and 9 now"),
        (["--together", 1], "prompts_drawn_together is 4 there and 1 now"),
    ):
        assert says in refused(folders["tuned"], prompts, out, *options)
    adapter = load(folders["tuned"])
    with torch.no_grad():
        adapter.decoder.conv_out.bias += 0.1
    adapter.save(tmp_path / "again")
    assert "model.sha256 is" in refused(tmp_path / "again", prompts, out)


def test_the_official_prompts_are_taken(folders, tmp_path, monkeypatch):
    prompts = official_prompts()
    (tmp_path / "few.jsonl").write_text("".join(prompts.open().readlines()[:3]))
    said = drawn(folders["tuned"], tmp_path / "few.jsonl", tmp_path / "out")
    assert "6 images of 3 prompts" in " ".join(said.split())
    assert "it needs" not in said


def test_a_folder_is_named_from_where_the_command_is_called(folders, tmp_path, monkeypatch):
    written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    shutil.copytree(folders["tuned"], tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    drawn("mine", "prompts.jsonl", "out")
    assert list(as_the_evaluator_reads(tmp_path / "out")) == ["00000"]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("chameleon", [], "has no decoder to draw with; give --decoder, such as Anole's vqgan.ckpt"),
        ("emu3", ["--decoder", "vqgan.ckpt"], "--decoder: vqgan.ckpt: "),
        ("tuned", ["--tokens", 15], "--tokens: Chameleon's images are square, and 15 is no square"),
        ("janus", ["--tokens", 9], "--tokens: Janus draws images of 16 tokens, not of 9"),
        ("emu3", ["--tokens", 1024], "--tokens: an image of 32 x 32 tokens has no room in the model's context of 512"),
        ("tuned", ["--tokens", 0], "--tokens: 0 is below 1"),
        ("tuned", ["--together", 0], "--together: 0 is below 1"),
        ("tuned", ["--top-k", -1], "--top-k: -1 is below 0"),
        ("tuned", ["--guidance", 0.5], "--guidance: 0.5 is not 1 or more"),
        ("tuned", ["--temperature", 0], "--temperature: 0 is not above 0"),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(folders, tmp_path, name, options, says):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    assert says in refused(folders[name], prompts, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_is_named_with_its_line(folders, tmp_path):
    (tmp_path / "long.txt").write_text("a cow\n" + "zebra " * 200)
    message = refused(folders["tuned"], tmp_path / "long.txt", tmp_path / "out")
    assert f"{tmp_path / 'long.txt'}:2: the prompt has" in message
    adapter = load(folders["tuned"])
    assert f"room for {512 - 16 - 2}" in message  # the image's end and the turn's
    assert prompt_room(adapter, *square(adapter)[:2]) == 512 - 16 - 2


def test_a_masked_model_draws_too_and_one_with_continuous_tokens_does_not(tmp_path, trusted_code):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    tiny_mllm.make("continuous", tmp_path / "continuous")
    assert "has continuous tokens" in refused(tmp_path / "continuous", prompts, tmp_path / "out", "--trust")
    tiny_mllm.make("llada", tmp_path / "masked")
    drawn(tmp_path / "masked", prompts, tmp_path / "out", "--trust", "--tokens", 16, "--guidance", 2)
    assert list(as_the_evaluator_reads(tmp_path / "out")) == ["00000"]
    assert "trust" in refused(tmp_path / "masked", prompts, tmp_path / "without", "--tokens", 16)


def test_a_folder_that_holds_no_model_is_one_line(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    assert "cannot be loaded" in refused(tmp_path, prompts, tmp_path / "out")
