"""How kernel dependence is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from infotok.options import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

    from infotok.information.dependence import Pair
    from infotok.random import Source


class Kernels(Section):
    """Section `kernels`, of the hsic arms.

    estimator: `unbiased`, quadratic in the batch, or `rff`, linear. bandwidth: `dimension` (sigma sqrt d), `median` or
    a number, as in `infotok.information.dependence`. normalized: CKA, between 0 and 1 whatever the bandwidths, instead
    of HSIC. consistency: what keeps tokens and captions consistent, their dependence (`kernels`) or the learned bound
    of the other estimators (`infonce`).
    """

    estimator: Literal["unbiased", "rff"] = "unbiased"
    bandwidth: Literal["median", "dimension"] | Positive = "dimension"
    normalized: bool = True
    consistency: Literal["infonce", "kernels"] = "infonce"

    def pair(self, x: Tensor, z: Tensor, generator: Source | None = None, present: Tensor | None = None) -> Pair:
        """Paired rows x (n, ...) and z (n, ...), to read their dependence from; `generator` draws random features.
        present: (n,) bool, the rows that count; None: all."""
        from infotok.information.dependence import pair

        return pair(
            x,
            z,
            normalized=self.normalized,
            estimator=self.estimator,
            bandwidth_x=self.bandwidth,
            bandwidth_z=self.bandwidth,
            generator=generator,
            present=present,
        )

    def dependence(
        self, x: Tensor, z: Tensor, generator: Source | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Dependence of the rows of `pair`, scalar."""
        return self.pair(x, z, generator, present).dependence()
