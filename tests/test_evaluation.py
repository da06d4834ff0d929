"""Evaluations against closed forms, scipy and hand-worked images."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from infotok.data.arrow import Split
from infotok.data.pixels import to_bytes, to_unit
from infotok.data.sources import scenes
from infotok.evaluation.generation import frechet_distance, kernel_distance, standardized_features
from infotok.evaluation.information import usable_bits
from infotok.evaluation.prompted import Verdict
from infotok.evaluation.reconstruction import fidelity, objects_kept
from infotok.evaluation.understanding import answer_all
from infotok.examiners.judge import Judge
from infotok.examiners.perceptual import Perceptual
from infotok.examiners.reading import accuracies, examine, objects_right
from infotok.examiners.scenes import read_scenes
from infotok.tensors import load_module, read_tensors, save_module
from infotok.training.examiners import ExaminerConfig, train_examiner

CLASSES = {"shape": 4, "color": 6, "size": 2}
METADATA = {"shapes": ["a", "b", "c", "d"], "colors": ["r", "g", "b", "y", "p", "w"], "sizes": ["small", "large"]}


@pytest.fixture(scope="module")
def split():
    config = {"seed": 0, "image_size": 32, "objects": 2, "nuisance": 1.0, "questions": 1}
    return scenes.make_split("judge", 400, config)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Judge(CLASSES, 32).eval()


class ReadsPixels(nn.Module):
    """A judge whose reading stands in the image: pixel (0, quadrant) holds presence, shape, color as bytes."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        values = ((images[:, :, 0, :4] + 1) * 127.5).round().long()  # (B, 3, 4)
        sizes = torch.zeros_like(values[:, 0])
        found = {"presence": values[:, 0], "shape": values[:, 1], "color": values[:, 2], "size": sizes}
        counts = {"presence": 2, **CLASSES}
        return {name: nn.functional.one_hot(v, counts[name]).float() for name, v in found.items()}


def written(*quadrants):
    """One image that `ReadsPixels` reads as these (presence, shape, color)."""
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[0, 0, :4] = torch.tensor(quadrants, dtype=torch.uint8)
    return image


def test_objects_are_compared_quadrant_by_quadrant():
    before = written((1, 2, 3), (0, 0, 0), (1, 1, 1), (0, 3, 0))
    after = written((1, 2, 3), (1, 0, 0), (1, 1, 2), (0, 0, 0))
    # Three quadrants hold an object in either image: one is kept, one appeared, one changed color.
    assert objects_kept(ReadsPixels(), before, after, METADATA) == pytest.approx(1 / 3)
    found, truth = examine(ReadsPixels(), after), examine(ReadsPixels(), before)
    assert found["shape"][0].tolist() == [2, 0, 1, -1]
    assert objects_right(found, truth) == pytest.approx(1 / 2)


def test_a_judges_reading_becomes_a_scene():
    image = written((0, 0, 0), (1, 2, 3), (1, 1, 5), (0, 3, 0))
    assert read_scenes(ReadsPixels(), image, METADATA) == [
        [
            {"shape": "c", "color": "y", "size": "small", "row": 0, "column": 1},
            {"shape": "b", "color": "w", "size": "small", "row": 1, "column": 0},
        ]
    ]


def test_geneval_is_the_mean_over_tags_and_not_over_prompts():
    right = np.array([[True, True], [False, False], [True, False], [False, False]])
    verdict = Verdict(right, ["single_object", "colors", "colors", "colors"])
    assert verdict.by_tag() == {"single_object": 1.0, "colors": pytest.approx(1 / 6)}
    assert verdict.score == pytest.approx((1 + 1 / 6) / 2)


def test_psnr_of_a_constant_offset_is_its_closed_form(split):
    image = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    assert fidelity(image, image + 8)[0] == pytest.approx(20 * np.log10(255 / 8), abs=1e-4)
    both = fidelity(image, torch.stack([image[0] + 8, image[1] + 2]))[0]  # the mean over images, not of errors
    assert both == pytest.approx(20 * np.log10(255 / 8) / 2 + 20 * np.log10(255 / 2) / 2, abs=1e-4)
    assert fidelity(split.images[:4], torch.from_numpy(255 - split.images[:4]))[1] < 0.5
    assert fidelity(split.images[:4], torch.from_numpy(split.images[:4].copy()))[1] == pytest.approx(1.0)


def test_a_factor_is_worth_its_entropy_where_the_tokens_show_it_and_nothing_where_they_do_not():
    rng = np.random.default_rng(0)
    factor, hidden = rng.integers(0, 4, (3000, 1)), rng.integers(0, 4, (3000, 1))
    half = np.where(rng.random((3000, 1)) < 0.5, factor, -1)  # defined in half of the images
    vectors = torch.eye(4)[factor[:, 0]][:, None]
    values = {"factor": factor, "hidden": hidden, "half": half, "twice": np.hstack([factor, 3 - factor])}
    train, test = ({name: v[rows] for name, v in values.items()} for rows in (np.s_[:2000], np.s_[2000:]))
    sizes = dict.fromkeys(values, 4)
    bits = usable_bits(vectors[:2000], train, vectors[2000:], test, sizes, steps=200, seed=0)
    assert bits["factor"] == pytest.approx(2.0, abs=0.03)
    assert bits["half"] == pytest.approx(1.0, abs=0.06)
    assert 0 <= bits["hidden"] < 0.03
    assert bits["twice"] == pytest.approx(4.0, abs=0.06)


