"""The unified model on tiny sizes, against enumeration, naive loops and hand-worked masks."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.errors import InfotokError
from infotok.information.channel import Categorical
from infotok.information.objective import Observed, penalty_of
from infotok.models.backbone import Backbone, BackboneConfig, text_codec
from infotok.models.family import Sampling
from infotok.models.packing import Part, pack
from infotok.models.unified import Asked, TextBatch, UnifiedModel
from infotok.tokenizer import patch_grid
from infotok.tokenizer.discrete import DiscreteTokenizer, TokenizerConfig, Tokens
from infotok.training.checkpoints import load_module, module_tensors
from pipeline.artifacts import load_model, save_model
from pipeline.params import load_params
from pipeline.results import Layout

TINY = BackboneConfig(name="llama", width=16, layers=2, heads=2)
VOCABULARY, END = 20, 1


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokenizer(tokens=4, codebook=8, channel="sampled", **changes):
    torch.manual_seed(0)
    settings = {"image_size": 16, "dimension": 4, "width": 16, "hidden": 24, "blocks": 1, "logit_scale": 5.0}
    settings |= {"tokens": tokens, "codebook": codebook, "channel": channel, "relaxation": 3.0} | changes
    return DiscreteTokenizer(TokenizerConfig(**settings))


def model(backbone=TINY, **changes):
    made = tokenizer(**changes)
    torch.manual_seed(1)
    return UnifiedModel("ar", made, Backbone.create(backbone, VOCABULARY)).eval()


def images(count=3, seed=5):
    return torch.rand(count, 3, 16, 16, generator=seeded(seed)) * 2 - 1


def question(rows, start):
    """Rows of ids as one `Asked`, answers from column `start` on."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Asked(ids, valid, valid & (torch.arange(width) >= start))


def texts(second=(7, 8, 4, END)):
    first = question([[5, 6, 3, END], [5, 9, 4, END], [6, 6, 3, END]], 2)
    other = question([list(second)] * 3, 2)
    captions = torch.tensor([[END, 11, 12, 0], [END, 11, 13, 14], [END, 15, 0, 0]])
    return TextBatch([first, other], captions, captions.ne(0))


def test_a_packed_sequence_has_the_hand_worked_pattern():
    image = Part(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]), bidirectional=True)
    one = Part(torch.zeros(1, 2, 4), torch.tensor([[True, False]]), torch.tensor([2]), sees=(0,))
    two = Part(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2]), sees=(0,))
    _, allowed, positions = pack([image, one, two])
    assert allowed[0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],  # padding sees itself, nobody else sees it
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert positions[0].tolist() == [0, 1, 2, 3, 2, 3]


def test_questions_do_not_see_each_other_and_padding_does_not_count():
    tested, pictures = model(), images()
    alone = TextBatch(texts().questions[:1], texts().captions, texts().captions_valid)
    wide = question([[*row, 0, 0] for row in alone.questions[0].ids.tolist()], 2)
    wide.valid[:, -2:] = wide.answers[:, -2:] = False
    padded = TextBatch([wide], alone.captions, alone.captions_valid)
    with torch.no_grad():
        one, same = (tested(pictures, batch, seeded()) for batch in (alone, padded))
        both, changed = (tested(pictures, texts(second), seeded()) for second in ((7, 8, 4, END), (9, 2, 3, END)))
    assert torch.allclose(one.answer_loss, same.answer_loss, atol=1e-6)
    assert torch.allclose(both.generation_loss, changed.generation_loss, atol=1e-6)
    assert torch.allclose(both.generation_loss, one.generation_loss, atol=1e-6)
    assert not torch.allclose(both.answer_loss, changed.answer_loss, atol=1e-3)


