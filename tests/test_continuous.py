"""The continuous tokenizer: its power, its noise and what it can carry; and the prefixes that an elastic one keeps."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, multivariate_normal
from torch import nn

from infotok.errors import InfotokError
from infotok.tokenizer import smaller_budgets
from infotok.tokenizer.continuous import ContinuousTokenizer
from tiny import images, seeded, tokenizer


def continuous(**changes):
    return tokenizer(family="flow", **changes)


@torch.no_grad()
def test_a_token_has_power_one_and_noise_between_its_bounds_whatever_the_encoder_says():
    tested = continuous(noise=0.2)
    for scale in (1e-3, 1.0, 300.0):
        tested.encoder.head[1].weight.copy_(scale * torch.randn(8, 16, generator=seeded()))
        posterior = tested.encode(images(20))
        power = posterior.mean.square().mean(-1)
        torch.testing.assert_close(power, torch.ones(20, 4), atol=1e-4, rtol=0)
        deviation = (0.5 * posterior.log_variance).exp()
        assert deviation.min() >= 0.2 - 1e-5
        assert deviation.max() <= 1 + 1e-5
    assert deviation.min() < 0.21  # both ends are reached
    assert deviation.max() > 0.99


@torch.no_grad()
def test_a_new_tokenizer_begins_near_the_least_noise():
    deviation = (0.5 * continuous(noise=0.2).encode(images(20)).log_variance).exp()
    assert deviation.max() < 0.25


@torch.no_grad()
def test_what_flows_has_the_posteriors_mean_and_deviation():
    tested, count = continuous(noise=0.3), 20000
    posterior = tested.encode(images(1).expand(count, -1, -1, -1))
    drawn = tested.sample(posterior, seeded(1))
    assert drawn.codes is None
    assert torch.equal(drawn.values, drawn.vectors)
    mean, deviation = posterior.mean[0], (0.5 * posterior.log_variance[0]).exp()
    assert ((drawn.vectors.mean(0) - mean).abs() < 4 * deviation / math.sqrt(count)).all()
    assert ((drawn.vectors.std(0) / deviation - 1).abs() < 4 / math.sqrt(2 * count)).all()
    assert tested.channel_of(posterior) is posterior


def test_capacity_is_the_entropy_that_power_one_adds_to_the_noise():
    """Of a Gaussian channel of D dimensions, by scipy's entropies of output and noise."""
    tested = continuous(tokens=4, dimension=3, noise=0.25)
    out, noise = (multivariate_normal(cov=power * np.eye(3)).entropy() for power in (1 + 0.25**2, 0.25**2))
    assert tested.capacity_bits == pytest.approx(4 * (out - noise) / math.log(2))
    assert tokenizer(tokens=4, codebook=8).capacity_bits == 12


def test_no_encoder_sends_more_than_the_capacity_by_modulating_its_noise():
    """With a share of tokens at deviation 1, h(z) is at most that of a Gaussian of its power, h(z|x) a mean of two."""
    for noise in (0.05, 0.3, 0.9):
        capacity = continuous(tokens=1, dimension=1, noise=noise).capacity_bits
        share = np.linspace(0, 1, 101)
        power = 1 + share + (1 - share) * noise**2
        sent = 0.5 * np.log2(power) - (1 - share) * math.log2(noise)
        assert sent.max() <= capacity + 1e-9


@torch.no_grad()
def test_a_collapsed_continuous_tokenizer_is_reported_and_a_new_one_is_not():
    tested = continuous()
    posterior = tested.encode(images(30))
    sent = tested.sample(posterior, seeded())
    by_hand = (posterior.mean.numpy().var(0, ddof=1) > 0.01).sum()
    assert tested.health(sent, posterior) == {"active_dimensions": by_hand}
    assert by_hand > 8
    assert tested.collapse_warning(tested.health(sent, posterior)) is None
    nn.init.zeros_(tested.encoder.head[1].weight)
    posterior = tested.encode(images(30))
    found = tested.health(tested.sample(posterior, seeded()), posterior)
    assert found == {"active_dimensions": 0}
    assert tested.collapse_warning(found).startswith("collapse of the continuous tokens: 0 of 16 dimensions vary")


def test_the_deterministic_channel_is_refused_with_a_remedy():
    with pytest.raises(InfotokError, match=r"tokenizer\.channel: 'deterministic' does not suit .*; use sampled"):
        continuous(channel="deterministic")


def test_gradients_reach_mean_and_noise_through_a_sample():
    tested = continuous()
    tested.sample(tested.encode(images()), seeded()).vectors.square().sum().backward()
    gradient = tested.encoder.head[1].weight.grad
    assert isinstance(tested, ContinuousTokenizer)
    assert gradient.shape == (8, 16)
    assert (gradient.abs().sum(1) > 0).all()


def test_training_keeps_prefixes_of_every_length_alike_in_the_share_of_images_that_is_asked():
    share, count = 0.6, 20000
    tested = tokenizer(tokens=4, nested_dropout=share)
    vectors = 1 + torch.rand(count, 4, 4, generator=seeded()).requires_grad_()
    kept = tested.nested_dropout(vectors, seeded(1))
    here = (kept != 0).all(-1)
    assert torch.equal(here, (kept != 0).any(-1))
    lengths = here.sum(1)
    assert torch.equal(here, torch.arange(4) < lengths[:, None])  # a prefix, nothing else
    assert torch.equal(kept[here], vectors[here])
    expected = np.array([0, share / 4, share / 4, share / 4, 1 - share + share / 4]) * count
    counts = np.bincount(lengths.numpy(), minlength=5)
    assert counts[0] == 0
    assert chisquare(counts[1:], expected[1:]).pvalue > 1e-3
    repeated = tested.nested_dropout(vectors, seeded(1))
    assert torch.equal(repeated, kept)


def test_without_nested_dropout_tokens_pass_and_no_random_number_is_drawn():
    vectors, generator = torch.randn(3, 4, 4), seeded(5)
    before = generator.get_state()
    assert tokenizer().nested_dropout(vectors, generator) is vectors
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("budget", [1, 3, 4])
def test_a_budget_keeps_the_first_tokens(budget):
    vectors = torch.randn(3, 4, 4, generator=seeded())
    kept = tokenizer().keep(vectors, budget)
    assert torch.equal(kept[:, :budget], vectors[:, :budget])
    assert (kept[:, budget:] == 0).all()


def test_smaller_budgets_are_powers_of_two():
    assert smaller_budgets(16) == [1, 2, 4, 8]
    assert smaller_budgets(6) == [1, 2, 4]
    assert smaller_budgets(1) == []


@torch.no_grad()
@pytest.mark.parametrize("family", ["ar", "flow"])
def test_no_token_is_the_zero_that_stands_for_a_dropped_one(family):
    tested = tokenizer(family=family)
    vectors = tested.sample(tested.encode(images(50)), seeded()).vectors
    assert vectors.norm(dim=-1).min() > 0.1
