"""The masked family on sizes small enough to enumerate every code, mask and order."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from infotok.models.families.mask import masked_after, order_agnostic_weight
from infotok.models.family import Sampling
from infotok.tokenizer.base import Tokens
from tiny import END, gradients, images, model, seeded, texts

CAPTION = [END, 11, 12]
DRAWS = 6000
SURE = {"choice_temperature": 0.0}
BLIND = {"choice_temperature": 1e6}  # noise that drowns the confidence: a uniformly random order


def masked_model(tokens, codebook):
    tested = model(family="mask", tokens=tokens, codebook=codebook)
    with torch.no_grad():
        tested.family.head.weight.mul_(2)  # far from uniform
    return tested


@torch.no_grad()
def log_table(tested, codes, asked, caption=CAPTION):
    """log p of every code at every place (n, K, C) by a plain pass of the language model: codes (n, K), hidden where
    asked (n, K)."""
    family, llama = tested.family, tested.backbone.model
    vectors = family.project(tested.tokenizer.embed(codes))
    places = torch.where(asked[..., None], family.mask, vectors) + family.place[1]
    words = llama.get_input_embeddings()(torch.tensor(caption)).expand(len(codes), -1, -1)
    length, total = len(caption), len(caption) + codes.shape[1]
    allowed = torch.ones(total, total).tril()
    allowed[length:, length:] = 1
    hidden = llama.base_model(
        inputs_embeds=torch.cat([words, places], 1), attention_mask=((1 - allowed) * -1e30)[None, None]
    ).last_hidden_state
    return family.head(hidden[:, length:]).log_softmax(-1)


def all_codes(tokens, codebook):
    return torch.tensor(list(itertools.product(range(codebook), repeat=tokens)))


def set_table(tested, tokens, codebook, change=lambda table: table, caption=CAPTION):
    """Hidden set (a tuple of places) -> log p (codes, K): what each code of each sequence has there."""
    codes, out = all_codes(tokens, codebook), {}
    for count in range(1, tokens + 1):
        for hidden in itertools.combinations(range(tokens), count):
            asked = torch.zeros_like(codes, dtype=torch.bool)
            asked[:, list(hidden)] = True
            table = change(log_table(tested, codes, asked, caption)).log_softmax(-1)
            out[hidden] = table.gather(-1, codes[..., None])[..., 0].double().numpy()
    return out


def random_order(table, tokens, steps):
    """Exact p(z) of every sequence when each step fixes a uniformly random part of what is still hidden."""

    def go(hidden, step):
        if not hidden:
            return 1.0
        total = 0.0
        left = masked_after(tokens, steps)[step]
        kept = list(itertools.combinations(hidden, left))
        for rest in kept:
            fixed = [place for place in hidden if place not in rest]
            total = total + np.exp(table[hidden][:, fixed].sum(1)) * go(rest, step + 1)
        return total / len(kept)

    return go(tuple(range(tokens)), 0)


def counts_of(tested, sampling, captions=(CAPTION,), seed=1):
    """How often each sequence of codes is drawn."""
    config = tested.tokenizer.config
    many = torch.tensor(captions).repeat(DRAWS // len(captions), 1)
    valid = torch.ones_like(many, dtype=torch.bool)
    drawn = tested.family.draw(tested.backbone, tested.tokenizer, many, valid, Sampling(**sampling), seeded(seed))
    assert torch.equal(drawn.vectors, tested.tokenizer.embed(drawn.codes))
    index = (drawn.codes * config.codebook ** torch.arange(tested.tokenizer.tokens - 1, -1, -1)).sum(1)
    return np.bincount(index.numpy(), minlength=config.codebook**tested.tokenizer.tokens)


def follows(counts, exact):
    """p-value of counts under probabilities; what cannot occur must not. Rare sequences count as one."""
    assert exact.sum() == pytest.approx(1, abs=1e-5)
    assert counts[exact == 0].sum() == 0
    expected = exact / exact.sum() * counts.sum()
    rare = expected < 10
    found, wanted = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    return chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue


@pytest.mark.parametrize(
    ("tokens", "codebook", "steps"), [(2, 3, 2), (2, 3, 9), (2, 3, 1), (4, 2, 4), (4, 2, 2), (4, 2, 3)]
)
def test_drawing_in_a_random_order_follows_the_enumerated_distribution(tokens, codebook, steps):
    tested = masked_model(tokens, codebook)
    exact = random_order(set_table(tested, tokens, codebook), tokens, min(steps, tokens))
    assert exact.max() > 2 * exact.min()
    counts = counts_of(tested, {"decoding_steps": steps} | BLIND)
    assert follows(counts, exact) > 1e-3


def test_one_step_draws_all_tokens_at_once_and_more_steps_do_not():
    tested = masked_model(2, 3)
    table = set_table(tested, 2, 3)
    at_once = np.exp(table[0, 1].sum(1))
    assert follows(counts_of(tested, {"decoding_steps": 1}), at_once) > 1e-3
    assert follows(counts_of(tested, {"decoding_steps": 2} | BLIND), at_once) < 1e-6


def most_confident_first(table, codes):
    """Exact p(z) of two tokens drawn at once, of which the less confident is drawn again given the other."""
    exact = np.zeros(len(codes))
    both, first, second = table[0, 1], table[0,], table[1,]
    for drawn in range(len(codes)):
        chance = np.exp(both[drawn].sum())
        stays = int(both[drawn, 1] > both[drawn, 0])
        for end in range(len(codes)):
            if codes[end, stays] == codes[drawn, stays]:
                exact[end] += chance * np.exp((first[end, 0], second[end, 1])[1 - stays])
    return exact


def test_without_noise_the_more_confident_token_stands():
    tested = masked_model(2, 3)
    table = set_table(tested, 2, 3)
    exact = most_confident_first(table, all_codes(2, 3))
    counts = counts_of(tested, {"decoding_steps": 2} | SURE)
    assert follows(counts, exact) > 1e-3
    assert follows(counts, random_order(table, 2, 2)) < 1e-6


@pytest.mark.parametrize("choice", [SURE, BLIND])
def test_guidance_temperature_and_top_k_change_the_table_that_is_drawn_from(choice):
    tested = masked_model(2, 3)
    codes, changed = all_codes(2, 3), {}
    for hidden in ((0,), (1,), (0, 1)):
        asked = torch.zeros_like(codes, dtype=torch.bool)
        asked[:, list(hidden)] = True
        told, bare = (log_table(tested, codes, asked, caption) for caption in (CAPTION, CAPTION[:1]))
        logits = (bare + 1.7 * (told - bare)) / 0.8
        logits = logits.scatter(-1, logits.argmin(-1, keepdim=True), -torch.inf).log_softmax(-1)
        changed[hidden] = logits.gather(-1, codes[..., None])[..., 0].double().numpy()
    exact = most_confident_first(changed, codes) if choice is SURE else random_order(changed, 2, 2)
    sampling = {"decoding_steps": 2, "temperature": 0.8, "guidance": 1.7, "top_k": 2}
    assert follows(counts_of(tested, sampling | choice), exact) > 1e-3
    table = set_table(tested, 2, 3)
    plain = most_confident_first(table, codes) if choice is SURE else random_order(table, 2, 2)
    assert follows(counts_of(tested, {"decoding_steps": 2} | choice), plain) > 1e-3
    assert np.abs(plain - exact).sum() > 0.2


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_padding_of_captions_does_not_count_and_each_image_follows_its_own(guidance):
    tested, batch = masked_model(4, 3), texts()
    sampling = Sampling(top_k=1, guidance=guidance, **SURE)

    def drawn(captions, valid):
        return tested.family.draw(tested.backbone, tested.tokenizer, captions, valid, sampling, seeded()).codes

    together = drawn(batch.captions, batch.captions_valid)
    for row in range(3):
        alone = batch.captions[row : row + 1, batch.captions_valid[row]]
        assert torch.equal(drawn(alone, torch.ones_like(alone, dtype=torch.bool))[0], together[row])
    garbage = torch.where(batch.captions_valid, batch.captions, 17)
    assert torch.equal(drawn(garbage, batch.captions_valid), together)


@torch.no_grad()
def test_the_loss_is_that_of_the_masked_tokens_and_their_codes_are_not_seen():
    tested, batch = masked_model(4, 5), texts()
    codes = torch.randint(5, (3, 4), generator=seeded(3))
    predicted = tested.predict(
        Tokens(tested.tokenizer.embed(codes), codes), batch.captions, batch.captions_valid, seeded()
    )
    asked = predicted.weight > 0
    assert asked.any(1).all()
    assert not asked.all()
    lengths = []
    for row in range(3):
        words = batch.captions[row][batch.captions_valid[row]].tolist()
        table = log_table(tested, codes[row : row + 1], asked[row : row + 1], words)[0]
        found = predicted.distribution.logits[row].log_softmax(-1)
        torch.testing.assert_close(found, table, atol=1e-5, rtol=1e-5)
        lengths += [-table[place, codes[row, place]].item() for place in range(4) if asked[row, place]]
    assert predicted.loss.item() == pytest.approx(np.mean(lengths), abs=1e-5)
    other = torch.where(asked, (codes + 1) % 5, codes)
    changed = tested.predict(
        Tokens(tested.tokenizer.embed(other), other), batch.captions, batch.captions_valid, seeded()
    )
    assert torch.equal(changed.distribution.logits, predicted.distribution.logits)


def test_the_generator_is_taught_the_codes_and_does_not_teach_them():
    tested = masked_model(4, 8)
    tested(images(), texts(), seeded()).drawing.loss.backward()
    assert gradients(tested.tokenizer) == 0
    assert gradients(tested.backbone) > 0
    assert tested.family.mask.grad.abs().sum() > 0


def order_agnostic(table, tokens):
    """Mean over all orders of -log p(z) in that order, by enumeration, for every sequence."""
    orders = list(itertools.permutations(range(tokens)))
    total = 0.0
    for order in orders:
        for step, place in enumerate(order):
            total = total - table[tuple(sorted(order[step:]))][:, place]
    return total / len(orders)


def chance_of_masks(tokens):
    """P(m of K tokens masked) when the ratio is cos(pi u / 2) of a uniform u and m is rounded up, by quadrature."""
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    return np.bincount(np.ceil(np.cos(0.5 * np.pi * u) * tokens).astype(int), minlength=tokens + 1)[1:] / len(u)


@pytest.mark.parametrize(("tokens", "codebook"), [(2, 3), (4, 2)])
def test_the_weighted_code_length_is_the_order_agnostic_one_in_expectation_over_masks(tokens, codebook):
    tested = masked_model(tokens, codebook)
    table, codes = set_table(tested, tokens, codebook), all_codes(tokens, codebook)
    exact = order_agnostic(table, tokens)
    # Over the masks themselves: every number by its chance, all sets of a number alike.
    chance, expected = chance_of_masks(tokens), 0.0
    for hidden, lengths in table.items():
        asked = torch.zeros(1, tokens, dtype=torch.bool)
        asked[0, list(hidden)] = True
        share = chance[len(hidden) - 1] / math.comb(tokens, len(hidden))
        expected = expected - share * (lengths * order_agnostic_weight(asked).numpy()).sum(1)
    assert expected == pytest.approx(exact, rel=1e-4)
    # Over draws, as an evaluation takes it.
    many = 400
    repeated = codes.repeat(many, 1)
    captions = torch.tensor([CAPTION]).expand(len(repeated), -1)
    with torch.no_grad():
        predicted = tested.predict(
            Tokens(tested.tokenizer.embed(repeated), repeated), captions, torch.ones_like(captions) > 0, seeded(7)
        )
    sums = -(predicted.distribution.log_prob(repeated) * predicted.weight).sum(1).view(many, -1).double().numpy()
    score = (sums.mean(0) - exact) / (sums.std(0, ddof=1) / math.sqrt(many))
    assert np.abs(score).max() < 4.2


@pytest.mark.parametrize(("tokens", "codebook"), [(2, 3), (4, 2)])
def test_the_order_agnostic_code_length_bounds_that_of_drawing_in_a_random_order(tokens, codebook):
    tested = masked_model(tokens, codebook)
    table = set_table(tested, tokens, codebook)
    bound, drawn = order_agnostic(table, tokens), random_order(table, tokens, tokens)
    assert (bound >= -np.log(drawn) - 1e-6).all()
    assert (bound > -np.log(drawn) + 1e-4).any()


def test_masks_follow_the_cosine_schedule_and_every_place_is_asked_alike():
    tested = masked_model(4, 8)
    codes = torch.zeros(20000, 4, dtype=torch.long)
    with torch.no_grad():
        _, asked = tested.family.generation_inputs(Tokens(tested.tokenizer.embed(codes), codes), seeded(5))
    counts = np.bincount(asked.sum(1).numpy(), minlength=5)[1:]
    assert chisquare(counts, chance_of_masks(4) * 20000).pvalue > 1e-3
    two = asked[asked.sum(1) == 2].int()
    pairs = np.bincount((two * torch.tensor([8, 4, 2, 1])).sum(1).numpy(), minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert chisquare(pairs).pvalue > 1e-3


def test_tokens_left_after_each_step_are_the_hand_worked_cosine():
    assert masked_after(8, 4) == [7, 5, 3, 0]
    assert masked_after(16, 4) == [14, 11, 6, 0]
    assert masked_after(4, 4) == [3, 2, 1, 0]
    assert masked_after(8, 1) == [0]
    for count in range(1, 40):
        for steps in range(1, count + 1):
            left = [count, *masked_after(count, steps)]
            assert len(left) == steps + 1
            assert left[-1] == 0
            assert all(a > b for a, b in itertools.pairwise(left))
