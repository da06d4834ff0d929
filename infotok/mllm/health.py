"""How the visual tokens of a model fare while it is tuned, beside those of the pretrained tokenizer on the same images.

Shapes: N images, H x W pixels, h x w tokens, D dimensions of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotok.information.rate import code_statistics
from infotok.mllm.adapter import Adapter
from infotok.mllm.codes import CodeAdapter

COLLAPSED = 0.25  # of the reference's perplexity, or of its variance over images


@torch.no_grad()
def health(adapter: Adapter, pixels: Tensor, reference: Tensor, batch: int = 8) -> dict[str, float]:
    """Of pixels (N, 3, H, W) as the processor gives them, and the tokens that the pretrained tokenizer gave them: codes
    (N, h, w), or vectors (N, h, w, D).

    Returns:
        `psnr`, dB, of what is decoded from the tokens, the mean over images. Of codes: `unchanged`, the share that are
        still the reference's; `dead_codes`, the share of the codebook that no image uses; `perplexity` of the codes'
        usage; `reference_dead_codes` and `reference_perplexity`, the same of the reference. Of vectors: `spread`, their
        variance over images, the mean over places and dimensions; `reference_spread`, that of the reference; `drift`,
        the mean squared distance to the reference, over the reference's spread.
    """
    modes = [(module, module.training) for module in adapter.model.modules()]
    adapter.model.eval()
    tokens, psnr = [], []
    for some in pixels.split(batch):
        tokens.append(adapter.tokens_of(some))
        wanted = adapter.unit_pixels(some).float()
        decoded = adapter.unit_pixels(adapter.decode(adapter.vectors_of(tokens[-1])).float())
        error = (decoded - wanted).square().flatten(1).mean(1).clamp_min(1e-10)  # 100 dB where nothing is lost
        psnr.append(-10 * error.log10())
    for module, training in modes:  # each its own: of a model that is trained, batch norms are not in training mode
        module.training = training
    found, before = torch.cat(tokens).cpu(), reference.cpu()
    if isinstance(adapter, CodeAdapter):
        values = _of_codes(found, before, len(adapter.codebook()))
    else:
        values = _of_vectors(found.float(), before.float())
    return values | {"psnr": float(torch.cat(psnr).mean())}


def _of_codes(found: Tensor, reference: Tensor, codebook: int) -> dict[str, float]:
    now, before = (code_statistics(some.flatten(1), codebook) for some in (found, reference))
    return {
        "unchanged": float((found == reference).float().mean()),
        "dead_codes": 1 - now["usage"],
        "perplexity": now["perplexity"],
        "reference_dead_codes": 1 - before["usage"],
        "reference_perplexity": before["perplexity"],
    }


def _of_vectors(found: Tensor, reference: Tensor) -> dict[str, float]:
    now, before = (float(some.var(0, unbiased=False).mean()) for some in (found, reference))
    return {
        "spread": now,
        "reference_spread": before,
        "drift": float((found - reference).square().mean()) / max(before, 1e-12),
    }


def collapse(values: dict[str, float]) -> str | None:
    """A sentence where the tokens have collapsed, from what `health` gives; None where they have not."""
    of_codes = "perplexity" in values
    name = "perplexity" if of_codes else "spread"
    now, before = values[name], values[f"reference_{name}"]
    if now >= COLLAPSED * before:
        return None
    said = (
        f"the tokens have collapsed: over images they vary by {now:.2g}, those of the pretrained tokenizer by "
        f"{before:.2g}"
    )
    if of_codes:
        said = (
            f"the codebook has collapsed: images use it like {now:.1f} codes, the pretrained tokenizer like "
            f"{before:.1f}, and {values['unchanged']:.0%} of the codes are the same"
        )
    return f"{said}; lower beta, tokenizer_rate or lm_gradient, or raise beta_warmup"
