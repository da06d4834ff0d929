"""Rates of a stochastic token channel q(z|x) under a prior r(z), and statistics of hard codes.

Shapes: B images, K tokens an image, C codebook entries, D dimensions of a continuous token.
Everything is computed in float32 or wider, whatever autocast says: a rate is a small difference of large
terms.
"""

import torch
from torch import Tensor


def categorical_rate(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """Rate KL(q ‖ r) of categorical tokens, the variational upper bound on I(X; Z_k) (Alemi et al. 2017).

    logits: (B, K, C), prior_logits: (K, C) or (B, K, C), both unnormalised. Returns (B, K) in nats; infinite
    where the prior excludes a code that q uses. Averaged over images it equals I(X; Z_k) when r is the
    aggregate posterior. Raises ValueError if the codebooks differ in size.
    """
    log_q, log_r = _log_probabilities(logits, prior_logits)
    return _expectation(logits, log_q - log_r)


def categorical_code_length(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """Code length E_q[−log r], the rate without credit for noise (Strouse & Schwab 2017).

    Shapes, units and errors as in `categorical_rate`; it equals the rate plus the entropy of q.
    """
    _, log_r = _log_probabilities(logits, prior_logits)
    return _expectation(logits, -log_r)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy H(q) of categorical tokens. logits: (B, K, C), unnormalised. Returns (B, K) in nats."""
    return _expectation(logits, -_wide(logits).log_softmax(dim=-1))


def gaussian_rate(
    mean: Tensor,
    log_variance: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_variance: Tensor | None = None,
) -> Tensor:
    """Rate KL(N(mean, variance) ‖ N(prior)) of diagonal Gaussian tokens, summed over dimensions.

    mean, log_variance: (B, K, D); the prior's broadcast against them, and a standard normal stands in for
    what is left out. Returns (B, K) in nats (Kingma & Welling 2014, appendix B, for any diagonal prior).
    """
    shift, log_ratio = _wide(mean), _wide(log_variance)
    precision: float | Tensor = 1.0
    if prior_mean is not None:
        shift = shift - _wide(prior_mean)
    if prior_log_variance is not None:
        log_ratio = log_ratio - _wide(prior_log_variance)
        precision = (-_wide(prior_log_variance)).exp()
    # expm1 keeps the digits of exp(a) − 1 − a near a = 0, where posterior and prior agree.
    return 0.5 * (shift.square() * precision + torch.expm1(log_ratio) - log_ratio).sum(dim=-1)


def code_statistics(codes: Tensor, codebook_size: int) -> dict[str, float]:
    """How hard codes use their codebook.

    codes: integers (N, K) in [0, codebook_size). Returns `code_entropy_bits` (bits per image: the empirical
    entropy of each position, summed over positions; a plug-in estimate, low by about (used − 1) / (2 N ln 2)
    bits a position), `perplexity` (2 to the entropy of the usage pooled over positions), `dead_codes`
    (entries never used) and `usage` (fraction used). Raises ValueError for codes that are empty, not
    integers, not (N, K) or out of range.
    """
    codes = torch.as_tensor(codes)
    if codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"codes must be (images, tokens) and not empty, got shape {tuple(codes.shape)}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    codes = codes.long()
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(f"codes must lie in [0, {codebook_size}), got values from {low} to {high}")
    positions = codes.shape[1]
    offsets = codebook_size * torch.arange(positions, device=codes.device)
    counts = torch.bincount((codes + offsets).flatten(), minlength=positions * codebook_size)
    counts = counts.view(positions, codebook_size).double()
    pooled = counts.sum(dim=0)
    used = int((pooled > 0).sum())
    return {
        "code_entropy_bits": float(_entropy_bits(counts).sum()),
        "perplexity": float(torch.exp2(_entropy_bits(pooled))),
        "dead_codes": float(codebook_size - used),
        "usage": used / codebook_size,
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _log_probabilities(logits: Tensor, prior_logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[-1] != prior_logits.shape[-1]:
        raise ValueError(
            f"logits have {logits.shape[-1]} codes but prior_logits have {prior_logits.shape[-1]}: "
            "both must be over one codebook"
        )
    return _wide(logits).log_softmax(dim=-1), _wide(prior_logits).log_softmax(dim=-1)


def _expectation(logits: Tensor, value: Tensor) -> Tensor:
    """Σ_c q_c · value_c where a code of probability 0 counts 0, in the gradient too (0 · inf is nan)."""
    q = _wide(logits).softmax(dim=-1)  # exp of log_softmax is 30 times as slow on CPU where q is sharp
    return (q * value.masked_fill(q == 0, 0.0)).sum(dim=-1)


def _entropy_bits(counts: Tensor) -> Tensor:
    frequencies = counts / counts.sum(dim=-1, keepdim=True)
    return torch.special.entr(frequencies).sum(dim=-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
