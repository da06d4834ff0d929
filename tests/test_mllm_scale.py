"""What tuning needs at the scale of real models: parts of a step, memory, precision, checkpoints, health of codes."""

import math
import weakref
from dataclasses import replace

import pytest
import tiny_mllm
import torch
from safetensors import safe_open
from test_mllm_tuning import EXAMPLES, SETTINGS, gradients, pixels_of, run, tuner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics.functional.image import peak_signal_noise_ratio

from infotok.errors import InfotokError
from infotok.mllm.examples import Shuffled
from infotok.mllm.health import collapse, health
from infotok.mllm.loading import load
from infotok.mllm.parts import Part
from infotok.mllm.tiny import CODES
from infotok.mllm.tuning import TuneConfig, Tuner, regularizer
from infotok.mllm.warming import CalibrateConfig, warm_up
from infotok.random import Purpose, shared_random
from infotok.training import loop
from infotok.training.checkpoints import Checkpoints
from tiny import Stopped

NAMES = tiny_mllm.SHARED
# Answers of unlike lengths, so that parts of a step differ in how many tokens they predict.
UNEVEN = [replace(one, answer=one.caption) if index < 5 else one for index, one in enumerate(EXAMPLES)]
both = pytest.mark.parametrize("name", NAMES)


class Interrupted:
    """Examples that end a run at a step, as a killed process does."""

    def __init__(self, at):
        self.all, self.at = Shuffled(EXAMPLES, 8, 0.1, 0), at

    def examples(self, step):
        if step == self.at:
            raise Stopped
        return self.all.examples(step)


def assert_same_step(one, other):
    """Loss, parts and gradients, up to rounding."""
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-6)
    assert one[1].keys() == other[1].keys()
    whole = math.sqrt(sum(float(gradient.square().sum()) for gradient in other[1].values()))
    for name, gradient in other[1].items():
        assert (one[1][name] - gradient).norm() <= 1e-5 * whole, name


ARMS = {"dib": (0.01, 0.0), "vib": (0.01, 1.0), "hsic": (1.0, 1.0), "ceb": (0.01, 0.0)}


@pytest.mark.parametrize(("name", "estimator"), [*(("chameleon", arm) for arm in ARMS), ("emu3", "hsic")])
def test_micro_batches_leave_the_gradients_of_the_whole_batch(folders, name, estimator):
    arm = (estimator, *ARMS[estimator])
    whole = gradients(tuner(folders[name], *arm, batch=16), UNEVEN)
    assert "consistency" in whole[0] or arm[2] == 0
    assert_same_step(gradients(tuner(folders[name], *arm, batch=16, accumulate=4), UNEVEN), whole)


def test_a_micro_batch_alone_would_compare_too_few(folders):
    """That the test above can fail: by its own rows alone a micro-batch of four sees another dependence."""
    made = tuner(folders["chameleon"], "hsic", 1.0, batch=16)
    four = tuner(folders["chameleon"], "hsic", 1.0, batch=4)
    assert gradients(made)[0]["penalty"] != pytest.approx(gradients(four)[0]["penalty"], rel=0.05)


def test_parts_draw_what_the_whole_batch_draws():
    cpu = torch.device("cpu")
    whole = shared_random(torch.rand, [8, 3], Part(0, 1, None, 5, 2).stream(cpu, Purpose.TRAINING))
    parts = [Part(index, 4, None, 5, 2) for index in range(4)]
    drawn = [shared_random(torch.rand, [2, 3], part.stream(cpu, Purpose.TRAINING)) for part in parts]
    assert torch.equal(torch.cat(drawn), whole)
    assert len({float(torch.rand(1, generator=part.common_stream(cpu, Purpose.KERNELS))) for part in parts}) == 1


def test_a_step_is_counted_once_whatever_its_parts(folders):
    made = tuner(folders["chameleon"], accumulate=4)
    run(made)
    assert int(made.step.bottleneck.steps) == made.config.steps


