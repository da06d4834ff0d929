"""What estimators of I(X;Z) are: modules of `infotok.information.estimators`, found by their file names.

A module has `penalty(observed)`, its estimate of I(X;Z), and where it differs from what stands here
- `NEEDS`: names of what its penalty looks at (`NEEDS` below), so that no other is asked for;
- `consistency(observed)`: an estimate of I(Z;T), else `contrast`;
- `independent(observed)`: the penalty that so few images would give if images and tokens were independent.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infotok.information import estimators

if TYPE_CHECKING:
    from torch import Tensor

    from infotok.information.channel import Channel
    from infotok.information.dependence import Pair
    from infotok.information.kernels import Kernels
    from infotok.random import Source

NONE = "none"  # the estimator of arms without compression
NEEDS = ("posterior", "prior")
NOT_GIVEN: Any = None


@dataclass(kw_only=True)
class Observed:
    """What the terms may look at in one training step: what they need, the others are None.

    posterior: q(z|x). prior: the learned r(z), gradients stopped. conditional: the generator's p(z | text), gradients
    stopped. weight: (B, K), how often each of its tokens counts; None: once. These are of this process's images, and a
    penalty from them is a mean over images. What compares images gets the rows of all processes: inputs (B, ...) and
    vectors (B, K, D), the tokens that flowed; for consistency text (B, width), gradients stopped, present (B,), which
    images have a text, None: all, and critic, the learned bound on I(Z;T). kernels, generator: of kernel dependence.
    """

    posterior: Channel = NOT_GIVEN
    prior: Channel = NOT_GIVEN
    conditional: Channel = NOT_GIVEN
    weight: Tensor | None = None
    inputs: Tensor = NOT_GIVEN
    vectors: Tensor = NOT_GIVEN
    text: Tensor = NOT_GIVEN
    present: Tensor | None = None
    critic: Callable[[Tensor, Tensor, Tensor | None], Tensor] = NOT_GIVEN
    kernels: Kernels = NOT_GIVEN
    generator: Source | None = None
    _pair: Pair | None = None  # and no cached_property, whose lock no graph can hold

    @property
    def inputs_and_vectors(self) -> Pair:
        """Images and their tokens, for kernel dependence; made once."""
        if self._pair is None:
            self._pair = self.kernels.pair(self.inputs, self.vectors, self.generator)
        return self._pair


Term = Callable[[Observed], "Tensor"]


@dataclass(frozen=True)
class Estimator:
    """An estimator's terms, each a scalar; None is a term that it has not. needs: what its penalty looks at."""

    penalty: Term | None
    consistency: Term
    independent: Term | None
    needs: tuple[str, ...]


def code_cost(posterior: Channel, prior: Channel, entropy_weight: float, weight: Tensor | None = None) -> Tensor:
    """E_q[-log r(z|c)] - entropy_weight * H(q), summed over tokens, mean over the batch; nats per image (scalar).

    The one formula of the variational estimators: entropy_weight 1 is the rate, 0 the code length. weight: (B, K), how
    often a token's code length counts.
    """
    if hasattr(posterior, "code_cost"):  # of one whose tensors per token would not fit in memory
        return posterior.code_cost(prior, entropy_weight, weight)
    length = posterior.code_length(prior)
    cost = (length if weight is None else length * weight).sum(-1)
    if entropy_weight:
        cost = cost - entropy_weight * posterior.entropy().sum(-1)
    return cost.mean()


def contrast(observed: Observed) -> Tensor:
    """The learned bound on I(Z;T) of the step's tokens and texts, nats per image (scalar)."""
    return observed.critic(observed.vectors, observed.text, observed.present)


def estimator_names() -> list[str]:
    """Names that an arm may begin with, apart from `none`: the modules of `infotok.information.estimators`."""
    return sorted(module.name for module in pkgutil.iter_modules(estimators.__path__))


def load_estimator(name: str) -> Estimator:
    """The estimator of a name; `none` has no penalty.

    Raises:
        ValueError: there is none of that name.
    """
    if name == NONE:
        return Estimator(None, contrast, None, ("posterior",))
    if name not in estimator_names():
        raise ValueError(f"unknown estimator {name!r}: choose one of {', '.join([NONE, *estimator_names()])}")
    module = importlib.import_module(f"infotok.information.estimators.{name}")
    terms = getattr(module, "consistency", contrast), getattr(module, "independent", None)
    return Estimator(module.penalty, *terms, getattr(module, "NEEDS", NEEDS))
