"""The training loop, its optimizer and its checkpoints."""

import math

import pytest
import torch
from tiny import Stopped
from torch import nn

from infotok.errors import InfotokError
from infotok.training.checkpoints import Checkpoints, read_tensors, write_tensors
from infotok.training.loop import cosine, make_optimizer, run
from infotok.training.runtime import stream

CPU = torch.device("cpu")


def test_learning_rate_rises_linearly_and_falls_by_a_half_cosine():
    rates = [cosine(step, 110, 10, 0.1) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(module, checkpoints=None, ema=0.0, stop_at=None, spoil_at=None):
    def losses(step):
        if step == stop_at:
            raise Stopped
        x = torch.randn(16, 4, generator=stream(CPU, step))
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss * math.nan if step == spoil_at else loss}

    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)
    settings = {"steps": 40, "warmup": 5, "ema": ema, "checkpoints": checkpoints, "checkpoint_every": 10}
    return run(module, optimizer, losses, **settings)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(tmp_path, ema):
    undisturbed, history = linear(), None
    history = train(undisturbed, ema=ema)
    with pytest.raises(Stopped):
        train(linear(), Checkpoints(tmp_path / "kept"), ema, stop_at=27)
    (tmp_path / "kept" / "step-00000030.safetensors.99.tmp").write_bytes(b"half of a file")  # of a killed writer
    resumed = linear()
    assert train(resumed, Checkpoints(tmp_path / "kept"), ema) == history
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = linear()
    train(moved)
    assert (ema == 0) == torch.equal(moved[0].weight, undisturbed[0].weight)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:]])
def test_a_damaged_checkpoint_is_named_and_left_alone(tmp_path, damage):
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        train(linear(), kept, stop_at=15)
    path = kept.latest()
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InfotokError, match=r"step-00000010\.safetensors: is damaged .*; delete it"):
        train(linear(), kept)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    kept, module = Checkpoints(tmp_path), linear()
    with pytest.raises(InfotokError, match=r"step 26: loss is not finite.*step-00000020\.safetensors"):
        train(module, kept, spoil_at=25)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert kept.latest().name == "step-00000020.safetensors"


def test_equal_contents_give_equal_bytes(tmp_path):
    for name in ("a", "b", "c", "d", "e", "f"):
        write_tensors(tmp_path / name, {"x": torch.ones(2), "y": torch.zeros(1)}, {"one": 1, "two": 2})
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_a_files_json_keeps_the_order_of_its_keys(tmp_path):
    meta = {"shape": 1, "color": {"size": 2, "blue": 3}}
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, meta)
    tensors, back = read_tensors(tmp_path / "a.safetensors", "")
    assert torch.equal(tensors["x"], torch.ones(2))
    assert list(back) == ["shape", "color"]
    assert list(back["color"]) == ["size", "blue"]


def moments(optimizer):
    return [
        {name: value.clone() for name, value in optimizer.state[parameter].items()}
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def test_a_checkpoint_brings_back_weights_moments_average_and_history(tmp_path):
    def optimized(module):
        return make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)

    module = linear()
    optimizer = optimized(module)
    for step in range(3):
        module(torch.randn(8, 4, generator=stream(CPU, step))).square().mean().backward()
        optimizer.step()
    average = {name: tensor.detach() * 2 for name, tensor in module.state_dict().items()}
    history = [{"step": 3, "loss": 0.1}]
    kept = Checkpoints(tmp_path / "run")
    kept.save(2, linear(), optimized(linear()), {}, [], [])
    kept.save(3, module, optimizer, average, history, [{"loss": 0.5}])
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000003.safetensors"]

    other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    other_optimizer = optimized(other)
    other_average = {name: torch.zeros_like(tensor) for name, tensor in other.state_dict().items()}
    assert kept.restore(other, other_optimizer, other_average) == (3, history, [{"loss": 0.5}])
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
        assert torch.equal(other_average[name], 2 * tensor)
    for one, two in zip(moments(optimizer), moments(other_optimizer), strict=True):
        assert set(one) == {"step", "exp_avg", "exp_avg_sq"}
        assert one["step"] == 3
        assert all(torch.equal(two[name], value) for name, value in one.items())
    kept.clear()
    assert not kept.folder.exists()
    assert Checkpoints(tmp_path / "none").restore(other, other_optimizer, {}) == (0, [], [])


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        train(linear(), kept, stop_at=15)
    wide = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))
    with pytest.raises(InfotokError, match=r"step-00000010\.safetensors: does not fit .*'0\.\w+'.*; delete it"):
        train(wide, kept)


