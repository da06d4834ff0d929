"""Variational information bottleneck (Alemi et al. 2017): the rate under the learned prior, which bounds I(X;Z)."""

from infotok.information.consistency import contrast
from infotok.information.objective import Observed, code_cost

consistency = contrast


def penalty(observed: Observed):
    """Rate, nats per image (scalar)."""
    return code_cost(observed.posterior, observed.prior, entropy_weight=1.0)
