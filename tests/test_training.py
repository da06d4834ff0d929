"""Pretraining and joint training."""

import math

import numpy as np
import pytest
import torch

from infotok.examiners.perceptual import Distortion, Perceptual
from infotok.information.kernels import Kernels
from infotok.models import family_names
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.family import family_class
from infotok.models.unified import UnifiedModel
from infotok.random import stream
from infotok.tokenizer.base import TokenizerConfig
from infotok.tokenizer.passes import through
from infotok.training import loop
from infotok.training.batches import Batches
from infotok.training.checkpoints import Checkpoints
from infotok.training.joint import JointConfig, train_jointly
from infotok.training.pretrain import PretrainConfig, pretrain
from tiny import Stopped, small_scenes, trained_codec

CPU = torch.device("cpu")
PIXELS = Distortion(pixel=1.0, perceptual=0.0)


@pytest.fixture(scope="module")
def split():
    return small_scenes(200)


@pytest.fixture(scope="module")
def codec(split):
    return trained_codec(split)


def batches(split, codec, **changes):
    return Batches(split, codec, JointConfig(batch=16, **changes), seed=0)


def small_tokenizer(seed=0, family="ar", **changes):
    torch.manual_seed(seed)
    settings = {"codebook": 16, "dimension": 4, "width": 16, "hidden": 32, "blocks": 1}
    config = TokenizerConfig(**settings | {"logit_scale": 20.0, "relaxation": 2.0} | changes)
    return family_class(family).tokenizer_class(config, image_size=16, tokens=4)


def pretrain_config(**changes):
    settings = {"steps": 50, "batch": 16, "warmup": 3, "usage_weight": 0.01, "revive_every": 5, "precision": "fp32"}
    return PretrainConfig(**settings | changes)


