"""The unified model on tiny sizes, against enumeration, naive loops and hand-worked masks."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from infotok.data.texts import TextBatch
from infotok.models import family_names
from infotok.models.family import Sampling
from infotok.models.packing import Part, pack
from infotok.tokenizer.base import Tokens
from tiny import END, VOCABULARY, gradients, images, model, question, seeded, texts


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


@pytest.mark.parametrize("family", family_names())
def test_questions_do_not_see_each_other_and_padding_does_not_count(family):
    tested, pictures = model(family=family), images()
    alone = TextBatch(texts().questions[:1], texts().captions, texts().captions_valid)
    wide = question([[*row, 0, 0] for row in alone.questions[0].ids.tolist()], 2)
    wide.valid[:, -2:] = False
    wide.answers[:, -2:] = 0
    padded = TextBatch([wide], alone.captions, alone.captions_valid)
    with torch.no_grad():
        one, same = (tested(pictures, batch, seeded()) for batch in (alone, padded))
        both, changed = (tested(pictures, texts(second), seeded()) for second in ((7, 8, 4, END), (9, 2, 3, END)))
    assert torch.allclose(one.answer_loss, same.answer_loss, atol=1e-6)
    assert torch.allclose(both.drawing.loss, changed.drawing.loss, atol=1e-6)
    assert torch.allclose(both.drawing.loss, one.drawing.loss, atol=1e-6)
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
    predicted = tested.predict(tokens, captions, valid, seeded()).distribution
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


def test_the_generator_is_taught_the_codes_and_does_not_teach_them():
    tested = model()
    tested(images(), texts(), seeded()).drawing.loss.backward()
    assert gradients(tested.tokenizer) == 0
    assert gradients(tested.backbone) > 0


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


def test_only_columns_that_predict_answers_go_through_the_head():
    """A row that has fewer answer tokens than another counts none for those it lacks."""
    tested, asked = model(), question([[5, 6, 3, 4, 1], [5, 9, 1]], 2)
    assert asked.answers.tolist() == [[2, 3, 4], [2, 0, 0]]
    wide = texts()
    wide.questions = [asked]
    wide.captions, wide.captions_valid = wide.captions[:2], wide.captions_valid[:2]
    with torch.no_grad():
        out = tested(images(2), wide, seeded())
        image = tested._image_part(out.read)
        part = Part(tested.backbone.embed_text(asked.ids), asked.valid, torch.full((2,), 4), (0,))
        hidden = tested.backbone(*pack([image, part]))[:, 4:]
        said = tested.backbone.text_logits(hidden).log_softmax(-1)
    nats = [-said[row, column - 1, asked.ids[row, column]] for row, column in ((0, 2), (0, 3), (0, 4), (1, 2))]
    assert out.answer_loss.item() == pytest.approx(torch.stack(nats).mean().item(), abs=1e-5)


@torch.no_grad()
def test_every_question_is_answered_as_if_it_stood_alone():
    tested, both = model(), texts()
    losses, counts = [], []
    for asked in both.questions:
        alone = TextBatch([asked], both.captions, both.captions_valid)
        losses.append(tested(images(), alone, seeded()).answer_loss.item())
        counts.append(int(asked.answers.count_nonzero()))
    together = tested(images(), both, seeded()).answer_loss.item()
    assert together == pytest.approx(np.average(losses, weights=counts), abs=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("family", family_names())
def test_padding_of_captions_does_not_count(family):
    tested, short = model(family=family), texts()
    extra = torch.full((3, 3), 17)
    captions = torch.cat([short.captions, extra], 1)
    wide = TextBatch(short.questions, captions, torch.cat([short.captions_valid, extra < 0], 1))
    one, other = (tested(images(), batch, seeded()) for batch in (short, wide))
    torch.testing.assert_close(other.drawing.loss, one.drawing.loss)
    torch.testing.assert_close(other.answer_loss, one.answer_loss)
    lengths = (out.drawing.distribution.log_prob(out.tokens.values) for out in (one, other))
    torch.testing.assert_close(*lengths, atol=1e-4, rtol=1e-4)
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
    assert out.drawing.loss.item() == pytest.approx(np.mean(drawn), abs=1e-5)
    assert out.answer_loss.item() == pytest.approx(np.mean(answered), abs=1e-5)
    torch.testing.assert_close(out.text, torch.stack(pooled), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_drawn_code_sees_the_caption_and_earlier_codes_only():
    tested, batch = model(), texts()
    out = tested(images(), batch, seeded())
    alone = tested.predict(out.tokens, batch.captions, batch.captions_valid, seeded()).distribution.logits
    torch.testing.assert_close(alone, out.drawing.distribution.logits, atol=1e-5, rtol=1e-5)
    codes = out.tokens.codes.clone()
    codes[:, 2] = (codes[:, 2] + 1) % 8
    changed = Tokens(tested.tokenizer.embed(codes), codes)
    moved = tested.predict(changed, batch.captions, batch.captions_valid, seeded()).distribution.logits
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
    longest = max(map(len, said))
    assert said == [row[:longest] for row in expected]
    assert longest == 6 or all(row[longest - 1 :] == [end] * (7 - longest) for row in expected)
    assert said != free.tolist()


@pytest.mark.parametrize("ends_after", [1, 3, None])
def test_answering_stops_when_every_row_has_ended(ends_after, monkeypatch):
    """One long right answer among the questions sets the limit for all; what is computed is what is said."""
    tested, passes = model(), []
    vectors = tested.tokenizer.embed(torch.randint(8, (2, 4), generator=seeded()))
    ids = torch.randint(2, VOCABULARY, (2, 3), generator=seeded(1))

    def logits(hidden):
        passes.append(len(hidden))
        said = torch.full((len(hidden),), 5)
        if ends_after:
            said[0] = END  # the first row ends at once, the second when it shall
        if len(passes) == ends_after:
            said[1] = END
        return torch.nn.functional.one_hot(said, VOCABULARY).float()

    monkeypatch.setattr(tested.backbone, "text_logits", logits)
    said = tested.answer(vectors, ids, torch.ones_like(ids, dtype=torch.bool), 40, END)
    assert len(passes) == said.shape[1] == (ends_after or 40)
    if ends_after:
        assert said[1].tolist() == [5] * (ends_after - 1) + [END]


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
            predicted = tested.predict(tokens, caption, torch.ones_like(caption, dtype=torch.bool), seeded())
            codes[0, place] = predicted.distribution.logits[0, place].argmax()
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


@torch.no_grad()
def test_a_dropped_caption_is_told_apart_and_leaves_its_begin_mark():
    tested, batch = model(), texts()
    batch.captions_valid[1, 1:] = False
    out = tested(images(), batch, seeded())
    assert out.has_caption.tolist() == [True, False, True]
    mark = tested.backbone.model.base_model(input_ids=torch.tensor([[END]])).last_hidden_state[0, 0]
    torch.testing.assert_close(out.text[1], mark, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_nested_dropout_takes_tokens_from_reader_and_decoder_and_not_from_the_generator():
    whole, elastic = model(), model(nested_dropout=1.0)
    elastic.load_state_dict(whole.state_dict())
    one, other = (tested(images(), texts(), seeded(2)) for tested in (whole, elastic))
    assert torch.equal(other.tokens.vectors, one.tokens.vectors)
    assert torch.equal(one.read, one.tokens.vectors)
    kept = (other.read == one.read).all(-1)
    assert torch.equal(kept, (other.read != 0).any(-1))
    assert kept[:, 0].all()
    assert not kept.all()
    torch.testing.assert_close(other.drawing.loss, one.drawing.loss)
    assert not torch.allclose(other.answer_loss, one.answer_loss, atol=1e-3)
