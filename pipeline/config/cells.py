"""The cells of the grid: one family, arm, token budget and seed each."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from infotok.errors import InfotokError
from infotok.information.objective import estimator_names

ARM = re.compile(r"(?P<estimator>[a-z]+)-(?P<beta>\d+(\.\d+)?)")


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid. `beta` is in loss units per nat per image."""

    family: str
    estimator: str
    beta: float
    tokens: int
    seed: int

    @property
    def arm(self) -> str:
        """Estimator and beta as the grid writes them, e.g. `ceb-0.01`."""
        return f"{self.estimator}-{self.beta:.10f}".rstrip("0").rstrip(".") if self.beta else f"{self.estimator}-0"

    @property
    def key(self) -> str:
        """The cell's name in file names, DVC stage names and MLflow, e.g. `ar-ceb-0.01-8-0`."""
        return f"{self.family}-{self.arm}-{self.tokens}-{self.seed}"

    @property
    def tokenizer_key(self) -> str:
        """The pretrained tokenizer that this cell shares with its paired twins."""
        return f"{self.family}-{self.tokens}-{self.seed}"

    def baseline(self) -> Cell:
        """The paired beta = 0 twin."""
        return Cell(self.family, "none", 0.0, self.tokens, self.seed)

    def as_dict(self) -> dict:
        return asdict(self) | {"arm": self.arm}


def stage_key(stage: str, cell: Cell | None) -> str:
    """What tells one run of a stage from its others; a tokenizer serves all arms."""
    if cell is None:
        return "all"
    return cell.tokenizer_key if stage == "pretrain" else cell.key


def stage_name(stage: str, cell: Cell | None) -> str:
    """The stage as DVC names it, e.g. `train@ar-ceb-0.01-8-0`."""
    return stage if cell is None else f"{stage}@{stage_key(stage, cell)}"


def parse_arm(arm: str, where: str) -> tuple[str, float]:
    """Split an arm name into (estimator, beta).

    The text must be the canonical form (`ceb-0.01`, `none-0`), because it names files and DVC stages.

    Raises:
        InfotokError: the name does not parse, the estimator is unknown, or beta contradicts it.
    """
    match = ARM.fullmatch(str(arm))
    estimators = ["none", *estimator_names()]
    if str(arm).count("-") == 2 and str(arm).split("-")[1] == "":
        raise InfotokError(f"{where}: arm '{arm}' has a negative beta; beta must be >= 0")
    if not match:
        raise InfotokError(f"{where}: arm '{arm}' is not <estimator>-<beta> with a plain decimal, such as ceb-0.01")
    estimator, beta = match["estimator"], float(match["beta"])
    if estimator not in estimators:
        raise InfotokError(f"{where}: arm '{arm}' names an unknown estimator; known: {', '.join(estimators)}")
    if estimator == "none" and beta > 0:
        raise InfotokError(f"{where}: arm '{arm}' has no estimator to weigh; the baseline is none-0")
    if estimator != "none" and beta == 0:
        raise InfotokError(f"{where}: arm '{arm}' has beta 0; the baseline is written none-0")
    canonical = Cell("", estimator, beta, 0, 0).arm
    if canonical != arm:
        raise InfotokError(f"{where}: arm '{arm}' must be written {canonical}")
    return estimator, beta