@pytest.mark.parametrize("family", ["ar", "flow"])
def test_a_resumed_pretraining_with_revivals_is_the_undisturbed_one(split, tmp_path, family):
    config = pretrain_config(checkpoint_every=29)

    def pretrained(checkpoints=None, observe=lambda step, values: None):
        tokenizer = small_tokenizer(family=family, logit_scale=200.0, nested_dropout=0.5)
        judge = Perceptual({"shape": 4})
        settings = {"checkpoints": checkpoints, "observe": observe, "distortion": PIXELS}
        return tokenizer, pretrain(tokenizer, judge, split.images, config, seed=0, device=CPU, **settings)

    def interrupt(step, values):
        if step == 30:
            raise Stopped

    whole, history = pretrained()
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        pretrained(kept, interrupt)
    assert kept.latest().name == "step-00000029.safetensors"  # right before a revival
    resumed, resumed_history = pretrained(kept)
    assert resumed_history == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def unit(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def test_a_collapsed_tokenizer_is_reported_and_a_healthy_one_is_not(split):
    healthy, collapsed = small_tokenizer(logit_scale=50.0), small_tokenizer(logit_scale=50.0)
    with torch.no_grad():
        features = healthy.features(unit(split.images))
        healthy.revive(torch.ones(16, dtype=torch.bool), features, stream(CPU, 1))
        centre = features.mean((0, 1))
        collapsed.codebook.copy_(-centre.expand(16, -1))  # every code but one points away from every feature
        collapsed.codebook[0] = centre
    found = collapsed.health(*through(collapsed, split.images, 0))
    assert (collapsed.encode(unit(split.images)).logits.argmax(-1) == 0).float().mean() > 0.95
    assert found["perplexity"] < 1.6
    assert collapsed.collapse_warning(found).startswith("codebook collapse: perplexity 1.")
    assert healthy.collapse_warning(healthy.health(*through(healthy, split.images, 0))) is None


def test_a_collapsed_codebook_is_reported():
    tokenizer = small_tokenizer(codebook=256)
    assert tokenizer.collapse_warning({"perplexity": 60.0, "dead_codes": 10.0}) is None
    warning = tokenizer.collapse_warning({"perplexity": 3.0, "dead_codes": 250.0})
    assert "codebook collapse: perplexity 3.0 of 256" in warning


def joint_model(codec, family="ar", **changes):
    tokenizer = small_tokenizer(family=family, **changes)
    backbone = Backbone.create(BackboneConfig(name="llama", width=16, layers=1, heads=2), codec.vocabulary)
    return UnifiedModel(family, tokenizer, backbone)


ARM = ("estimator", "beta", "gamma", "kernels", "distortion")


def trained_jointly(
    split, codec, checkpoints=None, observe=lambda step, values: None, source=None, family="ar", model=None, **changes
):
    """Train a small model; changes: of the arm and of JointConfig."""
    settings = {"steps": 30, "learning_rate": 0.01, "tokenizer_learning_rate": 0.01, "prior_learning_rate": 0.1}
    settings |= {"warmup": 3, "final_fraction": 0.1, "weight_decay": 0.0, "precision": "fp32", "checkpoint_every": 10}
    arm = {"distortion": PIXELS} | {name: changes.pop(name) for name in ARM if name in changes}
    model, judge = model or joint_model(codec, family), Perceptual({"shape": 4})
    history = train_jointly(
        model,
        judge,
        source or batches(split, codec),
        JointConfig(**settings | changes),
        **arm,
        seed=0,
        device=CPU,
        checkpoints=checkpoints,
        observe=observe,
    )
    return model, history


class Recorded:
    """Batches that remember what they gave."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def images(self, step):
        given = self.inner.images(step)
        self.seen.append((step, "images", given))
        return given

    def texts(self, step):
        given = self.inner.texts(step)
        self.seen.append((step, "texts", given.captions))
        self.seen += [(step, "question", asked.ids) for asked in given.asked]
        return given


def test_paired_arms_see_the_same_data_from_the_same_start(split, codec):
    seen, first, ends = [], [], []
    for estimator, beta in (("none", 0.0), ("ceb", 0.5)):
        source = Recorded(batches(split, codec))
        model, _ = trained_jointly(split, codec, source=source, estimator=estimator, beta=beta, steps=12)
        seen.append(source.seen)
        ends.append(model.tokenizer.codebook.detach())
        first.append(trained_jointly(split, codec, estimator=estimator, beta=beta, steps=1)[1][0])
    assert len(seen[0]) == len(seen[1]) == 12 * 4
    for one, two in zip(*seen, strict=True):
        assert one[:2] == two[:2]
        assert torch.equal(one[2], two[2])
    for name in ("understanding", "generation", "reconstruction", "rate_bits"):
        assert first[0][name] == first[1][name]
    assert not torch.equal(*ends)


def test_beta_rises_linearly_over_its_share_of_the_steps(split, codec):
    _, history = trained_jointly(split, codec, estimator="vib", beta=0.6, beta_warmup=0.8, steps=25)
    # Over the first 20 of 25 steps: step k has 0.6 k / 20, whose means over ten steps are 0.165 and 0.465.
    assert [line["beta"] for line in history] == pytest.approx([0.165, 0.465, 0.6], abs=1e-5)


def test_the_logged_loss_is_the_weighted_sum_of_its_parts(split, codec):
    weights = {"understanding": 0.5, "generation": 2.0, "reconstruction": 3.0}
    _, history = trained_jointly(split, codec, estimator="dib", beta=0.25, beta_warmup=0.0, steps=1, **weights)
    line = history[0]
    expected = sum(weight * line[name] for name, weight in weights.items()) + 0.25 * line["penalty"]
    expected += 0.5 * 0.1 * line["description"]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", family_names())
@pytest.mark.parametrize("estimator", ["vib", "dib", "ceb", "hsic"])
def test_the_penalty_alone_moves_the_tokenizer_and_neither_language_model_nor_priors(split, codec, family, estimator):
    silent = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0, "steps": 1, "warmup": 1}
    start = dict(joint_model(codec, family).named_parameters())
    pressed, plain = (
        dict(trained_jointly(split, codec, family=family, **silent, **arm)[0].named_parameters())
        for arm in ({"estimator": estimator, "beta": 1.0}, {})
    )
    moved = {name for name in start if not torch.equal(start[name], pressed[name])}
    assert "tokenizer.encoder.embed.0.weight" in moved
    assert {name.split(".")[0] for name in moved} == {"tokenizer", "priors"}
    priors = {name for name in moved if name.startswith("priors.")}
    assert all(torch.equal(pressed[name], plain[name]) for name in priors)
    assert {name for name in start if not torch.equal(start[name], plain[name])} == priors
    assert {name.split(".")[1] for name in priors} == {"marginal", "autoregressive"}


def test_the_prior_learns_the_codes_frequencies(split, codec):
    silent = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0}
    model, _ = trained_jointly(split, codec, **silent, steps=80, prior_learning_rate=0.2)
    with torch.no_grad():
        posterior = model.tokenizer.encode(unit(split.images))
        frequencies = posterior.logits.softmax(-1).mean(0)
        learned = model.priors.marginal().logits.softmax(-1)
    uniform = torch.full_like(frequencies, 1 / 16)
    assert (frequencies - uniform).abs().sum(-1).min() > 0.4
    assert (frequencies - learned).abs().sum(-1).max() < 0.15


ARMS = {
    "ar": {"estimator": "ceb", "beta": 0.1, "ema": 0.9},
    "mask": {"estimator": "vib", "beta": 0.01, "target_bits": 8.0, "gamma": 0.1, "prior": "autoregressive"},
    "flow": {"estimator": "hsic", "beta": 1.0, "gamma": 0.1, "kernels": Kernels(estimator="rff")},
}


@pytest.mark.parametrize("family", ARMS)
def test_a_resumed_joint_run_is_the_undisturbed_one(split, codec, tmp_path, family):
    def interrupt(step, values):
        if step == 20:
            raise Stopped

    arm = {"family": family, **ARMS[family]}
    whole, history = trained_jointly(split, codec, **arm)
    kept = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        trained_jointly(split, codec, kept, interrupt, **arm)
    assert kept.latest().name == "step-00000010.safetensors"
    torch.manual_seed(99)  # another process has another global stream
    resumed, resumed_history = trained_jointly(split, codec, kept, **arm)
    assert resumed_history == history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize(("family", "target"), [("ar", 7.0), ("flow", 20.0)])  # codes and vectors
def test_training_with_a_target_drives_the_rate_of_a_pretrained_tokenizer_to_it(split, codec, family, target):
    model, judge = joint_model(codec, family), Perceptual({"shape": 4})
    config = pretrain_config(steps=120, learning_rate=0.005, usage_weight=0.02, revive_every=20)
    distortion = Distortion(pixel=10.0, perceptual=0.0)
    pretrain(model.tokenizer, judge, split.images, config, seed=0, device=CPU, distortion=distortion)
    arm = {"estimator": "vib", "beta": 0.05, "target_bits": target, "distortion": distortion}
    rates = {"learning_rate": 0.005, "tokenizer_learning_rate": 0.005}
    _, history = trained_jointly(split, codec, model=model, steps=220, **arm, **rates)
    assert history[0]["rate_bits"] > 1.2 * target
    assert np.mean([line["rate_bits"] for line in history[-3:]]) == pytest.approx(target, rel=0.08)
    assert history[0]["beta"] != history[-1]["beta"]


@pytest.mark.parametrize("prior", ["marginal", "autoregressive"])
def test_the_chosen_prior_is_the_one_whose_rate_is_penalized(split, codec, prior):
    _, history = trained_jointly(split, codec, estimator="vib", beta=0.001, prior=prior, steps=40)
    name = {"marginal": "rate_bits", "autoregressive": "autoregressive_rate_bits"}[prior]
    assert history[-1]["rate_bits"] != history[-1]["autoregressive_rate_bits"]
    assert history[-1]["penalty"] / math.log(2) == pytest.approx(history[-1][name], rel=1e-4)


@pytest.mark.parametrize("estimator", ["vib", "hsic"])
def test_consistency_is_subtracted_and_rises_with_beta(split, codec, estimator, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    arm = {"estimator": estimator, "beta": 0.5, "gamma": 0.2, "beta_warmup": 0.8, "steps": 5}
    _, history = trained_jointly(split, codec, **arm)
    for line, rise in zip(history, (0.25, 0.5, 0.75, 1.0, 1.0), strict=True):
        expected = line["understanding"] + 0.1 * line["description"] + line["generation"] + line["reconstruction"]
        expected += rise * (0.5 * line["penalty"] - 0.2 * line["consistency"])
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert abs(line["consistency"]) > 1e-3


@pytest.mark.parametrize("estimator", ["vib", "hsic"])
def test_a_batch_whose_captions_are_all_dropped_has_no_consistency(split, codec, estimator):
    source = batches(split, codec, caption_dropout=1.0)
    arm = {"estimator": estimator, "beta": 0.1, "gamma": 0.2, "steps": 1}
    (line,) = trained_jointly(split, codec, source=source, **arm)[1]
    assert line["consistency"] == 0
    assert math.isfinite(line["loss"])


def test_training_lowers_the_losses_and_a_larger_beta_the_rate(split, codec):
    free = trained_jointly(split, codec, steps=100)[1]
    pressed = trained_jointly(split, codec, estimator="dib", beta=0.5, steps=100)[1]
    for name in ("loss", "understanding", "generation", "reconstruction"):
        assert free[-1][name] < 0.95 * free[0][name]
    assert pressed[-1]["rate_bits"] < 0.5 * free[-1]["rate_bits"]
    assert free[-1]["rate_bits"] > 1


def test_the_rate_of_a_step_is_the_divergence_from_the_prior(split, codec):
    line = trained_jointly(split, codec, steps=1)[1][0]
    model = joint_model(codec)
    with torch.no_grad():
        pictures = unit(batches(split, codec).images(0).numpy())
        logits = model.tokenizer.encode(pictures).logits
    q = torch.distributions.Categorical(logits=logits)
    # The prior starts uniform: KL(q || uniform) = log C - H(q), summed over four tokens.
    expected = (4 * math.log(16) - q.entropy().sum(-1)).mean().item() / math.log(2)
    assert line["rate_bits"] == pytest.approx(expected, rel=1e-4)
