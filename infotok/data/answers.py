"""When two answers are the same: one rule for accuracies, for floors without the image, and for what `prepare` notes.

exact       without the spaces at its ends, in lower case
lmms_eval   without punctuation too: lmms-eval's `exact_match` with `ignore_case` and `ignore_punctuation`, as for GQA
vqa         VQA's official evaluation (Antol et al. 2015; Goyal et al. 2017): without punctuation and articles, number
            words as digits, contractions with their apostrophe; an answer that n of ten people gave counts
            min(1, n / 3), averaged over the ten ways to leave one of them out
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Any

ANNOTATORS = 10  # answers of a question that VQA asked people for
DESCRIPTIONS = {
    "exact": "exact match after trimming and lowering case",
    "lmms_eval": "exact match without case and punctuation, as lmms-eval's",
    "vqa": "VQA's evaluation: without case, punctuation and articles, numbers as digits; min(1, n / 3) of ten answers",
}

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't wouldn't wouldn't've would've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspelled(word: str) -> list[str]:
    """A contraction with some of its apostrophes, but not all."""
    first, *rest = word.split("'")
    spellings = [first]
    for part in rest:
        spellings = [begun + mark + part for begun in spellings for mark in ("", "'")]
    return [spelling for spelling in spellings if spelling != word]


_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _misspelled(word)}


def _exact(text: str) -> str:
    return text.strip().lower()


def _lmms_eval(text: str) -> str:
    return _exact(text.translate(str.maketrans("", "", string.punctuation)))


def _vqa(text: str) -> str:
    text = " ".join(text.split())
    cleaned, thousands = text, re.search(r"\d,+\d", text)
    for mark in _MARKS:  # at the end of a word it goes, within one it parts two words
        cleaned = cleaned.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_RULES: dict[str, Callable[[str], str]] = {"exact": _exact, "lmms_eval": _lmms_eval, "vqa": _vqa}


@lru_cache(1 << 16)
def normalized(text: str, rule: str) -> str:
    """An answer in the form in which it is compared; rule: `exact`, `lmms_eval` or `vqa`."""
    return _RULES[rule](text)


def accepted(pair: dict[str, Any]) -> list[str]:
    """The right answers to a question, one of several people as often as they gave it."""
    return pair.get("answers") or [pair["answer"]]


def score(answer: str, pair: dict[str, Any], rule: str) -> float:
    """What an answer to a question counts, from 0 to 1: any right answer counts 1, but see `vqa` of ten."""
    given, right = normalized(answer, rule), [normalized(text, rule) for text in accepted(pair)]
    if rule != "vqa" or len(right) != ANNOTATORS:
        return float(given in right)
    same = right.count(given)
    # Left out is one of the same answers, which leaves one fewer, or another one, which leaves all.
    return (same * min(1.0, (same - 1) / 3) + (ANNOTATORS - same) * min(1.0, same / 3)) / ANNOTATORS
