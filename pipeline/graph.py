"""The stages: the one table from which dvc.yaml, the command line, recipes, sweeps, tracking and the report are made.

A stage runs once for every combination of its axes. What it depends on is its recipe (`pipeline.config.recipes`) and
the output folders of its inputs, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENIZER = ("family", "tokens", "seed")
CELL = ("family", "arm", "tokens", "seed")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One stage.

    help: what it does, a sentence. axes: of the grid, in the order of DVC's matrix; none for a stage that runs once.
    sections: of params.yaml that it may read. inputs: stages whose output folders it reads. plugins: what of a cell or
    of the data names a module that it loads: `source`, `family` or `estimator`. trains: it writes `history.jsonl`.
    shared: several processes may run it together.
    """

    name: str
    help: str
    axes: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    trains: bool = False
    shared: bool = False


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
    )
}
# The report reads every result of the grid and every section, since it says how the numbers came about.
REPORT = Spec(
    name="report",
    help="Compile all cells of the grid into tables, figures and a page.",
    inputs=tuple(STAGES),
)
# Before all others: writes every stage's recipe.
CONFIGURE = Spec(name="configure", help="Check the parameters and write the recipe of every stage of the grid.")

CELL_STAGES = tuple(name for name, spec in STAGES.items() if spec.axes == CELL)
ONCE = tuple(name for name, spec in STAGES.items() if not spec.axes)


def ancestors(stage: str) -> list[str]:
    """The stages that a stage's result depends on, itself last."""
    found: dict[str, None] = {}
    for name in STAGES[stage].inputs:
        found |= dict.fromkeys(ancestors(name))
    return [*found, stage]
