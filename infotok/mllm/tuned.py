"""What a tuning leaves: an ordinary model folder, and beside it what says how many bits its tokens carry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from infotok.errors import InfotokError, SettingError
from infotok.information.bottleneck import InformationBottleneck
from infotok.mllm.adapter import Adapter
from infotok.mllm.loading import open_model
from infotok.mllm.options import ModelConfig
from infotok.tensors import load_module, read_tensors, save_module, write_tensors

MODEL, PRIOR, TOKENIZER = "model", "prior.safetensors", "tokenizer.safetensors"


@dataclass(frozen=True)
class Tuned:
    """A model and the prior that learned how frequent its tokens are; variance: of the channel, as of
    `Adapter.calibrated`."""

    adapter: Adapter
    bottleneck: InformationBottleneck
    variance: float


def save_tokenizer(adapter: Adapter, variance: float, folder: Path) -> None:
    """Write what tunings start from: the tokenizer, what the model lacks of it, and the variance of its channel."""
    save_module(_parts(adapter), folder / TOKENIZER, {"variance": variance, "extra_is_new": adapter.extra_is_new})


def load_tokenizer(adapter: Adapter, folder: Path, remedy: str) -> float:
    """Put a saved tokenizer into a model; returns the variance of its channel.

    Raises:
        InfotokError: it is missing or damaged; `remedy` says what would help.
    """
    tensors, described = read_tensors(folder / TOKENIZER, remedy)
    load_module(_parts(adapter), tensors, folder / TOKENIZER, remedy)
    adapter.extra_is_new = described["extra_is_new"]
    return described["variance"]


def _parts(adapter: Adapter) -> nn.ModuleDict:
    parts = {"tokenizer": adapter.tokenizer, "extra": adapter.extra}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


def save_prior(
    bottleneck: InformationBottleneck, weights: dict[str, Tensor], rank: int, variance: float, folder: Path
) -> None:
    """Write the prior of a tuning, beside its model. weights: of `Tuner.prior`."""
    sizes = {"tokens": bottleneck.tokens}
    sizes |= {"codebook": bottleneck.codebook} if bottleneck.codebook else {"dimension": bottleneck.dimension}
    described = {"prior": bottleneck.kind, "rank": rank, "variance": variance, **sizes}
    write_tensors(folder / PRIOR, weights, described)


def load_tuned(folder: Path, remedy: str, config: ModelConfig, tokens: int, device: torch.device) -> Tuned:
    """What a tuning has left in a folder; tokens: of an image, at most.

    Raises:
        InfotokError: something is missing or damaged; `remedy` says what would help. SettingError: as of `open_model`.
    """
    if not (folder / MODEL / "config.json").is_file():
        raise InfotokError(f"{folder / MODEL}: holds no model; {remedy}")
    own = {"name": os.path.join(".", folder / MODEL), "decoder": None, "revision": None}
    try:
        adapter = open_model(config.model_copy(update=own), tokens, device)
    except SettingError as error:
        if error.key != ("name",):
            raise
        what = error.problem.rsplit("; ", 1)[0]  # its own remedy is one for pretrained models
        raise InfotokError(f"{what}; {remedy}") from None
    tensors, described = read_tensors(folder / PRIOR, remedy)
    variance = described.pop("variance")
    bottleneck = InformationBottleneck("none", beta=0.0, **described).to(device)
    load_module(bottleneck.prior or nn.Identity(), tensors, folder / PRIOR, remedy)
    return Tuned(adapter, bottleneck.eval(), variance)
