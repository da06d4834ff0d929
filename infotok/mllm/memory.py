"""What makes large models fit: activations that are made again backward, weights in the type that they need.

The language model's layers and the tokenizer's blocks are found in lists of modules, as every model here has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from infotok.errors import InfotokError
from infotok.mllm.adapter import Adapter
from infotok.training.checkpoints import Checkpoints


def language_layers(adapter: Adapter) -> list[nn.Module]:
    """The layers of the language model: the members of a list of modules that hold what `lm_layers` names."""
    found: dict[str, nn.Module] = {}
    for name, _ in adapter.model.named_modules():
        if re.fullmatch(adapter.lm_layers, name):
            member = re.match(r"(.*?\.\d+)\.", name)
            if member is not None:
                found[member[1]] = adapter.model.get_submodule(member[1])
    return list(found.values())


def tokenizer_blocks(adapter: Adapter) -> list[nn.Module]:
    """The blocks of encoder and decoder: the innermost members of lists of modules that are made of several layers."""
    modules = [adapter.tokenizer, *([] if adapter.extra is None else [adapter.extra])]
    return [block for module in modules for block in _innermost(module)]


def _innermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inside = list(_innermost(child))
        yield from inside
        called = type(child).forward is not nn.Module.forward and any(True for _ in child.children())
        if called and not inside and isinstance(module, nn.ModuleList):
            yield child


def make_again(modules: list[nn.Module]) -> None:
    """Keep of each module's activations its input alone, and compute the others again backward."""
    for module in modules:
        module.forward = _again(module.forward)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def remembered(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return remembered


@contextmanager
def enough_memory(remedies: list[str], checkpoints: Checkpoints | None) -> Iterator[None]:
    """Raises InfotokError where the device's memory is not enough inside: what would help, and what is kept."""
    try:
        yield
    except torch.OutOfMemoryError:
        kept = checkpoints.latest() if checkpoints else None
        raise InfotokError(
            f"the device's memory is not enough: {', or '.join(remedies)}"
            + (f" (the last checkpoint stays: {kept})" if kept else "")
        ) from None


def set_types(adapter: Adapter, narrow: bool) -> None:
    """Put all weights into float32; narrow: those of the language model that are not trained into bfloat16.

    What is trained has to be wide: an update is often less than a 256th of a weight, which bfloat16 would round away.
    What is not trained is computed in bfloat16 anyway. The tokenizer stays wide, since rounding of its weights would
    change the codes that images have.
    """
    of_tokenizer = {id(parameter) for parameter in adapter.tokenizer.parameters()}
    for parameter in adapter.model.parameters():
        kept = parameter.requires_grad or id(parameter) in of_tokenizer
        parameter.data = parameter.data.to(torch.bfloat16 if narrow and not kept else torch.float32)
    if adapter.extra is not None:
        adapter.extra.float()
