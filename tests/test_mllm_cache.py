"""Tokens of a frozen tokenizer that are kept: losses are those without, and no stale or damaged file is used."""

import logging
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import tiny_mllm
import torch

from infotok.data.arrow import Split
from infotok.errors import InfotokError
from infotok.mllm import cache
from infotok.mllm.cache import Cached, can_cache
from infotok.mllm.data import Pictures, Shown
from infotok.mllm.loading import load
from infotok.mllm.scoring import grid_of
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated, regularizer
from infotok.tensors import read_tensors

NAMES = (*tiny_mllm.SHARED, "llada")
SETTINGS = {"lm_rate": 3e-3, "prior_rate": 0.05, "warmup": 1, "steps": 4, "batch": 8, "precision": "fp32"}
SETTINGS |= {"tokenizer": "frozen"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, trusted_code):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_mllm.make(name, root / name) for name in NAMES}


def split(folder):
    """32 images of 40 x 40 pixels, and 11 of 48 x 32, in files."""
    images, questions, answers, captions = tiny_mllm.toy(range(-2, 2))
    images += [image.resize((48, 32)) for image in images[:11]]
    for texts in (questions, answers, captions):
        texts += texts[:11]
    folder.mkdir(exist_ok=True)
    files = [str(folder / f"{index}.png") for index in range(len(images))]
    for index, (image, file) in enumerate(zip(images, files, strict=True)):
        (image if index >= 32 else image.resize((40, 40))).save(file)
    return Split(
        np.zeros((len(images), 8, 8, 3), np.uint8),
        [[caption] for caption in captions],
        [[{"question": q, "answer": a}] for q, a in zip(questions, answers, strict=True)],
        [[] for _ in images],
        files=files,
        sizes=np.array([(40, 40)] * 32 + [(48, 32)] * 11),
    )


@dataclass
class Made:
    tuner: Tuner
    shown: Shown


