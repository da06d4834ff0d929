"""Training steps as one graph: compiled without a break, with the losses of the same step operation by operation."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import together
from infotok.distributed import ALONE, World
from infotok.errors import InfotokError
from infotok.information.kernels import Kernels
from infotok.random import Tape, permutation, shared_random, stream
from infotok.training import joint, loop, pretrain
from infotok.training.checkpoints import Checkpoints
from infotok.training.graph import one_graph, resolved
from infotok.training.inputs import Inputs, mapped, tensors_of
from tiny import Stopped

CPU = torch.device("cpu")
CONSISTENT = {"gamma": 0.5, "caption_dropout": 0.4, "steps": 3}
CASES = {
    f"{family}-{estimator}": (family, {"estimator": estimator, "beta": 0.1, **CONSISTENT})
    for family in ("ar", "mask", "flow")
    for estimator in ("vib", "dib", "ceb", "hsic")
}
CASES["mask-vib"][1].update(target_bits=6.0, prior="autoregressive")
CASES["ar-ceb"][1].update(ema=0.5)
CASES["flow-hsic"][1].update(kernels=Kernels(estimator="rff", consistency="kernels", bandwidth="median"))


@pytest.fixture(autouse=True)
def compiled_by_autograd_alone(monkeypatch):
    """With aot_eager: graphs are found and differentiated, and their operations are PyTorch's own."""
    torch._dynamo.reset()
    for module in (joint, pretrain):
        monkeypatch.setattr(module, "one_graph", functools.partial(one_graph, backend="aot_eager"))
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def material():
    return together.material()


def trained(material, monkeypatch, family, settings, compile):
    monkeypatch.setitem(together.ARMS, "tried", settings | {"compile": compile})
    return together.joint(*material, family, "tried")


def assert_close(one, other):
    (model, history), (expected, wanted) = one, other
    assert len(history) == len(wanted)
    for line, numbers in zip(history, wanted, strict=True):
        assert line == pytest.approx(numbers, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_one_graph_and_has_the_losses_of_its_operations(material, monkeypatch, name):
    """A break in a graph is an error. Texts are wider by padding, which changes no loss."""
    assert_close(
        trained(material, monkeypatch, *CASES[name], "fuse"), trained(material, monkeypatch, *CASES[name], "never")
    )
