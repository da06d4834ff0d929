"""Nearest-neighbour codebooks of any size as a channel, and the look-up that lets a gradient through.

Every code is a Gaussian around its vector: q(c|x) is the softmax over codes of -|z - c|^2 / (2 variance), which is
`posterior_logits` with a variance that is held. Memory grows with neither K * C nor B * C.
Shapes: B images, K tokens, C codes, D dimensions of a code, W of what is looked up. Information in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infotok.information.channel import Categorical
from infotok.information.chunked import SCORES, Totals, Wanted, cost_of, go_through
from infotok.information.factored import Factored, tensors_of, wide

LEAST_VARIANCE = 1e-8
SAMPLE = 1024  # tokens of which a wanted entropy is the mean
HALVINGS = 40  # of the interval in which its variance lies


@dataclass
class _Done:
    """What has been computed of a channel, and of its copies without gradient."""

    features: bool  # have a gradient
    codebook: bool
    totals: dict[tuple, tuple[list[Tensor], Totals]] = field(default_factory=dict)


class NearestCodes:
    """Independent tokens of a nearest-neighbour quantizer, `Categorical` without its logits.

    Args:
        features: (B, K, D), before quantization. codebook: (C, D).
        variance: of the codes' Gaussians, from `calibrate_variance`; no gradient reaches it.
        relaxation: as of `Categorical`: softens the gradient of a code length to features and codebook.
        scores: (token, code) pairs that are made at once.

    Raises:
        ValueError: shapes do not fit, or the variance is not above 0.
    """

    def __init__(
        self, features: Tensor, codebook: Tensor, variance: float, relaxation: float = 1.0, scores: int = SCORES
    ):
        if features.ndim != 3 or codebook.ndim != 2 or features.shape[-1] != codebook.shape[-1]:
            found = f"{tuple(features.shape)} and {tuple(codebook.shape)}"
            raise ValueError(f"features must be (B, K, D) and the codebook (C, D), got {found}")
        if not variance > 0:
            raise ValueError(f"variance must be above 0, got {variance}")
        self.features, self.codebook, self.variance = features, codebook, float(variance)
        self.relaxation, self.scores = relaxation, scores
        self._done = _Done(features.requires_grad, codebook.requires_grad)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, K, C."""
        return self.features.shape[0], self.features.shape[1], self.codebook.shape[0]

    @property
    def tokens(self) -> int:
        """K."""
        return self.features.shape[1]

    def detach(self) -> NearestCodes:
        """The same without gradient; what has been computed of one serves the other."""
        settings = (self.variance, self.relaxation, self.scores)
        copy = NearestCodes(self.features.detach(), self.codebook.detach(), *settings)
        copy._done = self._done
        return copy

    def dense(self) -> Categorical:
        """The same with all its logits, (B, K, C)."""
        centre = wide(self.codebook).mean(0).detach()
        z, codes = wide(self.features) - centre, wide(self.codebook) - centre
        return Categorical((z @ codes.T - codes.square().sum(-1) / 2) / self.variance, self.relaxation)

    def code_cost(self, prior: Categorical | Factored, entropy_weight: float, weight: Tensor | None = None) -> Tensor:
        """`infotok.information.objective.code_cost`, nats per image (scalar); with a relaxation, the prior's gradient
        is that of the exact code length."""
        return cost_of(self._totals(prior, weight), entropy_weight, self.features, self.codebook, prior)

    def code_length(self, prior: Categorical | Factored) -> Tensor:
        """E_q[-log r], nats, (B, K), without gradient: that of their sum is `code_cost`'s."""
        return self._totals(prior, None).lengths.view(self.shape[:2])

    def entropy(self) -> Tensor:
        """H(q), nats, (B, K), without gradient: that of their sum is `code_cost`'s."""
        computed = next(iter(self._done.totals.values()), None)
        totals = self._totals(Categorical(self._uniform()), None) if computed is None else computed[1]
        return totals.entropies.view(self.shape[:2])

    def _uniform(self) -> Tensor:
        return torch.zeros(1, len(self.codebook), device=self.codebook.device)

    def _totals(self, prior: Categorical | Factored, weight: Tensor | None) -> Totals:
        """A training step asks for the cost three times, to train the prior, to train the channel and to show the
        rate: in this order it goes through the codebook once."""
        given = [*tensors_of(prior), *([] if weight is None else [weight])]
        # The tensors are kept beside what was computed: as long as they live nothing else has their address.
        marks = ((tensor.data_ptr(), tensor._version, tuple(tensor.shape)) for tensor in given)
        key = (type(prior), weight is None, *marks)
        _, found = self._done.totals.get(key, (None, None))
        learns, done = torch.is_grad_enabled(), self._done
        wanted = Wanted(
            learns and done.features, learns and done.codebook, learns and any(t.requires_grad for t in given)
        )
        if found is None or not found.covers(wanted):
            found = go_through(
                self.features,
                self.codebook,
                self.variance,
                prior,
                weight,
                relaxation=self.relaxation,
                wanted=wanted,
                scores=self.scores,
            )
            self._done.totals[key] = ([tensor.detach() for tensor in given], found)
        return found


