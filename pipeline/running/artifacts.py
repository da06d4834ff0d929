"""What stages hand to each other: data, judge, tokenizer and model, written whole and read with a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from infotok.data.arrow import read_manifest
from infotok.data.text import TextCodec
from infotok.examiners.judge import Judge
from infotok.examiners.matching import Matcher
from infotok.examiners.perceptual import Perceptual
from infotok.models.backbone import Backbone, BackboneConfig, text_codec
from infotok.models.family import family_class
from infotok.models.unified import UnifiedModel
from infotok.tokenizer.base import Tokenizer, TokenizerConfig
from infotok.training.checkpoints import load_module, module_tensors, read_tensors, write_tensors
from pipeline.config.cells import Cell
from pipeline.config.params import Params
from pipeline.files import write_text
from pipeline.running.results import Layout

ATTRIBUTES = ("shape", "color", "size")


def attribute_classes(manifest: dict) -> dict[str, int]:
    """Attribute name -> number of values, for the judge's heads."""
    return {name: manifest["factors"]["structure"][name] for name in ATTRIBUTES}


def save_module(module: torch.nn.Module, path: Path, description: dict) -> None:
    """Weights, and in the header what builds the module again."""
    write_tensors(path, module_tensors(module), description)


def judge_of(manifest: dict) -> str | None:
    """What judges images of a prepared data set: `objects`, `matching`, or None where nothing is drawn."""
    return manifest.get("judge", "objects")


def load_judge(layout: Layout) -> Judge | Matcher | None:
    """The judge of the prepared data; None where there is none."""
    if judge_of(read_manifest(layout.data)) is None:
        return None
    return _load_examiner(layout.judge / "judge.safetensors", "judge", {"objects": Judge, "matching": Matcher})


def load_perceptual(layout: Layout) -> Perceptual:
    return _load_examiner(layout.perceptual / "perceptual.safetensors", "perceptual", {"objects": Perceptual})


def _load_examiner(path: Path, stage: str, kinds: dict[str, type]):
    remedy = f"delete {path.parent} and run `dvc repro {stage}`"
    tensors, description = read_tensors(path, remedy)
    module = kinds[description.pop("kind", "objects")](**description)
    load_module(module, tensors, path, remedy)
    return module.eval()


def new_tokenizer(params: Params, cell: Cell) -> Tokenizer:
    """An untrained tokenizer of this cell's family and budget, its weights drawn from the cell's seed."""
    torch.manual_seed(cell.seed)
    config = TokenizerConfig(image_size=params.data.image_size, tokens=cell.tokens, **params.tokenizer.model_dump())
    return family_class(cell.family).tokenizer_class(config)


def load_tokenizer(layout: Layout, cell: Cell) -> Tokenizer:
    """The pretrained tokenizer that the cell starts from."""
    path = layout.tokenizer(cell) / "tokenizer.safetensors"
    remedy = f"delete {path.parent} and run `dvc repro pretrain@{cell.tokenizer_key}`"
    tensors, _ = read_tensors(path, remedy)
    tokenizer = new_tokenizer(layout.params, cell)
    load_module(tokenizer, tensors, path, remedy)
    return tokenizer


def new_model(layout: Layout, cell: Cell) -> tuple[UnifiedModel, TextCodec]:
    """The model that joint training starts from, and its text tokenizer. All arms of a seed start alike."""
    backbone = BackboneConfig(**layout.params.backbone.model_dump())
    codec = text_codec(backbone, layout.data / "text.json")
    tokenizer = load_tokenizer(layout, cell)
    torch.manual_seed(cell.seed)
    return UnifiedModel(cell.family, tokenizer, Backbone.create(backbone, codec.vocabulary)), codec


def save_model(model: UnifiedModel, codec: TextCodec, folder: Path) -> None:
    """`model.safetensors`, whose header describes the model, and `text.json`, its text tokenizer."""
    marks = {"pad": codec.pad, "end": codec.end}
    write_text(folder / "text.json", json.dumps({"marks": marks, "tokenizer": codec.tokenizer.to_str()}))
    save_module(model, folder / "model.safetensors", model.describe())


def load_model(layout: Layout, cell: Cell) -> tuple[UnifiedModel, TextCodec]:
    """A trained model, built from its own file alone, ready to evaluate."""
    folder = layout.stage("train", cell)
    path = folder / "model.safetensors"
    remedy = f"delete {folder} and run `dvc repro train@{cell.key}`"
    tensors, description = read_tensors(path, remedy)
    tokenizer = family_class(description["family"]).tokenizer_class(TokenizerConfig(**description["tokenizer"]))
    model = UnifiedModel(description["family"], tokenizer, Backbone.from_description(description["backbone"]))
    load_module(model, tensors, path, remedy)
    return model.eval(), TextCodec.from_saved(folder / "text.json", remedy)
