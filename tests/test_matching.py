"""The judge of matching images and texts, against hand-worked cases and sets whose answer is known."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from infotok.data.arrow import Split, write_split
from infotok.data.pixels import to_unit
from infotok.data.texts import encode_captions
from infotok.examiners.judges import load_judge
from infotok.examiners.matcher import Matcher
from infotok.examiners.matching import Towers, chance, contrastive_loss, draw_text, retrieval
from infotok.examiners.perceptual import Perceptual, load_perceptual
from infotok.random import stream
from infotok.training.checkpoints import Checkpoints
from infotok.training.examiners import ExaminerConfig, augmented, train_matching
from stages import judge as judging
from stages import perceptual as perceiving
from tiny import trained_codec

CPU = torch.device("cpu")
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}


def squares(count, seed, captions=True):
    """Images of one colored square in one corner, which a caption tells, or questions without a caption."""
    rng = np.random.default_rng(seed)
    images, said, asked = rng.integers(0, 60, (count, 16, 16, 3), dtype=np.uint8), [], []
    for image in images:
        color, place = rng.choice(list(COLORS)), rng.choice(list(PLACES))
        row, column = PLACES[place]
        image[row + 1 : row + 7, column + 1 : column + 7] = COLORS[color]
        said.append([f"a {color} square at the {place}"] if captions else [])
        pairs = [("what color is it?", color), ("where is it?", place)]
        asked.append([] if captions else [{"question": q, "answer": a, "family": ""} for q, a in pairs])
    return Split(images, said, asked, [[] for _ in images], {})


@pytest.fixture(scope="module")
def split():
    return squares(400, 0)


@pytest.fixture(scope="module")
def codec(split):
    return trained_codec(split)


def new_matcher(codec):
    torch.manual_seed(0)
    return Matcher(16, codec.vocabulary)


def test_equal_texts_of_a_batch_are_not_told_apart():
    scores = torch.tensor([[3.0, 7.0, 1.0], [5.0, 1.0, 1.0], [1.0, 2.0, 2.0]]).log().requires_grad_()
    loss = contrastive_loss(scores, ["a dog", "a dog", "a cat"])
    # Images 0 and 1 share their text, so that 7 and 5 count nowhere. By rows 3/(3+1), 1/(1+1), 2/(1+2+2); by columns
    # 3/(3+1), 1/(1+2), 2/(1+1+2).
    rows, columns = (3 / 4, 1 / 2, 2 / 5), (3 / 4, 1 / 3, 1 / 2)
    assert loss.item() == pytest.approx(-sum(map(math.log, rows + columns)) / 6, rel=1e-5)
    loss.backward()
    assert scores.grad[0, 1] == scores.grad[1, 0] == 0
    different = contrastive_loss(scores.detach(), ["a dog", "a dog.", "a cat"])
    rows, columns = (3 / 11, 1 / 7, 2 / 5), (3 / 9, 1 / 10, 2 / 4)
    assert different.item() == pytest.approx(-sum(map(math.log, rows + columns)) / 6, rel=1e-5)


def test_the_loss_reaches_every_weight_of_both_towers(split, codec):
    matcher = new_matcher(codec).train()
    texts = [said[0] for said in split.captions[:24]]
    scores = matcher.scores(to_unit(torch.from_numpy(split.images[:24])), *encode_captions(texts, codec))
    contrastive_loss(scores, texts).backward()
    assert [name for name, p in matcher.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("size", [16, 32, 40, 64, 128])
def test_embeddings_are_unit_rows_at_every_image_size(size, codec):
    torch.manual_seed(0)
    matcher = Matcher(size, codec.vocabulary).eval()
    with torch.no_grad():
        images = torch.rand(3, 3, size, size) * 2 - 1
        shown, told = matcher.embed_images(images), matcher.embed_texts(*encode_captions(["a red", "", "x"], codec))
        assert matcher.features(images).shape == (3, Matcher.num_features)
    assert shown.shape == told.shape
    assert torch.allclose(shown.norm(dim=1), torch.ones(3))
    assert torch.allclose(told.norm(dim=1), torch.ones(3))


def test_padding_does_not_change_the_embedding_of_a_text(codec):
    matcher = new_matcher(codec).eval()
    short, long = "a red square", "a yellow square at the bottom right, or so it is told"
    with torch.no_grad():
        alone = matcher.embed_texts(*encode_captions([short], codec))
        ids, valid = encode_captions([short, long], codec)
        assert not valid[0].all()
        assert torch.allclose(matcher.embed_texts(ids, valid)[0], alone[0], atol=1e-6)
        ids[~valid] = 7
        assert torch.allclose(matcher.embed_texts(ids, valid)[0], alone[0], atol=1e-6)
        assert not torch.allclose(matcher.embed_texts(ids, valid)[1], alone[0], atol=1e-2)


def test_the_scale_of_the_cosines_is_bounded(codec):
    matcher = new_matcher(codec).eval()
    with torch.no_grad():
        inputs = torch.rand(2, 3, 16, 16), *encode_captions(["a", "b"], codec)
        cosines = matcher.scores(*inputs) / 10
        matcher.log_scale.fill_(50.0)
        assert torch.allclose(matcher.scores(*inputs), 100 * cosines, atol=1e-3)


class Known(nn.Module):
    """Embeds text `t` as row t of a table, and an image as the row that its first pixel names."""

    pad, end = 0, 0

    def __init__(self, texts, images):
        super().__init__()
        self.texts, self.images = nn.Parameter(torch.tensor(texts)), torch.tensor(images)

    def encode(self, text):
        return [int(text)]

    def embed_texts(self, ids, valid):
        assert valid.all()
        return self.texts[ids[:, 1]]

    def embed_images(self, images):
        return self.images[((images[:, 0, 0, 0] + 1) * 127.5).round().long()]


def numbered(count):
    images = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images


def found(known, captions, pool, seed=0, **settings):
    return retrieval(known, numbered(len(captions)), captions, pool, known, seed=seed, **settings).tolist()


def test_an_image_is_right_when_its_own_text_is_closest():
    texts = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]
    known = Known(texts, [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, -0.6]])
    pool = ["0", "1", "2", "3"]
    assert found(known, ["0", "1", "1", "3"], pool) == [True, False, True, True]
    # A pool of four is smaller than 32 candidates: nothing is drawn, and neither seed nor copies count.
    assert found(known, ["0", "1", "1", "3"], pool[::-1] * 3, seed=9) == [True, False, True, True]
    # The nearest text is not among the others: the own one is right, although no pool holds it.
    assert found(known, ["0", "1", "1", "3"], ["0", "3"]) == [True, True, True, True]
    assert chance(pool * 3) == 1 / 4
    assert chance(pool, 2) == 1 / 2


def test_a_matcher_that_tells_nothing_apart_is_never_right():
    rng = np.random.default_rng(0)
    constant = rng.normal(size=64).astype(np.float32)
    known = Known(np.tile(constant, (40, 1)), np.tile(rng.normal(size=64).astype(np.float32), (40, 1)))
    captions = [str(number) for number in range(40)]
    for candidates in (2, 9, 32):
        assert not any(found(known, captions, captions, candidates=candidates))
    with torch.no_grad():
        known.texts.fill_(math.nan)
    assert not any(found(known, captions, captions))


def test_guessing_is_right_by_chance_and_draws_depend_on_seed_and_row_alone():
    rng = np.random.default_rng(1)
    known = Known(*(rng.normal(size=(200, 16)).astype(np.float32) for _ in range(2)))
    captions = [str(number) for number in range(200)]
    right = [found(known, captions, captions, seed=seed, candidates=8) for seed in range(10)]
    # The images are few, so the draws are not independent: a generous interval around 1/8.
    assert np.mean(right) == pytest.approx(chance(captions, 8), abs=0.04)
    assert right[0] != right[1]
    assert found(known, captions, captions[::-1], candidates=8, batch=7) == right[0]
    assert found(known, captions[:50], captions, candidates=8) == right[0][:50]


def test_the_text_of_an_image_is_a_caption_or_several_answered_questions():
    rng = np.random.default_rng(0)
    pairs = [{"question": f"q{i}?", "answer": f"a{i}"} for i in range(10)]
    assert {draw_text(["one", "two"], pairs, rng) for _ in range(20)} == {"one", "two"}
    assert draw_text([], pairs[:1], rng) == "q0? a0"
    text = draw_text([], pairs, rng).split()
    assert len(text) == 16
    assert len(set(text[::2])) == 8
    assert all(q[1:-1] == a[1:] for q, a in zip(text[::2], text[1::2], strict=True))


def test_augmentation_repeats_itself_and_leaves_left_at_the_left():
    images = torch.full((64, 3, 16, 16), -1.0)
    images[..., 8:] = 1.0
    moved = augmented(images, stream(CPU, 3))
    assert torch.equal(moved, augmented(images, stream(CPU, 3)))
    assert not torch.equal(moved, augmented(images, stream(CPU, 4)))
    assert (moved[..., 12:].mean((1, 2, 3)) > moved[..., :4].mean((1, 2, 3)) + 0.5).all()


@pytest.fixture(scope="module")
def trained(split, codec):
    matcher = new_matcher(codec)
    return matcher, train_matching(matcher, split, codec, ExaminerConfig(steps=60, batch=64, seed=0), device=CPU)


def test_a_trained_matcher_finds_captions_of_images_it_never_saw(trained, codec):
    matcher, history = trained
    held_out = squares(150, 1)
    captions = [said[0] for said in held_out.captions]
    right = retrieval(matcher, torch.from_numpy(held_out.images), captions, captions, codec, seed=0)
    assert len(set(captions)) == 16
    assert right.mean() > 0.6  # guessing: 1/16
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_training_repeats_itself_also_where_a_batch_exceeds_the_split(split, codec):
    few = split.take(np.arange(20))
    config = ExaminerConfig(steps=3, batch=64, seed=0)
    one, other = new_matcher(codec), new_matcher(codec)
    history = train_matching(one, few, codec, config, device=CPU)
    assert history == train_matching(other, few, codec, config, device=CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def running(folder, split, captions=True, **sizes):
    """What a stage gets, over a prepared data set in `folder`."""
    data = folder / "data"
    data.mkdir()
    write_split(split, data / "train.arrow")
    write_split(squares(60, 1, captions), data / "test.arrow")
    (data / "text.json").write_text(trained_codec(split).tokenizer.to_str())
    (data / "manifest.json").write_text(json.dumps({"judge": "matching" if captions else None}))
    config = {"steps": 2, "batch": 32, "seed": 5} | sizes
    results, warnings = [], []
    return SimpleNamespace(
        config=lambda kind: kind(**config),
        input=lambda stage: data,
        folder=folder,
        progress=lambda steps: nullcontext(),
        checkpoints=lambda: Checkpoints(folder / "checkpoints"),
        observe=lambda step, values: None,
        warn=warnings.append,
        warnings=warnings,
        finish=lambda *result: results.append(result),
        results=results,
    )


def test_the_judge_of_captions_is_saved_whole_with_its_ceiling(split, tmp_path):
    run = running(tmp_path, split)
    judging._matching(run)
    metrics, protocol, history = run.results[0]
    assert metrics["judge/retrieval_chance"] == 1 / 16
    assert protocol["judge"].endswith("retrieval among 16 captions")
    assert history[-1]["step"] == 2
    assert [warning.startswith("the judge finds only") for warning in run.warnings] == [True]  # after two steps
    judge = load_judge(tmp_path / "judge.safetensors", "")
    assert isinstance(judge, Matcher)
    assert not judge.training
    shown = [judge.features(to_unit(torch.from_numpy(split.images[rows]))) for rows in (np.s_[:6], np.s_[:2])]
    assert torch.allclose(shown[0][:2], shown[1], atol=1e-5)  # an image's features do not depend on the others


def test_without_captions_there_is_no_judge_and_features_learn_from_questions(tmp_path):
    run = running(tmp_path, squares(100, 0, captions=False), captions=False, steps=30)
    judging.judge(run)
    assert run.results.pop()[0] == {}  # nothing to judge
    perceiving.perceptual(run)
    metrics, _, history = run.results[0]
    assert metrics["perceptual/retrieval"] > 0
    assert history[-1]["loss"] < history[0]["loss"]
    features = load_perceptual(tmp_path / "perceptual.safetensors", "")
    torch.manual_seed(5)
    untrained = Perceptual(None)
    assert [name.split(".")[0] for name in features.state_dict()] == ["layers"] * 8
    assert not torch.equal(features.layers[0].weight, untrained.layers[0].weight)
    images = to_unit(torch.from_numpy(squares(4, 2).images))
    assert abs(features.distance(images, images).item()) < 1e-6
    assert Towers(untrained, 10).embed_images(images).shape == (4, 64)
