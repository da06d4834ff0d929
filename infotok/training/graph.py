"""A training step as one graph: compiled by torch.compile, and on a GPU recorded once as a CUDA graph and replayed.

Called operation by operation, a step of a small model leaves a GPU idle most of the time: the processor takes longer to
launch a kernel than the kernel takes. A replay launches all of them at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infotok.distributed import World
from infotok.errors import InfotokError
from infotok.random import Draw, Stream, Tape
from infotok.training.step import Losses, Step

Compile = Literal["auto", "never", "capture", "fuse"]


def resolved(compile: Compile, device: torch.device, world: World) -> Compile:
    """What `auto` means: `capture` for one process on a GPU, else `never`.

    Raises:
        InfotokError: the setting does not suit the device or several processes.
    """
    alone, cuda = world.size == 1, device.type == "cuda"
    if compile == "auto":
        return "capture" if alone and cuda else "never"
    if compile != "never" and not alone:
        raise InfotokError(
            f"train.compile: {compile} is for one process, and {world.size} train together; set it to auto, or train "
            "each cell by one process"
        )
    if compile == "capture" and not cuda:
        raise InfotokError("train.compile: capture records CUDA graphs, and this is a CPU; set it to auto or fuse")
    return compile


def one_graph(step: Step, compile: Compile, device: torch.device, backend: str = "inductor") -> Any:
    """The step as `resolved` says: itself, compiled, recorded, or both."""
    if compile == "fuse":
        settings: Any = {"fullgraph": True, "dynamic": False, "backend": backend}
        step.losses, step.update = torch.compile(step.losses, **settings), torch.compile(step.update, **settings)
    return Recorded(step) if device.type == "cuda" and compile != "never" else step


class Recorded:
    """A step as CUDA graphs, one for each combination of shapes that it is given.

    The first step of a shape runs operation by operation, in which libraries get ready; the second is recorded. Memory
    of a graph stays its own: it writes where it wrote before.
    """

    def __init__(self, step: Step):
        self.step = step
        self.graphs: dict[tuple[torch.Size, ...], Recording | None] = {}

    def __call__(self, given: Any) -> dict[str, Tensor]:
        shapes = tuple(tensor.shape for tensor in tensors_of(given))
        if shapes not in self.graphs:
            self.graphs[shapes] = None
            return on_another_stream(lambda: self.step(given))
        recording = self.graphs[shapes] or Recording(self.step, given)
        self.graphs[shapes] = recording
        return recording.replay(given)


class Recording:
    """A CUDA graph of a step, what it reads and what it writes."""

    def __init__(self, step: Step, given: Any):
        """Raises InfotokError: an operation of the step cannot be recorded."""
        self.given, self.graph = mapped(torch.clone, given), torch.cuda.CUDAGraph()
        self.read = tensors_of(self.given)
        try:
            with torch.cuda.graph(self.graph):
                numbers = step(self.given)
                self.written = torch.stack([number.float() for number in numbers.values()])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise InfotokError(
                f"train.compile: the step cannot be recorded as a CUDA graph ({reason}); set it to never"
            ) from error
        self.names = list(numbers)

    def replay(self, given: Any) -> dict[str, Tensor]:
        """Do the step with other tensors of the same shapes."""
        torch._foreach_copy_(self.read, tensors_of(given))
        self.graph.replay()
        return dict(zip(self.names, self.written.clone().unbind(), strict=True))


@torch.no_grad()
def draws_of(module: nn.Module, losses: Losses, given: Any, streams: list[Stream]) -> list[list[Draw]]:
    """What a training step draws from each of the streams that it is given, found by a step that changes nothing."""
    module.train()
    before = [buffer.clone() for buffer in module.buffers()]
    for source in streams:
        source.asked = []
    losses(given)
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)
    return [source.asked or [] for source in streams]


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
    mapped(lambda tensor: found.append(tensor) or tensor, value)
    return found


class Transfer:
    """Brings what a step is given to a device: to a GPU from pinned memory and by a stream of its own, while the step
    before is still under way."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, make: Callable[[], Any]) -> Any:
        """What `make` makes, on the device."""
        if self.stream is None:
            return mapped(lambda tensor: tensor.to(self.device), make())
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            brought = mapped(self._bring, make())
        current.wait_stream(self.stream)
        for tensor in tensors_of(brought):
            tensor.record_stream(current)  # so that its memory serves no other before the step has read it
        return brought

    def _bring(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if tensor.device.type == "cpu" else tensor


def on_another_stream(action: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What an action returns that runs on a stream of its own, as must what is done before a recording."""
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(current)
    with torch.cuda.stream(other):
        found = action()
    current.wait_stream(other)
    return found
