"""The training loop, its optimizer and its checkpoints."""

import errno
import math
import os
import resource
import signal

import pytest
import torch
from torch import nn

from infotok import stopping
from infotok.errors import InfotokError
from infotok.random import stream
from infotok.stopping import deferred, stoppable
from infotok.tensors import read_tensors, write_tensors
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import cosine, make_optimizer, run
from tiny import Stopped

CPU = torch.device("cpu")


def test_learning_rate_rises_linearly_and_falls_by_a_half_cosine():
    rates = [cosine(step, 110, 10, 0.1) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(module, checkpoints=None, ema=0.0, stop_at=None, spoil_at=None, at_step=lambda step: None):
    def losses(step):
        at_step(step)
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
    left = tmp_path / "kept" / "step-00000030.safetensors.99.tmp"
    left.write_bytes(b"half of a file")  # of a killed writer
    resumed = linear()
    assert train(resumed, Checkpoints(tmp_path / "kept"), ema) == history
    assert not left.exists()
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = linear()
    train(moved)
    assert (ema == 0) == torch.equal(moved[0].weight, undisturbed[0].weight)


def convolution():
    torch.manual_seed(0)
    layers = [
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 1),
    ]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def test_a_resumed_run_goes_on_with_moments_in_the_layout_of_its_weights(tmp_path):
    """The fused optimizer walks over the memory of both side by side."""
    undisturbed, resumed = convolution(), convolution()
    assert not undisturbed[2].weight.is_contiguous()
    history = train(undisturbed)
    with pytest.raises(Stopped):
        train(convolution(), Checkpoints(tmp_path / "kept"), stop_at=27)
    assert train(resumed, Checkpoints(tmp_path / "kept")) == history
    assert equal(resumed, undisturbed)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:200],
        lambda b: b[: len(b) // 2],
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:],  # of a weight or a moment
    ],
)
@pytest.mark.parametrize(("whole", "start"), [(True, "step-00000020.safetensors"), (False, "the start")])
def test_a_damaged_checkpoint_is_set_aside_and_an_older_one_or_the_start_serves(tmp_path, caplog, damage, whole, start):
    kept, undisturbed, resumed = Checkpoints(tmp_path / "kept"), linear(), linear()
    history = train(undisturbed)
    with pytest.raises(Stopped):
        train(linear(), kept, stop_at=35)
    assert [path.name[5:13] for path in sorted(kept.folder.iterdir())] == ["00000020", "00000030"]
    path = kept.latest()
    path.write_bytes(damage(path.read_bytes()))
    if not whole:
        (kept.folder / "step-00000020.safetensors").unlink()
    with pytest.raises(Stopped):
        train(resumed, kept, stop_at=25)
    (warning,) = caplog.records
    assert f"{path}: is damaged (" in warning.message
    assert warning.message.endswith(f"it is set aside as {path.name}.damaged, and training goes on from {start}")
    assert path.with_name(path.name + ".damaged").exists()
    assert train(linear(), kept) == history
    again = linear()
    train(again, kept)
    assert equal(again, undisturbed)
    kept.clear()
    assert not kept.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 17, 39])
def test_a_signal_ends_training_after_its_step_with_a_checkpoint(tmp_path, number, at):
    kept, undisturbed, before = Checkpoints(tmp_path), linear(), signal.getsignal(number)
    history = train(undisturbed, ema=0.9)
    with stoppable(), pytest.raises(stopping.Stopped, match=rf"step {at + 1} of 40 is kept in .*step-0*{at + 1}\."):
        train(linear(), kept, 0.9, at_step=lambda step: step == at and signal.raise_signal(number))
    assert signal.getsignal(number) is before
    assert kept.latest().name == f"step-{at + 1:08d}.safetensors"
    resumed = linear()
    assert train(resumed, kept, 0.9) == history
    assert equal(resumed, undisturbed)


def test_a_signal_without_a_place_for_checkpoints_ends_training_all_the_same():
    with stoppable(), pytest.raises(stopping.Stopped, match=r"^stopped by SIGTERM$"):
        train(linear(), at_step=lambda step: step == 5 and signal.raise_signal(signal.SIGTERM))


