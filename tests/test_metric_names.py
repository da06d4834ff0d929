"""Metric names that the data choose, in MLflow."""

from urllib.parse import quote

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name

from pipeline.tracking.names import LONGEST, decoded, encoded

PLAIN = ["train/loss", "understanding/accuracy", "understanding/family/what color", "generation/tag/two_object"]
PLAIN += ["größe"]
AWKWARD = ["count (number)", "x|y", "attr@1", "what's this?", "50%", "a:b", ":3a", "", ".", "..", "..x", "a/../b"]
AWKWARD += ["a//b", "/a", "a/", "🙂", "色?", "\n", "\t", "'; DROP TABLE metrics; --", "\ud83d", " ", "\x00", "a`b"]


@pytest.mark.parametrize("name", PLAIN)
def test_names_that_mlflow_takes_stay_as_they_are(name):
    assert encoded(name) == decoded(name) == name


@pytest.mark.parametrize("name", AWKWARD)
def test_all_others_are_encoded_and_come_back(name):
    for whole in (name, f"understanding/family/{name}"):
        _validate_metric_name(encoded(whole))
        assert decoded(encoded(whole)) == whole


@pytest.mark.parametrize("name", ["count (number)", "x|y", "a//b", "/a", "a/", "..x", "."])
def test_mlflow_refuses_these(name):
    with pytest.raises(MlflowException):
        _validate_metric_name(name)


def test_different_names_stay_different():
    assert len({encoded(name) for name in PLAIN + AWKWARD}) == len(PLAIN + AWKWARD)
    long = ["x" * 300, "x" * 301, "(" * 100, "(" * 101]
    assert len({encoded(name) for name in long}) == len(long)
    for name in long:
        assert len(encoded(name)) <= LONGEST
        _validate_metric_name(encoded(name))
    assert encoded("x" * LONGEST) == "x" * LONGEST


def test_the_encoding_is_that_of_the_web_with_another_mark():
    for name in ("count (number)?", "50%", "🙂", "#|@"):
        assert encoded(name) == quote(name, safe=" ").lower().replace("%", ":")
