"""Answers without the image: what language alone gives away."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from infotok.data.answers import accepted, normalized, score
from infotok.data.arrow import Split


class Guess:
    """The best answers without the image: the most frequent training answer to the same text, else to the same first
    three words, else to the same family, else overall, which is the majority."""

    def __init__(self, train: Iterable[list[dict[str, str]]], rule: str = "exact"):
        """train: per image its questions. rule: which answers are the same, of `infotok.data.answers`."""
        self.rule = rule
        seen: dict = {}
        for pair in itertools.chain.from_iterable(train):
            for key in self._keys(pair):
                seen.setdefault(key, Counter())[normalized(pair["answer"], rule)] += 1
        self._known = set(seen.get(None, ()))
        self._guesses = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}

    @staticmethod
    def _keys(pair: dict) -> list:
        return [pair["question"], tuple(pair["question"].split()[:3]), ("family", pair["family"]), None]

    def unseen(self, split: Split) -> list[str]:
        """Where those questions stand, as of `Split.place`, of whose right answers training shows none: no model can
        have learned them."""
        return [
            split.place(row)
            for row, questions in enumerate(split.questions)
            for pair in questions
            if not any(normalized(answer, self.rule) in self._known for answer in accepted(pair))
        ]

    def accuracies(self, test: Iterable[list[dict[str, str]]]) -> dict[str, float]:
        """Scores of the answers, as the model's are scored: `question_only` and `majority`."""
        number, right, majority = 0, 0.0, 0.0
        for pair in itertools.chain.from_iterable(test):
            number += 1
            guess = next(self._guesses[key] for key in self._keys(pair) if key in self._guesses)
            right += score(guess, pair, self.rule)
            majority += score(self._guesses[None], pair, self.rule)
        return {"question_only": right / number, "majority": majority / number}
