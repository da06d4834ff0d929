"""Tokenizers and models: how new ones begin, and their files, from which they are built again."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from infotok.data.text import TextCodec
from infotok.files import write_text
from infotok.models.backbone import Backbone, BackboneConfig, text_codec
from infotok.models.family import family_class
from infotok.models.unified import UnifiedModel
from infotok.tensors import load_module, read_tensors, save_module
from infotok.tokenizer.base import Tokenizer, TokenizerConfig

TOKENIZER, MODEL, TEXT = "tokenizer.safetensors", "model.safetensors", "text.json"


def new_tokenizer(family: str, config: TokenizerConfig, *, image_size: int, tokens: int, seed: int) -> Tokenizer:
    """An untrained tokenizer for a family and budget, its weights drawn from the seed."""
    torch.manual_seed(seed)
    return family_class(family).tokenizer_class(config, image_size=image_size, tokens=tokens)


def save_tokenizer(tokenizer: Tokenizer, family: str, folder: Path) -> None:
    """Write `tokenizer.safetensors`, whose header describes the tokenizer."""
    save_module(tokenizer, folder / TOKENIZER, {"family": family, "tokenizer": tokenizer.describe()})


def load_tokenizer(folder: Path, remedy: str) -> Tokenizer:
    """A tokenizer, built from its own file alone.

    Raises:
        InfotokError: the file is missing or damaged; `remedy` says what would help.
    """
    tensors, description = read_tensors(folder / TOKENIZER, remedy)
    tokenizer = family_class(description["family"]).tokenizer_class.from_description(description["tokenizer"])
    load_module(tokenizer, tensors, folder / TOKENIZER, remedy)
    return tokenizer


def new_model(
    family: str, tokenizer: Tokenizer, config: BackboneConfig, trained_text: Path, seed: int
) -> tuple[UnifiedModel, TextCodec]:
    """The model that joint training starts from, and its text tokenizer. All arms of a seed start alike.

    trained_text: the text tokenizer that `prepare` trained, for a backbone that brings none.
    """
    codec = text_codec(config, trained_text)
    torch.manual_seed(seed)
    return UnifiedModel(family, tokenizer, Backbone.create(config, codec.vocabulary)), codec


def save_model(model: UnifiedModel, codec: TextCodec, folder: Path) -> None:
    """Write `text.json`, the text tokenizer, and `model.safetensors`, whose header describes the model."""
    marks = {"pad": codec.pad, "end": codec.end}
    text = json.dumps({"marks": marks, "tokenizer": codec.tokenizer.to_str()})
    write_text(folder / TEXT, text)
    save_module(model, folder / MODEL, model.describe())


def load_model(folder: Path, remedy: str) -> tuple[UnifiedModel, TextCodec]:
    """A trained model, built from its own files alone, ready to evaluate.

    Raises:
        InfotokError: a file is missing or damaged; `remedy` says what would help.
    """
    tensors, description = read_tensors(folder / MODEL, remedy)
    tokenizer = family_class(description["family"]).tokenizer_class.from_description(description["tokenizer"])
    model = UnifiedModel(description["family"], tokenizer, Backbone.from_description(description["backbone"]))
    load_module(model, tensors, folder / MODEL, remedy)
    return model.eval(), TextCodec.from_saved(folder / TEXT, remedy)
