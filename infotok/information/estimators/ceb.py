"""Conditional entropy bottleneck (Fischer 2020): the code length under the generator p(z | caption) itself.

It compresses I(X;Z|T), what the text does not explain. The generator's gradients are stopped: it learns to predict the
codes by its own loss, the codes learn to be predicted. Codes that say nothing of the text are predicted well too, so a
consistency term adds to it as it does to the others.
"""

from torch import Tensor

from infotok.information.objective import Observed, code_cost

NEEDS = ("posterior", "conditional")


def penalty(observed: Observed) -> Tensor:
    """Conditional code length, nats per image (scalar)."""
    return code_cost(observed.posterior, observed.conditional, entropy_weight=0.0, weight=observed.weight)
