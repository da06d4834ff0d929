"""Tuning tiny models of real classes: what learns, what does not, and what is saved."""

import math
import re
from pathlib import Path

import pytest
import tiny_mllm
import torch
from transformers import AutoModelForImageTextToText

from infotok.errors import InfotokError
from infotok.mllm.adapter import PADDING
from infotok.mllm.batches import Example, make_batch
from infotok.mllm.examples import Shuffled
from infotok.mllm.loading import check_codes, load
from infotok.mllm.losses import cross_entropy
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated, regularizer

NAMES = tiny_mllm.SHARED
SETTINGS = {"lm_rate": 3e-3, "tokenizer_rate": 1e-3, "prior_rate": 0.05, "warmup": 1, "precision": "fp32"}
SETTINGS |= {"steps": 2, "batch": 8, "beta_warmup": 0.0}
EXAMPLES = [Example(*row) for row in zip(*tiny_mllm.toy(range(-2, 2)), strict=True)]  # 32


def pixels_of(adapter, examples=EXAMPLES):
    return adapter.ask([e.image for e in examples], [e.question for e in examples])["pixel_values"]


def tuner(folder, estimator="dib", beta=0.003, gamma=0.0, entropy_bits=1.0, seed=0, **settings):
    torch.manual_seed(seed)  # of a new decoder and of the regularizer
    adapter = load(folder)
    pixels = pixels_of(adapter)
    tiny_mllm.settle(adapter, pixels)
    config = TuneConfig(**SETTINGS | settings)
    arm = {"estimator": estimator, "beta": beta, "gamma": gamma}
    variance = calibrated(adapter, [pixels], entropy_bits)
    return Tuner(adapter, regularizer(adapter, config, tokens=16, **arm), variance, config)


def run(tuner, examples=EXAMPLES, seed=0, **settings):
    data = Shuffled(examples, tuner.config.batch, tuner.config.caption_dropout, seed)
    return tuner.run(data, seed=seed, **settings)


def gradients(tuner, examples=EXAMPLES):
    """Loss and parts of one step as numbers, and the gradients that it leaves."""
    batch = examples[: tuner.config.batch]
    values = tuner.gradients(batch, [index % 3 == 0 for index in range(len(batch))])
    found = {name: p.grad.clone() for name, p in tuner.step.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in values.items()}, found


both = pytest.mark.parametrize("name", NAMES)


def norms(tuner, loss):
    """Gradients of a loss, by what they reach."""
    tuner.step.zero_grad()
    loss.backward(retain_graph=True)
    vq = tuner.adapter.tokenizer
    parts = {
        "encoder": vq.encoder,
        "codebook": vq.quantize,
        "model": tuner.adapter.model.model,
        "prior": tuner.step.bottleneck,
    }
    decoder = vq.decoder if tuner.adapter.extra is None else tuner.adapter.extra
    inside = {id(p) for p in vq.parameters()}
    found = {}
    for part, module in (parts | {"decoder": decoder}).items():
        rows = [p for p in module.parameters() if p.grad is not None and (part != "model" or id(p) not in inside)]
        found[part] = math.sqrt(sum(float(p.grad.square().sum()) for p in rows))
    return found


@both
def test_each_term_teaches_what_it_should(folders, name):
    off = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0}

    def reached(beta=0.0, **settings):
        made = tuner(folders[name], beta=beta, **off | settings)
        found = norms(made, made.step(make_batch(made.adapter, EXAMPLES[:2]))[0])
        return {part for part, norm in found.items() if norm > 0}

    assert reached(understanding=1.0) == {"encoder", "codebook", "model", "prior"}
    assert reached(understanding=1.0, lm_gradient=0.0) == {"model", "prior"}
    assert reached(generation=1.0) == {"model", "prior"}
    assert reached(reconstruction=1.0) == {"encoder", "codebook", "decoder", "prior"}
    assert reached(beta=0.1) == {"encoder", "codebook", "prior"}


