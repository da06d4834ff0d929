"""Batches of a prepared split: which images, questions and captions a step sees depends on (seed, step) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from infotok.data.arrow import Split, texts_about
from infotok.data.text import TextCodec
from infotok.data.texts import QuestionBatch, TextBatch, encode_captions, pad
from infotok.distributed import ALONE, World
from infotok.random import Purpose
from infotok.training.joint import JointConfig, StepData
from infotok.training.order import order

DESCRIBE = "describe the image"


def unseen_tasks(config: JointConfig, tasks: Sequence[str]) -> list[str]:
    """One line for each task that the data allow, and that is scored therefore, but that a training never sees."""
    found = []
    for task in tasks:
        if not getattr(config, task):
            found.append(f"train.{task} is 0: this training never sees {task}, on which it is scored; raise it")
    if "generation" in tasks and config.generation and config.caption_dropout == 1:
        found.append("train.caption_dropout is 1: drawing never sees a caption, from which it is scored; lower it")
    return found


def even_odds(families: list[str]) -> np.ndarray:
    """Probabilities of questions that give every family the same share."""
    count = Counter(families)
    return np.array([1 / (len(count) * count[family]) for family in families])


class Batches:
    """Random access to training batches; with several processes, to this one's rows of them."""

    def __init__(
        self,
        split: Split,
        codec: TextCodec,
        config: JointConfig,
        *,
        seed: int,
        world: World = ALONE,
    ):
        self.rows = world.rows(config.batch)
        self.split, self.codec, self.config, self.seed = split, codec, config, seed
        # Where no image has a question, asking for the caption stands for all of them already.
        self.describe = config.describe > 0 and any(split.questions)

    def images(self, step: int) -> torch.Tensor:
        """(B, S, S, 3) uint8."""
        return torch.from_numpy(self.split.images[self._indices(step)[self.rows]])

    def _indices(self, step: int) -> np.ndarray:
        """The images of a step, those of all processes."""
        return order(len(self.split), self.config.batch, self.seed, step)

    def texts(self, step: int) -> TextBatch:
        """Questions and captions of the same images; a dropped caption keeps its begin mark alone.

        With `balance` the families of an image's questions are drawn equally often, however many questions each has.
        With `describe` the caption is asked for beside the questions. Where an image has no caption, a question with
        its answer stands for it, in drawing and in describing; where it has no question, asking for the caption stands
        for one.
        """
        rng = np.random.default_rng([self.seed, step, Purpose.TEXTS])
        number = self.config.questions + self.describe
        pairs: list[list[tuple[str, str]]] = [[] for _ in range(number)]
        captions = []
        for index in self._indices(step):
            image_captions, questions = self.split.captions[index], self.split.questions[index]
            texts = texts_about(image_captions, questions)
            captions.append(texts[rng.integers(len(texts))])
            if not questions:
                questions = [{"question": DESCRIBE, "answer": text, "family": "caption"} for text in image_captions]
            odds = even_odds([pair["family"] for pair in questions]) if self.config.balance else None
            chosen = rng.choice(len(questions), number, replace=len(questions) < number, p=odds)
            for row, pair in zip(pairs, (questions[i] for i in chosen), strict=True):
                row.append((pair["question"], pair["answer"]))
            if self.describe and image_captions:
                pairs[-1][-1] = (DESCRIBE, captions[-1])
        dropped = rng.random(self.config.batch) < self.config.caption_dropout
        ids, valid = encode_captions(captions[self.rows], self.codec)
        valid[torch.from_numpy(dropped[self.rows]), 1:] = False
        asked = [self._question(row[self.rows]) for row in pairs]
        number = self.config.questions
        return TextBatch(asked[:number], ids, valid, *asked[number:])

    def _question(self, pairs: list[tuple[str, str]]) -> QuestionBatch:
        questions = [self.codec.encode(question) for question, _ in pairs]
        answers = [self.codec.encode(answer) for _, answer in pairs]
        ids, valid = pad([[*q, *a, self.codec.end] for q, a in zip(questions, answers, strict=True)], self.codec.pad)
        columns, _ = pad([list(range(len(q), len(q) + len(a) + 1)) for q, a in zip(questions, answers, strict=True)], 0)
        return QuestionBatch(ids, valid, columns)


class Remembered:
    """Batches that keep the last steps asked for: of several trainings that see the same and go side by side, the first
    to come makes them."""

    STEPS = 4

    def __init__(self, batches: StepData):
        self.images, self.texts = (lru_cache(self.STEPS)(make) for make in (batches.images, batches.texts))
