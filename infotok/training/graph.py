"""A training step as one graph: compiled by torch.compile, or on a GPU recorded as a CUDA graph and replayed.

Called operation by operation, a step of a small model leaves a GPU idle most of the time: the processor takes longer to
launch a kernel than the kernel takes. A replay launches all of them at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from infotok.distributed import World
from infotok.errors import InfotokError, SettingError
from infotok.training.inputs import mapped, tensors_of
from infotok.training.step import Step

Compile = Literal["auto", "never", "record", "fuse"]
SHAPES = 64  # combinations of widths of texts for which a step is compiled; PyTorch's own limit is 8


def resolved(compile: Compile, key: str, device: torch.device, world: World) -> Compile:
    """What `auto` means: `record` for one process on a GPU, else `never`. key: the name of the setting.

    Raises:
        SettingError: the setting does not suit the device or several processes.
    """
    alone, cuda = world.size == 1, device.type == "cuda"
    if compile == "auto":
        return "record" if alone and cuda else "never"
    if compile != "never" and not alone:
        raise SettingError(key, f"'{compile}' is for one process, and {world.size} train together here; set it to auto")
    if compile == "record" and not cuda:
        raise SettingError(key, "'record' is for GPUs, and this computes on the CPU; set it to auto or to fuse")
    return compile


def one_graph(
    step: Step, compile: Compile, device: torch.device, backend: str = "inductor"
) -> Callable[[Any], dict[str, Tensor]]:
    """The step as `resolved` says: as it is, recorded, or compiled and on a GPU recorded too.

    backend: of torch.compile. Nothing may be left out of its graphs, of which there are three: losses, their backward,
    and clip, optimizer and moving average.
    """
    if compile == "fuse":
        torch._dynamo.config.recompile_limit = SHAPES
        # Around it PyTorch ends a graph on purpose, lest a compiler forget that nothing here has a gradient.
        step.move = inspect.unwrap(type(step.optimizer).step).__get__(step.optimizer)
        settings: Any = {"fullgraph": True, "dynamic": False, "backend": backend}
        step.losses, step.update = torch.compile(step.losses, **settings), torch.compile(step.update, **settings)
    return Recorded(step) if device.type == "cuda" and compile != "never" else step


class Recorded:
    """A step as CUDA graphs, one for each combination of shapes that it is given.

    The first step of a shape runs operation by operation, in which libraries get ready; the second is recorded. Graphs
    share their memory, as they are replayed one after the other and leave nothing there but numbers read at once.

    Made where a stream is current, it records there and is to be replayed there: matrix products have a workspace for
    each stream, which two graphs recorded on one stream would both write, replayed at once on two.
    """

    def __init__(self, step: Step):
        self.step, self.memory = step, torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        # On the default stream nothing can be recorded.
        self.stream = torch.cuda.Stream() if current == torch.cuda.default_stream() else current
        self.recordings: dict[tuple[torch.Size, ...], Recording | None] = {}

    def __call__(self, given: Any) -> dict[str, Tensor]:
        shapes = tuple(tensor.shape for tensor in tensors_of(given))
        if shapes not in self.recordings:
            self.recordings[shapes] = None
            return self._by_operations(given)
        recording = self.recordings[shapes] or Recording(self.step, given, self.stream, self.memory)
        self.recordings[shapes] = recording
        return recording.replay(given)

    def _by_operations(self, given: Any) -> dict[str, Tensor]:
        """On the stream of the recording, as whatever is done before it must be."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            found = self.step(given)
        current.wait_stream(self.stream)
        return found


class Recording:
    """A CUDA graph of a step, with the tensors that it reads and writes, always the same."""

    def __init__(self, step: Step, given: Any, stream: torch.cuda.Stream, memory: Any):
        """Raises InfotokError: an operation of the step cannot be recorded."""
        self.given, self.graph = mapped(torch.clone, given), torch.cuda.CUDAGraph()
        self.read = tensors_of(self.given)
        try:
            with torch.cuda.graph(self.graph, pool=memory, stream=stream):
                numbers = step(self.given)
                self.written = torch.stack([number.float() for number in numbers.values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise InfotokError(f"compile: a step cannot be recorded as a CUDA graph ({reason}); use never") from error
        self.names = list(numbers)

    def replay(self, given: Any) -> dict[str, Tensor]:
        """Do the step with other tensors of the same shapes."""
        for own, new in zip(self.read, tensors_of(given), strict=True):
            own.copy_(new)
        self.graph.replay()
        return dict(zip(self.names, self.written.clone().unbind(), strict=True))
