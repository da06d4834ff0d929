"""Deterministic information bottleneck (Strouse & Schwab 2017): the code length under the learned prior.

Without the entropy term noise in the channel earns nothing, so the codes themselves must become simpler.
"""

from torch import Tensor

from infotok.information.objective import Observed, code_cost


def penalty(observed: Observed) -> Tensor:
    """Code length, nats per image (scalar)."""
    return code_cost(observed.posterior, observed.prior, entropy_weight=0.0)
