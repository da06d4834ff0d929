"""The cells of the grid: one family, arm, token budget and seed each.

An arm says which information terms training adds: an estimator of I(X;Z) with its weight beta (compression), and the
weight gamma of an estimate of I(Z;T) (consistency of tokens and captions). The four arms of a 2 x 2 factorial read
`none-0-0` (neither), `none-0-1` (consistency alone), `dib-0.03-0` (compression alone) and `dib-0.03-1` (both).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

from infotok.errors import InfotokError
from infotok.information.objective import estimator_names

NUMBER = r"\d+(?:\.\d+)?"
ARM = re.compile(rf"(?P<estimator>[a-z][a-z0-9_]*)-(?P<beta>{NUMBER})-(?P<gamma>{NUMBER})")
NONE = "none"  # no estimator: the arms without compression


def decimal(value: float) -> str:
    """A weight as arms write it: a plain decimal without trailing zeros."""
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"


def arm_name(estimator: str, beta: float, gamma: float) -> str:
    """An arm as the grid writes it, e.g. `ceb-0.01-1`."""
    return f"{estimator}-{decimal(beta)}-{decimal(gamma)}"


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid. beta: loss per unit of the estimator's penalty (a nat per image). gamma: loss per nat of
    consistency."""

    family: str
    estimator: str
    beta: float
    gamma: float
    tokens: int
    seed: int

    @property
    def arm(self) -> str:
        """Estimator, beta and gamma as the grid writes them, e.g. `ceb-0.01-1`."""
        return arm_name(self.estimator, self.beta, self.gamma)

    @property
    def key(self) -> str:
        """The cell's name in file names, DVC stage names and MLflow, e.g. `ar-ceb-0.01-1-8-0`."""
        return f"{self.family}-{self.arm}-{self.tokens}-{self.seed}"

    def baseline(self) -> Cell:
        """The paired twin without any information term."""
        return replace(self, estimator=NONE, beta=0.0, gamma=0.0)

    def as_dict(self) -> dict:
        return asdict(self) | {"arm": self.arm}


def parse_arm(arm: str, where: str) -> tuple[str, float, float]:
    """Split an arm name into (estimator, beta, gamma).

    The text must be the canonical form (`ceb-0.01-1`, `none-0-0`), because it names files and DVC stages.

    Raises:
        InfotokError: the name does not parse, the estimator is unknown, or beta contradicts it.
    """
    estimators = [NONE, *estimator_names()]
    match = ARM.fullmatch(str(arm))
    if not match:
        raise InfotokError(
            f"{where}: arm '{arm}' is not <estimator>-<beta>-<gamma> with plain decimals of at least 0, such as "
            f"ceb-0.01-1; none-0-0 is the baseline; known estimators: {', '.join(estimators)}"
        )
    estimator, beta, gamma = match["estimator"], float(match["beta"]), float(match["gamma"])
    if estimator not in estimators:
        raise InfotokError(f"{where}: arm '{arm}' names an unknown estimator; known: {', '.join(estimators)}")
    if estimator == NONE and beta > 0:
        raise InfotokError(
            f"{where}: arm '{arm}' has no estimator for its beta to weigh; write {arm_name(NONE, 0, gamma)}"
        )
    if estimator != NONE and beta == 0:
        raise InfotokError(
            f"{where}: arm '{arm}' has beta 0, which no estimator weighs; write {arm_name(NONE, 0, gamma)}"
        )
    if (canonical := arm_name(estimator, beta, gamma)) != arm:
        raise InfotokError(f"{where}: arm '{arm}' must be written {canonical}")
    return estimator, beta, gamma
