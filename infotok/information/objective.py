"""The information terms of the objective, and the estimators that they may use."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from infotok.information.kernels import Kernels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from infotok.information.channel import Channel
    from infotok.information.dependence import Pair


@dataclass(kw_only=True)
class Observed:
    """What the terms may look at in one training step; None is what a caller cannot give.

    images: (B, 3, S, S). vectors: (B, K, D), the sampled tokens. posterior: q(z|x). prior: the learned r(z), gradients
    stopped. conditional: the generator's p(z | caption), gradients stopped. weight: (B, K), how often each of its
    tokens counts (`infotok.models.family.Predicted`); None: once. text: pooled caption states (B, width), gradients
    stopped. told: (B,) bool, False where the caption was dropped. critic: the learned bound on I(Z;T). kernels,
    generator: of kernel dependence. gather: where several processes share the batch B is of one of them, and this gives
    the rows of all; a term that is no mean over images needs them.
    """

    posterior: Channel | None = None
    prior: Channel | None = None
    conditional: Channel | None = None
    weight: Tensor | None = None
    images: Tensor | None = None
    vectors: Tensor | None = None
    text: Tensor | None = None
    told: Tensor | None = None
    critic: Callable[[Tensor, Tensor], Tensor] | None = None
    kernels: Kernels = field(default_factory=Kernels)
    generator: torch.Generator | None = None
    gather: Callable[[Tensor], Tensor] = lambda rows: rows

    @cached_property
    def pixels_and_tokens(self) -> Pair:
        """Images and sampled tokens of all processes, for kernel dependence."""
        return self.kernels.pair(self.gather(self.images), self.gather(self.vectors), self.generator)


def code_cost(posterior: Channel, prior: Channel, entropy_weight: float, weight: Tensor | None = None) -> Tensor:
    """E_q[-log r(z|c)] - entropy_weight * H(q), summed over tokens, mean over the batch; nats per image (scalar).

    The one formula of the variational estimators: entropy_weight 1 is the rate, 0 the code length. weight: (B, K), how
    often a token's code length counts.
    """
    length = posterior.code_length(prior)
    cost = (length if weight is None else length * weight).sum(-1)
    if entropy_weight:
        cost = cost - entropy_weight * posterior.entropy().sum(-1)
    return cost.mean()


def estimator_names() -> list[str]:
    """Names that an arm may begin with, apart from `none`: the modules of `infotok.information.estimators`."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "estimators")]))


def penalty_of(estimator: str) -> Callable[[Observed], Tensor] | None:
    """The estimator's penalty, an estimate of I(X;Z); None for the baseline `none`."""
    return None if estimator == "none" else _module(estimator).penalty


def consistency_of(estimator: str) -> Callable[[Observed], Tensor] | None:
    """The estimator's consistency, an estimate of I(Z;T); None where it has none."""
    return None if estimator == "none" else getattr(_module(estimator), "consistency", None)


def independent_of(estimator: str) -> Callable[[Observed], Tensor] | None:
    """The estimator's penalty if images and tokens were independent, for the log; None where that is 0."""
    return None if estimator == "none" else getattr(_module(estimator), "independent", None)


def _module(estimator: str) -> ModuleType:
    return importlib.import_module(f"infotok.information.estimators.{estimator}")
