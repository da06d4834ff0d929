"""How the visual codes of a model fare while it is tuned, beside those of the pretrained tokenizer on the same images.

Shapes: N images, H x W pixels, h x w tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotok.information.rate import code_statistics
from infotok.mllm.codes import CodeAdapter

COLLAPSED = 0.25  # of the reference's perplexity


@torch.no_grad()
def health(adapter: CodeAdapter, pixels: Tensor, reference_codes: Tensor, batch: int = 8) -> dict[str, float]:
    """Of pixels (N, 3, H, W) as the processor gives them, and the codes (N, h, w) that the pretrained tokenizer gave
    them.

    Returns:
        `unchanged`, the share of codes that are still the reference's; `dead_codes`, the share of the codebook that no
        image uses; `perplexity` of the codes' usage; `reference_dead_codes` and `reference_perplexity`, the same of
        the reference; `psnr`, dB, of what is decoded from the codes, the mean over images.
    """
    modes = [(module, module.training) for module in adapter.model.modules()]
    adapter.model.eval()
    codes, psnr = [], []
    for some in pixels.split(batch):
        codes.append(adapter.codes(some))
        wanted = adapter.unit_pixels(some).float()
        decoded = adapter.unit_pixels(adapter.decode(adapter.codebook()[codes[-1]]).float())
        error = (decoded - wanted).square().flatten(1).mean(1).clamp_min(1e-10)  # 100 dB where nothing is lost
        psnr.append(-10 * error.log10())
    for module, training in modes:  # each its own: of a model that is trained, batch norms are not in training mode
        module.training = training
    found, reference = torch.cat(codes).cpu(), reference_codes.cpu()
    now, before = (code_statistics(some.flatten(1), len(adapter.codebook())) for some in (found, reference))
    return {
        "unchanged": float((found == reference).float().mean()),
        "dead_codes": 1 - now["usage"],
        "perplexity": now["perplexity"],
        "reference_dead_codes": 1 - before["usage"],
        "reference_perplexity": before["perplexity"],
        "psnr": float(torch.cat(psnr).mean()),
    }


def collapse(values: dict[str, float]) -> str | None:
    """A sentence where the codebook has collapsed, from what `health` gives; None where it has not."""
    perplexity, before = values["perplexity"], values["reference_perplexity"]
    if perplexity >= COLLAPSED * before:
        return None
    return (
        f"the codebook has collapsed: images use it like {perplexity:.1f} codes, the pretrained tokenizer like "
        f"{before:.1f}, and {values['unchanged']:.0%} of the codes are the same; lower beta, tokenizer_rate or "
        "lm_gradient, or raise beta_warmup"
    )
