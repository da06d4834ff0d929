"""A model with continuous tokens, by its folder's own code: what its channel is, what learns, and what is saved."""

import json
import math

import pytest
import tiny_mllm
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from infotok.errors import InfotokError
from infotok.mllm.adapter import PADDING
from infotok.mllm.adapters.continuous import OFFERED, PLACE
from infotok.mllm.batches import Example, make_batch
from infotok.mllm.examples import Shuffled
from infotok.mllm.health import collapse, health
from infotok.mllm.loading import load, open_model
from infotok.mllm.options import ModelConfig
from infotok.mllm.parts import Part
from infotok.mllm.scoring import draw_tokens, token_use
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated, regularizer
from infotok.mllm.warming import CalibrateConfig, warm_up

EXAMPLES = [Example(*row) for row in zip(*tiny_mllm.toy(), strict=True)]  # 8
SETTINGS = {"lm_rate": 3e-3, "tokenizer_rate": 3e-3, "prior_rate": 0.05, "warmup": 1, "precision": "fp32"}
SETTINGS |= {"steps": 2, "batch": 8, "beta_warmup": 0.0, "final_fraction": 1.0}
OFF = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trusted_code):
    folder = tmp_path_factory.mktemp("checkpoints") / "continuous"
    return tiny_mllm.make("continuous", folder)


def made(folder, estimator="vib", beta=0.001, gamma=0.0, **settings):
    torch.manual_seed(0)  # of the regularizer
    adapter = load(folder, trust=True)
    config = TuneConfig(**SETTINGS | settings)
    arm = {"estimator": estimator, "beta": beta, "gamma": gamma}
    variance = calibrated(adapter, [make_batch(adapter, EXAMPLES).pixels])
    return Tuner(adapter, regularizer(adapter, config, tokens=16, **arm), variance, config)


def norms(tuner, loss):
    """Gradients of a loss, by what they reach."""
    tuner.step.zero_grad()
    loss.backward()
    model = tuner.adapter.model
    parts = {"encoder": model.vision.inward, "decoder": model.vision.outward, "flow": model.flow}
    parts |= {"reader": model.project, "language": model.language}
    found = {}
    for part, module in parts.items():
        rows = [p.grad for p in module.parameters() if p.grad is not None]
        found[part] = math.sqrt(sum(float(grad.square().sum()) for grad in rows))
    return found


def test_noise_has_a_tenth_of_the_spread_of_features(folder):
    tuner = made(folder)
    pixels = make_batch(tuner.adapter, EXAMPLES).pixels
    features = tuner.adapter.model.encode(pixels).detach()
    wanted = features.flatten(0, 2).var(0, correction=0).mean().item() / 100
    assert tuner.step.variance == pytest.approx(wanted, rel=1e-5)
    encoded = [tuner.adapter.encode(pixels, 0.04, 1.0, torch.Generator().manual_seed(n)) for n in range(20)]
    drawn = torch.stack([one.vectors for one in encoded]).detach()
    assert (drawn - features).std().item() == pytest.approx(0.2, rel=0.03)
    torch.testing.assert_close(encoded[0].channel.mean.view(features.shape), features)


def test_the_rate_is_torch_s_divergence(folder):
    tuner = made(folder)
    batch = make_batch(tuner.adapter, EXAMPLES)
    with torch.no_grad():
        _, parts = tuner.step(batch)
        mean = tuner.adapter.model.encode(batch.pixels).flatten(1, 2)
    q = torch.distributions.Normal(mean, tuner.step.variance**0.5)
    rate = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2)).mean()  # new prior
    assert parts["penalty"].item() == pytest.approx(rate.item(), rel=1e-4)
    assert parts["rate_bits"].item() == pytest.approx(rate.item() / math.log(2), rel=1e-4)


def test_each_term_teaches_what_it_should(folder):
    def reached(beta=0.0, **settings):
        tuner = made(folder, beta=beta, **OFF | settings)
        found = norms(tuner, tuner.step(make_batch(tuner.adapter, EXAMPLES[:2]))[0])
        return {part for part, norm in found.items() if norm > 0}

    assert reached(understanding=1.0) == {"encoder", "reader", "language"}
    assert reached(understanding=1.0, lm_gradient=0.0) == {"reader", "language"}
    assert reached(generation=1.0) == {"flow", "reader", "language"}
    assert reached(reconstruction=1.0) == {"encoder", "decoder"}
    assert reached(beta=0.1) == {"encoder"}


