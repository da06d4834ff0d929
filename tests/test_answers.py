"""Which answers are the same, against cases worked by hand from the official evaluations' rules."""

import numpy as np
import pytest

from infotok.data.answers import DESCRIPTIONS, normalized, score
from infotok.evaluation.blind import Guess


@pytest.mark.parametrize(
    ("text", "exact", "lmms_eval", "vqa"),
    [
        (" Yes ", "yes", "yes", "yes"),
        ("YES.", "yes.", "yes", "yes"),
        ("a red Car", "a red car", "a red car", "red car"),
        ("The man's hat!", "the man's hat!", "the mans hat", "man's hat"),
        ("two", "two", "two", "2"),
        ("None", "none", "none", "0"),
        ("dont know", "dont know", "dont know", "don't know"),
        ("couldnt've", "couldnt've", "couldntve", "couldn't've"),
        ("1,000", "1,000", "1000", "1000"),
        ("2.5", "2.5", "25", "2.5"),
        ("t-shirt", "t-shirt", "tshirt", "t shirt"),  # a mark within a word parts it, one at its end goes
        ("red , blue", "red , blue", "red  blue", "red blue"),
        ("left/right", "left/right", "leftright", "left right"),
        ("red\nblue", "red\nblue", "red\nblue", "red blue"),
        ("the", "the", "the", ""),
    ],
)
def test_an_answer_in_the_form_in_which_it_is_compared(text, exact, lmms_eval, vqa):
    assert {rule: normalized(text, rule) for rule in DESCRIPTIONS} == {
        "exact": exact, "lmms_eval": lmms_eval, "vqa": vqa,
    }  # fmt: skip


def test_any_of_several_answers_is_right():
    pair = {"answer": "sofa", "answers": ["sofa", "Couch"]}
    for rule in DESCRIPTIONS:
        assert [score(text, pair, rule) for text in ("couch", "SOFA", "chair")] == [1.0, 1.0, 0.0]
    assert score("the couch", pair, "vqa") == 1.0
    assert score("the couch", pair, "exact") == 0.0


@pytest.mark.parametrize("same", range(11))
def test_ten_answers_count_as_vqa_counts_them(same):
    """Of every nine of them, those that are the same as the answer, divided by three and at most 1."""
    answers = ["Two"] * same + [f"other {index}" for index in range(10 - same)]
    rest = [answers[:left] + answers[left + 1 :] for left in range(10)]
    wanted = np.mean([min(1, nine.count("Two") / 3) for nine in rest])
    pair = {"answer": answers[0], "answers": answers}
    assert score("2", pair, "vqa") == pytest.approx(wanted)
    assert score("two", pair, "exact") == float(same > 0)


def question(answer, family="x", **more):
    return {"question": "is it?", "answer": answer, "family": family} | more


@pytest.mark.parametrize("rule", DESCRIPTIONS)
def test_floors_count_as_accuracies_do(rule):
    """`yes`, `Yes` and `YES` are one answer: a model that always says so is right, and so is the floor."""
    train = [[question(text)] for text in ("yes", "Yes", "YES", "no", "no")]
    test = [[question(text)] for text in ("Yes", "YES", "yes", " yes", "no", "NO", "yes", "Yes")]
    model = np.mean([score("yes", pair, rule) for (pair,) in test])
    assert Guess(train, rule).accuracies(test) == {"question_only": model, "majority": model} == {
        "question_only": 0.75, "majority": 0.75,
    }  # fmt: skip


def test_floors_count_lists_of_answers_as_the_rule_says():
    train = [[question("2")]]
    test = [[question("2", answers=["two", "couple"])], [question("5", answers=["5"] * 8 + ["two", "2"])]]
    assert Guess(train, "exact").accuracies(test)["question_only"] == 0.5  # of the second list alone, which holds "2"
    # Two of ten people: left out is one of them in two ways, another one in eight.
    assert Guess(train, "vqa").accuracies(test)["majority"] == pytest.approx((1 + (2 * 1 / 3 + 8 * 2 / 3) / 10) / 2)
