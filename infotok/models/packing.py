"""Several texts and images of one example packed into one sequence that the backbone reads in one pass.

Shapes: B examples, L columns of a part, S columns of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Part:
    """Consecutive columns. embeddings: (B, L, width). valid: (B, L), False on padding. start: (B,) position of the
    first column. sees: indices of earlier parts that every column attends to. Within the part attention is causal
    unless `bidirectional`."""

    embeddings: Tensor
    valid: Tensor
    start: Tensor
    sees: tuple[int, ...] = ()
    bidirectional: bool = False


def pack(parts: list[Part]) -> tuple[Tensor, Tensor, Tensor]:
    """Join parts.

    Returns:
        embeddings (B, S, width); allowed (B, S, S), True where a row may attend to a column; positions (B, S).
        Every column attends at least to itself, so that no softmax runs over nothing.
    """
    device = parts[0].embeddings.device
    lengths = [part.embeddings.shape[1] for part in parts]
    offsets = [sum(lengths[:i]) for i in range(len(parts) + 1)]
    pattern = torch.zeros(offsets[-1], offsets[-1], dtype=torch.bool, device=device)
    for index, part in enumerate(parts):
        rows = slice(offsets[index], offsets[index + 1])
        own = torch.ones(lengths[index], lengths[index], dtype=torch.bool, device=device)
        pattern[rows, rows] = own if part.bidirectional else own.tril()
        for seen in part.sees:
            pattern[rows, offsets[seen] : offsets[seen + 1]] = True
    valid = torch.cat([part.valid for part in parts], 1)
    itself = torch.eye(offsets[-1], dtype=torch.bool, device=device)
    allowed = (pattern & valid[:, None, :]) | itself
    # Padding stands at the end of a part, so counting columns gives every real one its place.
    positions = [part.start[:, None] + torch.arange(n, device=device) for part, n in zip(parts, lengths, strict=True)]
    return torch.cat([part.embeddings for part in parts], 1), allowed, torch.cat(positions, 1)


@dataclass
class Piece:
    """Consecutive columns of a sequence in a block, whose rows there count where it is `own`."""

    start: int
    length: int
    own: bool


class Blocks:
    """The columns of a packed sequence that attend to each other, in blocks of one size: every part with those that it
    sees. A part that others see is in several blocks; what its rows get is taken from the first. Where blocks would
    hold no fewer pairs of columns than the whole sequence, that is the one block.

    Methods take and give tensors of which the dimension before the last is that of columns: (..., S, D) of a sequence,
    (..., G, W, D) of G blocks of W columns, with padding (..., G, P, D), P a multiple of `PADDED`.
    """

    PADDED = (
        32  # as many numbers in bf16 as a vector of a processor holds: the rest of a row takes several times longer
    )

    def __init__(self, parts: list[Part]):
        lengths = [part.embeddings.shape[1] for part in parts]
        starts = [sum(lengths[:index]) for index in range(len(parts))]
        seen = {index for part in parts for index in part.sees}
        # Nothing that is seen sees other parts in turn: its own rows need no block of their own.
        chains = any(parts[index].sees for index in seen)
        members = [[*part.sees, index] for index, part in enumerate(parts) if index not in seen]
        width = max(sum(lengths[index] for index in some) for some in members)
        if chains or len(members) * width**2 >= sum(lengths) ** 2:
            members = [list(range(len(parts)))]
        self.blocks: list[list[Piece]] = []
        self.seen: list[list[tuple[int, int]]] = [[] for _ in parts]  # by part, the blocks and where it begins there
        for number, some in enumerate(members):
            place, block = 0, []
            for index in some:
                block.append(Piece(starts[index], lengths[index], not self.seen[index]))
                self.seen[index].append((number, place))
                place += lengths[index]
            self.blocks.append(block)
        self.lengths = lengths
        self.columns = [sum(piece.length for piece in block) for block in self.blocks]
        self.width = max(self.columns)
        self.padded = -(-self.width // self.PADDED) * self.PADDED

    def mask(self, allowed: Tensor) -> Tensor:
        """(B, G, W, P), True where a row may attend to a column, from (B, S, S) of the whole sequence. Rows of padding
        attend to all."""
        device = allowed.device
        place = torch.arange(allowed.shape[-1], device=device)[:, None]
        index = self.spread(place)[..., 0]
        real = torch.stack([torch.arange(self.padded, device=device) < columns for columns in self.columns])
        chosen = allowed[:, index[:, : self.width, None], index[:, None]]
        return (chosen & real[:, None]) | ~real[:, : self.width, None]

    def spread(self, values: Tensor) -> Tensor:
        """(..., S, D) to (..., G, P, D), zeros on padding."""
        return self._joined(values, self.padded, all_of_it=True)

    def place(self, values: Tensor) -> Tensor:
        """(..., S, D) to (..., G, W, D), every column in one block alone, zeros elsewhere: what `pick` undoes."""
        return self._joined(values, self.width, all_of_it=False)

    def pick(self, values: Tensor) -> Tensor:
        """(..., G, W, D) to (..., S, D), every column from the block that has it as its own."""
        return torch.cat([self._piece(values, places[0], n) for places, n in self._parts()], -2)

    def total(self, values: Tensor) -> Tensor:
        """(..., G, P, D) to (..., S, D), the sum of every column over blocks: the gradient of `spread`."""
        found = []
        for places, length in self._parts():
            pieces = [self._piece(values, place, length) for place in places]
            found.append(sum(pieces[1:], pieces[0]))
        return torch.cat(found, -2)

    def _parts(self) -> Iterator[tuple[list[tuple[int, int]], int]]:
        return zip(self.seen, self.lengths, strict=True)

    def _piece(self, values: Tensor, place: tuple[int, int], length: int) -> Tensor:
        return values[..., place[0], place[1] : place[1] + length, :]

    def _joined(self, values: Tensor, width: int, all_of_it: bool) -> Tensor:
        padding = values.new_zeros(*values.shape[:-2], width - min(self.columns), values.shape[-1])
        joined = []
        for block, columns in zip(self.blocks, self.columns, strict=True):
            for piece in block:
                there = values.narrow(-2, piece.start, piece.length)
                joined.append(there if all_of_it or piece.own else torch.zeros_like(there))
            joined.append(padding[..., : width - columns, :])
        return torch.cat(joined, -2).unflatten(-2, (len(self.blocks), width))
