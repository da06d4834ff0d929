"""Training steps as one graph: compiled without a break, with the losses of the same step operation by operation."""

import functools

import pytest
import together
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
CASES["ar-dib"][1].update(consistency="likelihood")
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
    (_, history), (_, wanted) = one, other
    assert len(history) == len(wanted)
    for line, numbers in zip(history, wanted, strict=True):
        assert line == pytest.approx(numbers, rel=1e-4, abs=1e-5)


def by_the_library(optimizer):
    """Let the library's own kernel do what AdamW does, as where a step is recorded."""
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)


def losses_alone(step, compile, device):
    if compile == "fuse":
        by_the_library(step.optimizer)
        step.losses = torch.compile(step.losses, fullgraph=True, dynamic=False, backend="aot_eager")
    return step


# Families with codes have the same tokenizers and priors: all estimators with one of them, and with the other those to
# which its own drawing matters.
COMPILED = [name for name in CASES if name not in ("mask-dib", "mask-hsic")]


@pytest.mark.parametrize("name", COMPILED)
def test_a_step_is_one_graph_and_has_the_losses_of_its_operations(material, monkeypatch, name):
    """A break in a graph is an error. Texts are wider by padding, which changes no loss. What follows the gradients is
    the same for all, and compiled with one of them, as with pretraining."""
    if name != "mask-vib":
        monkeypatch.setattr(joint, "one_graph", losses_alone)
    assert_close(
        trained(material, monkeypatch, *CASES[name], "fuse"), trained(material, monkeypatch, *CASES[name], "never")
    )


WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class NoWaiting(TorchDispatchMode):
    """Fails where an operation asks the device for a number, or copies one from the host. A number written in Python is
    an argument of its kernel: such a one may be used otherwise."""

    def __init__(self):
        super().__init__()
        self.of_host = []  # kept, so that no other tensor gets their names

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        name = function._schema.name
        of_host = {id(tensor) for tensor in self.of_host}
        if name in WAITS:
            assert id(arguments[0]) in of_host, f"{name} waits for the device"
        if name in ("aten::index", "aten::index_put_"):
            chosen = [index for index in arguments[1] if index is not None]
            assert all(index.dtype != torch.bool for index in chosen), "how many rows are chosen waits for the device"
        if name == "aten::copy_":
            assert id(arguments[1]) not in of_host, "a number is copied from the host"
        found = function(*arguments, **settings or {})
        if name == "aten::lift_fresh":
            assert found.ndim == 0, "numbers are copied from the host"
            self.of_host.append(found)
        return found


@pytest.mark.parametrize("asks", [lambda x: x[x > 0], lambda x: float(x.sum()), lambda x: x + torch.tensor([1.0, 2.0])])
def test_what_waits_for_the_device_is_seen(asks):
    with pytest.raises(AssertionError), NoWaiting():
        asks(torch.ones(2))


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_the_device_for_nothing(material, monkeypatch, name):
    """Which could not be recorded."""

    def watched(step, compile, device):
        by_the_library(step.optimizer)

        def watched_step(given):
            with NoWaiting():
                return step(given)

        return watched_step

    monkeypatch.setattr(joint, "one_graph", watched)
    _, history = trained(material, monkeypatch, *CASES[name], "fuse")
    assert len(history) == 3


@pytest.mark.parametrize("family", ["ar", "flow"])
def test_a_step_of_pretraining_is_one_graph_and_has_the_losses_of_its_operations(material, monkeypatch, family):
    assert_close(
        together.pretrained(material[0], family, compile="fuse"),
        together.pretrained(material[0], family, compile="never"),
    )


def test_a_step_in_bf16_is_one_graph(material, monkeypatch):
    family, settings = CASES["ar-dib"]
    monkeypatch.setattr(joint, "one_graph", losses_alone)
    compiled, expected = (
        trained(material, monkeypatch, family, settings | {"precision": "bf16"}, how)[1] for how in ("fuse", "never")
    )
    for line, wanted in zip(compiled, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=0.02)


