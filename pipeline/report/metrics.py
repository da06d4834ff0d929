"""The tasks that data may allow, and how every metric is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

QUESTIONS = ["exist", "count", "color", "shape", "size", "material", "where", "relation", "compare"]
TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
STRUCTURE = ["presence", "shape", "color", "size", "material", "column", "row"]
NUISANCE = ["hue", "gradient", "texture", "noise", "jitter"]
FAMILY = "understanding/family/"  # of questions; the data name them

# What beta is a weight on, where that is not the nats per image of the variational estimators.
BETA_UNITS = {"hsic": "per unit of dependence"}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `better`: 1 higher is better, -1 lower is better, 0 neither."""

    label: str
    better: int = 1
    digits: int = 3


METRICS = {
    "understanding/accuracy": Metric("accuracy"),
    "understanding/accuracy_low": Metric("accuracy, low", 0),
    "understanding/accuracy_high": Metric("accuracy, high", 0),
    "understanding/accuracy_novel": Metric("accuracy, novel pairs"),
    "understanding/question_only": Metric("question only", 0),
    "understanding/majority": Metric("majority", 0),
    "understanding/validation": Metric("accuracy, validation"),
    **{FAMILY + name: Metric(name) for name in QUESTIONS},
    "generation/geneval": Metric("GenEval"),
    "generation/geneval_t1": Metric("GenEval, T=1"),
    "generation/geneval_novel": Metric("GenEval, novel pairs"),
    "generation/retrieval": Metric("retrieval"),
    "generation/retrieval_t1": Metric("retrieval, T=1"),
    "generation/validation": Metric("generation, validation"),
    "generation/temperature": Metric("temperature", 0, 2),
    "generation/guidance": Metric("guidance", 0, 2),
    "generation/own_codes": Metric("own codes"),
    "generation/own_codes_guessed": Metric("own codes, guessed", 0),
    "generation/gfid": Metric("gFID", -1, 2),
    "generation/kid": Metric("KID", -1, 4),
    **{f"generation/tag/{name}": Metric(name.replace("_", " ")) for name in TAGS},
    "reconstruction/psnr": Metric("PSNR", 1, 2),
    "reconstruction/ssim": Metric("SSIM"),
    "reconstruction/rfid": Metric("rFID", -1, 2),
    "reconstruction/objects": Metric("objects kept"),
    "information/rate_bits": Metric("rate", 0, 2),
    "information/autoregressive_rate_bits": Metric("rate, AR prior", 0, 2),
    "information/conditional_rate_bits": Metric("rate given caption", 0, 2),
    "information/code_entropy_bits": Metric("code entropy", 0, 2),
    "information/perplexity": Metric("perplexity", 0, 1),
    "information/dead_codes": Metric("dead codes", -1, 1),
    "information/active_dimensions": Metric("active dimensions", 0, 1),
    "information/dependence": Metric("CKA(X,Z)", 0, 3),
    "information/dependence_text": Metric("CKA(Z,T)", 0, 3),
    "information/generator_nll_bits": Metric("generator NLL", 0, 2),
    "information/lower_bits": Metric("I(X;Z) ≥", 0, 2),
    "information/upper_bits": Metric("I(X;Z) ≤", 0, 2),
    "information/capacity_bits": Metric("capacity", 0, 1),
    "information/structure_bits": Metric("structure", 1, 2),
    "information/nuisance_bits": Metric("nuisance", 0, 2),
    **{f"information/factor/{name}": Metric(name, 1, 2) for name in STRUCTURE},
    **{f"information/factor/{name}": Metric(name, 0, 2) for name in NUISANCE},
}


@dataclass(frozen=True)
class Task:
    """One thing that data let a model be tested on, and the score that tells how well it does.

    score: metric of the test split, for generation at the temperature and guidance that validation chose; plain: the
    same at temperature 1. right: what counts as right. judge: the kind of judge that says so, as the manifest names it.
    floors: metrics of what the score is without looking.
    """

    name: str
    score: str
    right: str
    plain: str = ""
    judge: str | None = None
    floors: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return METRICS[self.score].label

    @property
    def title(self) -> str:
        """The label where a sentence begins."""
        return self.label[0].upper() + self.label[1:]

    @property
    def axis(self) -> str:
        return f"{self.label} ({self.name})"

    @property
    def validation(self) -> str:
        """The metric that chooses."""
        return f"{self.name}/validation"

    @property
    def claim(self) -> str:
        """The name of the score in paired.csv."""
        return short(self.score)

    @property
    def headline(self) -> list[str]:
        """Names in paired.csv of the score and its plain form."""
        return [short(name) for name in (self.score, self.plain) if name]