def test_cached_answers_are_those_of_a_naive_loop():
    tested = model()
    vectors = tested.tokenizer.sample(tested.tokenizer.encode(images()), seeded()).vectors
    asked = [[5, 6, 7], [8], [9, 10]]
    padded = question(asked, 0)
    with torch.no_grad():
        cached = tested.answer(vectors, padded.ids, padded.valid, 5, END)
        for row, ids in enumerate(asked):
            said: list[int] = []
            while len(said) < 5 and END not in said:
                text = torch.tensor([ids + said])
                everywhere = torch.ones_like(text, dtype=torch.bool)
                image = Part(
                    tested.family.read_inputs(vectors[row : row + 1]),
                    torch.ones(1, 4, dtype=torch.bool),
                    torch.tensor([0]),
                    bidirectional=True,
                )
                part = Part(tested.backbone.embed_text(text), everywhere, torch.tensor([4]), sees=(0,))
                hidden = tested.backbone(*pack([image, part]))
                said.append(int(tested.backbone.text_logits(hidden[0, -1]).argmax()))
            assert cached[row].tolist() == said + [END] * (5 - len(said))


def sequences(tested, sampling_captions):
    """Exact p(z | caption) of every pair of codes, from the teacher-forced model."""
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))
    captions = sampling_captions.expand(len(codes), -1)
    tokens = Tokens(tested.tokenizer.embed(codes), codes)
    valid = torch.ones_like(captions, dtype=torch.bool)
    predicted = tested.conditional(tokens, captions, valid, seeded())
    return predicted.log_prob(codes).sum(-1).exp().double().numpy(), predicted.logits


@torch.no_grad()
def test_drawing_follows_the_exact_distribution():
    tested = model(tokens=2, codebook=3)
    tested.family.head.weight.mul_(3)  # far from uniform
    caption = torch.tensor([[END, 11, 12]])
    exact, _ = sequences(tested, caption)
    assert exact.sum() == pytest.approx(1, abs=1e-5)
    assert exact.max() > 2 * exact.min()
    many = caption.expand(6000, -1)
    drawn = tested.family.draw(
        tested.backbone, tested.tokenizer, many, torch.ones_like(many, dtype=torch.bool), Sampling(), seeded(1)
    )
    counts = np.bincount((drawn.codes[:, 0] * 3 + drawn.codes[:, 1]).numpy(), minlength=9)
    assert chisquare(counts, exact / exact.sum() * 6000).pvalue > 1e-3


@torch.no_grad()
def test_guidance_temperature_and_top_k_of_the_first_token():
    tested = model(tokens=2, codebook=3)
    tested.family.head.weight.mul_(3)
    captions = torch.tensor([[END, 11, 12]])
    conditional = sequences(tested, captions)[1][0, 0].log_softmax(-1)
    bare = sequences(tested, captions[:, :1])[1][0, 0].log_softmax(-1)
    many = captions.expand(6000, -1)

    def first(sampling):
        valid = torch.ones_like(many, dtype=torch.bool)
        drawn = tested.family.draw(tested.backbone, tested.tokenizer, many, valid, sampling, seeded(2))
        return np.bincount(drawn.codes[:, 0].numpy(), minlength=3)

    wanted = ((bare + 2.0 * (conditional - bare)) / 0.5).softmax(-1).double().numpy()
    counts = first(Sampling(temperature=0.5, guidance=2.0))
    assert chisquare(counts, wanted / wanted.sum() * 6000).pvalue > 1e-3
    assert first(Sampling(top_k=1))[int(conditional.argmax())] == 6000


def gradients(module):
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_the_generator_is_taught_the_codes_and_does_not_teach_them():
    tested = model()
    tested(images(), texts(), seeded()).generation_loss.backward()
    assert gradients(tested.tokenizer) == 0
    assert gradients(tested.backbone) > 0


