"""Masked diffusion: a tiny model with the interface of Lumina-DiMOO's own code, brought by its folder."""

import math
import re

import pytest
import tiny_mllm
import torch
from torch.nn import functional as F

from infotok.errors import InfotokError
from infotok.mllm import masked
from infotok.mllm.adapter import PADDING
from infotok.mllm.adapters import llada
from infotok.mllm.batches import Example, make_batch
from infotok.mllm.examples import Shuffled
from infotok.mllm.loading import check_codes, load
from infotok.mllm.masked import random_masks, rows_of
from infotok.mllm.parts import Part
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated, regularizer

EXAMPLES = [Example(*row) for row in zip(*tiny_mllm.toy(), strict=True)]  # 8
SETTINGS = {"lm_rate": 3e-3, "tokenizer_rate": 1e-3, "prior_rate": 0.05, "warmup": 1, "precision": "fp32"}
SETTINGS |= {"steps": 2, "batch": 8, "beta_warmup": 0.0, "final_fraction": 1.0}
OFF = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trusted_code):
    folder = tmp_path_factory.mktemp("checkpoints") / "masked"
    return tiny_mllm.make("llada", folder)


@pytest.fixture
def adapter(folder):
    return opened(folder)


def opened(folder):
    adapter = load(folder, trust=True)
    adapter.limit(16)
    tiny_mllm.settle(adapter, make_batch(adapter, EXAMPLES).pixels)
    return adapter


def made(folder, estimator="dib", beta=0.001, gamma=0.0, **settings):
    torch.manual_seed(0)  # of the regularizer and of low-rank updates
    adapter = opened(folder)
    config = TuneConfig(**SETTINGS | settings)
    arm = {"estimator": estimator, "beta": beta, "gamma": gamma}
    variance = calibrated(adapter, [make_batch(adapter, EXAMPLES).pixels], 1.0)
    return Tuner(adapter, regularizer(adapter, config, tokens=16, **arm), variance, config)


def run(tuner, seed=0):
    data = Shuffled(EXAMPLES, tuner.config.batch, tuner.config.caption_dropout, seed)
    return tuner.run(data, seed=seed)


def own_logits(adapter, ids):
    """By the forward of the model's own code, which takes ids alone."""
    return adapter.model(torch.stack(ids), infer=True).logits


# Tokens and prompts.


def test_codes_and_pixels_are_those_of_diffusers(adapter):
    pixels = make_batch(adapter, EXAMPLES).pixels
    assert check_codes(adapter, pixels) is None
    codes = adapter.codes(pixels)
    assert len(codes.unique()) > 4
    shape = (*codes.shape, adapter.sizes()["dimension"])
    own = adapter.tokenizer.decode(codes, force_not_quantize=True, shape=shape).sample
    torch.testing.assert_close(adapter.decode(adapter.vectors_of(codes)), own)


def test_prompts_have_the_order_of_the_model_s_own(adapter):
    tokenizer, asked = adapter.processor.tokenizer, adapter.ask([EXAMPLES[0].image], ["what color?"])
    ids = rows_of(asked)[0]
    image = torch.isin(ids, adapter.code_ids())
    told = tokenizer.decode(ids[~image])
    line = "<|line|>" * 4
    assert told == f"<system>{llada.ANSWERING}</system><user>what color?<IMAGE>{line}</IMAGE></user><answer>"
    assert image.sum() == 16
    drawn = tokenizer.decode(rows_of(adapter.draw_prompt(["a red square"], 4, 4))[0])
    assert drawn == f"<system>{llada.DRAWING}</system><user>a red square</user><answer><IMAGE>"
    assert "<user><uncondition></user>" in tokenizer.decode(rows_of(adapter.draw_prompt([""], 4, 4))[0])
    targets = adapter.draw_targets(torch.zeros(1, 2, 3).long())[0]
    assert tokenizer.decode(targets[[3, 7, 8, 9]]) == "<|line|><|line|></IMAGE></answer>"
    assert torch.equal(targets[adapter.code_columns(2, 3)], adapter.code_ids()[:1].expand(6))


@pytest.mark.parametrize(("size", "wanted"), [((100, 100), (64, 64)), ((200, 100), (80, 48)), ((90, 400), (32, 128))])
def test_images_get_the_size_of_most_tokens_that_is_nearest_to_their_own_ratio(adapter, size, wanted):
    adapter.limit(64)  # 16 squares of 16 pixels
    made = adapter._resized(EXAMPLES[0].image.resize(size))
    assert made.size == wanted


