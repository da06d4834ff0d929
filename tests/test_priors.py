"""Learned priors: what the autoregressive one may see, where it starts, and how much it saves on tokens that are known
to depend on each other."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from infotok.information.channel import Categorical, Gaussian
from infotok.information.priors import CategoricalPrior, GaussianPrior, Priors
from tiny import seeded

KINDS = {"categorical": CategoricalPrior, "gaussian": GaussianPrior}


def priors(kind, tokens, size, dimension):
    torch.manual_seed(0)
    return Priors(KINDS[kind](tokens, size), tokens, dimension)


def roused(kind):
    """Priors of four tokens with random weights everywhere."""
    made = priors(kind, 4, 3, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5, generator=seeded(1))
    return made


def values(distribution):
    if isinstance(distribution, Categorical):
        return distribution.logits
    return torch.cat([distribution.mean, distribution.log_variance], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_autoregressive_prior_of_a_token_sees_all_earlier_tokens_and_no_other(kind):
    made, vectors = roused(kind), torch.randn(5, 4, 3, generator=seeded(2))
    with torch.no_grad():
        before = values(made(vectors)["autoregressive"])
        assert before.shape[:2] == (5, 4)
        for place in range(4):
            for dimension in range(3):
                changed = vectors.clone()
                changed[:, place, dimension] += 1
                moved = (values(made(changed)["autoregressive"]) - before).abs().amax((0, 2))
                assert (moved > 1e-5).tolist() == [other > place for other in range(4)]
                assert (moved[: place + 1] == 0).all()
            assert torch.equal(values(made(changed)["marginal"]), values(made(vectors)["marginal"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_autoregressive_prior_begins_as_the_marginal_and_gives_no_gradient_to_the_tokens(kind):
    torch.manual_seed(0)
    marginal = KINDS[kind](4, 3)
    with torch.no_grad():
        for parameter in marginal.parameters():
            nn.init.normal_(parameter, generator=seeded(3))
    made = Priors(marginal, 4, 3)
    vectors = torch.randn(5, 4, 3, generator=seeded(4), requires_grad=True)
    found = made(vectors)
    start = values(found["marginal"])
    torch.testing.assert_close(values(found["autoregressive"]), start.expand(5, *start.shape))
    values(roused(kind)(vectors)["autoregressive"]).square().sum().backward()
    assert vectors.grad is None


def fit(made, posterior, vectors, steps=300, rate=0.05):
    optimizer = torch.optim.Adam(made.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(posterior.code_length(prior).sum(-1).mean() for prior in made(vectors).values()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        entropies = posterior.entropy().sum(-1).mean()
        return {
            kind: (posterior.code_length(prior).sum(-1).mean() - entropies).item()
            for kind, prior in made(vectors).items()
        }


def test_the_autoregressive_rate_of_a_noisy_copy_is_lower_by_the_information_between_the_tokens():
    counts = np.full((4, 4), 2) + np.diag([20, 12, 6, 2])  # joint frequencies of code 1 and its copy, code 2
    rows, columns = np.indices((4, 4))
    codes = torch.from_numpy(np.stack([np.repeat(part.ravel(), counts.ravel()) for part in (rows, columns)], -1))
    joint = counts / counts.sum()
    apart = entropy(joint.sum(0)) + entropy(joint.sum(1))
    embedding = torch.randn(4, 3, generator=seeded(5))
    posterior = Categorical(nn.functional.one_hot(codes, 4).float().clamp_min(1e-12).log())
    rates = fit(priors("categorical", 2, 4, 3), posterior, embedding[codes])
    assert rates["marginal"] == pytest.approx(apart, abs=0.005)
    assert rates["autoregressive"] == pytest.approx(entropy(joint.flatten()), abs=0.005)
    assert apart - entropy(joint.flatten()) > 0.2


def test_the_autoregressive_rate_of_correlated_gaussian_tokens_is_lower_by_their_information():
    """Token 2 follows token 1 with correlation rho in each of two dimensions; both get a little channel noise."""
    rho, noise, count = torch.tensor([0.9, 0.6]), 0.1, 9000
    first, fresh, *channel = torch.randn(4, count, 2, generator=seeded(6))
    second = rho * first + (1 - rho.square()).sqrt() * fresh
    mean = torch.stack([first, second], 1)
    mean = (mean - mean.mean(0)) / mean.std(0)
    posterior = Gaussian(mean, torch.full_like(mean, 2 * math.log(noise)))
    vectors = mean + noise * torch.stack(channel, 1)
    made = priors("gaussian", 2, 2, 2)
    fit(made, posterior[:6000], vectors[:6000], steps=200)
    held = posterior[6000:]
    with torch.no_grad():
        found = made(vectors[6000:])
        rates = {
            kind: (held.code_length(prior) - held.entropy()).sum(-1).mean().item() for kind, prior in found.items()
        }
    # Of z_1 and z_2, both with channel noise: the correlation shrinks by 1 + noise^2.
    correlation = rho / (1 + noise**2)
    saved = -0.5 * (1 - correlation.square()).log().sum().item()
    apart = 4 * 0.5 * math.log(1 + noise**-2)
    assert rates["marginal"] == pytest.approx(apart, rel=0.01)
    assert rates["marginal"] - rates["autoregressive"] == pytest.approx(saved, rel=0.05)


def test_a_gaussian_prior_keeps_its_variance_above_the_floor():
    made = priors("gaussian", 2, 2, 2)
    with torch.no_grad():
        for prior in (made.marginal, made.autoregressive.marginal):
            prior.log_variance.fill_(-50.0)
    for prior in made(torch.zeros(3, 2, 2)).values():
        assert (prior.log_variance == -8.0).all()
