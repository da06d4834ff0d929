"""What a frozen tokenizer makes of the training images, made once: no step then opens an image or runs the tokenizer.

It lies in files of some images each. A file is there whole or not at all, so that what was stopped goes on after the
last one, and says what it was made of: one that was made otherwise, or is damaged, is made anew. For the language model
codes alone would do; the rate needs features, since q(z|x) is soft around them.
Shapes: n images of a file, h x w tokens, D dimensions of a code, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from infotok.errors import InfotokError, SettingError
from infotok.mllm.batches import Example, Known
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.data import Shown, size_of
from infotok.mllm.tuning import Tuner
from infotok.tensors import read_tensors, write_tensors
from infotok.training.runtime import autocast, has_bf16

log = logging.getLogger("infotok")
IMAGES = 64  # of a file
AT_ONCE = 8  # images that are encoded together
OPEN = 128  # files that stay open


def can_cache(tuner: Tuner) -> bool:
    """Whether tokens are codes of a tokenizer that stays as it is, and all that the language model reads of images."""
    adapter = tuner.adapter
    modules = [adapter.tokenizer, *([] if adapter.extra is None else [adapter.extra])]
    learns = any(parameter.requires_grad for module in modules for parameter in module.parameters())
    return isinstance(adapter, CodeAdapter) and adapter.shared and not learns


class Cached:
    """What each step of a tuning shows, as `Shown` gives it, with known tokens.

    Making it makes what the folder lacks, by all processes of the tuning, a share each. The folder is the caller's to
    remove.

    Raises:
        InfotokError: `can_cache` says no, an image is gone, or a file cannot be written.
    """

    def __init__(self, tuner: Tuner, shown: Shown, folder: Path):
        if not can_cache(tuner):
            raise SettingError(
                "cache", "is for a frozen tokenizer of codes that the language model reads and draws; leave it out"
            )
        self.shown, self.folder, self._adapter = shown, folder, tuner.adapter
        # Too few images of a size are never shown.
        groups = [(size, rows) for size, rows in shown.groups.items() if len(rows) >= shown.batch]
        self.parts = [(size, rows[at : at + IMAGES]) for size, rows in groups for at in range(0, len(rows), IMAGES)]
        self._place = {int(row): (n, i) for n, (_, rows) in enumerate(self.parts) for i, row in enumerate(rows)}
        self._open = lru_cache(OPEN)(lambda n: safe_open(self._path(n), framework="pt"))
        self._blank = lru_cache(OPEN)(lambda width, height: Image.new("RGB", (width, height)))
        world = tuner.world
        with tuner.whole():
            tokenizer = _digest_of(tuner)
            for n in range(world.rank, len(self.parts), world.size):
                self._make(tuner, n, tokenizer)
        world.any(False)  # until all files are there

    def examples(self, step: int) -> tuple[list[Example], list[bool]]:
        """What a step shows, and whose captions the model does not see."""
        examples, dropped = self.shown.examples(step)
        rows = self.shown.rows(step).tolist()
        pairs = zip(examples, rows, strict=True)
        return [
            replace(one, image=self._standing_in(row), known=partial(self._known, row)) for one, row in pairs
        ], dropped

    def _path(self, n: int) -> Path:
        return self.folder / f"tokens-{n:06d}.safetensors"

    def _known(self, row: int) -> Known:
        n, i = self._place[row]
        file, own = self._open(n), slice(i, i + 1)
        features, codes, errors = (file.get_slice(name)[own] for name in ("features", "codes", "errors"))
        return Known(features, codes.long(), errors)

    def _standing_in(self, row: int) -> Image.Image:
        """A blank image that the processor makes the same size of: of this size itself, where it leaves that alone."""
        height, width = self.parts[self._place[row][0]][0]
        if self.shown.grid(width, height) != (height, width):
            width, height = size_of(self.shown.split, row)
        return self._blank(width, height)

    def _make(self, tuner: Tuner, n: int, tokenizer: str) -> None:
        """Make a file, unless it is there, whole and made of the same."""
        path, (size, rows) = self._path(n), self.parts[n]
        made_of = {"tokenizer": tokenizer, "size": list(size), "images": _identity(self.shown, rows)}
        if path.is_file():
            try:
                if read_tensors(path, "it is made anew")[1] == made_of:
                    return
                log.warning("%s: was made of other images or by another tokenizer; it is made anew", path)
            except InfotokError as error:
                log.warning("%s", error)
        made = [vars(_encoded(tuner, pixels)) for pixels in self._pixels(rows)]
        write_tensors(path, {name: torch.cat([one[name] for one in made]) for name in made[0]}, made_of)

    def _pixels(self, rows: np.ndarray) -> Iterator[Tensor]:
        for at in range(0, len(rows), AT_ONCE):
            images = [self.shown.pictures[int(row)] for row in rows[at : at + AT_ONCE]]
            yield self._adapter.ask(images, [""] * len(images))["pixel_values"]


@torch.no_grad()
def _encoded(tuner: Tuner, pixels: Tensor) -> Known:
    """As the joint step makes it, on the CPU, with codes in 32 bits."""
    adapter, step = tuner.adapter, tuner.step
    assert isinstance(adapter, CodeAdapter)
    with autocast(adapter.device, tuner.config.precision):
        features = adapter.features(pixels)
        codes = adapter.nearest(features)
        vectors = adapter.quantized(features.float(), codes, step.variance, 1.0).vectors
        errors = (adapter.decode(vectors).float() - pixels.float()).square().flatten(1).mean(1)
    return Known(features.cpu(), codes.int().cpu(), errors.cpu())


def _digest_of(tuner: Tuner) -> str:
    """Of what decides how an image is encoded: weights, precision, the processor's settings."""
    adapter, precision = tuner.adapter, tuner.config.precision
    narrow = precision == "bf16" or (precision == "auto" and has_bf16(adapter.device))
    processor = getattr(adapter.processor, "image_processor", None)
    settings = {} if processor is None else processor.to_dict()
    digest = hashlib.sha256(json.dumps([narrow, settings], sort_keys=True, default=str).encode())
    for module in [adapter.tokenizer, *([] if adapter.extra is None else [adapter.extra])]:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            copy = tensor.detach().to("cpu", copy=True)  # sharding frees the memory of its own, which numpy would hold
            digest.update(copy.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _identity(shown: Shown, rows: np.ndarray) -> str:
    """Of images: of their files names, sizes and times; of what has no file the pixels."""
    split, digest = shown.split, hashlib.sha256(str(shown.pictures.color).encode())
    for row in rows.tolist():
        file = split.files[row] if split.files else ""
        found: Any = None
        if file:
            with suppress(OSError):  # of one that is gone says so who opens it
                found = Path(file).stat()
        if found is None:
            digest.update(np.ascontiguousarray(split.images[row]).tobytes())
        else:
            digest.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
