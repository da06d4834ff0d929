"""Memory of a training of ours, and how many such trainings a card takes: measured without a GPU, as bytes of tensors
that live at once. What it says does not depend on the machine.

A step is done on real tensors, in bf16 with a GPU's types (norms and softmax in float32). Weights are those of the
model and of the perceptual features. Beside them a step has gradients, AdamW's moments, what it is given, activations
and whatever an operation makes on the way: `Peak` counts each storage once while it lives. What a process has beside
its tensors, CUDA's context and the workspaces of its libraries, is not in it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import whole
from benchmarks.common import Result
from benchmarks.device import Row
from benchmarks.memory import CARDS, RESERVE, Peak, gpu_types
from benchmarks.step import ARM
from benchmarks.training import FAMILIES, Prepared, prepared
from pipeline.config.params import Params

MIB = 2**20


def measure(params: Params, quick: bool) -> Result:
    batches = [params.train.batch] if quick else [params.train.batch, whole.LARGE]
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(params, Path(folder) / "data", 2 * max(batches))
        rows = [_row(params, family, data, batch) for family in FAMILIES for batch in batches]
    settings = {"arm": vars(ARM), "tokens": max(params.grid.tokens), "reserve": RESERVE}
    settings |= {"tokenizer": params.tokenizer.model_dump(), "backbone": params.backbone.model_dump()}
    return Result(settings, {"Memory of a training, MiB, and trainings on a card by memory alone": rows})


def _row(params: Params, family: str, data: Prepared, batch: int) -> Row:
    train = params.train.model_copy(update={"precision": "bf16"})
    trainer = whole.trainer(params.model_copy(update={"train": train}), family, data, batch, "never")
    weights = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.perceptual.parameters()]
    held = sum(tensor.nbytes for tensor in weights)
    learning = sum(parameter.nbytes for parameter in trainer.model.parameters() if parameter.requires_grad)
    with gpu_types(), Peak(weights) as peak:
        trainer.run(ARM, 1)  # two steps: in the second AdamW's moments are there from the start
    row: Row = {"family": family, "batch": batch, "weights": held / MIB, "gradients and moments": 3 * learning / MIB}
    row |= {"most at once": (held + peak.most) / MIB}
    return row | {f"{card} GB": int((1 - RESERVE) * 1024 * card // row["most at once"]) for card in CARDS}
