"""Weights, gradients and optimizer states spread over processes, by FSDP2 (`torch.distributed.fsdp.fully_shard`).

The language model's layers are gathered one at a time. Everything else, embeddings, head, tokenizer and regularizer, is
used by several parts of the joint step and is gathered with the step itself, from its forward to its backward.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infotok.distributed import World
from infotok.mllm.adapter import Adapter
from infotok.mllm.joint import JointStep
from infotok.mllm.memory import language_layers


def shard(step: JointStep, world: World, narrow: bool) -> None:
    """Spread a joint step, in place; parameters become those that an optimizer is to take. narrow: layers are gathered
    in bfloat16, their gradients averaged in float32.

    Raises:
        InfotokError: the processes do not hold the same weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert world.device is not None
    world.require_alike(_mark(step))  # each process keeps its part of its own weights
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Autocast decides about activations, as it does without sharding; a mask of the smallest float32 would overflow.
    policy = MixedPrecisionPolicy(torch.bfloat16 if narrow else None, torch.float32, cast_forward_inputs=False)
    for layer in language_layers(step.adapter):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(step, mesh=mesh)


@contextmanager
def gathered(step: Any) -> Iterator[None]:
    """Let tokenizer, embeddings and head of a sharded step be used outside of its forward, by all processes at once."""
    step.unshard()
    try:
        yield
    finally:
        step.reshard()


def skeleton(adapter: Adapter, attached: Any) -> tuple[Adapter, Any]:
    """The same without memory for weights: what `fill` makes whole again. attached: of `infotok.mllm.lora.attach`."""
    modules = [adapter.model, *([] if adapter.extra is None else [adapter.extra])]
    empty = {}
    for parameter in (one for module in modules for one in module.parameters()):
        empty[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy((adapter, attached), empty)


def fill(adapter: Adapter, weights: dict[str, Tensor]) -> None:
    """Give a skeleton the weights of `whole_weights`."""
    modules = {"model": adapter.model, **({} if adapter.extra is None else {"extra": adapter.extra})}
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own, assign=True)


def whole_weights(step: JointStep) -> dict[str, Tensor]:
    """All weights of a sharded step, on the CPU of the first process; empty in the others, which must call this too."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(step, options=options))  # type: ignore[arg-type]


@torch.no_grad()
def _mark(module: nn.Module) -> str:
    """Hexadecimal digest that weights of other values hardly have; that of `state_digest` would copy all of them."""
    sums = torch.stack([parameter.double().sum().cpu() for parameter in module.parameters()])
    return hashlib.sha256(sums.numpy().tobytes()).hexdigest()
