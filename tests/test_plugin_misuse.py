"""What diverges is never called good, and wrong use is named."""

import math

import pytest
import torch

from infotok import Gaussian, InformationBottleneck, Kernels
from infotok.information.dependence import BANDWIDTHS
from infotok.information.priors import CategoricalPrior, Priors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("where", ["inputs", "vectors", "text"])
@pytest.mark.parametrize("bandwidth", [*BANDWIDTHS, 2.0])
def test_vectors_that_diverge_never_look_independent(bad, where, bandwidth):
    """As NaN, which stops a training; not as 0."""
    torch.manual_seed(0)
    kernels = Kernels(bandwidth=bandwidth, consistency="kernels")
    ib = InformationBottleneck("hsic", beta=1.0, gamma=1.0, kernels=kernels)
    shown = {"inputs": torch.randn(8, 3), "vectors": torch.randn(8, 2, 4), "text": torch.randn(8, 5)}
    shown[where].view(-1)[7] = bad
    term = ib(**shown)
    assert term.loss.isnan()
    touched = {"inputs": ["penalty"], "vectors": ["penalty", "consistency"], "text": ["consistency"]}[where]
    assert [name for name in ("penalty", "consistency") if term.parts[name].isnan()] == touched


@pytest.mark.parametrize("estimator", ["vib", "dib", "ceb"])
def test_a_posterior_that_diverges_has_no_finite_penalty(estimator):
    for bad in (math.nan, math.inf):
        logits = torch.zeros(4, 2, 3)
        logits[1, 0, 1] = bad
        term = InformationBottleneck(estimator, beta=1.0, tokens=2, codebook=3)(logits, torch.zeros(4, 2, 3))
        assert term.loss.isnan()
        assert term.parts["rate_bits"].isnan()


def bottleneck(estimator="vib", beta=1.0, **settings):
    return InformationBottleneck(estimator, beta=beta, **settings)


DISCRETE, CONTINUOUS = {"tokens": 1, "codebook": 2}, {"tokens": 1, "dimension": 2}
LOGITS = torch.zeros(3, 1, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bottleneck("vibe", **DISCRETE), "unknown estimator 'vibe': choose one of none, ceb, dib, hsic, vib"),
        (lambda: bottleneck(beta=-1.0, **DISCRETE), "beta must be at least 0, got -1.0"),
        (lambda: bottleneck(tokens=1), "give `tokens` and, of discrete tokens, `codebook`"),
        (lambda: bottleneck(codebook=2), "give `tokens` and"),
        (lambda: bottleneck(prior="learned", **DISCRETE), "unknown prior 'learned': choose one of marginal, autoreg"),
        (lambda: bottleneck(prior="autoregressive", **DISCRETE), "prior needs `dimension`"),
        (lambda: bottleneck(target_bits=0.0, **DISCRETE), "target_bits and beta must be above 0, got 0.0 and 1.0"),
        (lambda: bottleneck(beta=0.0, target_bits=4.0, **DISCRETE), "above 0, got 4.0 and 0.0"),
        (lambda: bottleneck("hsic", target_bits=4.0), "target_bits needs a rate to press, and hsic has none"),
        (lambda: bottleneck(**DISCRETE)(torch.zeros(3, 2, 2)), r"logits \(B, 1, 2\), got \(3, 2, 2\)"),
        (lambda: bottleneck(**DISCRETE)(torch.zeros(3, 2)), r"logits \(B, 1, 2\), got \(3, 2\)"),
        (lambda: bottleneck(**DISCRETE)(), r"vib needs `posterior` \(q\(z\|x\)\)"),
        (lambda: bottleneck(**DISCRETE)(Gaussian(LOGITS, LOGITS)), r"logits \(B, 1, 2\), got Gaussian"),
        (lambda: bottleneck(**CONTINUOUS)(LOGITS), r"Gaussian\(mean, log_variance\), each \(B, 1, 2\), got Tensor"),
        (lambda: bottleneck(**CONTINUOUS)(Gaussian(LOGITS, torch.zeros(2))), r"each \(B, 1, 2\), got \(2,\)"),
        (lambda: bottleneck("ceb", **DISCRETE)(LOGITS), r"ceb needs `posterior` .* and `conditional` \(what the gen"),
        (lambda: bottleneck("ceb", **DISCRETE)(LOGITS, LOGITS[:, :, :1]), r"`conditional` must be logits"),
        (
            lambda: bottleneck(prior="autoregressive", **CONTINUOUS)(Gaussian(LOGITS, LOGITS)),
            r"the autoregressive prior needs `vectors` \(the tokens that flowed\)",
        ),
        (
            lambda: bottleneck(prior="autoregressive", **CONTINUOUS)(
                Gaussian(LOGITS, LOGITS), vectors=LOGITS[:, :, :1]
            ),
            r"`vectors` must be \(B, 1, 2\) or of fewer tokens, got \(3, 1, 1\)",
        ),
        (
            lambda: bottleneck(prior="autoregressive", tokens=2, dimension=2)(
                Gaussian(*[torch.zeros(3, 2, 2)] * 2), vectors=LOGITS
            ),
            "`vectors` are of 1 tokens, the posterior is of 2",
        ),
        (
            lambda: bottleneck("ceb", tokens=2, codebook=2)(torch.zeros(3, 2, 2), LOGITS),
            r"`conditional` must be logits \(B, 2, 2\), got \(3, 1, 2\)",
        ),
        (lambda: bottleneck("none", **DISCRETE), "'none' has no penalty for beta 1.0 to weigh: set beta to 0"),
        (lambda: bottleneck("none", beta=0.0, target_bits=3.0, **DISCRETE), "needs a rate to press, and none has none"),
        (lambda: bottleneck(warmup=-1, **DISCRETE), "warmup must be at least 0, got -1"),
        (
            lambda: bottleneck(tokens=3, priors=Priors(CategoricalPrior(2, 5), 2, 4)),
            "tokens is 3, but 2 in `priors`: leave it out",
        ),
        (lambda: bottleneck(gamma=-1.0, **DISCRETE), "gamma must be at least 0, got -1.0"),
        (lambda: bottleneck(gamma=1.0, text_width=3, **DISCRETE), "gamma needs `tokens`, `dimension` and"),
        (
            lambda: bottleneck(gamma=1.0, text_width=3, dimension=2, **DISCRETE)(LOGITS),
            r"consistency needs `vectors` \(the tokens that flowed\) and `text`",
        ),
        (lambda: bottleneck("hsic")(LOGITS), r"hsic needs `inputs` \(the images .* and `vectors`"),
        (lambda: bottleneck("hsic")(inputs=LOGITS, vectors=LOGITS), "needs at least 4 rows, got 3"),
    ],
)
def test_wrong_use_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
