"""The stages: the one table from which dvc.yaml, the command line, recipes, sweeps, tracking and the report are made.

A stage runs once for every combination of its axes. What it depends on is its recipe (`pipeline.config.recipes`) and
the output folders of its inputs, nothing else. Which stages a study has, its graph says: there is one for models that
are built and trained here, and one for pretrained models of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

BUDGET = ("family", "tokens")
TOKENIZER = ("family", "tokens", "seed")
CELL = ("family", "arm", "tokens", "seed")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One stage.

    help: what it does, a sentence. axes: of the grid, in the order of DVC's matrix; none for a stage that runs once.
    sections: of params.yaml that it may read. inputs: stages whose output folders it reads. plugins: what of a cell or
    of the data names a module that it loads: `source`, `family`, `estimator`, or `adapter` of a pretrained model.
    trains: it writes `history.jsonl`. shared: several processes may run it together. weights: it reads a pretrained
    model's own files. logs_as: the stage of the other graph whose names of metrics its own are.
    """

    name: str
    help: str
    axes: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    trains: bool = False
    shared: bool = False
    weights: bool = False
    logs_as: str = ""

    @property
    def group(self) -> str:
        """What stands before the names of metrics that it logs while it trains."""
        return self.logs_as or self.name


STAGES = {
    spec.name: spec
    for spec in (
        Spec(
            name="prepare",
            help="Make or read the data: images, captions and questions as Arrow, a manifest, a text tokenizer.",
            sections=("data",),
            plugins=("source",),
        ),
        Spec(
            name="perceptual",
            help="Train the perceptual features that reconstructions are compared in.",
            sections=("perceptual",),
            inputs=("prepare",),
            trains=True,
        ),
        Spec(
            name="judge",
            help="Train the judge, which examines drawn images, and measure its ceiling on held-out images.",
            sections=("judge",),
            inputs=("prepare",),
            trains=True,
        ),
        Spec(
            name="pretrain",
            help="Pretrain the tokenizer that all arms of one family, budget and seed share.",
            axes=TOKENIZER,
            sections=("tokenizer", "pretrain", "reconstruction"),
            inputs=("prepare", "perceptual"),
            plugins=("family",),
            trains=True,
            shared=True,
        ),
        Spec(
            name="train",
            help="Train tokenizer, priors and language model together, from the pretrained tokenizer.",
            axes=CELL,
            sections=("train", "kernels", "reconstruction", "backbone"),
            inputs=("prepare", "perceptual", "pretrain"),
            plugins=("family", "estimator"),
            trains=True,
            shared=True,
        ),
        Spec(
            name="understand",
            help="Answer the questions about held-out images, and measure the information in the tokens.",
            axes=CELL,
            sections=("understanding", "kernels", "train"),
            inputs=("prepare", "train"),
            plugins=("family",),
        ),
        Spec(
            name="generate",
            help="Draw images from prompts and score them; measure how well images come back from their tokens.",
            axes=CELL,
            sections=("generation", "train"),
            inputs=("prepare", "judge", "train"),
            plugins=("family",),
        ),
        Spec(
            name="inspect",
            help="Load a pretrained model, compare its codes with those of its own encoding, measure its tokenizer.",
            axes=BUDGET,
            sections=("models",),
            inputs=("prepare",),
            plugins=("adapter",),
            weights=True,
        ),
        Spec(
            name="calibrate",
            help="Train what a pretrained tokenizer lacks, and fix the variance of its codes, for all arms of a seed.",
            axes=TOKENIZER,
            sections=("models", "calibrate"),
            inputs=("prepare", "inspect"),
            plugins=("adapter",),
            trains=True,
            logs_as="pretrain",
        ),
        Spec(
            name="tune",
            help="Tune tokenizer and language model of a pretrained model together, and save it.",
            axes=CELL,
            sections=("models", "tune", "kernels"),
            inputs=("prepare", "calibrate"),
            plugins=("adapter", "estimator"),
            trains=True,
            shared=True,
            logs_as="train",
        ),
        Spec(
            name="answer",
            help="Let a tuned model answer the questions about held-out images, and measure its tokens.",
            axes=CELL,
            sections=("models", "understanding", "tune"),
            inputs=("prepare", "tune"),
            plugins=("adapter",),
        ),
        Spec(
            name="render",
            help="Let a tuned model draw images from captions, and score them.",
            axes=CELL,
            sections=("models", "generation"),
            inputs=("prepare", "judge", "tune"),
            plugins=("adapter",),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The stages of a study, each after its inputs. trains, evaluates, draws: the stages of a cell by what they do."""

    stages: tuple[str, ...]
    tokenizer: str
    trains: str
    evaluates: str
    draws: str

    @property
    def specs(self) -> list[Spec]:
        return [STAGES[name] for name in self.stages]

    @property
    def once(self) -> tuple[str, ...]:
        """Stages that run once."""
        return tuple(spec.name for spec in self.specs if not spec.axes)

    @property
    def of_cells(self) -> tuple[str, ...]:
        """Stages that run for every cell alone."""
        return tuple(spec.name for spec in self.specs if spec.axes == CELL)

    @property
    def described(self) -> tuple[str, ...]:
        """Stages whose protocol a report shows."""
        inspected = tuple(spec.name for spec in self.specs if spec.axes == BUDGET)
        return (*inspected, *self.of_cells)

    @property
    def tracked(self) -> tuple[str, ...]:
        """Stages that MLflow has runs of: those of a cell in one, the tokenizer's in another."""
        return (self.tokenizer, *self.of_cells)

    @property
    def with_axes(self) -> tuple[str, ...]:
        """Stages of cells, and those that several cells share."""
        return tuple(spec.name for spec in self.specs if spec.axes)


FROM_SCRATCH = Graph(
    stages=("prepare", "perceptual", "judge", "pretrain", "train", "understand", "generate"),
    tokenizer="pretrain",
    trains="train",
    evaluates="understand",
    draws="generate",
)
PRETRAINED = Graph(
    stages=("prepare", "judge", "inspect", "calibrate", "tune", "answer", "render"),
    tokenizer="calibrate",
    trains="tune",
    evaluates="answer",
    draws="render",
)
# The report reads every result of the grid and every section, since it says how the numbers came about.
REPORT = Spec(
    name="report",
    help="Compile all cells of the grid into tables, figures and a page.",
)
# Before all others: writes every stage's recipe.
CONFIGURE = Spec(name="configure", help="Check the parameters and write the recipe of every stage of the grid.")


def ancestors(stage: str) -> list[str]:
    """The stages that a stage's result depends on, itself last."""
    found: dict[str, None] = {}
    for name in STAGES[stage].inputs:
        found |= dict.fromkeys(ancestors(name))
    return [*found, stage]
