"""Answers without the image: what language alone gives away."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable


class Guess:
    """The best answers without the image: the most frequent training answer to the same text, else to the same first
    three words, else to the same family, else overall, which is the majority."""

    def __init__(self, train: Iterable[list[dict[str, str]]]):
        """train: per image its questions."""
        seen: dict = {}
        for pair in itertools.chain.from_iterable(train):
            for key in self._keys(pair):
                seen.setdefault(key, Counter())[pair["answer"]] += 1
        self.answers = set(seen[None]) if seen else set()
        self._guesses = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}

    @staticmethod
    def _keys(pair: dict) -> list:
        return [pair["question"], tuple(pair["question"].split()[:3]), ("family", pair["family"]), None]

    def accuracies(self, test: Iterable[list[dict[str, str]]]) -> dict[str, float]:
        """Shares that are right: `question_only` and `majority`."""
        number = right = majority = 0
        for pair in itertools.chain.from_iterable(test):
            number += 1
            guess = next(self._guesses[key] for key in self._keys(pair) if key in self._guesses)
            right += guess == pair["answer"]
            majority += self._guesses[None] == pair["answer"]
        return {"question_only": right / number, "majority": majority / number}
