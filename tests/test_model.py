"""The unified model on tiny sizes, against enumeration, naive loops and hand-worked masks."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from infotok.data.text import TextCodec
from infotok.errors import InfotokError
from infotok.information.objective import Observed, penalty_of
from infotok.models.backbone import Backbone, BackboneConfig, text_codec
from infotok.models.family import Sampling
from infotok.models.packing import Part, pack
from infotok.models.unified import Asked, TextBatch, UnifiedModel
from infotok.tokenizer import patch_grid
from infotok.tokenizer.discrete import DiscreteTokenizer, TokenizerConfig, Tokens
from infotok.training.checkpoints import load_module, module_tensors

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