@pytest.mark.parametrize("estimator", ["vib", "dib", "ceb"])
def test_a_penalty_moves_the_tokenizer_alone(estimator):
    tested, pictures = model(), images()
    out = tested(pictures, texts(), seeded())
    observed = Observed(
        pictures,
        out.tokens.vectors,
        out.posterior,
        tested.prior().detach(),
        out.conditional.detach(),
        out.text,
    )
    cost = penalty_of(estimator)(observed)
    cost.backward()
    assert gradients(tested.tokenizer.encoder) > 0
    assert gradients(tested.backbone) == gradients(tested.prior) == gradients(tested.family) == 0
    # By hand: every token's expected code length, less the entropy for the variational form.
    q = out.posterior.logits.softmax(-1)
    r = out.conditional.logits if estimator == "ceb" else tested.prior().logits
    expected = -(q * r.log_softmax(-1)).sum((-1, -2))
    if estimator == "vib":
        expected = expected + (q * q.log()).sum((-1, -2))
    assert cost.item() == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("relaxation", [1.0, 20.0])
def test_sampled_codes_follow_the_posterior_whatever_the_relaxation(relaxation):
    tested = tokenizer(relaxation=relaxation)
    with torch.no_grad():
        posterior = tested.encode(images(1).expand(8000, -1, -1, -1))
        codes = tested.sample(posterior, seeded(3)).codes
    for place in range(4):
        wanted = posterior.logits[0, place].softmax(-1).double().numpy()
        counts = np.bincount(codes[:, place].numpy(), minlength=8)
        assert chisquare(counts, wanted / wanted.sum() * 8000).pvalue > 1e-4


def test_the_deterministic_channel_takes_the_mode_and_carries_no_noise():
    tested = tokenizer(channel="deterministic")
    with torch.no_grad():
        posterior = tested.encode(images())
        tokens = tested.sample(posterior, seeded())
    assert torch.equal(tokens.codes, posterior.logits.argmax(-1))
    assert torch.allclose(tokens.vectors, tested.embed(tokens.codes), atol=1e-5)
    assert tested.channel_of(posterior).entropy().max() < 1e-6


def test_dead_codes_move_onto_features():
    tested = tokenizer()
    with torch.no_grad():
        features = tested.features(images(6))
    dead = torch.tensor([True, False] * 4)
    before = tested.codebook.detach().clone()
    assert tested.revive(dead, features, seeded()) == 4
    assert torch.equal(tested.codebook[~dead], before[~dead])
    similarity = tested.codes_unit()[dead] @ features.reshape(-1, 4).T
    assert similarity.max(-1).values.min() > 0.99


@pytest.mark.parametrize(
    ("size", "tokens", "grid"),
    [(32, 4, (2, 2)), (32, 8, (2, 4)), (32, 16, (4, 4)), (32, 1, (1, 1)), (64, 64, (8, 8)), (48, 6, (2, 3))],
)
def test_patch_grids(size, tokens, grid):
    assert patch_grid(size, tokens) == grid


def test_an_impossible_budget_lists_the_possible_ones():
    with pytest.raises(InfotokError, match=r"into 5 equal patches; possible token budgets: 1, 2, 4, 8, 16"):
        patch_grid(32, 5)


def test_patches_are_cut_and_put_back_in_their_places():
    tested = tokenizer(tokens=4, blocks=0)
    picture = images(1)
    changed = picture.clone()
    changed[:, :, 8:, :8] += 0.5  # row 1, column 0: token 2
    with torch.no_grad():
        moved = (tested.features(picture) - tested.features(changed)).abs().sum(-1)[0]
        vectors = torch.randn(1, 4, 4, generator=seeded())
        other = vectors.clone()
        other[0, 1] += 1  # row 0, column 1
        touched = (tested.decode(vectors) - tested.decode(other)).abs().sum((0, 1)) > 1e-6
    assert (moved > 1e-6).tolist() == [False, False, True, False]
    assert touched[:8, 8:].all()
    assert not touched[8:].any()
    assert not touched[:8, :8].any()