def headers(tmp_path):
    """A checkpoint's bytes and the places of its header."""
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        train(linear(), kept, 0.9, stop_at=15)
    content = kept.latest().read_bytes()
    return kept, content, range(8, 8 + int.from_bytes(content[:8], "little"))


def restored(kept, content):
    kept.latest().write_bytes(content)
    module = linear()
    average = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)
    return kept.restore(module, optimizer, average)


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_a_flipped_bit_in_the_headers_syntax_names_the_file(tmp_path, bit):
    kept, content, places = headers(tmp_path)
    for place in (places[0], places[1], content.index(b"dtype") - 1, content.index(b"F32")):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        with pytest.raises(InfotokError, match=r"step-00000010\.safetensors: .*; delete it"):
            restored(kept, bytes(damaged))
        assert kept.latest().read_bytes() == bytes(damaged)


def test_a_flipped_bit_anywhere_in_the_header_names_the_file(tmp_path):
    kept, content, places = headers(tmp_path)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 3
        with pytest.raises(InfotokError, match=r"step-00000010\.safetensors: "):
            restored(kept, bytes(damaged))


def test_a_checkpoint_of_a_killed_writer_alone_starts_the_run_anew(tmp_path):
    (tmp_path / "step-00000010.safetensors.99.tmp").write_bytes(b"half of a file")
    kept, fresh, other = Checkpoints(tmp_path), linear(), linear()
    assert kept.latest() is None
    assert train(fresh, kept) == train(other)
    assert torch.equal(fresh[0].weight, other[0].weight)


def test_a_resumed_history_is_whole_where_checkpoints_fall_between_logged_steps(tmp_path):
    def trained(checkpoints, stop_at=None):
        module = linear()

        def losses(step):
            if step == stop_at:
                raise Stopped
            x = torch.randn(16, 4, generator=stream(CPU, step))
            return {"loss": (module(x) - x.sum(1, keepdim=True)).square().mean()}

        optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)
        return run(module, optimizer, losses, steps=40, warmup=5, checkpoints=checkpoints, checkpoint_every=15)

    with pytest.raises(Stopped):
        trained(Checkpoints(tmp_path), stop_at=17)
    assert trained(Checkpoints(tmp_path)) == trained(None)


def test_the_average_of_weights_is_the_recursion_worked_by_hand():
    module, seen = linear(), []
    start = module[0].weight.detach().clone()
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.0, CPU)

    def losses(step):
        x = torch.randn(16, 4, generator=stream(CPU, step))
        return {"loss": module(x).square().mean()}

    run(
        module,
        optimizer,
        losses,
        steps=6,
        warmup=1,
        ema=0.7,
        after_step=lambda step: seen.append(module[0].weight.detach().clone()),
    )
    expected = start
    for weight in seen:
        expected = 0.7 * expected + 0.3 * weight
    torch.testing.assert_close(module[0].weight.detach(), expected)
    assert not torch.allclose(expected, seen[-1])


def test_matrices_decay_and_vectors_do_not():
    module = linear()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run(
        module,
        make_optimizer([(list(module.parameters()), 0.01)], 0.5, CPU),
        lambda step: {"loss": 0.0 * sum(parameter.sum() for parameter in module.parameters())},
        steps=1,
        warmup=1,
    )
    for name, tensor in module.state_dict().items():
        shrunk = 1 - 0.01 * 0.5 if tensor.ndim == 2 else 1.0
        torch.testing.assert_close(tensor, before[name] * shrunk)


def test_clipping_scales_what_it_bounds_and_leaves_the_unclipped_alone():
    module = nn.Module()
    module.bound, module.free = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [module.bound, module.free], "lr": 1.0, "peak": 0.5}])
    history = run(
        module,
        optimizer,
        lambda step: {"loss": 3 * module.bound[0] + 4 * module.bound[1] + 100 * module.free[0]},
        steps=1,
        warmup=1,
        clip=2.0,
        unclipped=[module.free],
    )
    # The gradient (3, 4) of norm 5 shrinks to norm 2; the step is half of it.
    assert module.bound.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert module.free.tolist() == [-50.0]
    assert history[0]["gradient_norm"] == pytest.approx(5.0)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step():
    module = nn.Linear(1, 1)
    before = module.weight.detach().clone()
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.0, CPU)
    with pytest.raises(InfotokError, match=r"step 1: the gradient is not finite"):
        run(module, optimizer, lambda step: {"loss": (0 * module.weight).sqrt().sum()}, steps=3, warmup=1)
    assert torch.equal(module.weight, before)
