"""Code length and entropy of nearest-neighbour codes, exact, and their gradients, for a few tokens at a time.

No (B, K, C) tensor is ever whole: logits of some tokens are made, their part of the sums and of the gradients is taken,
and they are dropped. So the gradients are made in the forward pass, and beside what was given there stay tensors of the
size of features, codebook and prior.
Shapes: B images, K tokens, N = B * K, C codes, D dimensions of a code, n tokens at a time. Information in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infotok.information.channel import Categorical
from infotok.information.factored import Factored, Rows, tensors_of, wide

SCORES = 2**22  # (token, code) pairs at a time: 16 MiB of float32, of which some five tensors live at once


@dataclass(frozen=True)
class Wanted:
    """To what gradients are made."""

    features: bool = True
    codebook: bool = True
    prior: bool = True


@dataclass
class Totals:
    """Means over images of the sums over tokens, and what their gradients are.

    length, entropy: nats per image (scalars). lengths, entropies: per token, (N,). of_features, of_codebook: gradients
    of length and of entropy. of_prior: of the length alone, in the order of `tensors_of`. Empty where nobody asked.
    """

    length: Tensor
    entropy: Tensor
    lengths: Tensor
    entropies: Tensor
    of_features: list[Tensor]
    of_codebook: list[Tensor]
    of_prior: list[Tensor]

    def covers(self, wanted: Wanted) -> bool:
        """Whether all gradients that are wanted were made."""
        made = {"features": self.of_features, "codebook": self.of_codebook, "prior": self.of_prior}
        return all(made[name] or not asked for name, asked in vars(wanted).items())


@torch.no_grad()
def go_through(
    features: Tensor,
    codebook: Tensor,
    variance: float,
    prior: Categorical | Factored,
    weight: Tensor | None = None,
    *,
    relaxation: float = 1.0,
    wanted: Wanted = Wanted(),
    scores: int = SCORES,
) -> Totals:
    """One way through the codebook.

    Args:
        features: (B, K, D). codebook: (C, D). variance: of q(c|z), the softmax of -|z - c|^2 / (2 variance).
        prior: of the tokens. weight: (B, K), how often a token's code length counts.
        relaxation: temperature of the softmax that gives the code length's gradient to features and codebook.
        wanted: the gradients to make.
    """
    images, tokens = features.shape[:2]
    with torch.autocast(features.device.type, enabled=False):
        # Distances do not change when all is moved, and near 0 less is lost to rounding.
        centre = wide(codebook).mean(0)
        codes, flat = wide(codebook) - centre, (wide(features) - centre).flatten(0, 1)
        half, rows = codes.square().sum(-1) / 2, Rows(prior, images, tokens, codes.dtype)
        counts = flat.new_ones(len(flat)) if weight is None else wide(weight).flatten()
        lengths, entropies = flat.new_empty(len(flat)), flat.new_empty(len(flat))
        of_features = [torch.empty_like(flat) for _ in range(2 * wanted.features)]
        of_codebook = [torch.zeros_like(codes) for _ in range(2 * wanted.codebook)]

        def push(index: int, part: slice, inner: Tensor) -> None:
            """The gradient of some tokens' logits, (n, C), to features and codebook."""
            if wanted.features:
                of_features[index][part] = (inner @ codes).div_(variance)
            if wanted.codebook:
                of_codebook[index] += (inner.T @ flat[part] - inner.sum(0)[:, None] * codes).div_(variance)

        def take(part: slice) -> None:
            """Some tokens; once done, what was made of size (n, C) is gone."""
            share = (counts[part] / images)[:, None]
            score = torch.addmm(-half, flat[part], codes.T).div_(variance)
            score -= score.amax(-1, keepdim=True)
            q = score.softmax(-1)
            # An excluded code costs infinitely much, and times a probability of 0 that would be nan.
            cost = rows.log_probabilities(part).neg().clamp_(max=torch.finfo(q.dtype).max)
            mean_length, mean_score = _mean(q, cost), _mean(q, score)
            lengths[part] = mean_length[:, 0]
            entropies[part] = -q.amax(-1).log() - mean_score[:, 0]  # the largest score is 0
            if wanted.prior:
                rows.add(part, (torch.exp(-cost) - q) * share)
            if not (wanted.features or wanted.codebook):
                return
            push(1, part, score.sub(mean_score).mul_(q).mul_(-1 / images))
            if relaxation != 1.0:
                q = score.div_(relaxation).softmax(-1)
                mean_length, share = _mean(q, cost), share / relaxation
            push(0, part, (cost - mean_length).mul_(q).mul_(share))

        step = max(1, scores // len(codes))
        for start in range(0, len(flat), step):
            take(slice(start, min(start + step, len(flat))))
        return Totals(
            length=(lengths * counts).sum() / images,
            entropy=entropies.sum() / images,
            lengths=lengths,
            entropies=entropies,
            of_features=[gradient.view(features.shape) for gradient in of_features],
            of_codebook=of_codebook,
            of_prior=rows.gradients() if wanted.prior else [],
        )


def cost_of(
    totals: Totals, entropy_weight: float, features: Tensor, codebook: Tensor, prior: Categorical | Factored
) -> Tensor:
    """length - entropy_weight * entropy (scalar) with the gradients in `totals`."""
    return _Cost.apply(totals, entropy_weight, features, codebook, *tensors_of(prior))


class _Cost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, totals: Totals, entropy_weight: float, features: Tensor, codebook: Tensor, *prior: Tensor
    ) -> Tensor:
        made = [totals.of_features, totals.of_codebook, *([one] for one in totals.of_prior)]
        ctx.entropy_weight, ctx.counts = entropy_weight, [len(one) for one in made]
        ctx.types = [given.dtype for given in (features, codebook, *prior)]
        ctx.save_for_backward(*(tensor for one in made for tensor in one))
        return totals.length - entropy_weight * totals.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, found = list(ctx.saved_tensors), []
        for count in ctx.counts:
            parts, saved = saved[:count], saved[count:]
            of_length, of_entropy = [*parts, None, None][:2]
            if of_entropy is not None and ctx.entropy_weight:
                of_length = of_length - ctx.entropy_weight * of_entropy
            found.append(of_length)
        found += [None] * (len(ctx.types) - len(found))
        return (
            None,
            None,
            *(
                (upstream * one).to(dtype) if wanted and one is not None else None
                for one, dtype, wanted in zip(found, ctx.types, ctx.needs_input_grad[2:], strict=True)
            ),
        )


def _mean(q: Tensor, values: Tensor) -> Tensor:
    """E_q of values, (n, C) or (1, C) -> (n, 1)."""
    return q @ values.T if len(values) == 1 else torch.linalg.vecdot(q, values)[:, None]
