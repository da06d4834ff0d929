"""What the experiments measure is what a user plugs in: a loop of one's own and `train_jointly` have the same parts and
the same gradients."""

import pytest
import together
import torch
from torch.nn import functional as F

from infotok import InformationBottleneck, Kernels
from infotok.data.pixels import to_unit
from infotok.examiners.perceptual import Distortion, Perceptual
from infotok.information.objective import estimator_names
from infotok.models import family_names
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.unified import UnifiedModel
from infotok.random import Purpose, stream
from infotok.training import loop
from infotok.training.batches import Batches
from infotok.training.joint import JointConfig, train_jointly
from tiny import Stopped, tokenizer

CPU = torch.device("cpu")
WARMUP = 2  # steps, of which one is trained: half of beta and of gamma
BETA = {"hsic": 2.0}
ARMS = {f"{name}-{gamma}": {"estimator": name, "beta": BETA.get(name, 0.3), "gamma": gamma}
        for name in estimator_names() for gamma in (0.0, 0.7)}  # fmt: skip
ARMS |= {
    "none": {},
    "consistency alone": {"gamma": 0.7},
    "beta 0": {"estimator": "dib", "beta": 0.0, "gamma": 0.7},
    "autoregressive": {"estimator": "vib", "beta": 0.3, "gamma": 0.7, "prior": "autoregressive"},
    "target": {"estimator": "vib", "beta": 0.3, "target_bits": 5.0},
    "autoregressive target": {"estimator": "dib", "beta": 0.3, "target_bits": 5.0, "prior": "autoregressive"},
    "kernels": {"estimator": "hsic", "beta": 2.0, "gamma": 0.7, "kernels": Kernels(consistency="kernels")},
    "raw kernels": {"estimator": "hsic", "beta": 2.0, "kernels": Kernels(normalized=False, bandwidth="median")},
    "random features": {
        "estimator": "hsic", "beta": 2.0, "gamma": 0.7, "kernels": Kernels(estimator="rff", consistency="kernels"),
    },
    "deterministic": {"estimator": "dib", "beta": 0.3, "gamma": 0.7, "channel": "deterministic"},
    "deterministic rate": {"estimator": "vib", "beta": 0.3, "channel": "deterministic"},
    "likelihood": {"gamma": 0.7, "consistency": "likelihood"},
    "likelihood and code length": {"estimator": "dib", "beta": 0.3, "gamma": 0.7, "consistency": "likelihood"},
    "nested": {"estimator": "ceb", "beta": 0.3, "gamma": 0.7, "nested_dropout": 0.8},
}  # fmt: skip
NONE = {"estimator": "none", "beta": 0.0}
OF_TOKENIZER, OF_CONFIG = ("channel", "nested_dropout"), ("prior", "target_bits", "consistency")
CASES = [(family, arm) for family in family_names() for arm in ARMS if (family, ARMS[arm].get("channel")) != (
    "flow", "deterministic")]  # fmt: skip


@pytest.fixture(scope="module")
def material():
    return together.material()


def new_model(family, codec, settings):
    made = tokenizer(family=family, **{name: settings[name] for name in OF_TOKENIZER if name in settings})
    torch.manual_seed(1)
    backbone = Backbone.create(BackboneConfig(name="llama", width=16, layers=1, heads=2), codec.vocabulary)
    model = UnifiedModel(family, made, backbone)
    for parameter in model.priors.parameters():  # as later in training, when they say something
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def jointly(model, batches, config, arm):
    """Parts and gradients of the first step of `train_jointly`."""
    seen = {}

    def stop(step, values):
        seen.update(values)
        raise Stopped

    perceptual = Perceptual({"shape": 4})
    shared = {"seed": 0, "device": CPU, "distortion": Distortion(pixel=1.0, perceptual=0.0), "observe": stop}
    torch.manual_seed(3)  # the critic's weights
    with pytest.raises(Stopped):
        train_jointly(model, perceptual, batches, config, **arm, **shared)
    return seen, {name: parameter.grad for name, parameter in model.named_parameters()}


