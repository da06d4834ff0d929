"""What the regularizer learns and moves over training steps: priors, beta and its target."""

import math

import pytest
import torch
from scipy.optimize import brentq

from infotok import Gaussian, InformationBottleneck
from infotok.information.priors import CategoricalPrior, Priors


def test_the_prior_learns_the_codes_frequencies_whatever_beta_is():
    frequencies = torch.tensor([[0.7, 0.2, 0.1]])
    ib = InformationBottleneck("dib", beta=0.0, tokens=1, codebook=3)
    optimizer = torch.optim.Adam(ib.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        ib(frequencies.log().expand(4, 1, 3)).loss.backward()
        optimizer.step()
    assert torch.allclose(ib.prior.logits.softmax(-1), frequencies, atol=0.01)


def test_the_prior_of_gaussian_tokens_learns_their_mean_and_variance():
    q = Gaussian(torch.tensor([[[1.0, -2.0]], [[3.0, -2.0]]]), torch.tensor([0.25, 0.5]).log().expand(2, 1, 2))
    ib = InformationBottleneck("vib", beta=0.0, tokens=1, dimension=2)
    optimizer = torch.optim.Adam(ib.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        term = ib(q)
        term.loss.backward()
        optimizer.step()
    # By the law of total variance: within 0.25 and 0.5, between 1 and 0.
    torch.testing.assert_close(ib.prior.mean, torch.tensor([[2.0, -2.0]]), atol=0.01, rtol=0)
    torch.testing.assert_close(ib.prior.log_variance.exp(), torch.tensor([[1.25, 0.5]]), atol=0.02, rtol=0)
    assert term.parts["rate_bits"].item() == pytest.approx(0.5 * math.log2(1.25 / 0.25), abs=0.01)


def test_an_autoregressive_prior_pays_once_for_what_two_tokens_share():
    codes = torch.arange(4).repeat(4)[:, None].expand(-1, 2)  # token 2 repeats token 1
    logits, vectors = 50 * torch.nn.functional.one_hot(codes, 4).float(), torch.eye(4)[codes]
    bits = {}
    for prior in ("marginal", "autoregressive"):
        torch.manual_seed(0)
        ib = InformationBottleneck("vib", beta=0.0, tokens=2, codebook=4, dimension=4, prior=prior)
        optimizer = torch.optim.Adam(ib.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            term = ib(logits, vectors=vectors)
            term.loss.backward()
            optimizer.step()
        bits[prior] = term.parts["rate_bits"].item()
    assert bits["marginal"] == pytest.approx(4.0, abs=0.02)
    assert bits["autoregressive"] == pytest.approx(2.0, abs=0.05)


def test_ready_priors_all_learn_and_the_named_one_is_penalized():
    torch.manual_seed(0)
    logits, vectors = 3 * torch.randn(8, 2, 5), torch.randn(8, 2, 4)
    made = {}
    for kind in ("marginal", "autoregressive"):
        priors = Priors(CategoricalPrior(2, 5), 2, 4)
        for parameter in priors.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        term = InformationBottleneck("vib", beta=1.0, prior=kind, priors=priors)(logits, vectors=vectors)
        term.loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in priors.parameters())
        made[kind] = term.parts
    for name in ("rate_bits", "autoregressive_rate_bits"):
        assert made["marginal"][name] == made["autoregressive"][name]
    for kind, name in (("marginal", "rate_bits"), ("autoregressive", "autoregressive_rate_bits")):
        assert made[kind]["penalty"].item() / math.log(2) == pytest.approx(made[kind][name].item(), rel=1e-5)


def test_beta_warms_up_over_training_steps_alone_and_is_kept_in_the_state():
    ib = InformationBottleneck("vib", beta=0.4, tokens=1, codebook=3, warmup=4)
    logits = torch.zeros(2, 1, 3)
    assert [round(ib(logits).parts["beta"].item(), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert ib.eval()(logits).parts["beta"].item() == pytest.approx(0.3)
    again = InformationBottleneck("vib", beta=0.4, tokens=1, codebook=3, warmup=4)
    again.load_state_dict(ib.state_dict())
    assert [round(again(logits).parts["beta"].item(), 3) for _ in range(3)] == [0.4, 0.4, 0.4]


def test_the_average_drives_the_multiplier():
    settings = {"beta": 0.1, "tokens": 1, "codebook": 4, "target_bits": 1.0}
    ib = InformationBottleneck("vib", average=lambda value: 0 * value + 1, **settings)
    assert ib(20 * torch.eye(4)[:, None]).parts["beta"].item() == pytest.approx(0.1 * math.exp(-0.05), rel=1e-5)


def test_a_targets_multiplier_moves_in_training_alone_and_is_kept_in_the_state():
    settings = {"beta": 0.1, "tokens": 1, "codebook": 4, "target_bits": 1.0}
    sharp = 20 * torch.eye(4)[:, None]  # 2 bits: twice the target
    ib, again = (InformationBottleneck("dib", **settings) for _ in range(2))
    moved = [ib(sharp).parts["beta"].item() for _ in range(3)]
    assert moved == pytest.approx([0.1 * math.exp(0.05 * k) for k in (1, 2, 3)], rel=1e-4)
    again.load_state_dict(ib.state_dict())
    assert again.eval()(sharp).parts["beta"].item() == pytest.approx(moved[-1])
    assert again.train()(sharp).parts["beta"].item() == ib(sharp).parts["beta"].item()


def test_a_target_lands_on_the_rate_distortion_curve():
    """Eight equally likely symbols sent as one of eight codes: by Shannon, the share of errors e at a rate R solves
    R = 3 - h(e) - e log2 7."""
    target = 1.5

    def rate(error):
        return 3 + error * math.log2(error) + (1 - error) * math.log2(1 - error) - error * math.log2(7)

    wanted = brentq(lambda error: rate(error) - target, 1e-6, 0.8)
    torch.manual_seed(0)
    logits = torch.nn.Parameter(3 * torch.eye(8)[:, None] + 0.1 * torch.randn(8, 1, 8))
    ib = InformationBottleneck("vib", beta=0.1, tokens=1, codebook=8, target_bits=target)
    optimizer = torch.optim.Adam([logits, *ib.parameters()], lr=0.2)
    for _ in range(600):
        error = 1 - logits[:, 0].softmax(-1).diagonal().mean()
        term = ib(logits)
        optimizer.zero_grad()
        (error + term.loss).backward()
        optimizer.step()
    assert term.parts["rate_bits"].item() == pytest.approx(target, rel=0.01)
    assert error.item() == pytest.approx(wanted, rel=0.01)
    # beta is minus the slope of the curve, error per nat: dR/de = log((1 - e) / 7 e), in nats with its sign turned.
    assert term.parts["beta"].item() == pytest.approx(1 / math.log(7 * (1 - wanted) / wanted), rel=0.02)