def test_fid_is_the_frechet_distance_of_standardized_features(judge, split):
    real = torch.from_numpy(split.images[:200].copy())
    drawn = torch.from_numpy(255 - split.images[200:])
    features = standardized_features(judge, real, drawn)
    fid, kid = frechet_distance(*features), kernel_distance(*features, 0)
    with torch.no_grad():
        a, b = (judge.features(to_unit(images)).double().numpy() for images in (real, drawn))
    scale = a.std(0, ddof=1)
    scale[scale < 1e-6] = 1
    a, b = (a - a.mean(0)) / scale, (b - a.mean(0)) / scale
    assert np.allclose(features[1].numpy(), b, atol=1e-3)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert fid == pytest.approx(expected, rel=0.02)
    assert abs(frechet_distance(features[0], features[0].clone())) < 0.02 * fid
    state = torch.random.get_rng_state()
    assert kernel_distance(*features, 0) == kid
    assert torch.equal(torch.random.get_rng_state(), state)
    assert abs(kernel_distance(features[0], features[0].clone(), 0)) < 0.05 * kid


def test_a_saved_judge_reads_as_before(judge, split, tmp_path):
    save_module(judge, tmp_path / "judge.safetensors", {"classes": CLASSES, "image_size": 32})
    tensors, description = read_tensors(tmp_path / "judge.safetensors", "")
    loaded = Judge(**description)
    load_module(loaded, tensors, tmp_path / "judge.safetensors", "")
    images = to_unit(torch.from_numpy(split.images[:8].copy()))
    with torch.no_grad():
        before, after = judge(images), loaded.eval()(images)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_judge_learns(split):
    torch.manual_seed(1)
    network = Judge(CLASSES, 32)
    untrained = accuracies(network, split, "")["presence"]
    config = ExaminerConfig(steps=40, batch=64, seed=0)
    history = train_examiner(network, split, config, device=torch.device("cpu"))
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert accuracies(network, split, "")["presence"] > max(0.75, untrained)


def test_the_perceptual_distance_vanishes_between_equal_images_alone(split):
    torch.manual_seed(0)
    network = Perceptual(CLASSES)
    images = to_unit(torch.from_numpy(split.images[:8].copy()))
    assert abs(network.distance(images, images).item()) < 1e-6
    assert network.distance(images, images.flip(0)).item() > 0.01


def test_bytes_and_unit_images_are_inverse():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert torch.equal(to_bytes(to_unit(images)), images)
    assert to_unit(images).min() == -1
    assert to_unit(images).max() == 1


class Says:
    """A codec of letters and a model that answers every question with the question."""

    end, pad = 1, 0

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(token) for token in ids if token > 1)

    def answer(self, vectors, ids, valid, most, end):
        out = torch.full((len(ids), most), end)
        width = min(most, ids.shape[1])
        out[:, :width] = ids.masked_fill(~valid, end)[:, :width]
        return out


def asked(*pairs):
    questions = [[{"question": q, "answer": a, "family": f}] for q, a, f in pairs]
    empty = [[] for _ in questions]
    return Split(np.zeros((len(questions), 8, 8, 3), np.uint8), empty, questions, empty)


def answered(split, longest=64, rule="exact"):
    said = Says()
    return answer_all(
        said, torch.zeros(len(split), 1, 1), split, said, batch=2, precision="fp32", rule=rule, longest=longest
    )


def test_answers_are_compared_by_the_rule_that_the_data_name():
    split = asked(("Red.", "red", "a"), ("the red", "Red", "a"), ("2", "two", "b"), ("blue", "red", "b"))
    assert answered(split).right.tolist() == [0, 0, 0, 0]
    assert answered(split, rule="lmms_eval").right.tolist() == [1, 0, 0, 0]
    found = answered(split, rule="vqa")
    assert found.right.tolist() == [1, 1, 1, 0]
    assert found.by_family() == {"a": 1.0, "b": 0.5}


@pytest.mark.parametrize("length", [1950, 65])
def test_a_long_answer_is_cut_and_counted(length):
    split = asked(("red", "red", "a"), ("x" * length, "x" * length, "a"), ("x" * 64, "x" * 64, "a"))
    found = answered(split)
    assert (found.right.tolist(), found.cut, found.beyond) == ([1, 0, 1], 1, 1)
    found = answered(split, longest=2000)
    assert (found.right.tolist(), found.cut, found.beyond) == ([1, 1, 1], 0, 0)


def test_an_answer_that_never_ends_is_counted_where_the_right_one_is_short():
    found = answered(asked(("reddish brown", "red", "a"), ("red", "red", "a")))
    assert (found.right.tolist(), found.cut, found.beyond) == ([0, 1], 1, 0)
