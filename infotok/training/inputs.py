"""What training steps are given: batches and random numbers, on the device before the step begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infotok.random import Draw, Source, Stream, Tape


class Inputs:
    """Called with the number of a step, gives what it is given. To a GPU it comes from pinned memory and by a stream of
    its own, while the step before is under way.

    make: what a step is given, from its number and the sources of its random numbers. streams: these, as generators.
    """

    def __init__(
        self, make: Callable[[int, list[Source]], Any], streams: Callable[[int], list[Stream]], device: torch.device
    ):
        self.make, self.streams, self.device = make, streams, device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.draws: list[list[Draw]] | None = None

    def __call__(self, step: int) -> Any:
        if self.side is None:
            return mapped(lambda tensor: tensor.to(self.device), self._made(step))
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.side):
            brought = mapped(self._bring, self._made(step))
        current.wait_stream(self.side)
        for tensor in tensors_of(brought):
            tensor.record_stream(current)  # so that its memory serves no other before the step has read it
        return brought

    @torch.no_grad()
    def rehearse(self, module: nn.Module, losses: Callable[[Any], Any], extra: list[Tensor] | None = None) -> None:
        """From here on draw random numbers before the step, in the order and of the shapes that its losses ask for.
        These are computed once, which changes neither buffers nor the tensors `extra`."""
        module.train()
        kept = [*module.buffers(), *(extra or [])]
        before, streams = [tensor.clone() for tensor in kept], self.streams(0)
        for source in streams:
            source.asked = []
        losses(mapped(lambda tensor: tensor.to(self.device), self.make(0, list(streams))))
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        self.draws = [source.asked or [] for source in streams]

    def _made(self, step: int) -> Any:
        streams = self.streams(step)
        if self.draws is None:
            return self.make(step, list(streams))
        both = zip(streams, self.draws, strict=True)
        return self.make(step, [Tape([draw.by(source) for draw in asked]) for source, asked in both])

    def _bring(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if tensor.device.type == "cpu" else tensor


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure of dataclasses, lists and tapes with every tensor changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Tape):
        return Tape(mapped(function, value.numbers))
    if isinstance(value, list):
        return [mapped(function, one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(mapped(function, getattr(value, field.name)) for field in dataclasses.fields(value)))
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of such a structure, in order."""
    found: list[Tensor] = []

    def found_one(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(found_one, value)
    return found