def test_the_scale_of_the_language_model_s_gradient(folder):
    found = []
    for scale in (1.0, 0.05):
        tuner = made(folder, beta=0.0, **OFF | {"understanding": 1.0, "lm_gradient": scale})
        found.append(norms(tuner, tuner.step(make_batch(tuner.adapter, EXAMPLES[:4]))[0]))
    assert found[1]["encoder"] == pytest.approx(0.05 * found[0]["encoder"], rel=1e-4)
    assert found[1]["language"] == pytest.approx(found[0]["language"], rel=1e-5)


@pytest.mark.parametrize("arm", [("none", 0.0, 0.0), ("vib", 0.01, 1.0), ("dib", 0.01, 0.0), ("hsic", 0.1, 1.0)])
def test_every_estimator_that_needs_no_density_takes_a_step(folder, arm):
    estimator, beta, gamma = arm
    tuner = made(folder, estimator, beta, gamma)
    parts = tuner.gradients(EXAMPLES, [False] * 8)
    assert all(math.isfinite(value) for value in parts.values())
    assert ("consistency" in parts) == (gamma > 0)


def test_answers_are_scored_as_transformers_scores_them(folder):
    tuner = made(folder)
    batch, model = make_batch(tuner.adapter, EXAMPLES[:3]), tuner.adapter.model
    tuner.step.variance = 1e-12
    with torch.no_grad():
        _, parts = tuner.step(batch)
        ids = torch.cat([batch.ask["input_ids"], batch.answers.where(batch.answers != PADDING, 0)], 1)
        embedded = model.get_input_embeddings()(ids.clamp_min(0))
        embedded[ids == PLACE] = model.embed(model.encode(batch.pixels)).flatten(0, 1)
        mask = torch.cat([batch.ask["attention_mask"], (batch.answers != PADDING).long()], 1)
        labels = torch.cat([torch.full_like(batch.ask["input_ids"], PADDING), batch.answers], 1)
        wanted = model.language(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(parts["understanding"], wanted, rtol=1e-4, atol=1e-4)


def test_a_step_repeats_itself_and_arms_share_its_noise(folder):
    batch = make_batch(load(folder, trust=True), EXAMPLES)

    def losses(estimator, beta, seed):
        step = made(folder, estimator, beta).step
        _, parts = step(batch, Part(seed=seed))
        return [parts[name].item() for name in ("understanding", "generation", "reconstruction")]

    assert losses("vib", 0.1, 3) == losses("hsic", 0.1, 3) == losses("none", 0.0, 3)
    assert losses("vib", 0.1, 3) != losses("vib", 0.1, 4)


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_draw_the_noise_of_the_whole_and_have_its_gradient(folder, count):
    whole, parts = (made(folder, "hsic", 0.1, 1.0, accumulate=accumulate) for accumulate in (1, count))
    dropped = [False, True] * 4
    for tuner in (whole, parts):
        tuner.gradients(EXAMPLES, dropped, seed=1, step=2)
    for (name, one), (_, other) in zip(whole.step.named_parameters(), parts.step.named_parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).norm() < 1e-3 * one.grad.norm() + 1e-6, name


def test_it_learns_is_saved_answers_and_draws(folder, tmp_path):
    tuner = made(folder, beta=1e-4, steps=200, caption_dropout=0.0, lm_gradient=1.0, tokenizer_rate=1e-2)
    history = tuner.run(Shuffled(EXAMPLES, 8, 0.0, 0), seed=0)
    for part, share in (("understanding", 0.2), ("generation", 0.8), ("reconstruction", 0.5)):
        assert history[-1][part] < share * history[0][part], part
    tuner.save(tmp_path)
    again = load(str(tmp_path), trust=True)
    tuner.step.eval()
    images, questions = [e.image for e in EXAMPLES], ["what color?"] * 8
    answers = again.answer(images, questions)
    assert answers == tuner.adapter.answer(images, questions)
    assert answers == [example.answer for example in EXAMPLES]
    captions = [example.caption for example in EXAMPLES]
    drawn = []
    for adapter in (again, tuner.adapter):
        torch.manual_seed(0)
        drawn.append(adapter.draw(captions, 4, 4, temperature=0.5))
    torch.testing.assert_close(*drawn)
    pixels = again.unit_pixels(again.decode(again.vectors_of(drawn[0])))
    assert pixels.shape == (8, 3, 32, 32)
    shown = make_batch(again, EXAMPLES).pixels
    nearest = torch.cdist(pixels.flatten(1), shown.flatten(1)).argmin(1)
    assert (nearest // 2 == torch.arange(8) // 2).sum() >= 5  # a picture of the caption's color; 2 by chance


def warmed(adapter, **settings):
    config = CalibrateConfig(**{"tokenizer": "full", "steps": 100, "batch": 8, "rate": 2e-3, "warmup": 1} | settings)
    return warm_up(adapter, Shuffled(EXAMPLES, 8, 0.0, 0), config, seed=0)


def test_its_tokenizer_learns_to_reconstruct_before_the_language_model_is_tuned(folder):
    adapter = load(folder, trust=True)
    pixels = make_batch(adapter, EXAMPLES).pixels
    before = adapter.tokens_of(pixels)
    history = warmed(adapter)
    assert history[-1]["loss"] == history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]
    found = health(adapter, pixels, before)
    with torch.no_grad():
        now = adapter.model.encode(pixels)
        decoded = adapter.model.decode(now).clamp(0, 1)
    psnr = peak_signal_noise_ratio(decoded, pixels, data_range=1.0, dim=(1, 2, 3))  # a mean over images
    assert found["psnr"] == pytest.approx(psnr.item(), abs=1e-3)
    assert found["spread"] == pytest.approx(now.var(0, correction=0).mean().item(), rel=1e-5)
    wanted = torch.nn.functional.mse_loss(now, before) / before.var(0, correction=0).mean()
    assert found["drift"] == pytest.approx(wanted.item(), rel=1e-4)


def test_tokens_that_no_longer_vary_are_told(folder):
    adapter = load(folder, trust=True)
    pixels = make_batch(adapter, EXAMPLES).pixels
    before = adapter.tokens_of(pixels)
    noise = before.flatten(0, 2).var(0, correction=0).mean() / 100
    assert token_use(adapter, list(before)) == {"active_dimensions": float((before.var(0) > noise).sum())}
    assert collapse(health(adapter, pixels, before)) is None
    with torch.no_grad():
        adapter.model.vision.inward[0].weight.zero_()
    assert "vary by 0, those of" in collapse(health(adapter, pixels, before))
    assert token_use(adapter, list(adapter.tokens_of(pixels)), 1e-6) == {"active_dimensions": 0.0}


# Bad input.


def said(function, *arguments, **settings):
    with pytest.raises(InfotokError) as error:
        function(*arguments, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_refused(folder, tmp_path):
    assert "set trust: true" in said(load, folder)
    assert "of its own; leave it out" in said(load, folder, trust=True, decoder=tmp_path / "decoder.ckpt")
    assert "choose vib or hsic" in said(made, folder, "ceb", 0.1)
    adapter = load(folder, trust=True)
    assert "entropy_bits" in said(calibrated, adapter, [make_batch(adapter, EXAMPLES).pixels], 1.0)
    assert "do not vary" in said(calibrated, adapter, [torch.zeros(2, 3, 32, 32)])
    assert "16 tokens, not 64" in said(adapter.limit, 64)
    assert "16 tokens, not 64" in said(open_model, ModelConfig(name=folder, trust=True), 64, adapter.device)
    assert "settle: is of codes" in said(warmed, adapter, settle=True)
    assert "lacks nothing" in said(warmed, adapter, tokenizer="new")
    assert "top_k: is of codes" in said(draw_tokens, adapter, ["a red square"], (4, 4), seed=0, batch=1, top_k=3)
    assert "takes no guidance" in said(draw_tokens, adapter, ["a red square"], (4, 4), seed=0, batch=1, guidance=3.0)


def test_a_model_that_offers_too_little_is_told_what(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "poor")
    code = tmp_path / "poor/continuous_model.py"
    code.write_text(code.read_text().replace("def caption", "def captions").replace("def write", "def writes"))
    assert "lacks write, caption" in said(load, str(tmp_path / "poor"), trust=True)
    assert {"vision", "encode", "draw_loss"} <= set(OFFERED)


def test_its_folder_is_one_that_transformers_loads(folder, tmp_path):
    from transformers import AutoModel

    load(folder, trust=True).save(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model).__name__ == "TinyModel"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "continuous"
