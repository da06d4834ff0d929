"""`infotok draw`: what it writes, read as GenEval's evaluator reads it; stopped and gone on with; and bad input."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.models.backbone import Backbone
from infotok.models.files import save_model
from infotok.models.unified import UnifiedModel
from pipeline.config.cells import Cell
from pipeline.config.recipes import source_digest
from pipeline.config.study import Study
from pipeline.results import write_result
from stages.cli import app
from tiny import TINY, tokenizer

ROOT = Path(__file__).parent.parent
OFFICIAL = Path(os.environ.get("INFOTOK_SHARED_DATA", ROOT.parent / "shared" / "data")) / "geneval"
CELL = Cell("ar", "ceb", 0.01, 1.0, 4, 0)
PROMPTS = [
    {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}], "prompt": "a photo of a red bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow", "weight": 1.50},
    {"prompt": "ein Fuß 🦶 und naïveté", "tag": "single_object", "include": []},
] * 7


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The default study in what looks like a checkout, whose results hold one tiny trained cell."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("pipeline", "stages"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "dvc.yaml", folder / "dvc.yaml")
    text = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("  source: scenes\n", "  source: scenes\n  image_size: 16\n"))
    study = Study(root=folder)
    assert study.params.data.image_size == 16
    trained = train_text_tokenizer(["a red bench", "a cow"], 300)
    codec = TextCodec(trained, trained.token_to_id("<pad>"), trained.token_to_id("<end>"))
    made = tokenizer(tokens=CELL.tokens)
    torch.manual_seed(1)
    model = UnifiedModel("ar", made, Backbone.create(TINY, codec.vocabulary))
    save_model(model, codec, study.output("train", CELL))
    return study


@pytest.fixture(autouse=True)
def _in_the_checkout(study, monkeypatch):
    monkeypatch.chdir(study.root)
    monkeypatch.setenv("INFOTOK_DEVICE", "cpu")
    yield
    torch.set_flush_denormal(False)


def command(*options) -> list[str]:
    return [str(word) for word in ("draw", "--arm", "ceb-0.01-1", "--tokens", 4, *options)]


def drawn(prompts, out, *options) -> str:
    finished = CliRunner().invoke(app, command("--prompts", prompts, "--out", out, *options))
    assert finished.exit_code == 0, finished.output
    return finished.output


def refused(prompts, out, *options) -> str:
    """The one line of a command that refuses."""
    finished = CliRunner().invoke(app, command("--prompts", prompts, "--out", out, *options))
    assert finished.exit_code == 2, finished.output
    (line,) = finished.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def written(path: Path, records=PROMPTS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def as_the_evaluator_reads(out: Path) -> dict[str, tuple[dict, list[str]]]:
    """Folder -> metadata and names of images, of everything that evaluate_images.py would score."""
    found = {}
    for name in os.listdir(out):
        if (out / name).is_dir() and name.isdigit():
            with open(out / name / "metadata.jsonl") as file:
                metadata = json.load(file)
            images = [image for image in os.listdir(out / name / "samples") if re.match(r"\d+\.png", image)]
            found[name] = metadata, sorted(images)
    return dict(sorted(found.items()))


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_evaluator_finds_every_prompt_with_its_own_line_and_images(tmp_path):
    said = drawn(written(tmp_path / "prompts.jsonl"), tmp_path / "out")
    found = as_the_evaluator_reads(tmp_path / "out")
    assert list(found) == [f"{index:05}" for index in range(21)]
    assert [metadata for metadata, _ in found.values()] == PROMPTS
    assert {tuple(images) for _, images in found.values()} == {("00000.png", "00001.png", "00002.png", "00003.png")}
    samples = [Image.open(path) for path in sorted((tmp_path / "out/00000/samples").iterdir())]
    assert {(image.size, image.mode) for image in samples} == {((16, 16), "RGB")}
    grid = np.asarray(Image.open(tmp_path / "out/00000/grid.png"))
    quarters = [grid[:16, :16], grid[:16, 16:], grid[16:, :16], grid[16:, 16:]]
    assert all(np.array_equal(quarter, image) for quarter, image in zip(quarters, samples, strict=True))
    assert len({image.tobytes() for image in samples}) == 4
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"84 images of 21 prompts in {tmp_path}/out")
    assert f"evaluation/evaluate_images.py {tmp_path}/out" in last
    assert "lack" not in last


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl")
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        drawn(prompts, tmp_path / name, "--sampling-seed", seed)
    first, second, third = (everything(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second
    assert first.keys() == third.keys()
    assert first["00000/samples/00000.png"] != third["00000/samples/00000.png"]
    assert first["00000/samples/00000.png"] != first["00003/samples/00000.png"]  # the same prompt at another place


def test_what_is_missing_comes_back_with_the_same_bytes_and_the_rest_stays(tmp_path):
    prompts, out = written(tmp_path / "prompts.jsonl"), tmp_path / "out"
    drawn(prompts, out)
    before = everything(out)
    shutil.rmtree(out / "00001")
    (out / "00018/samples/00002.png").unlink()
    (out / "00019/metadata.jsonl").unlink()
    (out / ".unfinished/00001").mkdir(parents=True)
    (out / ".unfinished/00001/grid.png").write_bytes(b"half")
    (out / "results.jsonl").write_text("what the evaluator wrote")
    kept = (out / "00000/samples/00000.png").stat().st_mtime_ns
    assert "goes on from 18 of 21 prompts" in drawn(prompts, out)
    assert (out / "00000/samples/00000.png").stat().st_mtime_ns == kept
    assert everything(out) == before | {"results.jsonl": b"what the evaluator wrote"}
    assert "goes on from 21 of 21 prompts" in drawn(prompts, out)


def official_prompts() -> Path:
    path = OFFICIAL / "evaluation_metadata.jsonl"
    if not path.exists():
        pytest.skip(f"GenEval's prompts are not in {OFFICIAL} (INFOTOK_SHARED_DATA names the folder above)")
    return path


def test_the_official_prompts_killed_on_the_way_end_as_if_undisturbed(tmp_path):
    prompts, out = official_prompts(), tmp_path / "killed"
    words = command("--prompts", prompts, "--out", out, "--images", 2)[1:]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quiet["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "stages.draw", *words], start_new_session=True, **quiet)
    while process.poll() is None and not (out / "00020").exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert len(lines) == 553
    found = as_the_evaluator_reads(out)
    assert 20 < len(found) < 553
    assert all(images == ["00000.png", "00001.png"] for _, images in found.values())
    assert "goes on from" in drawn(prompts, out, "--images", 2)
    drawn(prompts, tmp_path / "whole", "--images", 2)
    assert [metadata for metadata, _ in as_the_evaluator_reads(out).values()] == lines
    assert everything(out) == everything(tmp_path / "whole")
    record = json.loads((out / "export.json").read_text())
    assert record["prompts"] == {"count": 553, "sha256": hashlib.sha256(prompts.read_bytes()).hexdigest()}


def test_a_text_file_has_a_prompt_a_line_and_the_last_line_says_what_the_evaluator_will_miss(tmp_path):
    path = tmp_path / "prompts.TXT"
    path.write_bytes(b'\xef\xbb\xbfa cow\r\n\r\n  {"a": "zebra"} \n')
    said = drawn(path, tmp_path / "out", "--images", 1)
    found = as_the_evaluator_reads(tmp_path / "out")
    assert found == {
        "00000": ({"prompt": "a cow"}, ["00000.png"]),
        "00001": ({"prompt": '{"a": "zebra"}'}, ["00000.png"]),
    }
    assert 'needs "tag" and "include" of every prompt, missing of 2 here' in said


def test_resolution_enlarges_and_nothing_else(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    drawn(prompts, tmp_path / "small", "--images", 3)
    drawn(prompts, tmp_path / "large", "--images", 3, "--resolution", 64)
    for name in ("00000.png", "00001.png", "00002.png"):
        small, large = (Image.open(tmp_path / which / "00000/samples" / name) for which in ("small", "large"))
        assert large.size == (64, 64)
        assert np.array_equal(large, small.resize((64, 64), Image.Resampling.BICUBIC))
    assert Image.open(tmp_path / "large/00000/grid.png").size == (48, 16)


def test_sampling_is_what_validation_chose_unless_given_and_the_command_says_which(study, tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    ours = source_digest(study, "generate", CELL)

    def sampling(out, *options):
        said = drawn(prompts, tmp_path / out, *options)
        record = json.loads((tmp_path / out / "export.json").read_text())
        return said.splitlines()[0], (record["sampling"]["temperature"], record["sampling"]["guidance"])

    said, values = sampling("missing")
    assert values == (1.0, 1.0)
    assert "metrics.json is missing" in said
    common = {"protocol": {}, "warnings": []}
    chosen = {"generation/temperature": 0.3, "generation/guidance": 2.5}
    try:
        write_result(study, "generate", CELL, source=ours, metrics=chosen, **common)
        said, values = sampling("chosen")
        assert values == (0.3, 2.5)
        assert "temperature 0.3 (chosen by validation), guidance 2.5 (chosen by validation)" in said
        said, values = sampling("mixed", "--temperature", 0.7)
        assert values == (0.7, 2.5)
        assert "temperature 0.7 (given)" in said
        write_result(study, "generate", CELL, source=ours, metrics={}, **common)
        said, values = sampling("unscored")
        assert values == (1.0, 1.0)
        assert "scored no drawing" in said
        write_result(study, "generate", CELL, source="other", metrics=chosen, **common)
        assert "give both --temperature and --guidance" in refused(prompts, tmp_path / "stale")
        assert not (tmp_path / "stale").exists()
        assert sampling("given", "--temperature", 1, "--guidance", 2)[1] == (1.0, 2.0)
    finally:
        shutil.rmtree(study.output("generate", CELL))


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n', ":3", "is not UTF-8 text; save"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', ":2", "is not JSON (Expecting ',' delimiter at column"),
        ("p.jsonl", b"a photo of a cow\n", ":1", "end the file's name in .txt"),
        ("p.jsonl", b"[" * 100_000, ":1", "is not JSON that can be read"),
        ("p.jsonl", b'{"tag": "colors"}\n', ":1", 'has no "prompt"; write {"prompt": '),
        ("p.jsonl", b'\n{"prompt": "  "}\n', ":2", '"prompt" is empty'),
        ("p.jsonl", b'{"prompt": 7}\n', ":1", '"prompt" is not text'),
        ("p.jsonl", b'{"prompt": "\\ud83d"}\n', ":1", "half a character"),
        ("p.json", b'["a cow"]\n', ":1", "is JSON but no object"),
        ("p.jsonl", b" \n\n", "", 'holds no prompts; write one a line, as {"prompt"'),
        ("p.txt", b"", "", "holds no prompts; write one a line, as a photo"),
        ("p.txt", b"a cow\n" + b"zebra " * 2000, ":2", "tokens, and the model room for 2043; shorten it"),
    ],
)
def test_a_bad_prompts_file_is_named_with_its_line_and_remedy(tmp_path, name, content, line, says):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name, tmp_path / "out")
    assert message.startswith(f"{tmp_path / name}{line}: ")
    assert says in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--images", 0], "--images: 0 is below 1"),
        (["--temperature", 0], "--temperature: 0 is not above 0"),
        (["--temperature", "nan"], "--temperature: nan is not"),
        (["--guidance", 0.5], "--guidance: 0.5 is not 1 or more"),
        (["--guidance", "inf"], "--guidance: inf is not"),
        (["--sampling-seed", -1], "--sampling-seed: -1 is negative"),
        (["--resolution", 0], "--resolution: 0 is not between 1 and 4096"),
        (["--resolution", 8], "--resolution: 8 is below the model's own 16 pixels"),
        (["--arm", "ceb-0.03-1"], "run `infotok train --family ar --arm ceb-0.03-1 --tokens 4 --seed 0`"),
        (["--family", "arr"], "--family: 'arr' is unknown"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: cannot be read (No such file or directory); name a prompts"),
        (["--prompts", "."], ".: cannot be read (Is a directory)"),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(tmp_path, options, says):
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS[:1])
    assert says in refused(prompts, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_files_are_named_from_the_folder_of_the_checkout_where_the_command_is_called(study, monkeypatch):
    here = study.root / "studies/mine"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    written(here / "prompts.jsonl", PROMPTS[:1])
    drawn("prompts.jsonl", "out", "--images", 1)
    assert list(as_the_evaluator_reads(here / "out")) == ["00000"]
    assert {path.name for path in here.iterdir()} == {"prompts.jsonl", "out"}


def test_a_folder_of_anything_else_is_left_as_it_is(tmp_path):
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:2]), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years")
    assert f"{out}: holds something else, such as 'thesis.tex'; name a new" in refused(prompts, out)
    assert everything(out) == {"thesis.tex": b"ten years"}
    for text in ("{", "[]", '{"command": "other"}'):
        (out / "export.json").write_text(text)
        assert "export.json: is not the record of an `infotok draw`" in refused(prompts, out)
    assert f"{prompts}: cannot be written (File exists)" in refused(prompts, prompts)
    below = refused(prompts, prompts / "below")
    assert "cannot be written (Not a directory); name another folder" in below


def test_another_export_is_refused_by_what_differs(study, tmp_path):
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:2]), tmp_path / "out"
    drawn(prompts, out)
    before = everything(out)
    for options, says in (
        (["--images", 5], "images is 4 there and 5 now"),
        (["--temperature", 0.5], "sampling.temperature is 1.0 there and 0.5 now"),
        (["--guidance", 2, "--sampling-seed", 1], "sampling.guidance is 1.0 there and 2.0 now, sampling_seed is 7"),
        (["--resolution", 64], "pixels is 16 there and 64 now"),
        (["--prompts", written(tmp_path / "one", PROMPTS[:1])], "prompts.count is 2 there and 1 now, prompts.sha256"),
    ):
        assert says in refused(prompts, out, *options)
    weights = study.output("train", CELL) / "model.safetensors"
    original = weights.read_bytes()
    try:
        again = tokenizer(tokens=CELL.tokens)
        codec = TextCodec.from_saved(weights.with_name("text.json"), "")
        save_model(UnifiedModel("ar", again, Backbone.create(TINY, codec.vocabulary)), codec, weights.parent)
        assert "model.model.safetensors is " in refused(prompts, out)
    finally:
        weights.write_bytes(original)
    assert everything(out) == before


def test_two_processes_do_not_write_one_folder(tmp_path):
    prompts, out = written(tmp_path / "prompts.jsonl", PROMPTS[:2]), tmp_path / "out"
    drawn(prompts, out)
    with open(out / "export.json") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process is drawing into it; wait, or" in refused(prompts, out)


def test_a_full_disk_is_one_line_and_leaves_nothing_that_the_evaluator_would_score(study, tmp_path, monkeypatch):
    prompts, out, save, saved = written(tmp_path / "prompts.jsonl", PROMPTS[:3]), tmp_path / "out", Image.Image.save, []

    def fails(image, path, **options):
        saved.append(path)
        if len(saved) == 8:
            raise OSError(28, "No space left on device", str(path))
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", fails)
    assert "cannot be written (No space left on device)" in refused(prompts, out)
    assert list(as_the_evaluator_reads(out)) == ["00000"]
    monkeypatch.undo()
    monkeypatch.chdir(study.root)
    drawn(prompts, out)
    assert list(as_the_evaluator_reads(out)) == ["00000", "00001", "00002"]
