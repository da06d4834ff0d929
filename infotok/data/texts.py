"""Tokenized texts of a batch. Shapes: B examples, L columns of a question, M columns of a caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from infotok.data.text import TextCodec


@dataclass
class QuestionBatch:
    """One question of every example with its answer: ids (B, L) of question, answer and end mark; valid (B, L);
    answers (B, A): the columns of answer and end mark, which are to be predicted, 0 behind those of a shorter one."""

    ids: Tensor
    valid: Tensor
    answers: Tensor


@dataclass
class TextBatch:
    """Tokenized texts of B examples. questions: one `QuestionBatch` per question of an example, each as wide as its own
    longest row. captions: (B, M) ids behind a begin mark; captions_valid: (B, M). description: asks every example for
    its caption; None where nothing does."""

    questions: list[QuestionBatch]
    captions: Tensor
    captions_valid: Tensor
    description: QuestionBatch | None = None

    @property
    def asked(self) -> list[QuestionBatch]:
        """All that is answered: the questions and, behind them, the description."""
        return [*self.questions] if self.description is None else [*self.questions, self.description]

    def to(self, device: torch.device) -> TextBatch:
        def moved(values: Tensor) -> Tensor:
            return values.to(device)

        return self._changed(moved, moved)

    def widened(self, multiple: int) -> TextBatch:
        """The same with so many columns of padding more that every width is a multiple of a number, that of answers,
        which are shorter, of a quarter of it: batches of few shapes, each of which takes a graph of its own."""

        def wide(multiple: int) -> Callable[[Tensor], Tensor]:
            return lambda values: F.pad(values, (0, -values.shape[1] % multiple))

        return self._changed(wide(multiple), wide(max(multiple // 4, 1)))

    def _changed(self, change: Callable[[Tensor], Tensor], answers: Callable[[Tensor], Tensor]) -> TextBatch:
        asked = [QuestionBatch(change(one.ids), change(one.valid), answers(one.answers)) for one in self.asked]
        questions, description = asked[: len(self.questions)], asked[len(self.questions) :]
        return TextBatch(questions, change(self.captions), change(self.captions_valid), *description)


def pad(sequences: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (n, longest) and their validity."""
    lengths = np.array([len(sequence) for sequence in sequences])
    valid = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(valid.shape, filler, dtype=np.int64)
    ids[valid] = np.fromiter(chain.from_iterable(sequences), np.int64)
    return torch.from_numpy(ids), torch.from_numpy(valid)


def encode_captions(captions: list[str], codec: TextCodec) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions behind a begin mark: ids (B, M) and validity."""
    return pad([[codec.end, *codec.encode(caption)] for caption in captions], codec.pad)
