"""Batches, schedule, checkpoints and training runs."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from infotok.data.sources import scenes
from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.errors import InfotokError
from infotok.evaluation.networks import Perceptual
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.unified import UnifiedModel
from infotok.tokenizer.discrete import DiscreteTokenizer, TokenizerConfig
from infotok.training.batches import Batches, order
from infotok.training.checkpoints import Checkpoints, read_tensors, write_tensors
from infotok.training.joint import JointConfig, train_jointly
from infotok.training.loop import cosine, make_optimizer, run
from infotok.training.pretrain import collapse_warning
from infotok.training.runtime import stream

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def split():
    config = {"seed": 0, "image_size": 16, "objects": 1, "nuisance": 0.5, "questions": 4}
    return scenes.make_split("train", 200, config)


@pytest.fixture(scope="module")
def codec(split):
    texts = [text for said in split.captions for text in said]
    texts += [pair[key] for asked in split.questions for pair in asked for key in ("question", "answer")]
    trained = train_text_tokenizer(texts, 300)
    return TextCodec(trained, trained.token_to_id("<pad>"), trained.token_to_id("<end>"))


def batches(split, codec, **changes):
    settings = {"batch": 16, "questions": 2, "caption_dropout": 0.1, "seed": 0, "describe": True} | changes
    return Batches(split, codec, **settings)


def test_every_image_comes_once_an_epoch_in_a_new_order():
    first = np.concatenate([order(20, 4, 7, step) for step in range(5)])
    second = np.concatenate([order(20, 4, 7, step) for step in range(5, 10)])
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()
    assert order(20, 4, 8, 0).tolist() != order(20, 4, 7, 0).tolist()


def test_a_step_has_the_same_batch_whatever_came_before(split, codec):
    one, other = batches(split, codec), batches(split, codec)
    for step in range(3):
        one.texts(step)
    assert torch.equal(one.images(5), other.images(5))
    a, b = one.texts(5), other.texts(5)
    assert torch.equal(a.captions, b.captions)
    assert all(torch.equal(x.ids, y.ids) for x, y in zip(a.questions, b.questions, strict=True))


def test_a_batch_says_what_the_images_show(split, codec):
    text = batches(split, codec, caption_dropout=0.0).texts(3)
    for row, index in enumerate(order(len(split), 16, 0, 3)):
        caption = codec.decode(text.captions[row][1:])
        assert caption in split.captions[index]
        first, last = text.questions
        pair = codec.decode(first.ids[row][~first.answers[row]]), codec.decode(first.ids[row][first.answers[row]])
        assert pair in {(p["question"], p["answer"]) for p in split.questions[index]}
        assert codec.decode(last.ids[row][last.answers[row]]) == caption


def test_a_dropped_caption_keeps_its_begin_mark_alone(split, codec):
    text = batches(split, codec, caption_dropout=1.0).texts(0)
    assert text.captions_valid.sum(1).tolist() == [1] * 16


def test_learning_rate_rises_linearly_and_falls_by_a_half_cosine():
    rates = [cosine(step, 110, 10, 0.1) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])


def test_neighbouring_keys_give_unrelated_streams():
    draws = torch.stack([torch.rand(500, generator=stream(CPU, *key)) for key in ((0, 1), (1, 0), (0, 2), (1, 1))])
    assert torch.equal(draws[0], torch.rand(500, generator=stream(CPU, 0, 1)))
    correlations = torch.corrcoef(draws) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(500)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class Stopped(Exception):
    pass


def train(module, checkpoints=None, ema=0.0, stop_at=None, spoil_at=None):
    def losses(step):
        if step == stop_at:
            raise Stopped
        x = torch.randn(16, 4, generator=stream(CPU, step))
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss * math.nan if step == spoil_at else loss}

    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)
    settings = {"steps": 40, "warmup": 5, "ema": ema, "checkpoints": checkpoints, "checkpoint_every": 10}
    return run(module, optimizer, losses, **settings)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(tmp_path, ema):
    undisturbed, history = linear(), None
    history = train(undisturbed, ema=ema)
    with pytest.raises(Stopped):
        train(linear(), Checkpoints(tmp_path / "kept"), ema, stop_at=27)
    (tmp_path / "kept" / "step-00000030.safetensors.99.tmp").write_bytes(b"half of a file")  # of a killed writer
    resumed = linear()
    assert train(resumed, Checkpoints(tmp_path / "kept"), ema) == history
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = linear()
    train(moved)
    assert (ema == 0) == torch.equal(moved[0].weight, undisturbed[0].weight)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:]])
def test_a_damaged_checkpoint_is_named_and_left_alone(tmp_path, damage):
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        train(linear(), kept, stop_at=15)
    path = kept.latest()
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InfotokError, match=r"step-00000010\.safetensors: is damaged .*; delete it"):
        train(linear(), kept)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    kept, module = Checkpoints(tmp_path), linear()
    with pytest.raises(InfotokError, match=r"step 26: loss is not finite.*step-00000020\.safetensors"):
        train(module, kept, spoil_at=25)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert kept.latest().name == "step-00000020.safetensors"


def test_a_files_json_keeps_the_order_of_its_keys(tmp_path):
    meta = {"shape": 1, "color": {"size": 2, "blue": 3}}
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, meta)
    tensors, back = read_tensors(tmp_path / "a.safetensors", "")
    assert torch.equal(tensors["x"], torch.ones(2))
    assert list(back) == ["shape", "color"]
    assert list(back["color"]) == ["size", "blue"]


def test_a_collapsed_codebook_is_reported():
    assert collapse_warning({"perplexity": 60.0, "dead_codes": 10.0}, 256) is None
    assert "codebook collapse: perplexity 3.0 of 256" in collapse_warning({"perplexity": 3.0, "dead_codes": 250.0}, 256)


def jointly(split, codec, estimator, beta, steps=30, seed=0):
    torch.manual_seed(seed)
    sizes = {"image_size": 16, "tokens": 4, "codebook": 16, "dimension": 4, "width": 16, "hidden": 32, "blocks": 1}
    tokenizer = DiscreteTokenizer(TokenizerConfig(**sizes, logit_scale=20.0, channel="sampled", relaxation=2.0))
    backbone = Backbone.create(BackboneConfig(name="llama", width=16, layers=1, heads=2), codec.vocabulary)
    model = UnifiedModel("ar", tokenizer, backbone)
    config = JointConfig(
        estimator=estimator,
        beta=beta,
        steps=steps,
        learning_rate=0.01,
        tokenizer_learning_rate=0.01,
        prior_learning_rate=0.1,
        warmup=3,
        final_fraction=0.1,
        beta_warmup=0.3,
        clip=1.0,
        weight_decay=0.01,
        understanding=1.0,
        generation=1.0,
        reconstruction=1.0,
        pixel=1.0,
        perceptual=0.1,
        ema=0.0,
        precision="fp32",
    )
    torch.manual_seed(0)
    return train_jointly(model, Perceptual({"shape": 4}), batches(split, codec), config, seed=0, device=CPU)


def test_twins_start_alike_and_beta_lowers_the_code_length(split, codec):
    plain = jointly(split, codec, "none", 0.0, steps=1)[0]
    for estimator in ("vib", "dib", "ceb"):
        arm = jointly(split, codec, estimator, 0.5, steps=1)[0]
        for name in ("understanding", "generation", "reconstruction", "rate_bits"):
            assert arm[name] == plain[name]
    free, pressed = (jointly(split, codec, "dib", beta, steps=120) for beta in (1e-6, 1.0))
    assert free[-1]["understanding"] < 0.7 * free[0]["understanding"]
    assert pressed[-1]["penalty_nats"] < 0.7 * free[-1]["penalty_nats"]
    assert [line["beta"] for line in pressed][-1] == 1.0
    assert pressed[0]["beta"] < 0.3