@both
def test_the_scale_of_the_language_model_s_gradient(folders, name):
    found = []
    for scale in (1.0, 0.05):
        off = {"generation": 0.0, "reconstruction": 0.0, "lm_gradient": scale}
        made = tuner(folders[name], beta=0.0, **off)
        found.append(norms(made, made.step(make_batch(made.adapter, EXAMPLES[:4]))[0]))
    assert found[1]["encoder"] == pytest.approx(0.05 * found[0]["encoder"], rel=1e-3)
    assert found[1]["model"] == pytest.approx(found[0]["model"], rel=1e-5)


@both
def test_answers_and_codes_are_scored_as_transformers_scores_them(folders, name):
    """By the model's own forward on pixels; Chameleon's forbids codes, so its head is asked."""
    made = tuner(folders[name], beta=0.0)
    batch, adapter = make_batch(made.adapter, EXAMPLES[:3]), made.adapter
    made.step.eval()
    with torch.no_grad():
        _, parts = made.step(batch)
        ids = torch.cat([batch.ask["input_ids"], batch.answers.where(batch.answers != PADDING, 0)], 1)
        mask = torch.cat([batch.ask["attention_mask"], (batch.answers != PADDING).long()], 1)
        labels = torch.cat([torch.full_like(batch.ask["input_ids"], PADDING), batch.answers], 1)
        given = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch.pixels}
        if name == "emu3":
            given["image_sizes"] = torch.tensor([[32, 32]] * 3)
            wanted = adapter.model(labels=labels, **given).loss
        else:
            logits = adapter.model.lm_head(adapter.model.model(**given, use_cache=False).last_hidden_state)
            wanted = adapter.model.loss_function(logits, labels, vocab_size=logits.shape[-1])
        torch.testing.assert_close(parts["understanding"], wanted, rtol=1e-4, atol=1e-4)
        targets = adapter.draw_targets(adapter.codes(batch.pixels))
        ids = torch.cat([batch.prompt["input_ids"], targets], 1)
        mask = torch.cat([batch.prompt["attention_mask"], torch.ones_like(targets)], 1)
        hidden = adapter.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = adapter.model.lm_head(hidden)[:, -targets.shape[1] - 1 : -1]
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(parts["generation"], wanted, rtol=1e-5, atol=1e-5)


def test_cross_entropy_by_pieces_is_that_of_the_whole(folders):
    adapter = load(folders["emu3"])
    states = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.randint(300, (7,), generator=torch.Generator().manual_seed(1))
    whole = torch.nn.functional.cross_entropy(adapter.head(states), targets)
    pieces = cross_entropy(adapter.head, states, targets, rows=3)
    torch.testing.assert_close(pieces, whole)
    tensors = [states, adapter.model.lm_head.weight]
    for one, other in zip(torch.autograd.grad(pieces, tensors), torch.autograd.grad(whole, tensors), strict=True):
        torch.testing.assert_close(one, other)


