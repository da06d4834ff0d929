"""The layers of a small Llama written out, over the weights that transformers holds, saves and loads.

The same function to rounding as transformers' own forward, which stays what reads a key-value cache, in a third of the
operations: attention runs in blocks of columns that see each other, the gains of norms are in the weights of the
products that follow, one product gives queries, keys and values, and backward passes are written out.

Shapes: B examples, S columns, N = B S, H heads of D numbers, I = H D; G blocks of W columns, P with padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from infotok.models.packing import Blocks, Part, pack


def suits(config: Any) -> bool:
    """Whether a model of transformers is a Llama as it is written out here."""
    return (
        config.model_type == "llama"
        and config.num_key_value_heads == config.num_attention_heads
        and not (config.attention_bias or config.mlp_bias)
        and config.hidden_act == "silu"
    )


def write_out(model: LlamaModel) -> None:
    """Let the layers of a model compute as here where they are given what `read` packs; weights stay as they are."""
    for layer in model.layers:
        layer.__class__ = Layer


@dataclass
class Packed:
    """What layers share. cos, sin: (N, I) of the pairs that rotate, queries scaled. mask: (B, G, W, P), added to
    scores. All are of the type of the products."""

    blocks: Blocks
    cos: Tensor
    sin: Tensor
    mask: Tensor


def read(model: LlamaModel, parts: list[Part]) -> list[Tensor]:
    """Hidden states (B, L, width) of each part of a packed sequence."""
    embeddings, allowed, positions = pack(parts)
    blocks, device = Blocks(parts), embeddings.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
    attention = model.layers[0].self_attn
    heads, pairs = model.config.num_attention_heads, attention.head_dim // 2

    def of_pairs(turn: Tensor) -> Tensor:
        both = torch.stack([turn[..., :pairs] * attention.scaling, turn[..., :pairs]], 2)
        return both[:, :, :, None].expand(-1, -1, -1, heads, -1).flatten(2).flatten(0, 1).to(kind)

    cos, sin = model.rotary_emb(embeddings, positions)
    hidden, seen = embeddings, blocks.mask(allowed)
    mask = torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill_(~seen, torch.finfo(kind).min)
    packed = Packed(blocks, of_pairs(cos), of_pairs(sin), mask)
    with torch.autocast(device, enabled=False):
        for layer in model.layers:
            hidden = layer(hidden, packed=packed)
        hidden = model.norm.weight * call(Normalized, hidden, model.norm.variance_epsilon)
    return list(hidden.split([part.embeddings.shape[1] for part in parts], 1))


class Layer(LlamaDecoderLayer):
    """One layer; without `packed` it is transformers' own."""

    def forward(self, hidden_states: Tensor, *given: Any, packed: Packed | None = None, **named: Any) -> Any:
        if packed is None:
            return super().forward(hidden_states, *given, **named)
        attention, mlp, kind = self.self_attn, self.mlp, packed.mask.dtype
        gain, heads = self.input_layernorm.weight, attention.config.num_attention_heads
        projection = by_halves(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, heads)
        hidden = call(
            Attended, hidden_states, (projection * gain).to(kind), attention.o_proj.weight.to(kind), packed.cos,
            packed.sin, packed.mask, packed.blocks, heads, self.input_layernorm.variance_epsilon,
        )  # fmt: skip
        gain = self.post_attention_layernorm.weight
        return call(
            Gated, hidden, (mlp.gate_proj.weight * gain).to(kind), (mlp.up_proj.weight * gain).to(kind),
            mlp.down_proj.weight.to(kind), self.post_attention_layernorm.variance_epsilon,
        )  # fmt: skip


