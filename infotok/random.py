"""Random numbers that a run repeats: a generator for every purpose, seeded by a key such as (seed, step, purpose).

A resumed run and a paired twin draw the same, whatever else was drawn before. Several processes share a generator's
numbers out among them: those of the whole batch are drawn in every process, which keeps its rows. A step that is one
graph cannot call a generator: it reads a `Tape` of the same numbers, which are drawn before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from infotok.distributed import ALONE, World


class Purpose(IntEnum):
    """The last part of a key: what is drawn. Numbers stay as they are, since they seed what runs have drawn."""

    TEXTS = 1  # which questions and captions a step shows
    PRETRAINING = 2  # channel and token budgets of a pretraining step
    REVIVAL = 3  # where dead codes move to
    TRAINING = 5  # channel, token budgets and the family's own draws of a joint training step
    CHANNEL = 6  # tokens of given images
    DRAWING = 7  # images from prompts
    KERNELS = 8  # random features and permutations of kernel dependence in training
    PREDICTION = 9  # what the generator is shown of given tokens
    DEPENDENCE = 10  # random features of kernel dependence in evaluation
    SETTLING = 11  # where codes of an untrained tokenizer begin


@dataclass(frozen=True)
class Draw:
    """One call of `shared_random`, but for the generator."""

    how: Callable[..., Tensor]
    shape: tuple[int, ...]
    dim: int = 0

    def by(self, generator: torch.Generator) -> Tensor:
        """The numbers that a generator draws."""
        return shared_random(self.how, self.shape, generator, self.dim)


class Stream(torch.Generator):
    """A generator that stands at the same place in every process. asked: where it is a list, it takes down what is
    drawn."""

    asked: list[Draw] | None

    def __new__(cls, device: torch.device, world: World):
        return super().__new__(cls, device=device)  # type: ignore[call-arg]

    def __init__(self, device: torch.device, world: World):
        self.world, self.asked = world, None


class Tape:
    """Numbers that were drawn before they are asked for, in the order of their draws. For one process."""

    def __init__(self, numbers: list[Tensor]):
        self.numbers, self.place = numbers, 0

    def next(self, shape: tuple[int, ...]) -> Tensor:
        """The next numbers.

        Raises:
            ValueError: they are of another shape than `shape`, or there are none.
        """
        number = self.numbers[self.place] if self.place < len(self.numbers) else None
        if number is None or tuple(number.shape) != shape:
            found = "nothing" if number is None else f"numbers of shape {tuple(number.shape)}"
            raise ValueError(f"draw {self.place + 1} asks for shape {shape}, but {found} was drawn for it")
        self.place += 1
        return number


Source = torch.Generator | Tape


def stream(device: torch.device, *key: int, world: World = ALONE) -> Stream:
    """A generator for one purpose, e.g. (seed, step): the same key, the same numbers, shared out among processes."""
    state = 0
    for part in key:  # splitmix64: neighbouring keys give unrelated streams
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    found = Stream(device, world)
    found.manual_seed(state % 2**63)
    return found


def world_of(source: Source) -> World:
    """The processes among which what is drawn is shared out."""
    return source.world if isinstance(source, Stream) else ALONE


def shared_random(how: Callable[..., Tensor], shape: Iterable[int], source: Source, dim: int = 0) -> Tensor:
    """Random numbers of a shape, by `torch.rand`, `torch.randn` or another that takes it, on the generator's device.

    Where the generator is shared, `shape[dim]` is this process's part of the batch. The whole batch's numbers are
    drawn, the same in every process, and the others' are dropped: for a moment that takes the memory of the whole.
    """
    own = tuple(shape)
    if isinstance(source, Tape):
        return source.next(own)
    world, whole = world_of(source), list(own)
    whole[dim] *= world.size
    if isinstance(source, Stream) and source.asked is not None:
        source.asked.append(Draw(how, own, dim))
    drawn = how(whole, generator=source, device=source.device)
    return drawn if world.size == 1 else drawn.narrow(dim, world.rank * own[dim], own[dim]).clone()


def permutation(size: list[int], **settings) -> Tensor:
    """`torch.randperm`, for `shared_random`."""
    return torch.randperm(*size, **settings)
