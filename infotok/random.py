"""Random numbers that a run repeats: a generator for every purpose, seeded by a key such as (seed, step, purpose).

A resumed run and a paired twin draw the same, whatever else was drawn before.
"""

from __future__ import annotations

from enum import IntEnum

import torch

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


def stream(device: torch.device, *key: int, world: World = ALONE) -> torch.Generator:
    """A generator for one purpose, e.g. (seed, step): the same key, the same numbers, shared out among processes."""
    state = 0
    for part in key:  # splitmix64: neighbouring keys give unrelated streams
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return world.generator(device).manual_seed(state % 2**63)