@both
def test_batch_norms_stay_and_features_do_not_depend_on_the_batch(folders, name):
    made = tuner(folders[name])
    made.step.train()
    pixels = pixels_of(made.adapter, EXAMPLES[:3])
    with torch.no_grad():
        alone, together = made.adapter.features(pixels[:1]), made.adapter.features(pixels)[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert made.adapter.model.training


@pytest.mark.parametrize("arm", [("none", 0.0, 0.0), ("vib", 0.01, 0.0), ("ceb", 0.01, 1.0), ("hsic", 0.1, 0.0)])
def test_every_estimator_takes_a_step(folders, arm):
    estimator, beta, gamma = arm
    made = tuner(folders["emu3"], estimator, beta, gamma, prior="low_rank" if estimator == "vib" else "shared")
    parts = made.gradients(EXAMPLES[:8], [False] * 8)
    assert all(math.isfinite(value) for value in parts.values())
    if estimator != "hsic":
        assert parts["rate_bits"] > 0
    assert ("consistency" in parts) == (gamma > 0)


def test_ceb_pays_what_the_language_model_says_of_the_codes(folders):
    """Its penalty is the cross-entropy of codes drawn from q, over codes alone."""
    made = tuner(folders["emu3"], "ceb", 0.1, entropy_bits=None)
    made.step.variance = 1e-6  # q is one code
    batch = make_batch(made.adapter, EXAMPLES[:4])
    with torch.no_grad():
        _, parts = made.step(batch)
        codes = made.adapter.codes(batch.pixels)
        states = made.adapter.draw_states(batch.prompt, codes)
        logits = states[:, made.adapter.code_columns(4, 4)] @ made.adapter.code_head().T
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / 4
    assert parts["penalty"].item() == pytest.approx(wanted.item(), rel=1e-4)


@both
@pytest.mark.parametrize("estimator", ["dib", "vib", "hsic"])
def test_the_model_itself_as_a_prior_is_what_it_says_without_a_caption(folders, name, estimator):
    """By its own forward on the whole sequence; the penalty teaches the tokenizer and not the language model."""
    off = {"understanding": 0.0, "generation": 0.0, "reconstruction": 0.0}
    made = tuner(folders[name], estimator, 0.1, prior="model", **off)
    made.step.variance = 1e-6  # q is one code, whose entropy is 0
    batch, adapter = make_batch(made.adapter, EXAMPLES[:4]), made.adapter
    loss, parts = made.step(batch)
    with torch.no_grad():
        codes = adapter.codes(batch.pixels)
        prompt, targets = adapter.draw_prompt([""] * 4, 4, 4), adapter.draw_targets(codes)
        ids = torch.cat([prompt["input_ids"], targets], 1)
        mask = torch.cat([prompt["attention_mask"], torch.ones_like(targets)], 1)
        hidden = adapter.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        columns = prompt["input_ids"].shape[1] - 1 + adapter.code_columns(4, 4)
        logits = hidden[:, columns] @ adapter.model.lm_head.weight[adapter.code_ids()].T
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / 4
    assert parts["rate_bits"].item() == pytest.approx(wanted.item() / math.log(2), rel=1e-3)
    if estimator != "hsic":
        assert parts["penalty"].item() == pytest.approx(wanted.item(), rel=1e-3)
    reached = {part for part, norm in norms(made, loss).items() if norm > 0}
    assert reached <= {"encoder", "codebook"}
    assert "prior" not in reached


@both
def test_tuning_repeats_itself_and_arms_see_the_same_examples(folders, name):
    first, second = (run(tuner(folders[name], caption_dropout=0.3), seed=3) for _ in range(2))
    assert first == second
    shown = [[Shuffled(EXAMPLES, 8, 0.3, seed).examples(step) for step in range(8)] for seed in (3, 3, 4)]
    assert shown[0] == shown[1] != shown[2]
    epoch = [id(example) for chosen, _ in shown[0][:4] for example in chosen]
    assert sorted(epoch) == sorted(map(id, EXAMPLES))
    dropped = [drop for _, flags in shown[0] for drop in flags]
    assert 5 < sum(dropped) < 40  # of 64, at 0.3


def test_a_dropped_caption_is_not_in_the_prompt(folders):
    adapter = load(folders["emu3"])
    batch = make_batch(adapter, EXAMPLES[:2], [True, False])
    texts = adapter.processor.tokenizer.batch_decode(batch.prompt["input_ids"])
    assert EXAMPLES[0].caption not in texts[0]
    assert EXAMPLES[1].caption in texts[1]
    assert batch.has_caption.tolist() == [False, True]


@both
@pytest.mark.parametrize("how", ["encoder", "frozen"])
def test_parts_of_the_tokenizer_that_are_not_trained_stay_as_they_are(folders, name, how):
    made = tuner(folders[name], tokenizer=how, beta=0.003 if how == "encoder" else 0.0)
    made.adapter.extra_is_new = False
    made = Tuner(made.adapter, made.step.bottleneck, made.step.variance, made.config)
    before = {key: value.clone() for key, value in made.adapter.model.state_dict().items()}
    run(made)
    changed = {key for key, value in made.adapter.model.state_dict().items() if not torch.equal(value, before[key])}
    inside = {key.split("vqmodel.")[1].split(".")[0] for key in changed if "vqmodel" in key}
    assert inside == ({"encoder", "quant_conv"} if how == "encoder" else set())
    assert any("lm_head" in key for key in changed)


def test_a_frozen_tokenizer_is_not_pressed(folders):
    for terms in ({"beta": 0.1}, {"beta": 0.0, "gamma": 1.0}):
        with pytest.raises(InfotokError, match="tokenizer: is frozen") as error:
            tuner(folders["emu3"], tokenizer="frozen", **terms)
        assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_changes_nothing(folders):
    made = tuner(folders["emu3"])
    with torch.no_grad():
        made.adapter.model.lm_head.weight[0, 0] = math.nan
    before = made.adapter.codebook().clone()
    with pytest.raises(InfotokError, match="not finite"):
        run(made)
    assert torch.equal(made.adapter.codebook(), before)


@both
def test_it_learns_is_saved_and_draws(folders, name, tmp_path):
    """A few dozen images, a few dozen steps: the loss falls, the rate too, and the folder is an ordinary one."""
    made = tuner(folders[name], steps=30, batch=8, caption_dropout=0.1, final_fraction=1.0)
    first, *_, last = run(made)  # means over 10 steps
    for part, share in (("understanding", 0.6), ("generation", 0.8), ("reconstruction", 0.9)):
        assert last[part] < share * first[part], (part, first[part], last[part])
    made.save(tmp_path)
    again = load(str(tmp_path))
    pixels = pixels_of(again)
    assert check_codes(again, pixels) is None
    assert not again.extra_is_new
    images, questions, captions = (
        [e.image for e in EXAMPLES[:8]],
        ["what color?"] * 8,
        [e.caption for e in EXAMPLES[:8]],
    )
    made.step.eval()
    assert again.answer(images, questions) == made.adapter.answer(images, questions)
    drawn = again.draw(captions, 4, 4)
    assert torch.equal(drawn, made.adapter.draw(captions, 4, 4))
    assert again.decode(again.codebook()[drawn]).shape == (8, 3, 32, 32)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(made.adapter.model)


@both
def test_low_rank_updates_reach_the_language_model_alone_and_are_merged(folders, name, tmp_path):
    made = tuner(folders[name], train="lora", rank=4, alpha=8, tokenizer="encoder")
    before = {key: value.clone() for key, value in load(folders[name]).model.state_dict().items()}
    learning = {key for key, value in made.step.model.named_parameters() if value.requires_grad}
    assert {key.split(".")[-4] for key in learning if "lora_" in key} == {
        f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")
    }
    others = {key for key in learning if "lora_" not in key}
    assert others
    assert all(".vqmodel.encoder." in key or ".vqmodel.quant_conv." in key for key in others)
    run(made)
    images, questions = [e.image for e in EXAMPLES[:4]], ["what color?"] * 4
    made.step.eval()
    logits = made.adapter.head(made.adapter.hidden(made.adapter.draw_prompt(["a red square"], 4, 4)))
    made.save(tmp_path)
    again = load(str(tmp_path))
    assert again.model.state_dict().keys() == before.keys()
    torch.testing.assert_close(
        again.head(again.hidden(again.draw_prompt(["a red square"], 4, 4))), logits, rtol=1e-4, atol=1e-4
    )
    changed = {key for key, value in again.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("q_proj" in key for key in changed)
    assert not any("embed_tokens" in key or "lm_head" in key for key in changed)
    assert again.answer(images, questions) == made.adapter.answer(images, questions)


def test_peft_that_is_missing_is_named(folders, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InfotokError, match=r"infotok\[mllm\]"):
        tuner(folders["emu3"], train="lora")


def test_fewer_examples_than_a_batch(folders):
    with pytest.raises(InfotokError, match="fewer than one batch of 8"):
        run(tuner(folders["emu3"]), EXAMPLES[:4])


def test_the_page_s_example_runs(folders, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "mllm.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    EXAMPLES[0].image.save("red.png")
    assert "BAAI/Emu3-Chat-hf" in code
    space = {}
    exec(code.replace("BAAI/Emu3-Chat-hf", folders["emu3"]).replace("steps=10", "steps=2"), space)
    assert space["pixels"].shape == (1, 3, 32, 32)
