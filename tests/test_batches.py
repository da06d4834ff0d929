"""Which images a step shows, and what it says of them."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from infotok.data.texts import pad
from infotok.training.batches import Batches, unseen_tasks
from infotok.training.joint import JointConfig
from infotok.training.order import order
from tiny import small_scenes, trained_codec


@pytest.fixture(scope="module")
def split():
    return small_scenes(200)


@pytest.fixture(scope="module")
def codec(split):
    return trained_codec(split)


def batches(split, codec, **changes):
    return Batches(split, codec, JointConfig(batch=16, **changes), seed=0)


def test_every_image_comes_once_an_epoch_in_a_new_order():
    first = np.concatenate([order(20, 4, 7, step) for step in range(5)])
    second = np.concatenate([order(20, 4, 7, step) for step in range(5, 10)])
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()
    assert order(20, 4, 8, 0).tolist() != order(20, 4, 7, 0).tolist()


def test_what_fills_no_whole_batch_waits_for_the_next_epoch():
    for epoch in range(3):
        seen = np.concatenate([order(11, 4, 3, 2 * epoch + step) for step in range(2)])
        assert len(set(seen.tolist())) == 8
        assert set(seen.tolist()) <= set(range(11))
    assert {int(index) for step in range(20) for index in order(11, 4, 3, step)} == set(range(11))


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
        first, last = text.asked
        assert spoken(codec, first)[row] in {(p["question"], p["answer"]) for p in split.questions[index]}
        assert spoken(codec, last)[row][1] == caption


@pytest.mark.parametrize(("balance", "rare"), [(False, 1 / 8), (True, 1 / 2)])
def test_balanced_questions_come_evenly_from_the_families_of_an_image(split, codec, balance, rare):
    """One color question of red among seven of size: an eighth of the draws, or half of them."""
    sizes = [{"question": f"size {n}", "answer": "small", "family": "size"} for n in range(7)]
    lopsided = split.take(np.arange(16))
    lopsided.questions = [[{"question": "color", "answer": "red", "family": "color"}, *sizes] for _ in range(16)]
    drawn = batches(lopsided, codec, questions=1, describe=0, balance=balance)
    asked = [one for step in range(60) for one in drawn.texts(step).questions]
    said = [codec.decode(ids[valid]) for one in asked for ids, valid in zip(one.ids, one.valid, strict=True)]
    count, total = sum("red" in text for text in said), len(said)
    assert total == 960
    assert binomtest(count, total, rare).pvalue > 1e-4


def spoken(codec, questions):
    """(question, answer) of every row."""
    rows = zip(questions.ids, questions.answers, strict=True)
    return [(codec.decode(ids[: columns[0]]), codec.decode(ids[columns[columns > 0]])) for ids, columns in rows]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_asking_for_the_caption_is_added_to_the_questions(split, codec, number):
    """Never in place of one: with a single question an image and step, every image still asks its own."""
    shown, bare = (batches(split, codec, questions=number, describe=weight).texts(3) for weight in (0.1, 0))
    assert (len(shown.questions), len(bare.questions)) == (number, number)
    assert bare.description is None
    for row, index in enumerate(order(len(split), 16, 0, 3)):
        own = {(pair["question"], pair["answer"]) for pair in split.questions[index]}
        assert {spoken(codec, one)[row] for one in (*shown.questions, *bare.questions)} <= own
        question, caption = spoken(codec, shown.description)[row]
        assert question == "describe the image"
        assert caption in split.captions[index]


def test_where_an_image_has_no_caption_one_more_question_is_asked(split, codec):
    mixed = split.take(np.arange(16))
    mixed.captions = [texts if row % 2 else [] for row, texts in enumerate(mixed.captions)]
    text = batches(mixed, codec, questions=1).texts(0)
    for row, index in enumerate(order(16, 16, 0, 0)):
        first, last = (spoken(codec, one)[row] for one in text.asked)
        own = {(pair["question"], pair["answer"]) for pair in mixed.questions[index]}
        assert first in own
        assert (last in own) == (not mixed.captions[index])


@pytest.mark.parametrize("describe", [0.1, 0])
def test_captions_alone_are_asked_for_in_every_question_and_no_more(split, codec, describe):
    silent = split.take(np.arange(16))
    silent.questions = [[] for _ in range(16)]
    text = batches(silent, codec, questions=2, balance=True, describe=describe).texts(0)
    assert len(text.asked) == 2
    assert {question for one in text.questions for question, _ in spoken(codec, one)} == {"describe the image"}


def test_an_image_without_questions_among_others_asks_for_its_caption(split, codec):
    mixed = split.take(np.arange(16))
    mixed.questions = [pairs if row % 2 else [] for row, pairs in enumerate(mixed.questions)]
    text = batches(mixed, codec, questions=1).texts(0)
    for row, index in enumerate(order(16, 16, 0, 0)):
        question, _ = spoken(codec, text.questions[0])[row]
        assert (question == "describe the image") == (not mixed.questions[index])


def test_a_dropped_caption_keeps_its_begin_mark_alone(split, codec):
    text = batches(split, codec, caption_dropout=1.0).texts(0)
    assert text.captions_valid.sum(1).tolist() == [1] * 16


def test_answers_and_their_end_marks_are_what_is_predicted(split, codec):
    for asked in batches(split, codec).texts(2).questions:
        for ids, valid, answers in zip(asked.ids, asked.valid, asked.answers, strict=True):
            count, predicted = int(valid.sum()), answers[answers > 0].tolist()
            assert valid.tolist() == [True] * count + [False] * (len(ids) - count)
            assert predicted == list(range(predicted[0], count))
            assert 0 < predicted[0] < count - 1
            assert ids[count - 1] == codec.end
            assert codec.end not in ids[: count - 1]


def test_padding_stands_on_the_right_and_is_not_valid():
    ids, valid = pad([[5, 6, 7], [8], [9, 4]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert valid.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("changes", "tasks", "says"),
    [
        ({}, ["understanding", "generation"], []),
        ({"understanding": 0.0}, ["understanding", "generation"], ["train.understanding is 0"]),
        ({"understanding": 0.0}, ["generation"], []),
        ({"generation": 0.0}, ["understanding", "generation"], ["train.generation is 0"]),
        ({"caption_dropout": 1.0}, ["generation"], ["train.caption_dropout is 1"]),
        ({"caption_dropout": 1.0}, ["understanding"], []),
        ({"generation": 0.0, "understanding": 0.0}, ["understanding", "generation"],
         ["train.understanding is 0", "train.generation is 0"]),
    ],
)  # fmt: skip
def test_a_task_that_is_scored_but_never_trained_is_told(changes, tasks, says):
    told = unseen_tasks(JointConfig(**changes), tasks)
    assert [line.partition(":")[0] for line in told] == says