def short(name: str) -> str:
    """A metric's name in paired.csv."""
    return name.split("/")[1]


# Of the two scores of generation the data's judge decides which one results have.
TASKS = [
    Task(
        "understanding",
        "understanding/accuracy",
        "the answer is right",
        floors=("understanding/question_only", "understanding/majority"),
    ),
    Task(
        "generation",
        "generation/geneval",
        "the judge finds the prompt fulfilled",
        plain="generation/geneval_t1",
        judge="objects",
    ),
    Task(
        "generation",
        "generation/retrieval",
        "the judge finds the image's own caption among others",
        plain="generation/retrieval_t1",
        judge="matching",
    ),
]
VALIDATION = list(dict.fromkeys(task.validation for task in TASKS))
HEADLINE = [name for task in TASKS for name in task.headline]
CLAIMS = [task.claim for task in TASKS]  # of a chosen arm: what Holm's adjustment counts

# Metrics compared in pairs, by the name they carry in paired.csv; scores of an elastic training follow.
PAIRED = {
    short(name): name
    for name in (
        "understanding/accuracy",
        "understanding/accuracy_novel",
        "generation/geneval",
        "generation/geneval_t1",
        "generation/geneval_novel",
        "generation/retrieval",
        "generation/retrieval_t1",
        "generation/own_codes",
        "generation/gfid",
        "reconstruction/psnr",
        "reconstruction/objects",
        "information/rate_bits",
        "information/autoregressive_rate_bits",
        "information/conditional_rate_bits",
        "information/code_entropy_bits",
        "information/dependence",
        "information/dependence_text",
        "information/structure_bits",
        "information/nuisance_bits",
    )
}

# Metrics that the factorial table takes apart, by the same names.
FACTORIAL = [*HEADLINE, "rate_bits", "structure_bits", "nuisance_bits"]

# Scores of an elastic training (nested dropout over tokens) from its first k tokens alone.
_SCORES = [task.score for task in TASKS]
_AT = re.compile(rf"({'|'.join(_SCORES)})_at_(\d+)")


def shown(name: str) -> Metric:
    """How a metric of any name is shown: scores of elastic trainings, families of any name, and unknown ones too."""
    if at := _AT.fullmatch(name):
        return Metric(f"{METRICS[at[1]].label}, k={at[2]}")
    if name.startswith(FAMILY):
        return Metric(name.removeprefix(FAMILY).replace("_", " "))
    return METRICS.get(name, Metric(name.rsplit("/", 1)[-1].replace("_", " "), 0))


def elastic(names: Iterable[str], score: str) -> dict[int, str]:
    """Of these metrics, those of a score from the first k tokens alone, by rising k."""
    found = [at for at in map(_AT.fullmatch, names) if at and at[1] == score]
    return {int(at[2]): at[0] for at in sorted(found, key=lambda at: int(at[2]))}


def ordered(names: Iterable[str]) -> list[str]:
    """Metrics as METRICS orders them, question families of other names after its own; then scores of elastic trainings,
    then unknown ones."""
    positions = {name: position for position, name in enumerate(METRICS)}

    def position(name: str) -> tuple[int, int, str]:
        if at := _AT.fullmatch(name):
            return len(METRICS) + _SCORES.index(at[1]), int(at[2]), name
        if name.startswith(FAMILY):
            return positions.get(name, positions[FAMILY + QUESTIONS[-1]]), int(name not in positions), name
        return positions.get(name, len(METRICS) + len(TASKS)), 0, name

    return sorted(set(names), key=position)


def allowed(manifest: dict) -> list[Task]:
    """The tasks that a prepared data set allows, as its manifest says; those of scenes where it does not."""
    names, judge = manifest.get("tasks", ["understanding", "generation"]), manifest.get("judge", "objects")
    return [task for task in TASKS if task.name in names and task.judge in (None, judge)]
