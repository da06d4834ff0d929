"""Codes that are bits: sums over bits are sums over all 2 ** D codes."""

import math
import re

import pytest
import torch
from vector_quantize_pytorch import LFQ

from infotok.information.bits import BitPrior, Bits, lookup_free
from infotok.information.bottleneck import InformationBottleneck
from infotok.information.channel import Categorical
from infotok.information.nearest import NearestCodes, nearest_codes
from infotok.information.objective import code_cost
from tiny import normal, seeded

B, K, D = 3, 4, 5


def all_codes(bits):
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * bits)


CODES = all_codes(D)


def listed(prior, codes=CODES):
    """log r of every code, from the bits', as logits of `Categorical`."""
    on = torch.nn.functional.logsigmoid(prior.logits)[..., None, :]
    off = torch.nn.functional.logsigmoid(-prior.logits)[..., None, :]
    return Categorical(torch.where(codes > 0, on, off).sum(-1))


@pytest.mark.parametrize("rows", [1, K])
@pytest.mark.parametrize("relaxation", [1.0, 3.0])
def test_cost_and_gradients_are_those_of_the_listed_codes(rows, relaxation):
    features = normal(B, K, D, seed=1).requires_grad_()
    prior = Bits(normal(rows, D, seed=2).requires_grad_())
    for weight in (0.0, 1.0):
        q = lookup_free(features, 0.6, scale=0.5, relaxation=relaxation)
        plain = NearestCodes(features, 0.5 * CODES, 0.6, relaxation).dense()
        cost, wanted = code_cost(q, prior, weight), code_cost(plain, listed(prior), weight)
        torch.testing.assert_close(cost, wanted, rtol=0, atol=1e-12)
        tensors = [features, prior.logits]
        for one, other in zip(torch.autograd.grad(cost, tensors), torch.autograd.grad(wanted, tensors), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_codes_are_the_nearest_ones_in_the_order_of_the_list():
    features = normal(B, K, D, seed=1)
    assert torch.equal(lookup_free(features, 1.0).codes(), nearest_codes(features, CODES))


def test_the_entropy_is_lfq_s():
    """`vector-quantize-pytorch`: its inverse temperature is 1 / (2 variance). It clamps logarithms at log 1e-5, below
    which no code of so few is."""
    features = torch.randn(1, 6, 4, generator=seeded(3))
    lfq = LFQ(codebook_size=2**4, dim=4, entropy_loss_weight=1.0, diversity_gamma=0.0)
    lfq.train()
    _, breakdown = lfq(features, inv_temperature=1 / (2 * 1.6), return_loss_breakdown=True)
    own = lookup_free(features, 1.6).entropy().mean()
    torch.testing.assert_close(own, breakdown.per_sample_entropy, rtol=1e-5, atol=1e-5)


def test_two_to_the_thirteen_codes():
    """Listed all the same, by the chunked form."""
    features = normal(2, 3, 13, seed=4)
    codes = all_codes(13)
    q, plain = lookup_free(features, 0.8), NearestCodes(features, codes, 0.8)
    torch.testing.assert_close(q.entropy(), plain.entropy(), rtol=0, atol=1e-10)
    assert torch.equal(q.codes(), nearest_codes(features, codes))


def test_codes_that_no_memory_could_list():
    """2 ** 48 of them. Under a uniform prior a code is 48 bits long; a feature of 0 is any code."""
    features = torch.zeros(2, 3, 48, dtype=torch.float64).requires_grad_()
    q, prior = lookup_free(features, 0.8), BitPrior(48)()
    bits = torch.full((2, 3), 48 * math.log(2), dtype=torch.float64)
    torch.testing.assert_close(q.code_length(prior), bits, rtol=1e-7, atol=0)
    torch.testing.assert_close(q.entropy(), bits)
    code_cost(q, prior, 1.0).backward()
    assert features.grad.shape == features.shape


def test_sharp_bits_have_finite_gradients():
    features = torch.tensor([[[1e4, -1e4]]]).requires_grad_()
    prior = BitPrior(2, tokens=1)
    code_cost(lookup_free(features, 1e-3), prior(), 1.0).backward()
    assert features.grad.isfinite().all()
    assert prior.logits.grad.tolist() == [[-0.5, 0.5]]


def test_neither_variance_nor_scale_is_zero():
    with pytest.raises(ValueError, match="above 0"):
        lookup_free(torch.zeros(1, 1, 2), 0.0)


# In the plug-in.


@pytest.mark.parametrize("estimator", ["dib", "vib", "ceb"])
def test_the_plug_in_gives_what_it_gives_of_8192_listed_codes(estimator):
    bits, tokens, scale = 13, 3, 13**-0.5
    codes = all_codes(bits)
    features = normal(4, tokens, bits, seed=5).mul(scale).requires_grad_()
    prior = Bits(normal(4, tokens, bits, seed=6))
    settings = {"beta": 0.3, "tokens": tokens, "prior": "given", "rates": True}
    found = []
    for ib, q, r in (
        (InformationBottleneck(estimator, bits=bits, **settings), lookup_free(features, 0.1, scale, 2.0), prior),
        (
            InformationBottleneck(estimator, codebook=2**bits, **settings),
            NearestCodes(features, scale * codes, 0.1, 2.0),
            listed(prior, codes),
        ),
    ):
        term = ib(
            q, r, prior=r, weight=torch.rand(4, tokens, generator=seeded(7)).double() if estimator == "ceb" else None
        )
        (gradient,) = torch.autograd.grad(term.loss, features)
        found.append((term, gradient))
    (one, own), (other, wanted) = found
    assert one.parts.keys() == other.parts.keys()
    for name in one.parts:
        torch.testing.assert_close(one.parts[name], other.parts[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-9)
    assert own.abs().sum() > 0


@pytest.mark.parametrize("kind", ["marginal", "shared"])
def test_the_prior_learns_how_often_bits_are_set(kind):
    """Of sharp bits the rate is then the sum of their binary entropies."""
    counts = torch.tensor([[10, 50, 90], [30, 30, 75]])  # of 100 images
    signs = 2.0 * (torch.arange(100)[:, None, None] < counts).float() - 1
    q, share = lookup_free(signs, 0.05), counts / 100
    ib = InformationBottleneck("none", beta=0.0, tokens=2, bits=3, prior=kind)
    optimizer = torch.optim.Adam(ib.parameters(), lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        term = ib(q)
        term.loss.backward()
        optimizer.step()
    told = share if kind == "marginal" else share.mean(0, keepdim=True).expand(2, 3)
    wanted = -(share * told.log2() + (1 - share) * (1 - told).log2()).sum()
    assert term.parts["rate_bits"].item() == pytest.approx(wanted.item(), abs=1e-3)


def test_images_of_fewer_tokens_and_what_does_not_belong():
    ib = InformationBottleneck("dib", beta=0.1, tokens=4, bits=5)
    features = torch.randn(3, 2, 5, generator=seeded(1))
    assert ib(lookup_free(features, 1.0)).parts["code_length_bits"].item() == pytest.approx(2 * 5)  # a uniform prior's
    assert ib(features).loss.isfinite()  # log odds
    refused = [
        (lambda: ib(torch.zeros(3, 5, 5)), "of (B, 4, 5) bits, got (3, 5, 5)"),
        (lambda: ib(Categorical(torch.zeros(3, 4, 32))), "must be Bits or their log odds (B, 4, 5), got Categorical"),
        (lambda: InformationBottleneck("dib", beta=0.1, tokens=4, bits=5, codebook=32), "bits stand in the place of"),
        (
            lambda: InformationBottleneck("dib", beta=0.1, tokens=4, bits=5, prior="low_rank"),
            "low_rank prior is not of",
        ),
        (lambda: InformationBottleneck("dib", beta=0.1, bits=5), "give `tokens`"),
    ]
    for action, says in refused:
        with pytest.raises(ValueError, match=re.escape(says)):
            action()