@torch.no_grad()
def nearest_codes(features: Tensor, codebook: Tensor, scores: int = SCORES) -> Tensor:
    """The nearest code (...) of every feature (..., D) in a codebook (C, D)."""
    with torch.autocast(features.device.type, enabled=False):
        centre = wide(codebook).mean(0)
        codes, flat = wide(codebook) - centre, (wide(features) - centre).flatten(0, -2)
        half = codes.square().sum(-1) / 2
        parts = flat.split(max(1, scores // len(codes)))
        # `argmin` gives the same, and takes a CPU longer.
        nearest = [torch.addmm(half, part, codes.T, alpha=-1).min(-1).indices for part in parts]
        return torch.cat(nearest).view(features.shape[:-1])


@torch.no_grad()
def calibrate_variance(
    batches: Iterable[Tensor], codebook: Tensor, entropy_bits: float | None = None, scores: int = SCORES
) -> float:
    """The variance to hold, from features (..., D) of images that a trained tokenizer has not been changed by yet.

    By default the one that maximizes the likelihood of the nearest codes, the mean squared quantization error per
    dimension. Estimated anew in every batch it follows the encoder: it grows with it until q is flat, or shrinks until
    q is one code and has no gradient. entropy_bits: instead, the variance at which a token's mean H(q) is this.

    Raises:
        ValueError: there are no features, or no variance gives this entropy.
    """
    kept: list[Tensor] = []
    total, count = 0.0, 0
    for features in batches:
        flat = wide(features).flatten(0, -2)
        total += float((flat - wide(codebook)[nearest_codes(flat, codebook, scores)]).double().square().sum())
        count += flat.numel()
        if sum(len(part) for part in kept) < SAMPLE:
            kept.append(flat)
    if not count:
        raise ValueError("there are no features to calibrate the variance on")
    variance = max(total / count, LEAST_VARIANCE)
    if entropy_bits is None:
        return variance
    if not 0 < entropy_bits < math.log2(len(codebook)):
        most = math.log2(len(codebook))
        raise ValueError(
            f"entropy_bits must be between 0 and {most:g} bits of {len(codebook)} codes, got {entropy_bits}"
        )
    sample = torch.cat(kept)[:SAMPLE][None]

    def entropy(log_variance: float) -> float:
        return float(NearestCodes(sample, codebook, math.exp(log_variance), scores=scores).entropy().mean()) / math.log(
            2
        )

    low, high = math.log(variance) - 20, math.log(variance) + 20
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) < entropy_bits else (low, middle)
    return math.exp((low + high) / 2)


def look_up(
    table: Tensor,
    codes: Tensor,
    features: Tensor,
    codebook: Tensor,
    variance: float,
    *,
    relaxation: float = 1.0,
    gradient: float = 1.0,
    scores: int = SCORES,
) -> Tensor:
    """Rows (..., W) of a table (C, W), by the nearest codes (...) of features (..., D): straight-through.

    Forward the rows themselves. Backward the table gets its own gradient, features and codebook (C, D) `gradient`
    times that of softmax(-|z - c|^2 / (2 variance relaxation)) @ table, made again for some tokens at a time.
    """
    flat = features.flatten(0, -2)
    rows = _LookUp.apply(table, codes.flatten(), flat, codebook, variance * relaxation, gradient, scores)
    return rows.view(*codes.shape, -1)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, codes, features, codebook, variance, gradient, scores) -> Tensor:
        ctx.save_for_backward(table, codes, features, codebook)
        ctx.settings = variance, gradient, scores
        return table[codes]

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        table, codes, features, codebook = ctx.saved_tensors
        variance, gradient, scores = ctx.settings
        of_table = of_features = of_codebook = None
        if ctx.needs_input_grad[0]:
            of_table = torch.zeros_like(table).index_add_(0, codes, upstream.to(table.dtype))
        if gradient and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
            with torch.autocast(features.device.type, enabled=False):
                learned = ctx.needs_input_grad[3]
                of_features, of_codebook = _soft(upstream, table, features, codebook, variance, scores, learned)
            of_features = (gradient * of_features).to(features.dtype)
            of_codebook = (gradient * of_codebook).to(codebook.dtype) if learned else None
        return of_table, None, of_features, of_codebook, None, None, None


def _soft(
    upstream: Tensor, table: Tensor, features: Tensor, codebook: Tensor, variance: float, scores: int, learned: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the soft rows to features (N, D) and codebook (C, D)."""
    centre = wide(codebook).mean(0)
    vectors, flat = wide(codebook) - centre, wide(features) - centre
    half = vectors.square().sum(-1) / 2
    of_features, of_codebook = torch.empty_like(flat), torch.zeros_like(vectors)

    def take(part: slice) -> None:
        """Some tokens; once done, what was made of size (n, C) is gone."""
        q = torch.addmm(-half, flat[part], vectors.T).div_(variance).softmax(-1)
        inner = wide(upstream[part].to(table.dtype) @ table.T)
        inner -= torch.einsum("nc,nc->n", q, inner)[:, None]
        inner.mul_(q).div_(variance)
        of_features[part] = inner @ vectors  # rows of `inner` sum to 0, so that z itself drops out
        if learned:
            of_codebook.add_(inner.T @ flat[part] - inner.sum(0)[:, None] * vectors)

    step = max(1, scores // len(vectors))
    for start in range(0, len(flat), step):
        take(slice(start, start + step))
    return of_features, of_codebook