# The loss.


def test_masks_are_at_least_one_and_as_many_as_a_cosine_of_uniform_numbers():
    present = torch.ones(20_000, 10, dtype=torch.bool)
    present[:, 8:] = False
    masks = random_masks(present, torch.Generator().manual_seed(0))
    assert not masks[:, 8:].any()
    counts = masks.sum(1)
    # m of 8 where cos(pi u / 2) lies between (m - 1) / 8 and m / 8
    chance = torch.tensor([2 / math.pi * (math.acos((m - 1) / 8) - math.acos(m / 8)) for m in range(1, 9)])
    found = torch.bincount(counts, minlength=9)[1:] / len(counts)
    torch.testing.assert_close(found, chance, rtol=0, atol=0.01)
    each = masks[:, :8].float().mean(0)
    torch.testing.assert_close(each, each.mean().expand(8), rtol=0, atol=0.015)


def test_the_loss_of_a_hand_worked_case(adapter, monkeypatch):
    """Two images of 2 x 2 tokens, of which 1 and 4 are masked: the mean over each one's masks, then over images."""
    masks = torch.tensor([[True, False, False, False], [True, True, True, True]])
    monkeypatch.setattr(masked, "random_masks", lambda present, generator: masks)
    codes = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    pixels = make_batch(adapter, EXAMPLES[:2]).pixels
    encoded = adapter.encode(pixels, 1.0, 1.0, torch.Generator())
    prompt = adapter.draw_prompt(["a red square", "a red square"], 2, 2)
    drawing = adapter.drawing(prompt, type(encoded)(**vars(encoded) | {"codes": codes}), torch.Generator())
    base, ids = int(adapter.code_ids()[0]), adapter.ids
    hole, line, closing = ids.mask, ids.line_end, [ids.image_end, ids.answer_end]
    first = [hole, base + 2, line, base + 3, base + 4, line, *closing]
    second = [hole, hole, line, hole, hole, line, *closing]
    sequences = [torch.cat([row, torch.tensor(end)]) for row, end in zip(rows_of(prompt), (first, second), strict=True)]
    log_p = own_logits(adapter, sequences)[:, -8:].log_softmax(-1)
    of_second = -(log_p[1, 0, base + 5] + log_p[1, 1, base + 6] + log_p[1, 3, base + 7] + log_p[1, 4, base + 8])
    wanted = (-log_p[0, 0, base + 1] + of_second / 4) / 2
    torch.testing.assert_close(drawing.loss, wanted)


def test_an_answer_of_few_tokens_is_masked_whole_and_padding_apart_from_it(adapter, monkeypatch):
    batch = make_batch(adapter, EXAMPLES[:2])
    answer = batch.answers != PADDING
    assert answer.sum(1).max() <= masked.SHORT
    behind = torch.zeros(2, masked.ROOM, dtype=torch.bool)
    behind[:, -2:] = True
    monkeypatch.setattr(masked, "random_masks", lambda present, generator: behind & present)
    encoded = adapter.encode(batch.pixels, 1.0, 1.0, torch.Generator())
    found = adapter.understanding(batch, encoded, 1.0, torch.Generator())
    ids, codes = adapter.ids, adapter.code_ids()[adapter.codes(batch.pixels)].flatten(1)
    losses = []
    for row, wanted, image in zip(rows_of(batch.ask), batch.answers, codes, strict=True):
        wanted = wanted[wanted != PADDING]
        room = torch.full((masked.ROOM,), ids.padding)
        room[: len(wanted)] = ids.mask
        room[-2:] = ids.mask
        prompt = row.masked_scatter(torch.isin(row, adapter.code_ids()), image)
        logits = own_logits(adapter, [torch.cat([prompt, room])])[0, -masked.ROOM :]
        padding = F.cross_entropy(logits[-2:], torch.full((2,), ids.padding))
        losses.append(F.cross_entropy(logits[: len(wanted)], wanted) + padding)
    weights = answer.sum(1) / answer.sum()
    torch.testing.assert_close(found, (torch.stack(losses) * weights).sum())


