"""The control: what it draws with is not what it reads with."""

import math

import pytest
import tiny_mllm
import torch
from torch.nn import functional as F

from infotok import InformationBottleneck
from infotok.errors import InfotokError
from infotok.mllm.batches import Example, make_batch
from infotok.mllm.examples import Shuffled
from infotok.mllm.loading import check_codes, load
from infotok.mllm.tiny import CODES
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated

EXAMPLES = [Example(*row) for row in zip(*tiny_mllm.toy(), strict=True)]  # 8


@pytest.fixture
def folder(folders):
    return folders["janus"]


def made(folder, estimator="dib", beta=0.003, **settings):
    adapter = load(folder, control=True)
    pixels = make_batch(adapter, EXAMPLES).pixels
    tiny_mllm.settle(adapter, pixels)
    rates = {"lm_rate": 3e-3, "tokenizer_rate": 1e-3, "prior_rate": 0.05}
    config = TuneConfig(
        **rates | {"steps": 20, "batch": 8, "caption_dropout": 0.0, "warmup": 1, "precision": "fp32"} | settings
    )
    torch.manual_seed(0)
    bottleneck = InformationBottleneck(estimator, beta=beta, tokens=16, codebook=CODES, prior="shared")
    return Tuner(adapter, bottleneck, calibrated(adapter, [pixels], 1.0), config)


def test_it_is_taken_as_the_control_alone(folder):
    with pytest.raises(InfotokError, match="no shared tokens to regularize") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_codes_are_compared_with_the_model_s_own_which_are_not_normalized(folder):
    adapter = load(folder, control=True)
    pixels = make_batch(adapter, EXAMPLES).pixels
    assert "of the adapter's codes" in check_codes(adapter, pixels)
    with torch.no_grad():  # codes of one length, as features have then no part in the choice
        weight = adapter.tokenizer.quantize.embedding.weight
        weight.copy_(F.normalize(weight, dim=-1))
    assert check_codes(adapter, pixels) is None


def test_its_decoder_s_vectors_are_those_of_its_own_decoding(folder):
    adapter = load(folder, control=True)
    codes = torch.randint(CODES, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapter.decode(adapter.codebook()[codes]), adapter.tokenizer.decode(codes.flatten(1)))


def test_the_language_model_teaches_no_tokenizer(folder):
    off = {"generation": 0.0, "reconstruction": 0.0}
    tuner = made(folder, beta=0.0, **off)
    tuner.step(make_batch(tuner.adapter, EXAMPLES[:2]))[0].backward()
    assert all(not p.grad.any() for p in tuner.adapter.tokenizer.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in tuner.adapter.model.model.vision_model.parameters())


def test_ceb_pays_what_its_own_head_says_of_the_codes(folder):
    tuner = made(folder, "ceb", 0.1)
    tuner.step.variance = 1e-6
    batch, adapter = make_batch(tuner.adapter, EXAMPLES[:4]), tuner.adapter
    with torch.no_grad():
        _, parts = tuner.step(batch)
        codes = adapter.codes(batch.pixels)
        logits = adapter.draw_head(adapter.draw_states(batch.prompt, codes))
        wanted = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / 4
    assert parts["penalty"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert parts["generation"].item() == pytest.approx(wanted.item() / 16, rel=1e-4)


def test_what_is_trained_is_what_it_draws_by(folder):
    """Greedy drawing without guidance follows the codes of the states that training scores."""
    adapter = load(folder, control=True)
    captions = ["a red square", "a blue stripe"]
    drawn = adapter.draw(captions, 4, 4)
    with torch.no_grad():
        states = adapter.draw_states(adapter.draw_prompt(captions, 4, 4), drawn)
    assert torch.equal(adapter.draw_head(states).argmax(-1), drawn.flatten(1))


def test_guided_drawing_follows_logits_with_and_without_the_caption(folder):
    """Janus' own prompt without a caption: padding in the place of all but the marks of beginning, which is read."""
    adapter, scale = load(folder, control=True), 20.0
    captions = ["a red square", "a blue stripe"]
    drawn = adapter.draw(captions, 4, 4, guidance=scale)
    prompt = adapter.draw_prompt(captions, 4, 4)
    named = adapter.model.generation_config
    marks = torch.tensor([named.bos_token_id, named.generation_kwargs["boi_token_id"]])
    ids = prompt["input_ids"]
    without = prompt | {"input_ids": ids.where(torch.isin(ids, marks), named.pad_token_id)}
    with torch.no_grad():
        conditional, empty = (adapter.draw_head(adapter.draw_states(given, drawn)) for given in (prompt, without))
    assert torch.equal((scale * conditional + (1 - scale) * empty).argmax(-1), drawn.flatten(1))
    assert not torch.equal(drawn, adapter.draw(captions, 4, 4))


def test_it_learns_is_saved_answers_and_draws(folder, tmp_path):
    tuner = made(folder)
    history = tuner.run(Shuffled(EXAMPLES, 8, 0.0, seed=0), seed=0)  # means over 10 steps
    for part in ("understanding", "generation", "reconstruction"):
        assert history[-1][part] < 0.85 * history[0][part], part
    assert all(math.isfinite(value) for value in history[-1].values())
    tuner.save(tmp_path)
    again = load(str(tmp_path), control=True)
    tuner.step.eval()
    images, questions = [e.image for e in EXAMPLES[:3]], ["what color?"] * 3
    assert again.answer(images, questions) == tuner.adapter.answer(images, questions)
    drawn = again.draw(["a red square"], 4, 4)
    assert torch.equal(drawn, tuner.adapter.draw(["a red square"], 4, 4))


def test_it_draws_in_one_size(folder):
    with pytest.raises(InfotokError, match="4 x 4 tokens alone, not of 2 x 3"):
        load(folder, control=True).draw(["a red square"], 2, 3)
