"""Distances of perceptual features, against PyTorch's own normalization and numerical gradients."""

import torch
from torch.nn import functional as F

from infotok.examiners.perceptual import Perceptual, _Apart
from tiny import images, normal


def test_distance_and_gradient_are_those_of_normalized_vectors():
    x, y = normal(2, 5, 3, 4).requires_grad_(), normal(2, 5, 3, 4, seed=1)
    with torch.no_grad():
        x[0, :, 0, 0] = y[1, :, 2, 2] = 0.0  # no direction at all
        x[1, :, 0, 0] = 1e-13 * y[1, :, 0, 0]  # too short for one
    wanted = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
    wanted_gradient = torch.autograd.grad(wanted, x)[0]
    for found in (_Apart.apply(x, y), _Apart.compute(x, y)[0]):
        assert torch.allclose(found, wanted)
        assert torch.allclose(torch.autograd.grad(found, x)[0], wanted_gradient)
    assert torch.autograd.gradcheck(_Apart.apply, (normal(2, 5, 3, 4, seed=2).requires_grad_(), y))


def test_images_are_as_far_apart_as_their_normalized_maps():
    torch.manual_seed(0)
    features, (a, b) = Perceptual({"shape": 4}), (images(seed=1), images(seed=2))
    pairs = zip(features.maps(a), features.maps(b), strict=True)
    wanted = sum((F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in pairs)
    assert torch.allclose(features.distance(a, b), wanted)
    assert abs(features.distance(a, a).item()) < 1e-5