def test_a_row_does_not_depend_on_a_longer_one_beside_it(adapter):
    rows = rows_of(adapter.draw_prompt(["a red square", "a red square and much more of the same"], 4, 4))
    torch.testing.assert_close(adapter.states(rows)[0], adapter.states(rows[:1])[0])


def test_ceb_pays_the_order_agnostic_code_length(folder, adapter, monkeypatch):
    """Its mean over all masks of two tokens, each as often as training draws it, is the exact mean over both orders."""
    codes = torch.tensor([[[3, 9]]])
    encoded = adapter.encode(make_batch(adapter, EXAMPLES[:1]).pixels, 1.0, 1.0, torch.Generator())
    encoded = type(encoded)(**vars(encoded) | {"codes": codes})
    prompt = adapter.draw_prompt(["a red square"], 1, 2)

    def length(given):
        """-log p of the masked codes, over codes alone."""
        monkeypatch.setattr(masked, "random_masks", lambda present, generator: given)
        drawing = adapter.drawing(prompt, encoded, torch.Generator())
        log_p = drawing.predicted.dense().logits.log_softmax(-1)
        return -log_p.gather(-1, codes.flatten(1)[..., None])[..., 0][0], drawing.weight[0]

    both, left, right = (torch.tensor([one]) for one in ([True, True], [True, False], [False, True]))
    with torch.no_grad():
        (whole, of_both), (first, of_left), (second, of_right) = (length(masks) for masks in (both, left, right))
    exact = (whole[0] + second[1] + whole[1] + first[0]) / 2  # left to right, and right to left
    one = 2 / math.pi * (math.acos(0) - math.acos(0.5))  # chance that one is masked
    paid = (1 - one) * (whole * of_both).sum() + one / 2 * ((first * of_left).sum() + (second * of_right).sum())
    torch.testing.assert_close(paid, exact)


# The joint step.


def test_each_term_teaches_what_it_should(folder):
    def reached(beta=0.0, **settings):
        tuner = made(folder, beta=beta, **OFF | settings)
        tuner.step(make_batch(tuner.adapter, EXAMPLES[:2]))[0].backward()
        parts = {name: getattr(tuner.adapter.tokenizer, name) for name in ("encoder", "quantize", "decoder")}
        parts["language"] = tuner.adapter.model.model
        return {
            name for name, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }

    assert reached(understanding=1.0) == {"encoder", "quantize", "language"}
    assert reached(understanding=1.0, lm_gradient=0.0) == {"language"}
    assert reached(generation=1.0) == {"language"}
    assert reached(reconstruction=1.0) == {"encoder", "quantize", "decoder"}
    assert reached(beta=0.1) == {"encoder", "quantize"}


@pytest.mark.parametrize("arm", [("none", 0.0, 0.0), ("vib", 0.01, 0.0), ("ceb", 0.01, 1.0), ("hsic", 0.1, 0.0)])
def test_every_estimator_takes_a_step(folder, arm):
    estimator, beta, gamma = arm
    tuner = made(folder, estimator, beta, gamma)
    parts = tuner.gradients(EXAMPLES, [False] * 8)
    assert all(math.isfinite(value) for value in parts.values())
    assert ("consistency" in parts) == (gamma > 0)


def test_a_step_repeats_itself_and_arms_share_its_masks(folder):
    def losses(estimator, beta, seed):
        step = made(folder, estimator, beta).step
        _, parts = step(make_batch(step.adapter, EXAMPLES), Part(seed=seed))
        return [parts[name].item() for name in ("understanding", "generation")]

    assert losses("vib", 0.1, 3) == losses("ceb", 0.1, 3) == losses("none", 0.0, 3)
    assert losses("vib", 0.1, 3) != losses("vib", 0.1, 4)


def test_a_training_repeats_itself(folder):
    first, second = (run(made(folder, steps=10), seed=3) for _ in range(2))
    assert first == second