def by_halves(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(3 I, width): of queries and keys first the rows of the first halves of all heads, then of the second, which
    rotary positions turn against them; then the values."""
    both = torch.stack([query, key]).unflatten(1, (heads, 2, -1))  # 2, H, halves, D / 2, width
    return torch.cat([both.permute(2, 0, 1, 3, 4).flatten(0, 3), value])


def call(function: type[torch.autograd.Function], *given: Any) -> Tensor:
    """The function with its own backward; a compiler, which joins operations itself, derives one."""
    if torch.compiler.is_compiling():
        return function.compute(*given)[0]  # type: ignore[attr-defined]
    return function.apply(*given)


class Normalized(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) over the last dimension."""

    @staticmethod
    def compute(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()
        return x * scale, scale

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        unit, scale = Normalized.compute(x, eps)
        ctx.save_for_backward(x, scale)
        return unit

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        return Normalized.gradient(x, scale, upstream), None

    @staticmethod
    def gradient(x: Tensor, scale: Tensor, upstream: Tensor) -> Tensor:
        upstream, unit = upstream.to(x.dtype), x * scale
        mean = torch.linalg.vecdot(upstream, unit)[..., None] / x.shape[-1]
        return torch.addcmul(upstream, unit, mean, value=-1).mul_(scale)


class Attended(torch.autograd.Function):
    """x + attention(norm(x)) for x (B, S, width); weight: (3 I, width) as of `by_halves`; out: (width, I)."""

    @staticmethod
    def compute(
        x: Tensor, weight: Tensor, out: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, blocks: Blocks, heads: int,
        eps: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        batch, columns, _ = x.shape
        inner = out.shape[1]
        unit, scale = Normalized.compute(x, eps)
        unit = unit.to(weight.dtype).flatten(0, 1)
        product = unit @ weight.t()
        halves = product[:, : 2 * inner].unflatten(1, (2, inner))
        turned = halves * cos[:, None]
        turned[:, 0].addcmul_(halves[:, 1], sin, value=-1)
        turned[:, 1].addcmul_(halves[:, 0], sin)
        turned = turned.reshape(batch, columns, 2, 2, heads, -1).permute(3, 0, 4, 1, 2, 5)
        query_key = blocks.spread(turned.flatten(-2).contiguous())
        value = blocks.spread(product[:, 2 * inner :].view(batch, columns, heads, -1).transpose(1, 2).contiguous())
        query = query_key[0, ..., : blocks.width, :].flatten(0, 2)
        key, value = query_key[1].flatten(0, 2), value.flatten(0, 2)
        scores = (query @ key.mT).unflatten(0, (batch, heads, -1)) + mask[:, None]
        weights = scores.softmax(-1).flatten(0, 2)
        mixed = blocks.pick((weights @ value).unflatten(0, (batch, heads, -1)))
        mixed = mixed.transpose(1, 2).reshape(batch * columns, inner)
        return x + (mixed @ out.t()).view_as(x), scale, unit, query, key, value, weights, mixed

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        found, *kept = Attended.compute(*given)
        x, weight, out, cos, sin, _, ctx.blocks, ctx.heads, _ = given
        ctx.save_for_backward(x, weight, out, cos, sin, *kept)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out, cos, sin, scale, unit, query, key, value, weights, mixed = ctx.saved_tensors
        blocks, apart = ctx.blocks, (len(x), ctx.heads, -1)
        narrow = upstream.to(weight.dtype).flatten(0, 1)
        of_mixed = (narrow @ out).view(*x.shape[:2], ctx.heads, -1).transpose(1, 2).contiguous()
        of_mixed = blocks.place(of_mixed).flatten(0, 2)
        of_scores = torch._softmax_backward_data(of_mixed @ value.mT, weights, -1, weights.dtype)
        of_values = blocks.total((weights.mT @ of_mixed).unflatten(0, apart))
        of_both = [(of_scores @ key).unflatten(0, apart), (of_scores.mT @ query).unflatten(0, apart)]
        turned = (
            torch.stack([blocks.total(values) for values in of_both])
            .unflatten(-1, (2, -1))
            .permute(1, 3, 4, 0, 2, 5)
            .reshape(len(unit), 2, -1)
        )
        halves = turned * cos[:, None]
        halves[:, 0].addcmul_(turned[:, 1], sin)
        halves[:, 1].addcmul_(turned[:, 0], sin, value=-1)
        of_product = torch.cat([halves.flatten(1), of_values.transpose(1, 2).reshape(len(unit), -1)], 1)
        of_x = Normalized.gradient(x, scale, (of_product @ weight).view_as(x)).add_(upstream)
        return of_x, of_product.t() @ unit, narrow.t() @ mixed, None, None, None, None, None, None


class Gated(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) * up(norm(x))) for x (..., width); weights: (M, width), (M, width), (width, M)."""

    @staticmethod
    def compute(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, ...]:
        unit, scale = Normalized.compute(x, eps)
        unit = unit.to(gate.dtype).flatten(0, -2)
        # Two products: halves of one would be rows of no whole number of vectors, three times as slow in what follows.
        gates, values = unit @ gate.t(), unit @ up.t()
        opened = F.silu(gates)
        mixed = opened * values
        return x + (mixed @ down.t()).view_as(x), scale, unit, gates, values, opened, mixed

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        found, *kept = Gated.compute(*given)
        ctx.save_for_backward(*given[:4], *kept)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, scale, unit, gates, values, opened, mixed = ctx.saved_tensors
        narrow = upstream.to(gate.dtype).flatten(0, -2)
        of_mixed = narrow @ down
        of_values = of_mixed * opened
        of_gates = torch.ops.aten.silu_backward(of_mixed.mul_(values), gates)
        of_unit = torch.addmm(of_gates @ gate, of_values, up).view_as(x)
        of_x = Normalized.gradient(x, scale, of_unit).add_(upstream)
        return of_x, of_gates.t() @ unit, of_values.t() @ unit, narrow.t() @ mixed, None
