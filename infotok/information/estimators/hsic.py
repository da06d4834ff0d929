"""Kernel dependence (Ma, Lewis, Kleijn 2020; Wang et al. 2021): HSIC, or its normalized form CKA, of images and tokens.

It needs no density of the tokens: what counts is whether images that look alike get tokens that are alike, weighted by
the pixels, so that what fills most pixels, the background, is compressed first.
"""

from torch import Tensor

from infotok.information.objective import Observed, contrast

NEEDS = ("inputs", "vectors")


def penalty(observed: Observed) -> Tensor:
    """Dependence of images and tokens, dimensionless (scalar); the unbiased estimate may be below 0."""
    return observed.inputs_and_vectors.dependence()


def independent(observed: Observed) -> Tensor:
    """The penalty of tokens that are permuted over the images, without gradient (scalar)."""
    return observed.inputs_and_vectors.permuted(observed.generator)


def consistency(observed: Observed) -> Tensor:
    """InfoNCE of tokens and texts (scalar), or their dependence, which asks for more: that tokens be as far from each
    other as texts are, where InfoNCE asks that texts can be told from tokens."""
    if observed.kernels.consistency == "infonce":
        return contrast(observed)
    return observed.kernels.dependence(observed.text, observed.vectors, observed.generator, observed.present)