@pytest.fixture
def saved_lm(tmp_path):
    """A causal LM of another architecture with its own text tokenizer, as save_pretrained leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "what", "color", "red", "blue", "a", "thing"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    own = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    return tmp_path


def test_a_pretrained_lm_takes_the_backbones_place(saved_lm, tmp_path):
    config = BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)
    codec = text_codec(config, tmp_path / "unused.json")
    assert isinstance(codec, TextCodec)
    assert codec.decode([*codec.encode("red thing"), codec.end]) == "red thing"
    tested = model(config)
    assert tested.backbone.width == 16
    asked = question([[*codec.encode("what color"), *codec.encode("red"), codec.end]] * 3, 2)
    captions = torch.tensor([[codec.end, *codec.encode("a red thing")]] * 3)
    batch = TextBatch([asked], captions, torch.ones_like(captions, dtype=torch.bool))
    out = tested(images(), batch, seeded())
    (out.answer_loss + out.generation_loss).backward()
    assert gradients(tested.backbone) > 0

    description = json.loads(json.dumps(tested.backbone.describe()))
    again = UnifiedModel("ar", tokenizer(), Backbone.from_description(description))
    load_module(again, module_tensors(tested), tmp_path / "model.safetensors", "")
    with torch.no_grad():
        back = again.eval()(images(), batch, seeded())
    assert torch.equal(back.answer_loss, out.answer_loss)
    answers = tested.answer(out.tokens.vectors.detach(), asked.ids[:, :2], asked.valid[:, :2], 3, codec.end)
    assert answers.shape == (3, 3)


def test_a_backbone_that_cannot_be_loaded_is_named(tmp_path):
    config = BackboneConfig(name=str(tmp_path / "nothing"), width=1, layers=1, heads=1)
    for load in (lambda: Backbone.create(config, 8), lambda: text_codec(config, tmp_path)):
        with pytest.raises(InfotokError, match=r"^backbone\.name: .* cannot be loaded"):
            load()


def test_a_drawn_image_sees_its_caption_alone_and_stands_behind_its_last_word():
    yes, no = True, False
    parts = [
        Part(torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0]), bidirectional=True),
        Part(torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool), torch.tensor([1, 1]), sees=(0,)),
        Part(torch.zeros(2, 2, 4), torch.tensor([[yes, yes], [yes, no]]), torch.tensor([0, 0])),
        Part(torch.zeros(2, 2, 4), torch.ones(2, 2, dtype=torch.bool), torch.tensor([2, 1]), sees=(2,)),
    ]
    _, allowed, positions = pack(parts)
    shared = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert allowed[0].int().tolist() == [*shared, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert allowed[1].int().tolist() == [*shared, [0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 1, 1]]
    assert positions.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 0, 1, 1, 2]]


@torch.no_grad()
def test_every_question_is_answered_as_if_it_stood_alone():
    tested, both = model(), texts()
    losses, counts = [], []
    for asked in both.questions:
        alone = TextBatch([asked], both.captions, both.captions_valid)
        losses.append(tested(images(), alone, seeded()).answer_loss.item())
        counts.append(int(asked.answers.sum()))
    together = tested(images(), both, seeded()).answer_loss.item()
    assert together == pytest.approx(np.average(losses, weights=counts), abs=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-2


@torch.no_grad()
def test_padding_of_captions_does_not_count():
    tested, short = model(), texts()
    extra = torch.full((3, 3), 17)
    captions = torch.cat([short.captions, extra], 1)
    wide = TextBatch(short.questions, captions, torch.cat([short.captions_valid, extra < 0], 1))
    one, other = (tested(images(), batch, seeded()) for batch in (short, wide))
    torch.testing.assert_close(other.generation_loss, one.generation_loss)
    torch.testing.assert_close(other.answer_loss, one.answer_loss)
    torch.testing.assert_close(other.conditional.logits, one.conditional.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.text, one.text, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_losses_are_those_of_a_plain_causal_pass_row_by_row():
    tested, batch = model(), texts()
    out = tested(images(), batch, seeded())
    drawn, pooled, answered = [], [], []
    llama = tested.backbone.model
    for row in range(3):
        words = batch.captions[row][batch.captions_valid[row]]
        codes = out.tokens.codes[row]
        vectors = tested.family.project(tested.tokenizer.embed(codes[:-1]))
        inputs = torch.cat([tested.family.begin[None], vectors]) + tested.family.place[1]
        sequence = torch.cat([llama.get_input_embeddings()(words), inputs])[None]
        hidden = llama.base_model(inputs_embeds=sequence).last_hidden_state[0]
        predicted = tested.family.head(hidden[len(words) :]).log_softmax(-1)
        drawn += [-predicted[place, code].item() for place, code in enumerate(codes)]
        pooled.append(hidden[: len(words)].mean(0))
        for asked in batch.questions:
            ids = asked.ids[row][asked.valid[row]]
            read = tested.family.project(tested.tokenizer.embed(codes)) + tested.family.place[0]
            sequence = torch.cat([read, llama.get_input_embeddings()(ids)])[None]
            allowed = torch.ones(len(sequence[0]), len(sequence[0])).tril()
            allowed[:4, :4] = 1
            mask = (1 - allowed)[None, None] * -1e30
            hidden = llama.base_model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state[0, 4:]
            spoken = llama.lm_head(hidden).log_softmax(-1)
            answered += [-spoken[k - 1, ids[k]].item() for k in range(2, len(ids))]
    assert out.generation_loss.item() == pytest.approx(np.mean(drawn), abs=1e-5)
    assert out.answer_loss.item() == pytest.approx(np.mean(answered), abs=1e-5)
    torch.testing.assert_close(out.text, torch.stack(pooled), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_drawn_code_sees_the_caption_and_earlier_codes_only():
    tested, batch = model(), texts()
    out = tested(images(), batch, seeded())
    alone = tested.conditional(out.tokens, batch.captions, batch.captions_valid, seeded()).logits
    torch.testing.assert_close(alone, out.conditional.logits, atol=1e-5, rtol=1e-5)
    codes = out.tokens.codes.clone()
    codes[:, 2] = (codes[:, 2] + 1) % 8
    changed = Tokens(tested.tokenizer.embed(codes), codes)
    moved = tested.conditional(changed, batch.captions, batch.captions_valid, seeded()).logits
    torch.testing.assert_close(moved[:, :3], alone[:, :3], atol=1e-5, rtol=1e-5)
    assert (moved[:, 3] - alone[:, 3]).abs().amax() > 1e-2


def test_an_answer_stays_at_its_end_mark():
    tested = model()
    vectors = tested.tokenizer.embed(torch.randint(8, (8, 4), generator=seeded()))
    ids = torch.randint(2, VOCABULARY, (8, 3), generator=seeded(1))
    valid = torch.ones_like(ids, dtype=torch.bool)
    free = tested.answer(vectors, ids, valid, 6, -1)
    end = next(int(row[1]) for row in free if row[0] != row[1] and row[1] != row[2])
    said = tested.answer(vectors, ids, valid, 6, end).tolist()
    expected = []
    for row in free.tolist():
        kept = row[: row.index(end)] if end in row else row
        expected.append(kept + [end] * (6 - len(kept)))
    assert said == expected
    assert said != free.tolist()


@torch.no_grad()
def test_the_first_of_the_top_codes_is_the_argmax_at_every_place_whatever_the_padding():
    tested = model()
    batch = texts()
    drawn = tested.family.draw(
        tested.backbone, tested.tokenizer, batch.captions, batch.captions_valid, Sampling(top_k=1), seeded()
    )
    for row in range(3):
        caption = batch.captions[row][batch.captions_valid[row]][None]
        codes = torch.zeros(1, 4, dtype=torch.long)
        for place in range(4):
            tokens = Tokens(tested.tokenizer.embed(codes), codes)
            predicted = tested.conditional(tokens, caption, torch.ones_like(caption, dtype=torch.bool), seeded())
            codes[0, place] = predicted.logits[0, place].argmax()
        assert drawn.codes[row].tolist() == codes[0].tolist()
    unit = tested.tokenizer.codebook[drawn.codes]
    unit = unit / unit.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(drawn.vectors, unit * 4**0.5)


@torch.no_grad()
def test_guided_truncated_draws_follow_the_enumerated_distribution_at_every_place():
    tested = model(tokens=2, codebook=3)
    tested.family.head.weight.mul_(2)
    caption = torch.tensor([[END, 11, 12]])
    conditional, bare = (sequences(tested, words)[1].log_softmax(-1) for words in (caption, caption[:, :1]))
    logits = (bare + 1.5 * (conditional - bare)) / 0.8
    lowest = logits.argmin(-1, keepdim=True)
    table = logits.scatter(-1, lowest, -torch.inf).softmax(-1)  # two of three codes stay
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))
    exact = table.gather(-1, codes[..., None])[..., 0].prod(-1).double().numpy()
    assert exact.sum() == pytest.approx(1, abs=1e-5)
    many = caption.expand(6000, -1)
    drawn = tested.family.draw(
        tested.backbone,
        tested.tokenizer,
        many,
        torch.ones_like(many, dtype=torch.bool),
        Sampling(temperature=0.8, guidance=1.5, top_k=2),
        seeded(4),
    )
    counts = np.bincount((drawn.codes[:, 0] * 3 + drawn.codes[:, 1]).numpy(), minlength=9)
    possible = exact > 0
    assert possible.sum() == 4
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], exact[possible] / exact.sum() * 6000).pvalue > 1e-3


def test_the_backward_pass_is_that_of_the_relaxed_softmax():
    tested = tokenizer(channel="deterministic", relaxation=3.0)
    logits = (4 * torch.randn(2, 4, 8, generator=seeded())).requires_grad_()
    pull = torch.randn(2, 4, 4, generator=seeded(1))
    (tested.sample(Categorical(logits), seeded()).vectors * pull).sum().backward()
    # d softmax(l / t)_c / d l_j = p_c (1[c = j] - p_j) / t, contracted with the pull on every code's vector.
    unit = tested.codebook / tested.codebook.norm(dim=-1, keepdim=True) * 2
    with torch.no_grad():
        p, gain = (logits / 3).softmax(-1), pull @ unit.T
        expected = p * (gain - (p * gain).sum(-1, keepdim=True)) / 3
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-4)


def test_a_codebook_without_dead_codes_is_left_alone():
    tested = tokenizer()
    before = tested.codebook.detach().clone()
    assert tested.revive(torch.zeros(8, dtype=torch.bool), torch.randn(2, 4, 4), seeded()) == 0
    assert torch.equal(tested.codebook, before)


@pytest.mark.parametrize(("size", "most"), [(16, 64), (24, 64), (32, 256)])
def test_patch_grids_are_the_squarest_that_brute_force_finds(size, most):
    for tokens in range(1, most + 1):
        found = [
            (rows, tokens // rows)
            for rows in range(1, size // 2 + 1)
            if tokens % rows == 0 and size % rows == 0 and size % (tokens // rows) == 0
        ]
        found = [(rows, columns) for rows, columns in found if rows <= columns <= min(4 * rows, size // 2)]
        if found:
            assert patch_grid(size, tokens) == min(found, key=lambda pair: pair[1] - pair[0])
        else:
            with pytest.raises(InfotokError, match=f"into {tokens} equal patches"):
                patch_grid(size, tokens)


@torch.no_grad()
@pytest.mark.parametrize("token", range(8))
def test_every_patch_of_an_oblong_grid_has_its_own_token(token):
    tested = tokenizer(tokens=8, blocks=0)  # 2 rows of 8 pixels, 4 columns of 4
    row, column = divmod(token, 4)
    place = (slice(8 * row, 8 * row + 8), slice(4 * column, 4 * column + 4))
    picture, vectors = images(1), torch.randn(1, 8, 4, generator=seeded())
    changed, other = picture.clone(), vectors.clone()
    changed[0, :, place[0], place[1]] *= -1
    other[0, token] += 1
    moved = (tested.features(picture) - tested.features(changed)).abs().sum(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [token]
    touched = (tested.decode(vectors) - tested.decode(other)).abs().sum((0, 1)) > 1e-7
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[place] = True
    assert torch.equal(touched, inside)


@torch.no_grad()
def test_the_decoder_lays_pixels_where_the_encoder_took_them():
    tested, pictures, cut = tokenizer(tokens=8), images(2), []
    tested.encoder.embed.register_forward_pre_hook(lambda module, inputs: cut.append(inputs[0]))
    tested.features(pictures)
    assert torch.equal(cut[0][0, 1], pictures[0, :, :8, 4:8].flatten())
    tested.decoder.head = nn.Identity()
    tested.decoder.embed, tested.decoder.blocks = nn.Identity(), nn.ModuleList()
    tested.decoder.position = nn.Parameter(torch.zeros(1))
    assert torch.equal(tested.decode(cut[0]), pictures)


@pytest.fixture
def layout(tmp_path):
    return Layout(load_params(Path(__file__).parent.parent / "profiles/smoke/params.yaml"), root=tmp_path / "root")


@pytest.mark.parametrize("name", ["llama", "folder"])
def test_a_saved_model_is_loaded_from_its_own_files_alone(saved_lm, layout, name):
    if name == "folder":
        config = BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)
        codec, made = text_codec(config, saved_lm / "unused.json"), model(config)
    else:
        trained = train_text_tokenizer(["what color", "a red thing"], 300)
        codec = TextCodec(trained, trained.token_to_id("<pad>"), trained.token_to_id("<end>"))
        made = model()
    cell = layout.params.cells()[0]
    folder = layout.stage("train", cell)
    save_model(made, codec, folder)
    for file in saved_lm.iterdir():  # the pretrained folder may be gone by then
        if file.is_file():
            file.unlink()
    back, codec_back = load_model(layout, cell)
    assert not back.training
    assert (codec_back.pad, codec_back.end) == (codec.pad, codec.end)
    assert codec_back.encode("a red thing") == codec.encode("a red thing")
    captions = torch.tensor([[1, 5, 6], [1, 4, 7], [1, 2, 3]])
    batch = TextBatch([question([[2, 3, 4, 1]] * 3, 2)], captions, torch.ones_like(captions, dtype=torch.bool))
    with torch.no_grad():
        one, other = (each(images(), batch, seeded()) for each in (made, back))
        assert torch.equal(one.answer_loss, other.answer_loss)
        assert torch.equal(one.conditional.logits, other.conditional.logits)
        assert torch.equal(one.text, other.text)
        asked = [each.answer(one.tokens.vectors, captions, captions > 0, 4, codec.end) for each in (made, back)]
        assert torch.equal(*asked)
        assert torch.equal(made.tokenizer.decode(one.tokens.vectors), back.tokenizer.decode(one.tokens.vectors))


def test_a_missing_model_is_named_with_the_command_that_makes_it(layout):
    cell = layout.params.cells()[0]
    with pytest.raises(InfotokError, match=r"model\.safetensors: is missing; .*`dvc repro train@ar-none-0-4-0`"):
        load_model(layout, cell)


def without_tokenizer(kind, folder):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return BackboneConfig(name=str(folder), width=1, layers=1, heads=1)


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2"],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, kind):
    config = without_tokenizer(kind, tmp_path / kind)
    assert Backbone.create(config, 8).width == 16
    with pytest.raises(InfotokError, match=r"^backbone\.name: "):
        text_codec(config, tmp_path / "unused.json")


def test_a_tokenizer_without_an_end_token_is_refused(saved_lm):
    settings = json.loads((saved_lm / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (saved_lm / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InfotokError, match=r"^backbone\.name: .* no fast tokenizer with an end token"):
        text_codec(BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1), saved_lm / "unused.json")


def test_a_pretrained_lm_computes_the_same_twice_in_training(saved_lm):
    tested = model(BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)).train()
    captions = torch.ones(3, 2, dtype=torch.long)
    batch = TextBatch([question([[2, 3, 4, 1]] * 3, 2)], captions, captions > 0)
    with torch.no_grad():
        one, other = (tested(images(), batch, seeded()) for _ in range(2))
    assert torch.equal(one.answer_loss, other.answer_loss)
