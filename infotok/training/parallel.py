"""How processes that train one network together hold it: each all of it, or each a part.

Either way one function, of the network's weights and of what a step is given, computes the losses. What is made of it
here computes the same, and its backward leaves in every process the mean of the processes' gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infotok.distributed import World
from infotok.tensors import fill, module_tensors, state_digest, whole

Parallel = Literal["replicate", "shard"]
Kind = TypeVar("Kind", bound=nn.Module)


class AsModule(nn.Module):
    """A function as the forward of a module, whose gradients PyTorch can average. held: whose parameters it uses."""

    def __init__(self, held: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.held, self.function = held, function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


def replicated(module: nn.Module, losses: Callable[..., Any], backwards: int = 1) -> DistributedDataParallel:
    """Losses of a module that every process holds, averaged while the backward pass goes on.

    backwards: of a step. Where there are several, all but the last stand within `no_sync`, and every pass looks for the
    parameters that it does not reach; of one the first pass tells, since PyTorch does not take both.
    """
    # Its buffers are alike without being sent: what is computed from a batch is computed from the rows of all.
    held = nn.ParameterList(parameter for parameter in module.parameters() if parameter.requires_grad)
    return DistributedDataParallel(
        AsModule(held, losses),
        init_sync=False,  # the loop asks whether they are alike
        gradient_as_bucket_view=True,
        static_graph=backwards == 1,
        find_unused_parameters=backwards > 1,
    )


def to_train(module: Kind, parallel: Parallel, world: World, device: torch.device) -> Kind:
    """What is trained in a module's place: itself, on the device; or a copy, for `sharded`, in whose place the module
    gets the weights in the end (`collect`)."""
    return copy.deepcopy(module) if parallel == "shard" and world.size > 1 else module.to(device)


def sharded(module: nn.Module, losses: Callable[..., Any], world: World, layers: Iterable[nn.Module] = ()) -> AsModule:
    """Losses of a module of which every process keeps a part from here on, on its device: parameters become those that
    an optimizer is to take. layers: those in it that are gathered one at a time, when they compute.

    Raises:
        InfotokError: the processes do not hold the same weights.
    """
    world.require_alike(state_digest(module, 0))  # each keeps its part of its own
    called = AsModule(module, losses)
    spread(called, layers, world)
    return called


def spread(root: nn.Module, layers: Iterable[nn.Module], world: World, narrow: bool = False) -> None:
    """Spread weights, gradients and optimizer states by FSDP2 (`fully_shard`), in place.

    Layers are gathered one at a time; narrow: in bfloat16, their gradients averaged in float32. All else that is in
    `root` is gathered from its forward to its backward. Scalars, which cannot be spread, every process keeps.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert world.device is not None
    mesh = init_device_mesh(world.device.type, (world.size,))
    scalars = {parameter for parameter in root.parameters() if not parameter.ndim}
    # Autocast decides about activations, as it does without sharding; a mask of the smallest float32 would overflow.
    policy = MixedPrecisionPolicy(torch.bfloat16 if narrow else None, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=scalars)
    fully_shard(root, mesh=mesh, ignored_params=scalars)
    for scalar in scalars:
        scalar.data = scalar.data.to(world.device)
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(lambda parameter: _average(parameter, world))


def _average(parameter: Tensor, world: World) -> None:
    assert parameter.grad is not None
    parameter.grad.copy_(world.average(parameter.grad))


@contextmanager
def gathered(root: Any) -> Iterator[None]:
    """Let what is in a sharded root, but for its layers, be used outside of its forward, by all processes at once; of
    what is not sharded nothing is done."""
    sharded = hasattr(root, "unshard")
    if sharded:
        root.unshard()
    try:
        yield
    finally:
        if sharded:
            root.reshard()


def collect(module: nn.Module, trained: nn.Module, device: torch.device) -> None:
    """Give a module all weights of a sharded copy, and put it on the device; all processes call this."""
    own = module_tensors(module)
    for name, tensor in module_tensors(trained).items():
        fill(own[name], whole(tensor))
    module.to(device).eval()
