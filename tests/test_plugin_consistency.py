"""Consistency of tokens with texts, as a plug-in."""

import math

import pytest
import torch
from torch.nn import functional as F

from infotok import InformationBottleneck


def test_consistency_is_the_log_of_the_batch_less_the_cross_entropy_of_finding_the_text():
    torch.manual_seed(0)
    ib = InformationBottleneck("dib", beta=0.5, tokens=2, codebook=3, dimension=4, gamma=0.7, text_width=5)
    plain = InformationBottleneck("dib", beta=0.5, tokens=2, codebook=3)
    logits = torch.randn(6, 2, 3)
    vectors, text = torch.randn(6, 2, 4, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    term = ib(logits, vectors=vectors, text=text)
    a, b = (F.normalize(x, dim=1) for x in (ib.critic.of_tokens(vectors.flatten(1)), ib.critic.of_text(text)))
    right = (ib.critic.log_scale.exp() * a @ b.T).softmax(1).diagonal()
    wanted = math.log(6) + right.log().mean().item()
    assert term.parts["consistency"].item() == pytest.approx(wanted, rel=1e-5)
    assert term.loss.item() == pytest.approx(plain(logits).loss.item() - 0.7 * wanted, rel=1e-5)
    term.loss.backward()
    assert text.grad is None
    assert vectors.grad.abs().sum() > 0
    assert ib.critic.of_text.weight.grad.abs().sum() > 0


def consistent():
    torch.manual_seed(0)
    return InformationBottleneck("none", beta=0.0, gamma=1.0, tokens=2, codebook=3, dimension=4, text_width=5)


def test_texts_that_were_dropped_do_not_count_for_consistency():
    ib, generator = consistent(), torch.Generator().manual_seed(1)
    logits, vectors = torch.zeros(12, 2, 3), torch.randn(12, 2, 4, generator=generator, requires_grad=True)
    text, has_text = torch.randn(12, 5, generator=generator), torch.arange(12) % 3 > 0
    wanted = ib(logits[has_text], vectors=vectors[has_text], text=text[has_text]).parts["consistency"]
    spoiled = text.where(has_text[:, None], 1e3)
    term = ib(logits, vectors=vectors, text=spoiled, has_text=has_text)
    torch.testing.assert_close(term.parts["consistency"], wanted)
    term.loss.backward()
    assert (vectors.grad.abs().sum((1, 2)) > 0).tolist() == has_text.tolist()


@pytest.mark.parametrize(("texts", "some"), [(3, False), (4, True)])
def test_consistency_needs_four_texts(texts, some):
    generator = torch.Generator().manual_seed(1)
    vectors, text = torch.randn(8, 2, 4, generator=generator), torch.randn(8, 5, generator=generator)
    term = consistent()(torch.zeros(8, 2, 3), vectors=vectors, text=text, has_text=torch.arange(8) < texts)
    assert (term.parts["consistency"] != 0) == some
    assert term.loss.isfinite()


def test_gamma_rises_with_beta():
    torch.manual_seed(0)
    settings = {"tokens": 2, "codebook": 3, "dimension": 4, "text_width": 5}
    ib = InformationBottleneck("dib", beta=0.5, gamma=0.8, warmup=2.5, **settings)
    generator = torch.Generator().manual_seed(1)
    shown = {"vectors": torch.randn(8, 2, 4, generator=generator), "text": torch.randn(8, 5, generator=generator)}
    for rise in (0.4, 0.8, 1.0, 1.0):
        term = ib(torch.zeros(8, 2, 3), **shown)
        wanted = rise * (0.5 * term.parts["penalty"] - 0.8 * term.parts["consistency"])
        assert term.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_by_likelihood_consistency_is_what_the_model_says_of_the_texts():
    """The model's own bound, -log p(t|z), has its gradients, needs no critic, and rises with gamma's warm-up."""
    ib = InformationBottleneck("dib", beta=0.5, gamma=0.7, consistency="likelihood", tokens=2, codebook=3, warmup=2)
    plain = InformationBottleneck("dib", beta=0.5, tokens=2, codebook=3, warmup=2)
    assert ib.critic is None
    logits, nats = torch.randn(6, 2, 3), torch.rand(6, requires_grad=True)
    term = ib(logits, text_nats=nats)
    assert term.parts["consistency"].item() == pytest.approx(-nats.mean().item())
    assert term.loss.item() == pytest.approx(plain(logits).loss.item() + 0.35 * nats.mean().item(), rel=1e-5)
    term.loss.backward()
    torch.testing.assert_close(nats.grad, torch.full((6,), 0.35 / 6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"consistency needs `text_nats` \(what your model needs for the images' texts, given their tokens\)"),
        ({"text_nats": torch.tensor(1.0)}, r"`text_nats` must be \(B,\), one number an image, got \(\)"),
    ],
)
def test_likelihood_says_what_it_needs(given, message):
    ib = InformationBottleneck("none", beta=0.0, gamma=1.0, consistency="likelihood", tokens=2, codebook=3)
    with pytest.raises(ValueError, match=message):
        ib(torch.zeros(6, 2, 3), **given)


def test_an_unknown_consistency_is_refused():
    with pytest.raises(ValueError, match="unknown consistency 'captions': choose one of contrast, likelihood"):
        InformationBottleneck("none", beta=0.0, gamma=1.0, consistency="captions", tokens=2, codebook=3)
