"""Sample-based bounds on I(X; Z) when the channel q(z|x) is known (Poole et al. 2019)."""

import math

import torch
from torch import Tensor


def information_bounds(log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound on I(X; Z) from a batch of N images, each with one sample of its tokens.

    log_q: (N, N), log_q[i, j] = log q(z_i | x_j) in nats, summed over the tokens; z_i was drawn from q(· |
    x_i), so the diagonal is finite. Entries off the diagonal may be −inf (deterministic or truncated
    channels).

    Returns (lower, upper), 0-d tensors in nats, each a bound in expectation over batches:
    lower  mean_i log( q(z_i|x_i) / mean_j q(z_i|x_j) ),     at most log N (InfoNCE with the known
    conditional);
    upper  mean_i log( q(z_i|x_i) / mean_{j≠i} q(z_i|x_j) ), infinite if some z_i is possible under x_i alone.

    Raises ValueError if log_q is not square, N < 2, an entry is nan or +inf, or the diagonal is not finite.
    """
    log_q = torch.as_tensor(log_q)
    log_q = log_q.to(torch.promote_types(log_q.dtype, torch.float32))
    if log_q.ndim != 2 or log_q.shape[0] != log_q.shape[1]:
        raise ValueError(f"log_q must be square, one row a sample and one column an image, got {tuple(log_q.shape)}")
    size = log_q.shape[0]
    if size < 2:
        raise ValueError("log_q must hold at least 2 images: a bound compares each with the others")
    own = log_q.diagonal()
    if not bool(own.isfinite().all()):
        raise ValueError("log_q[i, i] must be finite: sample z_i was drawn from q(z | x_i)")
    if bool(log_q.isnan().any() | log_q.isposinf().any()):
        raise ValueError("log_q must hold log densities, each finite or -inf")
    itself = torch.eye(size, dtype=torch.bool, device=log_q.device)
    log_marginal = log_q.logsumexp(dim=1) - math.log(size)
    log_others = log_q.masked_fill(itself, -math.inf).logsumexp(dim=1) - math.log(size - 1)
    return (own - log_marginal).mean(), (own - log_others).mean()
