"""Answers decoded greedily and compared by exact match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from infotok.data.answers import accepted, score
from infotok.data.arrow import Split
from infotok.data.text import TextCodec
from infotok.data.texts import pad
from infotok.evaluation.statistics import wilson_interval
from infotok.models.unified import UnifiedModel
from infotok.options import Count, Section
from infotok.training.runtime import autocast


class UnderstandingConfig(Section):
    """answers: when an answer is right, for accuracies and floors alike: `exact`, `lmms_eval` or `vqa` of
    `infotok.data.answers`. batch: questions that are answered at once. longest_answer: tokens of an answer, at most;
    more are cut.
    probe_images, probe_steps: training images that the probes of usable information learn from, and their steps."""

    answers: Literal["exact", "lmms_eval", "vqa"] = "exact"
    batch: Count = 256
    longest_answer: Count = 64
    probe_images: Count = 4000
    probe_steps: Count = 300


@dataclass
class Answers:
    """Scores of one split's questions. right: (n,) from 0 to 1; families: (n,) names. cut: answers of the model that
    the limit ended. beyond: questions whose right answers are all longer than the limit, so that none can be given."""

    right: np.ndarray
    families: np.ndarray
    cut: int
    beyond: int

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the accuracy."""
        return wilson_interval(float(self.right.sum()), len(self.right))

    def by_family(self) -> dict[str, float]:
        return {name: float(self.right[self.families == name].mean()) for name in dict.fromkeys(sorted(self.families))}


def answer_all(
    model: UnifiedModel,
    vectors: torch.Tensor,
    split: Split,
    codec: TextCodec,
    *,
    batch: int,
    precision: str,
    rule: str,
    longest: int,
) -> Answers:
    """Ask a model every question of a split, about images given by their vectors (n, K, D).

    rule: when an answer is right, of `infotok.data.answers`. longest: tokens of an answer, at most.
    """
    pairs = [(image, pair) for image, asked in enumerate(split.questions) for pair in asked]
    encoded = [codec.encode(pair["question"]) for _, pair in pairs]
    lengths = [[len(codec.encode(answer)) for answer in accepted(pair)] for _, pair in pairs]
    # By other rules than `exact` an answer with words more may be right.
    most = min(longest, max(map(max, lengths))) if rule == "exact" else longest
    right, cut = np.zeros(len(pairs)), 0
    device = vectors.device
    longest_last = np.argsort([len(ids) for ids in encoded], kind="stable")  # batches of like length pad little
    for start in range(0, len(pairs), batch):
        rows = longest_last[start : start + batch]
        ids, valid = pad([encoded[i] for i in rows], codec.pad)
        images = torch.tensor([pairs[i][0] for i in rows], device=device)
        with autocast(device, precision):
            out = model.answer(vectors[images], ids.to(device), valid.to(device), most + 1, codec.end)
        for row, answer in zip(rows, out.tolist(), strict=True):
            if codec.end in answer:
                right[row] = score(codec.decode(answer), pairs[row][1], rule)
            else:
                cut += 1  # and wrong, whatever it begins with
    beyond = sum(min(counts) > longest for counts in lengths)
    return Answers(right, np.array([pair["family"] for _, pair in pairs]), cut, beyond)