def test_a_resumed_training_of_one_graph_ends_like_an_undisturbed_one(material, monkeypatch, tmp_path):
    settings = {"estimator": "vib", "beta": 0.1, "gamma": 0.5, "checkpoint_every": 2, "compile": "fuse"}
    monkeypatch.setitem(together.ARMS, "tried", settings)
    undisturbed, history = together.joint(*material, "mask", "tried")
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        together.joint(*material, "mask", "tried", checkpoints=kept, observe=together.interrupt)
    resumed, found = together.joint(*material, "mask", "tried", checkpoints=kept)
    assert found == history
    assert all(map(torch.equal, resumed.state_dict().values(), undisturbed.state_dict().values()))


def test_a_tape_gives_the_numbers_of_its_generator_in_their_order():
    source, asked = stream(CPU, 1), [(torch.rand, (2, 3)), (torch.randn, (4,)), (permutation, (5,))]
    source.asked = []
    drawn = [shared_random(how, shape, source) for how, shape in asked]
    again = stream(CPU, 1)
    tape = Tape([draw.by(again) for draw in source.asked])
    assert all(torch.equal(shared_random(how, s, tape), d) for (how, s), d in zip(asked, drawn, strict=True))
    assert sorted(drawn[2].tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"draw 4 asks for shape \(1,\), but nothing was drawn"):
        shared_random(torch.rand, (1,), tape)
    with pytest.raises(ValueError, match=r"draw 1 asks for shape \(3, 2\), but numbers of shape \(2, 3\)"):
        shared_random(torch.rand, (3, 2), Tape(drawn))


def test_a_rehearsal_changes_nothing_and_draws_what_its_steps_will():
    module, seen = torch.nn.BatchNorm1d(3), torch.zeros(1)

    def losses(sources):
        seen.add_(1)
        return module(shared_random(torch.randn, (5, 3), sources[0]))

    inputs = Inputs(lambda step, sources: sources, lambda step: [stream(CPU, step)], CPU)
    expected = shared_random(torch.randn, (5, 3), inputs(2)[0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs.rehearse(module, losses, [seen])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert seen.item() == 0
    assert torch.equal(inputs(2)[0].next((5, 3)), expected)


def test_tensors_of_a_structure_are_found_in_the_order_in_which_they_are_mapped(material):
    texts = together.Batches(*material, together.JOINT, seed=0).texts(0)
    doubled = mapped(lambda tensor: tensor + tensor, [texts, Tape([torch.ones(2)]), "name"])
    assert doubled[2] == "name"
    assert len(tensors_of(doubled)) == 3 * len(texts.asked) + 2 + 1
    assert torch.equal(tensors_of(doubled)[0], 2 * texts.questions[0].ids)
    assert doubled[1].next((2,)).tolist() == [2, 2]


def test_a_setting_that_suits_neither_device_nor_processes_is_named():
    cuda, two = torch.device("cuda"), World(0, 2, CPU)
    assert resolved("auto", "train.compile", CPU, ALONE) == resolved("auto", "train.compile", cuda, two) == "never"
    assert resolved("auto", "train.compile", cuda, ALONE) == "record"
    assert resolved("fuse", "train.compile", CPU, ALONE) == "fuse"
    with pytest.raises(InfotokError, match=r"train\.compile: 'record' is for GPUs"):
        resolved("record", "train.compile", CPU, ALONE)
    with pytest.raises(InfotokError, match=r"pretrain\.compile: 'fuse' is for one process, and 2 train together"):
        resolved("fuse", "pretrain.compile", CPU, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_step_has_the_numbers_of_its_operations_and_waits_for_nothing(material, monkeypatch, name):
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    monkeypatch.setattr(together, "CPU", torch.device("cuda"))
    monkeypatch.setattr(joint, "one_graph", one_graph)
    family, settings = CASES[name]
    settings = settings | {"steps": 10}
    expected = trained(material, monkeypatch, family, settings, "never")

    def strict(step, compile, device):
        whole, calls = one_graph(step, compile, device), []

        def called(given):
            calls.append(given)
            if len(calls) > 5:  # one before recording, one in it
                torch.cuda.set_sync_debug_mode("error")
            try:
                return whole(given)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return called

    monkeypatch.setattr(joint, "one_graph", strict)
    assert_close(trained(material, monkeypatch, family, settings, "record"), expected)