def by_hand(model, batches, bottleneck):
    """The same by a loop of one's own."""
    images, texts = to_unit(batches.images(0)), batches.texts(0)
    out = model.train()(images, texts, stream(CPU, 0, 0, Purpose.TRAINING))
    # What the language model as it stands says of the captions: its gradient reaches what makes the tokens alone.
    frozen = {name: p if name.startswith("tokenizer.") else p.detach() for name, p in model.named_parameters()}
    given = (images, texts, stream(CPU, 0, 0, Purpose.TRAINING))
    text_nats = torch.func.functional_call(model, frozen, given).description
    term = bottleneck(
        out.posterior,
        out.drawing.distribution,
        channel=model.tokenizer.channel_of(out.posterior),
        weight=out.drawing.weight,
        inputs=images,
        vectors=out.tokens.vectors,
        text=out.text,
        has_text=out.has_caption,
        text_nats=text_nats,
        generator=stream(CPU, 0, 0, Purpose.KERNELS),
    )
    error = F.mse_loss(model.tokenizer.decode(out.read), images)
    description = out.description.mean()
    loss = out.answer_loss + 0.1 * description + out.drawing.loss + error + term.loss
    loss.backward()
    parts = {"loss": loss, "understanding": out.answer_loss, "generation": out.drawing.loss, "reconstruction": error}
    parts["description"] = description
    return parts | term.parts, {name: parameter.grad for name, parameter in model.named_parameters()}


def new_bottleneck(model, config, arm):
    """The plug-in; with a marginal prior one of its own, as it stands before the first step."""
    sizes, prior = model.tokenizer.config, config.prior
    settings = {"warmup": WARMUP, "target_bits": config.target_bits or None, "text_width": model.backbone.width}
    settings["consistency"] = config.consistency
    torch.manual_seed(3)
    if prior == "autoregressive" or arm.get("estimator") == "hsic":
        return InformationBottleneck(**NONE | arm, **settings, prior=prior, priors=model.priors)
    codebook = None if model.family_name == "flow" else sizes.codebook
    settings |= {"tokens": model.tokenizer.tokens, "dimension": sizes.dimension, "codebook": codebook}
    made = InformationBottleneck(**NONE | arm, **settings)
    made.prior.load_state_dict(model.priors.marginal.state_dict())
    return made


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_loop_over_the_plug_in_is_joint_training(material, monkeypatch, family, name):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    split, codec = material
    settings = dict(ARMS[name])
    changes = {key: settings[key] for key in OF_CONFIG if key in settings}
    shown = {"batch": 16, "caption_dropout": 0.4}
    config = JointConfig(steps=2 * WARMUP, beta_warmup=0.5, clip=1e9, precision="fp32", **shown, **changes)
    batches = Batches(split, codec, config, seed=0)
    arm = {key: value for key, value in settings.items() if key not in OF_CONFIG + OF_TOKENIZER}
    parts, gradients = jointly(new_model(family, codec, settings), batches, config, arm)
    model = new_model(family, codec, settings)
    bottleneck = new_bottleneck(model, config, arm)
    own_parts, own_gradients = by_hand(model, batches, bottleneck)
    if bottleneck.prior is not None:
        own = {f"priors.marginal.{key}": parameter.grad for key, parameter in bottleneck.prior.named_parameters()}
        own_gradients |= own
        assert all(gradient.abs().sum() > 0 for gradient in own.values())
        for key in [key for key in gradients if key.startswith("priors.autoregressive.")]:
            del gradients[key], own_gradients[key]
    for key, value in own_parts.items():
        assert parts[key] == pytest.approx(value.item(), rel=1e-5, abs=1e-7), key
    extra = {"gradient_norm"} | ({"autoregressive_rate_bits"} if bottleneck.prior is not None else set())
    assert parts.keys() - own_parts.keys() == extra
    for key, gradient in gradients.items():
        assert (gradient is None) == (own_gradients[key] is None), key
        if gradient is not None:
            torch.testing.assert_close(own_gradients[key], gradient, rtol=1e-4, atol=1e-7, msg=key)
    assert parts.get("beta", 0) == pytest.approx(arm.get("beta", 0) / 2) or config.target_bits
    assert ("consistency" in parts) == ("gamma" in arm and arm["gamma"] > 0)
