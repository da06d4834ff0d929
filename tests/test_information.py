"""Rates and bounds against closed forms, enumeration and torch.distributions."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import distributions

import infotok.information as information
from infotok.information import (
    categorical_code_length,
    categorical_entropy,
    categorical_rate,
    code_statistics,
    gaussian_rate,
    information_bounds,
)
from tiny import normal, seeded


def discrete_channel(inputs: int, outputs: int, seed: int) -> tuple[np.ndarray, float]:
    """log q(z|x), (inputs, outputs), and the exact I(X; Z) in nats under uniform x."""
    channel = np.random.default_rng(seed).dirichlet(np.full(outputs, 0.4), size=inputs)
    return np.log(channel), float(entropy(channel.mean(0)) - entropy(channel, axis=1).mean())


def test_importing_the_package_loads_no_torch():
    code = "import sys, infotok.information; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves_and_an_unknown_one_is_an_attribute_error():
    assert all(callable(getattr(information, name)) for name in information.__all__)
    assert set(information.__all__) <= set(dir(information))
    with pytest.raises(AttributeError, match="no_such_name"):
        information.no_such_name  # noqa: B018


@pytest.mark.parametrize("prior_shape", [(3, 7), (5, 3, 7)])
def test_categorical_rate_is_the_kl_of_torch_distributions(prior_shape):
    logits, prior = 4 * normal(5, 3, 7, seed=0), normal(*prior_shape, seed=1)
    expected = distributions.kl_divergence(
        distributions.Categorical(logits=logits), distributions.Categorical(logits=prior.expand(5, 3, 7))
    )
    torch.testing.assert_close(categorical_rate(logits, prior), expected)


def test_code_length_is_the_rate_plus_the_entropy():
    logits, prior = 4 * normal(5, 3, 7, seed=0), normal(3, 7, seed=1)
    uncertainty = distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(categorical_entropy(logits), uncertainty)
    expected = torch.nn.functional.cross_entropy(
        prior.expand(5, 3, 7).flatten(0, 1), logits.softmax(-1).flatten(0, 1), reduction="none"
    ).view(5, 3)
    torch.testing.assert_close(categorical_code_length(logits, prior), expected)
    torch.testing.assert_close(categorical_rate(logits, prior) + uncertainty, expected)


def test_rate_under_the_aggregate_posterior_is_the_sum_of_mutual_informations():
    channels = [discrete_channel(inputs=6, outputs=5, seed=seed) for seed in range(4)]
    logits = torch.stack([torch.from_numpy(log_q) for log_q, _ in channels], dim=1)
    aggregate = logits.exp().mean(dim=0).log()
    exact = sum(mutual for _, mutual in channels)
    assert categorical_rate(logits, aggregate).sum(1).mean().item() == pytest.approx(exact, abs=1e-10)
    worse = aggregate + 0.5 * normal(4, 5, seed=3)
    assert categorical_rate(logits, worse).sum(1).mean().item() > exact + 1e-3


def test_gaussian_rate_is_the_kl_of_torch_distributions():
    mean, log_variance, prior_mean, prior_log_variance = (normal(5, 3, 4, seed=seed) for seed in range(4))
    posterior = distributions.Normal(mean, (0.5 * log_variance).exp())

    def expected(centre, log_spread):
        prior = distributions.Normal(torch.as_tensor(centre), torch.exp(0.5 * torch.as_tensor(log_spread)))
        return distributions.kl_divergence(posterior, prior).sum(-1)

    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(gaussian_rate(mean, log_variance), expected(zero, zero))
    torch.testing.assert_close(
        gaussian_rate(mean, log_variance, prior_mean, prior_log_variance),
        expected(prior_mean, prior_log_variance),
    )
    torch.testing.assert_close(
        gaussian_rate(mean, log_variance, prior_log_variance=prior_log_variance[0]),
        expected(zero, prior_log_variance[0]),
    )


def test_rates_keep_float32_under_autocast_and_for_half_precision_inputs():
    logits, prior = (
        6 * normal(4, 2, 9, seed=0, dtype=torch.float32),
        normal(2, 9, seed=1, dtype=torch.float32),
    )
    calm = categorical_rate(logits, prior), gaussian_rate(logits, 0.1 * logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = categorical_rate(logits, prior), gaussian_rate(logits, 0.1 * logits)
        half = categorical_rate(logits.bfloat16(), prior.bfloat16())
    torch.testing.assert_close(cast, calm, rtol=0, atol=0)
    assert half.dtype == torch.float32


def test_rates_and_gradients_stay_finite_for_extreme_posteriors():
    logits = torch.tensor([[[1e4, 0.0, -1e4], [0.0, -math.inf, 2.0]]], requires_grad=True)
    prior = torch.zeros(2, 3, requires_grad=True)
    masked = torch.tensor([[0.0, 0.0, 0.0], [0.0, -math.inf, 0.0]])
    value = categorical_rate(logits, prior + masked) + categorical_entropy(logits)
    assert value[0, 0].item() == pytest.approx(math.log(3), abs=1e-6)
    assert value[0, 1].item() == pytest.approx(math.log(2), abs=1e-6)
    value.sum().backward()
    assert logits.grad.isfinite().all()
    assert prior.grad.isfinite().all()
    excluded = categorical_rate(torch.zeros(1, 1, 2), torch.tensor([[0.0, -math.inf]]))
    assert excluded.item() == math.inf


def test_gaussian_rate_keeps_its_digits_next_to_the_prior():
    # KL(N(0, e^a) ‖ N(0, 1)) = a²/4 + O(a³), which exp(a) − 1 − a in float32 would round to 0 or to noise.
    rate = gaussian_rate(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 1e-3))
    assert rate.item() == pytest.approx(2.5e-7, rel=1e-2)


def test_rate_refuses_a_prior_over_another_codebook():
    with pytest.raises(ValueError, match="7 codes but prior_logits have 1"):
        categorical_rate(torch.zeros(2, 3, 7), torch.zeros(3, 1))


def test_code_statistics_of_a_hand_worked_case():
    # Position 0 is uniform over two codes (1 bit), position 1 constant (0 bits); pooled: 1/4, 1/4, 1/2.
    found = code_statistics(torch.tensor([[0, 2], [1, 2], [0, 2], [1, 2]]), codebook_size=8)
    assert found == pytest.approx({"code_entropy_bits": 1.0, "perplexity": 2**1.5, "dead_codes": 5.0, "usage": 0.375})


def test_code_statistics_match_scipys_entropy():
    codes = torch.randint(0, 11, (300, 3), generator=seeded(0)) // torch.tensor([1, 2, 3])
    counts = [np.bincount(column, minlength=16) for column in codes.numpy().T]
    found = code_statistics(codes, codebook_size=16)
    assert found["code_entropy_bits"] == pytest.approx(sum(entropy(count, base=2) for count in counts))
    assert found["perplexity"] == pytest.approx(2 ** entropy(sum(counts), base=2))
    assert found["dead_codes"] == np.sum(sum(counts) == 0)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.long), "not empty"),
        (torch.zeros(3, dtype=torch.long), "images, tokens"),
        (torch.zeros(2, 2), "integers"),
        (torch.full((2, 2), 4), "from 4 to 4"),
    ],
)
def test_code_statistics_refuse_what_are_no_codes(codes, message):
    with pytest.raises(ValueError, match=message):
        code_statistics(codes, codebook_size=4)


def expected_bounds(log_q: np.ndarray, batch: int) -> tuple[float, float]:
    """Exact expectation of both bounds over every batch of uniform x and every z, by enumeration."""
    inputs, outputs = log_q.shape
    totals = np.zeros(2)
    for xs in itertools.product(range(inputs), repeat=batch):
        for zs in itertools.product(range(outputs), repeat=batch):
            table = log_q[list(xs)][:, list(zs)].T
            weight = math.exp(table.trace()) / inputs**batch
            totals += weight * np.array([float(bound) for bound in information_bounds(torch.from_numpy(table))])
    return totals[0], totals[1]


def test_bounds_sandwich_the_exact_information_of_a_discrete_channel():
    log_q, exact = discrete_channel(inputs=3, outputs=3, seed=5)
    pair, triple = expected_bounds(log_q, batch=2), expected_bounds(log_q, batch=3)
    assert pair[0] < triple[0] < exact < triple[1] < pair[1]


def test_bounds_close_in_on_the_capacity_of_a_gaussian_channel():
    size = 1500
    x = 2 * normal(size, 1, seed=0)
    z = x + normal(size, 1, seed=1)
    lower, upper = information_bounds(distributions.Normal(x.T, 1.0).log_prob(z))
    exact = 0.5 * math.log(1 + 4)
    # One sample of log q(z|x)/q(z) has standard deviation √(I's dispersion) = √(4/5) nats here.
    error = math.sqrt(0.8 / size)
    assert lower < upper
    assert abs(lower.item() - exact) < 3.5 * error
    assert abs(upper.item() - exact) < 3.5 * error


def test_lower_bound_saturates_at_log_n_where_the_upper_bound_is_infinite():
    identity = torch.full((8, 8), -math.inf).fill_diagonal_(0.0)
    lower, upper = information_bounds(identity)
    assert lower.item() == pytest.approx(math.log(8), abs=1e-6)
    assert upper.item() == math.inf


def test_bounds_of_a_deterministic_channel_with_collisions_are_finite_and_zero_when_all_collide():
    halves = torch.full((4, 4), -math.inf)
    halves[:2, :2] = halves[2:, 2:] = 0.0
    lower, upper = information_bounds(halves)
    assert lower.item() == pytest.approx(math.log(2), abs=1e-6)
    assert upper.item() == pytest.approx(math.log(3), abs=1e-6)
    assert [bound.item() for bound in information_bounds(torch.full((4, 4), -900.0))] == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize(
    ("log_q", "message"),
    [
        (torch.zeros(3, 4), "square"),
        (torch.zeros(1, 1), "at least 2"),
        (torch.full((3, 3), -math.inf), "drawn"),
        (torch.tensor([[0.0, math.nan], [0.0, 0.0]]), "finite or -inf"),
    ],
)
def test_bounds_refuse_what_is_no_table_of_log_densities(log_q, message):
    with pytest.raises(ValueError, match=message):
        information_bounds(log_q)
