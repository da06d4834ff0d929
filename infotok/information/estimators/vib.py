"""Variational information bottleneck (Alemi et al. 2017): the rate under the marginal prior, which bounds I(X;Z)."""

from infotok.information.objective import Observed, code_cost


def penalty(observed: Observed):
    """Rate, nats per image (scalar)."""
    return code_cost(observed.posterior, observed.marginal, entropy_weight=1.0)