class Peak(TorchDispatchMode):
    """Bytes of all tensors that are made inside and are there at one time, at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return made

    def count(self, size):
        self.now += size
        self.most = max(self.most, self.now)


def peak(made):
    """Bytes that one step needs at most beside the weights; and the step."""
    with Peak() as found:
        step = gradients(made)
    return found.most, step


def test_memory_does_not_grow_with_micro_batches_and_falls_with_recomputation(folders):
    arm = ("hsic", 1.0, 0.5)
    few, _ = peak(tuner(folders["chameleon"], *arm, batch=4))
    many, whole = peak(tuner(folders["chameleon"], *arm, batch=16))
    parts, _ = peak(tuner(folders["chameleon"], *arm, batch=16, accumulate=4))
    again, same = peak(tuner(folders["chameleon"], *arm, batch=16, recompute=True))
    assert many > 3 * few
    assert parts < 1.2 * few
    assert again < 0.6 * many
    assert_same_step(same, whole)


@both
def test_recomputation_changes_no_gradient(folders, name):
    plain = gradients(tuner(folders[name]))
    again = gradients(tuner(folders[name], recompute=True))
    assert again[0] == plain[0]
    assert_same_step(again, plain)


@pytest.mark.parametrize(("name", "how"), [("chameleon", "full"), ("chameleon", "lora")])
def test_a_resumed_tuning_ends_bit_for_bit_like_an_undisturbed_one(folders, tmp_path, name, how):
    settings = {"gamma": 0.5, "steps": 4, "train": how, "checkpoint_every": 1, "beta_warmup": 0.5}
    undisturbed = tuner(folders[name], **settings)
    history = run(undisturbed)
    stopped = tuner(folders[name], **settings)
    kept = stopped.checkpoints(tmp_path / "kept")
    with pytest.raises(Stopped):
        stopped.run(Interrupted(3), seed=0, checkpoints=kept)
    assert kept.latest().name == "step-00000003.safetensors"
    resumed = tuner(folders[name], **settings)
    assert run(resumed, checkpoints=kept) == history
    for (key, one), other in zip(
        undisturbed.step.state_dict().items(), resumed.step.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key
    with safe_open(kept.latest(), "pt") as file:
        names = {key.removeprefix("model/") for key in file.keys() if key.startswith("model/")}  # noqa: SIM118
    learning = {key for key, parameter in resumed.step.named_parameters() if parameter.requires_grad}
    frozen = {key for key, parameter in resumed.step.named_parameters() if not parameter.requires_grad}
    assert learning <= names
    assert not names & frozen
    assert (how == "lora") == any("base_layer" in key for key in frozen)
    kept.clear()


def test_memory_that_is_not_enough_names_what_to_change(folders, tmp_path, monkeypatch):
    made = tuner(folders["chameleon"], steps=6, checkpoint_every=2)
    forward, calls = made.step.forward, []

    def full(*given):
        calls.append(0)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return forward(*given)

    monkeypatch.setattr(made.step, "forward", full)
    kept = made.checkpoints(tmp_path)
    with pytest.raises(InfotokError) as error:
        run(made, checkpoints=kept)
    said = str(error.value)
    for part in ("batch (8)", "accumulate (1)", "recompute: true", "train: lora", "step-00000002.safetensors"):
        assert part in said
    assert "\n" not in said
    assert kept.latest().exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 8, "accumulate": 3}, "batch: 8 images cannot be shared out .* multiple of 3"),
        ({"batch": 8, "accumulate": 2, "target_bits": 20.0}, "accumulate: target_bits"),
        ({"batch": 2, "estimator": "hsic"}, "batch: hsic compares at least 4 images"),
    ],
)
def test_settings_that_exclude_each_other(folders, settings, says):
    adapter, arm = load(folders["chameleon"]), {"estimator": "dib", "beta": 0.1, "tokens": 16}
    arm |= {name: settings[name] for name in ("target_bits", "estimator") if name in settings}
    config = TuneConfig(**SETTINGS | {name: value for name, value in settings.items() if name not in arm})
    bottleneck = regularizer(adapter, config, **arm)
    with pytest.raises(InfotokError, match=says):
        Tuner(adapter, bottleneck, 1.0, config)


def test_data_that_do_not_fill_a_step_are_named(folders):
    with pytest.raises(InfotokError, match="batch: the data give 6 examples for step 1, not 8"):
        tuner(folders["chameleon"]).run(Shuffled(EXAMPLES, 6, 0.1, 0), seed=0)


@pytest.mark.parametrize(("name", "how"), [("chameleon", "full"), ("emu3", "lora")])
def test_in_bfloat16_what_is_trained_stays_wide(folders, name, how):
    narrow, wide = (tuner(folders[name], train=how, precision=kind) for kind in ("bf16", "fp32"))
    types = {parameter.dtype for parameter in narrow.step.parameters() if parameter.requires_grad}
    assert types == {torch.float32}
    assert narrow.adapter.tokenizer.dtype == torch.float32
    held = {p.dtype for key, p in narrow.adapter.model.named_parameters() if "base_layer" in key}
    assert held == ({torch.bfloat16} if how == "lora" else set())
    one, other = gradients(narrow)[0], gradients(wide)[0]
    assert one["loss"] == pytest.approx(other["loss"], rel=0.03)
    assert one["loss"] != other["loss"]


def test_beta_rises_over_its_share_of_the_steps(folders, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    history = run(tuner(folders["chameleon"], beta=0.008, steps=5, beta_warmup=0.8))
    assert [line["beta"] for line in history] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008])


@both
def test_health_of_codes(folders, name):
    adapter = load(folders[name])
    pixels = pixels_of(adapter)
    tiny_mllm.settle(adapter, pixels)
    before = adapter.own_codes(pixels).view(adapter.codes(pixels).shape)
    found = health(adapter, pixels, before)
    assert found["unchanged"] >= adapter.least_agreement
    used, counts = before.unique(return_counts=True)
    share = counts / counts.sum()
    assert found["dead_codes"] == pytest.approx(1 - len(used) / CODES, abs=0.02)
    assert found["perplexity"] == pytest.approx(float((-share * share.log()).sum().exp()), rel=0.02)
    with torch.no_grad():
        decoded = adapter.unit_pixels(adapter.decode(adapter.codebook()[adapter.codes(pixels)]))
    wanted = peak_signal_noise_ratio(decoded, adapter.unit_pixels(pixels), data_range=1.0, dim=(1, 2, 3))
    assert found["psnr"] == pytest.approx(float(wanted), rel=1e-4)
    assert collapse(found) is None
    with torch.no_grad():
        adapter.codebook()[1:] += 1e4  # one code is left
    found = health(adapter, pixels, before)
    assert found["perplexity"] == pytest.approx(1.0)
    assert found["dead_codes"] == pytest.approx(1 - 1 / CODES)
    assert "the codebook has collapsed: images use it like 1.0 codes" in collapse(found)


WARM = {"steps": 20, "batch": 8, "rate": 3e-3, "warmup": 1, "precision": "fp32", "checkpoint_every": 10}


def warmed(folder, data=None, adapter=None, checkpoints=None, **settings):
    torch.manual_seed(0)  # of the new decoder
    adapter = adapter or load(folder)
    config = CalibrateConfig(**WARM | settings)
    data = data or Shuffled(EXAMPLES, 8, 0.0, 0)
    return adapter, warm_up(adapter, data, config, seed=0, checkpoints=checkpoints)


def changed(adapter, folder):
    torch.manual_seed(0)
    fresh = load(folder)
    model = {k for k, v in fresh.model.state_dict().items() if not torch.equal(v, adapter.model.state_dict()[k])}
    extra = fresh.extra is not None and not torch.equal(fresh.extra.conv_in.weight, adapter.extra.conv_in.weight)
    return model, extra


def test_a_new_decoder_learns_before_anything_else_does(folders):
    adapter, history = warmed(folders["chameleon"])
    assert changed(adapter, folders["chameleon"]) == (set(), True)
    assert history[-1]["reconstruction"] < 0.8 * history[0]["reconstruction"]
    assert not adapter.extra_is_new


@both
def test_a_tokenizer_s_own_phase_reconstructs_from_the_model_s_own_codes(folders, name):
    """The first loss, by the model's own encoding."""
    torch.manual_seed(0)
    adapter = load(folders[name])
    pixels = pixels_of(adapter, Shuffled(EXAMPLES, 8, 0.0, 0).examples(0)[0])
    with torch.no_grad():
        codes = adapter.own_codes(pixels).view(adapter.codes(pixels).shape)
        wanted = (adapter.decode(adapter.codebook()[codes]) - pixels).square().mean()
    _, history = warmed(folders[name], adapter=adapter, steps=1, tokenizer="full")
    assert history[0]["reconstruction"] == pytest.approx(float(wanted), rel=1e-3)
    model, _ = changed(adapter, folders[name])
    assert model
    assert all("vqmodel" in key for key in model)


def test_settled_codes_are_used(folders):
    adapter = load(folders["emu3"])
    pixels = pixels_of(adapter)
    loose = len(adapter.codes(pixels).unique())
    warmed(folders["emu3"], adapter=adapter, tokenizer="full", settle=True, steps=1)
    assert len(adapter.codes(pixels).unique()) > 2 * loose


def test_a_tokenizer_s_own_phase_resumes_bit_for_bit(folders, tmp_path):
    settings = {"tokenizer": "full", "settle": True}
    whole, history = warmed(folders["chameleon"], **settings)
    with pytest.raises(Stopped):
        warmed(folders["chameleon"], Interrupted(15), checkpoints=Checkpoints(tmp_path), **settings)
    resumed, again = warmed(
        folders["chameleon"], Shuffled(EXAMPLES, 8, 0.1, 0), checkpoints=Checkpoints(tmp_path), **settings
    )
    assert again == history
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_tokenizer_that_lacks_nothing_has_nothing_new(folders):
    with pytest.raises(InfotokError, match="tokenizer: is new, but this model's tokenizer lacks nothing"):
        warmed(folders["emu3"])
