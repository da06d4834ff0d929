"""A joint step whose weights, gradients and optimizer states are spread over processes (`infotok.training.parallel`).

The language model's layers are gathered one at a time. Everything else, embeddings, head, tokenizer and regularizer, is
used by several parts of the joint step and is gathered with the step itself, from its forward to its backward.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from infotok.distributed import World
from infotok.mllm.adapter import Adapter
from infotok.mllm.joint import JointStep
from infotok.mllm.memory import language_layers
from infotok.training.parallel import spread


def shard(step: JointStep, world: World, narrow: bool) -> None:
    """Spread a joint step, in place; parameters become those that an optimizer is to take. narrow: as of
    `infotok.training.parallel.spread`.

    Raises:
        InfotokError: the processes do not hold the same weights.
    """
    world.require_alike(_mark(step))  # each process keeps its part of its own weights
    spread(step, language_layers(step.adapter), world, narrow)


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