def made(folder, data, estimator="none", beta=0.0, entropy_bits=1.0, **settings):
    torch.manual_seed(0)
    adapter = load(folder, trust=True)
    adapter.limit(16)
    adapter.extra_is_new = False
    pixels = adapter.ask([Pictures(data)[row] for row in range(16)], [""] * 16)["pixel_values"]
    tiny_mllm.settle(adapter, pixels)
    config = TuneConfig(**SETTINGS | settings)
    bottleneck = regularizer(adapter, config, tokens=16, estimator=estimator, beta=beta)
    tuner = Tuner(adapter, bottleneck, calibrated(adapter, [pixels], entropy_bits), config)
    return Made(tuner, Shown(data, grid_of(adapter), batch=8, caption_dropout=0.3, seed=0))


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_images_that_are_encoded_again(folders, tmp_path, name):
    data = split(tmp_path / "images")
    plain, known = made(folders[name], data), made(folders[name], data)
    assert len(plain.shown.groups) == (2 if name == "emu3" else 1)  # the others crop to one size
    kept = Cached(known.tuner, known.shown, tmp_path / "tokens")
    for file in data.files:
        open(file, "w").close()  # none is read again
    lines = known.tuner.run(kept, seed=0)
    data = split(tmp_path / "images")
    wanted = plain.tuner.run(plain.shown, seed=0)
    assert len(lines) == len(wanted) > 0
    for line, other in zip(lines, wanted, strict=True):
        assert line == pytest.approx(other, rel=2e-4, abs=1e-5)
    for one, other in zip(known.tuner.step.parameters(), plain.tuner.step.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_step_runs_neither_encoder_nor_decoder(folders, tmp_path):
    one = made(folders["emu3"], split(tmp_path / "images"))
    kept = Cached(one.tuner, one.shown, tmp_path / "tokens")
    ran = []
    for part in (one.tuner.adapter.tokenizer.encoder, one.tuner.adapter.tokenizer.decoder):
        part.register_forward_hook(lambda *_: ran.append(1))
    one.tuner.gradients(*kept.examples(0))
    assert ran == []
    one.tuner.gradients(*one.shown.examples(0))
    assert ran


def test_micro_batches_and_rows_of_the_cache_belong_together(folders, tmp_path):
    data = split(tmp_path / "images")
    found = []
    for accumulate in (1, 4):
        one = made(folders["emu3"], data, accumulate=accumulate)
        kept = Cached(one.tuner, one.shown, tmp_path / "tokens")
        found.append({name: float(value) for name, value in one.tuner.gradients(*kept.examples(1), step=1).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def encoded_images(monkeypatch):
    """How many images are encoded for a cache, as they are."""
    counts, own = [], cache._encoded

    def counting(tuner, pixels):
        counts.append(len(pixels))
        return own(tuner, pixels)

    monkeypatch.setattr(cache, "_encoded", counting)
    return counts


def test_what_was_stopped_goes_on_and_what_is_stale_or_damaged_is_made_anew(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, "IMAGES", 16)
    counts, data = encoded_images(monkeypatch), split(tmp_path / "images")
    one, folder = made(folders["emu3"], data), tmp_path / "tokens"

    def again():
        counts.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "infotok"):
            kept = Cached(one.tuner, one.shown, folder)
        return sum(counts), kept.examples(0)[0][0].known()

    written = cache.write_tensors

    def full(path, *given):
        if path.name.endswith("2.safetensors"):
            raise InfotokError("the disk is full")
        written(path, *given)

    monkeypatch.setattr(cache, "write_tensors", full)
    with pytest.raises(InfotokError, match="full"):
        again()
    monkeypatch.setattr(cache, "write_tensors", written)
    files = sorted(folder.iterdir())
    assert len(files) == 2
    assert again()[0] == 11  # those of the third file alone
    assert again()[0] == 0
    assert caplog.text == ""
    files = sorted(folder.iterdir())
    whole, (right, made_of) = files[2].read_bytes(), read_tensors(files[2], "")
    for at in range(len(whole)):  # a bit of any byte is noticed, or changes nothing
        (tmp_path / "one").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(InfotokError):
            tensors, described = read_tensors(tmp_path / "one", "")
            assert described != made_of or all(torch.equal(tensors[name], right[name]) for name in right)
    for damage in ("flip", "cut"):
        content = bytearray(files[1].read_bytes())
        if damage == "flip":
            content[-20] ^= 1
        files[1].write_bytes(content if damage == "flip" else content[:-20])
        assert again()[0] == 16
        assert "is damaged" in caplog.text
    Pictures(data)[32].rotate(180).save(data.files[32])  # another image in its place
    assert again()[0] == 11
    assert "made of other images" in caplog.text
    _, before = again()
    with torch.no_grad():
        next(one.tuner.adapter.tokenizer.quant_conv.parameters()).mul_(1.5)
    count, after = again()
    assert count == 43
    assert not torch.equal(before.features, after.features)


def test_there_is_none_where_the_tokenizer_learns_or_pixels_are_read(folders, tmp_path):
    data = split(tmp_path / "images")
    for settings in ({"tokenizer": "full"}, {"tokenizer": "encoder"}):
        assert not can_cache(made(folders["emu3"], data, **settings).tuner)
    one = made(folders["emu3"], data, tokenizer="encoder")
    with pytest.raises(InfotokError, match="frozen tokenizer"):
        Cached(one.tuner, one.shown, tmp_path / "tokens")
    adapter = load(folders["chameleon"])  # whose decoder is new, and learns
    config = TuneConfig(**SETTINGS)
    assert not can_cache(Tuner(adapter, regularizer(adapter, config, tokens=16), 0.1, config))
    janus = load(tiny_mllm.make("janus", tmp_path / "janus"), control=True)
    assert not can_cache(Tuner(janus, regularizer(janus, config, tokens=16), 0.1, config))