def test_a_signal_that_nothing_answered_comes_again():
    with stoppable(), pytest.raises(stopping.Stopped), deferred():
        signal.raise_signal(signal.SIGTERM)


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("fault", ["full", "too large"])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_costs_that_checkpoint_alone(tmp_path, monkeypatch, fault):
    """By what a network's file system says at the end, and by a limit that cuts the file off in its middle."""
    kept, undisturbed, limits = Checkpoints(tmp_path), linear(), resource.getrlimit(resource.RLIMIT_FSIZE)
    history = train(undisturbed)

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(step):
        if step == 25 and fault == "full":
            monkeypatch.setattr(os, "fsync", full)
        elif step == 25:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kept.latest().stat().st_size // 2, limits[1]))

    reason = {"full": "No space left", "too large": "File too large"}[fault]
    says = rf"step-00000030\.safetensors: cannot be written \(.*{reason}.*make room"
    try:
        with pytest.raises(InfotokError, match=says):
            train(linear(), kept, at_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-000000{n}.safetensors" for n in (10, 20)]
    resumed = linear()
    assert train(resumed, kept) == history
    assert equal(resumed, undisturbed)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    kept, module = Checkpoints(tmp_path), linear()
    with pytest.raises(InfotokError, match=r"step 26: loss is not finite.*step-00000020\.safetensors"):
        train(module, kept, spoil_at=25)
    assert kept.latest().name == "step-00000020.safetensors"
    tensors, _ = read_tensors(kept.latest(), "")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_careful_training_leaves_the_weights_at_the_last_good_step():
    module, expected = linear(), linear()

    def losses(of, bad):
        return lambda step: {"loss": of(torch.ones(2, 4)).square().mean() * (math.nan if step == bad else 1.0)}

    def trained(one, steps, bad=None, **settings):
        optimizer = make_optimizer([(list(one.parameters()), 0.01)], 0.0, CPU)
        run(one, optimizer, losses(one, bad), steps=steps, warmup=0, final=1.0, **settings)

    trained(expected, 4)
    with pytest.raises(InfotokError, match=r"step 5: loss is not finite"):
        trained(module, 9, bad=4, careful=True)
    assert equal(module, expected)


def test_a_checkpoint_is_written_only_of_steps_that_were_found_finite(tmp_path):
    """Numbers are read every ten steps; a checkpoint that is due earlier reads them first."""
    kept, module = Checkpoints(tmp_path), linear()
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.0, CPU)

    def losses(step):
        return {"loss": module(torch.ones(2, 4)).square().mean() * (math.nan if step == 4 else 1.0)}

    with pytest.raises(InfotokError, match=r"step 5: loss is not finite.*step-00000003\.safetensors"):
        run(module, optimizer, losses, steps=9, warmup=1, checkpoints=kept, checkpoint_every=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003.safetensors"]


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
    kept.save(1, linear(), optimized(linear()), {}, [], [])
    assert sorted(path.name[5:13] for path in kept.folder.iterdir()) == ["00000002", "00000003"]

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
    """Where training starts with this content in place of the one checkpoint."""
    (kept.folder / "step-00000010.safetensors").write_bytes(content)
    module = linear()
    average = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.1, CPU)
    return kept.restore(module, optimizer, average)[0]


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_a_flipped_bit_in_the_headers_syntax_is_found(tmp_path, bit):
    kept, content, places = headers(tmp_path)
    assert restored(kept, content) == 10
    for place in (places[0], places[1], content.index(b"dtype") - 1, content.index(b"F32")):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        assert restored(kept, bytes(damaged)) == 0
        assert kept.latest() is None


def test_a_flipped_bit_anywhere_in_the_header_is_found(tmp_path):
    kept, content, places = headers(tmp_path)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 3
        assert restored(kept, bytes(damaged)) == 0


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


def test_a_gradient_that_is_not_finite_stops_the_run():
    module = nn.Linear(1, 1)
    optimizer = make_optimizer([(list(module.parameters()), 0.01)], 0.0, CPU)
    with pytest.raises(InfotokError, match=r"step 1: the gradient is not finite"):
        run(module, optimizer, lambda step: {"loss": (0 * module.weight).sqrt().sum()}, steps=3, warmup=1)
