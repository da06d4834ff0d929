"""Variational information bottleneck (Alemi et al. 2017): the rate under the learned prior, which bounds I(X;Z)."""

from torch import Tensor

from infotok.information.objective import Observed, code_cost


def penalty(observed: Observed) -> Tensor:
    """Rate, nats per image (scalar)."""
    return code_cost(observed.posterior, observed.prior, entropy_weight=1.0)