def test_low_rank_updates_reach_the_language_model_alone(folder):
    tuner = made(folder, train="lora", rank=4, alpha=8, tokenizer="encoder")
    learning = [name for name, value in tuner.step.model.named_parameters() if value.requires_grad]
    language = {re.sub(r".*blocks\.\d+\.(\w+)\..*", r"\1", name) for name in learning if "lora_" in name}
    assert language == {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    assert all("vqvae.encoder" in name or "vqvae.quant_conv" in name for name in learning if "lora_" not in name)


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_draw_the_masks_of_the_whole_and_have_its_gradient(folder, count):
    whole, parts = (made(folder, "ceb", 0.1, 1.0, accumulate=accumulate) for accumulate in (1, count))
    dropped = [False, True] * 4
    for tuner in (whole, parts):
        tuner.gradients(EXAMPLES, dropped, seed=1, step=2)
    for (name, one), (_, other) in zip(whole.step.named_parameters(), parts.step.named_parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).norm() < 1e-3 * one.grad.norm() + 1e-6, name


def test_it_learns_is_saved_answers_and_draws(folder, tmp_path):
    tuner = made(folder, steps=60, beta=0.003)
    history = run(tuner)
    for part, share in (("understanding", 0.3), ("generation", 0.5), ("reconstruction", 0.5)):
        assert history[-1][part] < share * history[0][part], part
    tuner.save(tmp_path)
    assert {"masked_model.py", "vqvae", "model.safetensors", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}
    again = load(str(tmp_path), trust=True)
    again.limit(16)
    tuner.step.eval()
    images, questions = [e.image for e in EXAMPLES], ["what color?"] * 8
    answers = again.answer(images, questions, max_new_tokens=8)
    assert answers == tuner.adapter.answer(images, questions, max_new_tokens=8)
    captions = [example.caption for example in EXAMPLES]
    drawn = again.draw(captions, 4, 4)
    assert torch.equal(drawn, tuner.adapter.draw(captions, 4, 4))
    pixels = make_batch(again, EXAMPLES).pixels
    assert check_codes(again, pixels) is None
    assert (drawn == again.codes(pixels)).float().mean() > 0.5
    assert again.decode(again.vectors_of(drawn)).shape == (8, 3, 32, 32)


# Answering and drawing.


def test_greedy_drawing_in_one_step_takes_the_likeliest_code_of_every_place(adapter):
    prompt = rows_of(adapter.draw_prompt(["a red square"], 2, 2))[0]
    targets = adapter.draw_targets(torch.zeros(1, 2, 2).long())[0]
    targets[adapter.code_columns(2, 2)] = adapter.ids.mask
    logits = own_logits(adapter, [torch.cat([prompt, targets])])[0, -len(targets) :][adapter.code_columns(2, 2)]
    wanted = logits[:, adapter.code_ids()].argmax(-1)
    assert torch.equal(adapter.draw(["a red square"], 2, 2, steps=1).flatten(), wanted)


def test_guidance_and_chance(adapter):
    captions = ["a red square", "a blue stripe"]
    plain = adapter.draw(captions, 4, 4)
    assert torch.equal(adapter.draw(captions, 4, 4), plain)
    assert not torch.equal(adapter.draw(captions, 4, 4, guidance=20.0), plain)
    torch.manual_seed(0)
    sampled = adapter.draw(captions, 4, 4, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(adapter.draw(captions, 4, 4, do_sample=True), sampled)
    assert len(sampled.unique()) > 16
    assert torch.equal(
        adapter.draw(captions, 4, 4, do_sample=True, top_k=1, steps=1), adapter.draw(captions, 4, 4, steps=1)
    )


# Bad input.


def said(function, *arguments, **settings):
    with pytest.raises(InfotokError) as error:
        function(*arguments, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_refused(folder, adapter, tmp_path, monkeypatch):
    import shutil
    import sys

    assert "set trust: true" in said(load, folder)
    assert "has a decoder of its own; leave it out" in said(load, folder, trust=True, decoder=tmp_path / "decoder.ckpt")
    assert "more" in said(adapter.limit, 3)
    assert "nucleus: a masked model takes do_sample" in said(adapter.draw, ["a"], 4, 4, nucleus=0.9)
    assert "nucleus: a masked model takes max_new_tokens" in said(adapter.answer, [], [], nucleus=0.9)
    images = [EXAMPLES[0].image, EXAMPLES[1].image.crop((0, 0, 32, 8))]
    assert "one size" in said(adapter.ask, images, ["what color?"] * 2)
    shutil.copytree(folder, tmp_path / "poor")
    shutil.rmtree(tmp_path / "poor/vqvae")
    assert "cannot be loaded" in said(load, str(tmp_path / "poor"), trust=True)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "infotok[mllm]" in said(load, folder, trust=True)
