"""Kernel dependence (Ma, Lewis, Kleijn 2020; Wang et al. 2021): HSIC, or its normalized form CKA, of images and tokens.

It needs no density of the tokens: what counts is whether images that look alike get tokens that are alike, weighted by
the pixels, so that what fills most pixels, the background, is compressed first.
"""

from infotok.information.consistency import contrast
from infotok.information.objective import Observed


def penalty(observed: Observed):
    """Dependence of images and tokens, dimensionless (scalar); the unbiased estimate may be below 0."""
    return observed.pixels_and_tokens.dependence()


def independent(observed: Observed):
    """The penalty of tokens that are permuted over the images, without gradient (scalar)."""
    return observed.pixels_and_tokens.permuted(observed.generator)


def consistency(observed: Observed):
    """InfoNCE of tokens and captions (scalar), or their dependence, which asks for more: that tokens be as far from
    each other as captions are, where InfoNCE asks that captions can be told from tokens."""
    if observed.kernels.consistency == "infonce":
        return contrast(observed)
    told, text, vectors = (observed.gather(rows) for rows in (observed.told, observed.text, observed.vectors))
    return observed.kernels.dependence(text[told], vectors[told], observed.generator)
