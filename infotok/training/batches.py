"""Batches of a prepared split: which images, questions and captions a step sees depends on (seed, step) alone."""

from __future__ import annotations

import numpy as np
import torch

from infotok.data.arrow import Split
from infotok.data.text import TextCodec
from infotok.models.unified import TextBatch

DESCRIBE = "describe the image"


def order(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Indices of the images of one step: epochs of seeded permutations, cut into whole batches."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    permutation = np.random.default_rng([seed, epoch]).permutation(count)
    return permutation[place * batch : (place + 1) * batch]


def pad(sequences: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (n, longest) and their validity."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), filler, dtype=torch.long)
    valid = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        valid[row, : len(sequence)] = True
    return ids, valid


def encode_captions(captions: list[str], codec: TextCodec) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions behind a begin mark: ids (B, M) and validity."""
    return pad([[codec.end, *codec.encode(caption)] for caption in captions], codec.pad)


class Batches:
    """Random access to training batches."""

    def __init__(
        self,
        split: Split,
        codec: TextCodec,
        *,
        batch: int,
        questions: int,
        caption_dropout: float,
        seed: int,
        describe: bool = False,
    ):
        self.describe = describe
        self.split, self.codec, self.seed = split, codec, seed
        self.batch, self.questions, self.caption_dropout = batch, questions, caption_dropout

    def images(self, step: int) -> torch.Tensor:
        """(B, S, S, 3) uint8."""
        return torch.from_numpy(self.split.images[order(len(self.split), self.batch, self.seed, step)])

    def texts(self, step: int) -> TextBatch:
        """Questions and captions of the same images; a dropped caption keeps its begin mark alone."""
        rng = np.random.default_rng([self.seed, step, 1])
        sequences, answers, captions = [], [], []
        for index in order(len(self.split), self.batch, self.seed, step):
            asked, said = self.split.questions[index], self.split.captions[index]
            chosen = rng.choice(len(asked), self.questions, replace=len(asked) < self.questions)
            for pair in (asked[i] for i in chosen):
                question, answer = self.codec.encode(pair["question"]), self.codec.encode(pair["answer"])
                sequences.append([*question, *answer, self.codec.end])
                answers.append(len(question))
            captions.append(said[rng.integers(len(said))])
            if self.describe:
                sequences[-1] = [*self.codec.encode(DESCRIBE), *self.codec.encode(captions[-1]), self.codec.end]
                answers[-1] = len(self.codec.encode(DESCRIBE))
        ids, valid = pad(sequences, self.codec.pad)
        shape = (self.batch, self.questions, ids.shape[1])
        predicted = valid & (torch.arange(ids.shape[1]) >= torch.tensor(answers)[:, None])
        caption_ids, caption_valid = encode_captions(captions, self.codec)
        dropped = torch.from_numpy(rng.random(self.batch) < self.caption_dropout)
        caption_valid[dropped, 1:] = False
        return TextBatch(ids.view(shape), valid.view(shape), predicted.view(shape), caption_ids, caption_valid)
