"""Random streams by keys."""

import math

import numpy as np
import torch

from infotok.random import stream

CPU = torch.device("cpu")


def test_neighbouring_keys_give_unrelated_streams():
    draws = torch.stack([torch.rand(500, generator=stream(CPU, *key)) for key in ((0, 1), (1, 0), (0, 2), (1, 1))])
    assert torch.equal(draws[0], torch.rand(500, generator=stream(CPU, 0, 1)))
    correlations = torch.corrcoef(draws) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(500)


def test_streams_of_many_neighbouring_keys_are_uniform_and_distinct():
    first = torch.stack([torch.rand(1, generator=stream(CPU, 0, step, 5)) for step in range(2000)]).flatten()
    counts = np.histogram(first.numpy(), bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # the 0.999 quantile of chi-square with 9 degrees
    assert len(set(first.tolist())) > 1990
    lag = np.corrcoef(first[:-1].numpy(), first[1:].numpy())[0, 1]
    assert abs(lag) < 4 / math.sqrt(2000)


def test_a_stream_is_seeded_by_splitmix64_and_knows_how_long_its_key_is():
    # The first output of the published splitmix64 from state 0, less its top bit.
    assert stream(CPU, 0).initial_seed() == 0xE220A8397B1DCDAF % 2**63
    assert len({stream(CPU, *[0] * count).initial_seed() for count in range(1, 6)}) == 5
