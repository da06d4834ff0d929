"""The compression term of the objective, and the estimators it may use.

This module loads no torch by itself: names of estimators are needed to check a configuration.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from infotok.information.channel import Categorical


@dataclass
class Observed:
    """What an estimator may look at in one training step.

    images: (B, 3, S, S). vectors: (B, K, dimension), the sampled tokens. posterior: q(z|x). marginal: the learned
    prior r(z), gradients stopped. conditional: the generator's p(z | caption), gradients stopped. text: pooled
    caption states (B, width), for estimators that measure consistency.
    """

    images: Tensor
    vectors: Tensor
    posterior: Categorical
    marginal: Categorical
    conditional: Categorical
    text: Tensor


def code_cost(posterior: Categorical, prior: Categorical, entropy_weight: float) -> Tensor:
    """E_q[-log r(z|c)] - entropy_weight * H(q), summed over tokens, mean over the batch; nats per image (scalar).

    The one formula of the variational estimators: entropy_weight 1 is the rate, 0 the code length.
    """
    cost = posterior.code_length(prior).sum(-1)
    if entropy_weight:
        cost = cost - entropy_weight * posterior.entropy().sum(-1)
    return cost.mean()


def estimator_names() -> list[str]:
    """Names that an arm may begin with, apart from `none`: the modules of `infotok.information.estimators`."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "estimators")]))


def penalty_of(estimator: str) -> Callable[[Observed], Tensor] | None:
    """The estimator's penalty, nats per image; None for the baseline `none`."""
    if estimator == "none":
        return None
    return importlib.import_module(f"infotok.information.estimators.{estimator}").penalty
