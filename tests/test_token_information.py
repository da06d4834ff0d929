"""What evaluation reports of tokens, against hand-made channels, torch.distributions and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import distributions

from infotok.data.texts import encode_captions
from infotok.evaluation.generation import draw
from infotok.evaluation.information import channel_information, dependences, generator_code_length
from infotok.evaluation.reconstruction import reconstruct
from infotok.information import cka
from infotok.information.channel import Gaussian, one_hot
from infotok.information.kernels import Kernels
from infotok.models import family_names
from infotok.models.family import Sampling
from infotok.tokenizer.base import Tokens
from infotok.tokenizer.passes import through
from tiny import model, seeded

CAPTIONS = ["a red square", "a blue circle", "a red circle above a blue square", "a blue square"]


class Words:
    """A text codec of the words above, small enough for the tiny model."""

    pad, end, vocabulary = 0, 1, 20
    names = sorted({word for caption in CAPTIONS for word in caption.split()})

    def encode(self, text):
        return [2 + self.names.index(word) for word in text.split()]


def bytes_images(count, seed=0):
    return torch.randint(256, (count, 16, 16, 3), generator=seeded(seed), dtype=torch.uint8).numpy()


@torch.no_grad()
def test_a_channel_that_names_every_image_carries_all_its_bits():
    """Sixteen images, each with its own pair of four codes and no noise: rate and lower bound are log2 16 bits."""
    tested = model(tokens=2, codebook=4)
    codes = torch.tensor(list(itertools.product(range(4), repeat=2)))
    channel = one_hot(codes, 4)
    found = channel_information(tested, channel, channel, Tokens(tested.tokenizer.embed(codes), codes))
    bits = {name.removeprefix("information/"): value for name, value in found.items()}
    for name in ("rate_bits", "lower_bits", "upper_bits", "capacity_bits", "code_entropy_bits"):
        assert bits[name] == pytest.approx(4.0, abs=1e-4), name
    assert bits["autoregressive_rate_bits"] == pytest.approx(4.0, abs=1e-4)  # it begins uniform
    assert bits["posterior_entropy_bits"] == pytest.approx(0.0, abs=1e-4)
    assert (bits["perplexity"], bits["dead_codes"]) == (pytest.approx(4.0), 0)


@torch.no_grad()
def test_the_autoregressive_rate_counts_what_tokens_share_once():
    """Token 2 repeats token 1: 4 bits under a marginal prior, 2 under one that knows it."""
    tested = model(tokens=2, codebook=4, dimension=4)
    codes = torch.arange(4).repeat(8)[:, None].expand(-1, 2)
    channel = one_hot(codes, 4)
    vectors = torch.eye(4)[codes]
    prior = tested.priors.autoregressive
    prior.inward.weight.zero_(), prior.inward.bias.zero_()
    prior.inward.weight[64:68, :4] = 30 * torch.eye(4)  # hidden units of token 2 read token 1
    prior.outward[1, :4] = torch.eye(4)
    found = channel_information(tested, channel, channel, Tokens(vectors, codes))
    assert found["information/rate_bits"] == pytest.approx(4.0, abs=1e-3)
    assert found["information/autoregressive_rate_bits"] == pytest.approx(2.0, abs=1e-3)
    assert found["information/upper_bits"] == pytest.approx(2.0, abs=1e-3)
    assert found["information/lower_bits"] == pytest.approx(2.0, abs=1e-3)


@torch.no_grad()
def test_gaussian_channels_are_measured_in_bits_against_the_training_aggregate():
    tested = model(family="flow", tokens=2, dimension=3, noise=0.3)
    train, test = (
        Gaussian(
            torch.randn(400, 2, 3, generator=seeded(i)), -2 + 0.3 * torch.randn(400, 2, 3, generator=seeded(i + 9))
        )
        for i in (0, 1)
    )
    tokens = Tokens(test.sample(seeded(2)))
    found = channel_information(tested, train, test, tokens)
    variance = train.mean.var(0, correction=0) + train.log_variance.exp().mean(0)
    prior = distributions.Normal(train.mean.mean(0), variance.sqrt())
    q = distributions.Normal(test.mean, (0.5 * test.log_variance).exp())
    rate = distributions.kl_divergence(q, prior).sum((1, 2)).mean() / math.log(2)
    assert found["information/rate_bits"] == pytest.approx(rate.item(), rel=1e-5)
    plain = distributions.kl_divergence(q, distributions.Normal(torch.zeros(2, 3), 1.0)).sum((1, 2)).mean() / math.log(
        2
    )
    assert found["information/autoregressive_rate_bits"] == pytest.approx(plain.item(), rel=1e-5)
    assert found["information/posterior_entropy_bits"] == pytest.approx(
        q.entropy().sum((1, 2)).mean().item() / math.log(2), rel=1e-5
    )
    assert found["information/lower_bits"] < found["information/upper_bits"] <= found["information/rate_bits"]
    assert found["information/capacity_bits"] == pytest.approx(3 * math.log2(1 + 1 / 0.09))
    assert found["information/active_dimensions"] == 6


@torch.no_grad()
@pytest.mark.parametrize("family", family_names())
def test_the_generators_code_length_is_the_mean_over_images_whatever_the_batch(family):
    tested, codec = model(family=family), Words()
    sent, _ = through(tested.tokenizer, bytes_images(4), 0)
    settings = {"precision": "fp32"}
    found = generator_code_length(tested, sent, CAPTIONS, codec, **settings)
    again = generator_code_length(tested, sent, CAPTIONS, codec, batch=4, **settings)
    assert found == again
    ids, valid = encode_captions(CAPTIONS, codec)
    if family != "mask":  # which draws its masks anew for every batch
        apart = generator_code_length(tested, sent, CAPTIONS, codec, batch=1, **settings)
        assert apart == pytest.approx(found, rel=1e-5)
        distribution = tested.predict(sent, ids, valid, seeded()).distribution
        by_torch = (
            distributions.Categorical(logits=distribution.logits).log_prob(sent.codes)
            if family == "ar"
            else distributions.Normal(distribution.mean, (0.5 * distribution.log_variance).exp())
            .log_prob(sent.vectors)
            .sum(-1)
        )
        assert found == pytest.approx(-by_torch.sum(1).mean().item() / math.log(2), rel=1e-5)


@torch.no_grad()
def test_the_masked_code_length_of_many_images_averages_to_the_exact_order_agnostic_one():
    tested, codec, copies = model(family="mask", tokens=2, codebook=3), Words(), 4000
    codes = torch.tensor([[1, 2]]).repeat(copies, 1)
    sent = Tokens(tested.tokenizer.embed(codes), codes)
    found = generator_code_length(tested, sent, CAPTIONS[:1] * copies, codec, precision="fp32")
    ids, valid = encode_captions(CAPTIONS[:1], codec)
    lengths = {}  # of token k where the places in `hidden` are masked
    for seed in range(200):
        one = Tokens(sent.vectors[:1], codes[:1])
        predicted = tested.predict(one, ids, valid, seeded(seed))
        hidden = tuple(predicted.weight[0].nonzero().flatten().tolist())
        lengths[hidden] = -predicted.distribution.log_prob(codes[:1])[0] / math.log(2)
    both, first, second = lengths[0, 1], lengths[0,], lengths[1,]
    # The mean of both orders: one token from nothing, the other from it.
    exact = 0.5 * (both[0] + second[1] + both[1] + first[0]).item()
    assert found == pytest.approx(exact, rel=0.03)


def test_dependences_are_alignments_with_pixels_and_with_words():
    codec, images = Words(), bytes_images(4).repeat(5, axis=0)
    vectors = torch.randn(20, 2, 3, generator=seeded(1))
    found = dependences(Tokens(vectors), images, CAPTIONS * 5, codec, Kernels(normalized=False))
    words = torch.tensor([[float(name in caption.split()) for name in codec.names] for caption in CAPTIONS * 5])
    widths = {"bandwidth_x": "dimension", "bandwidth_z": "dimension"}
    pixels = torch.from_numpy(images).flatten(1).float()
    assert found["information/dependence"] == pytest.approx(cka(pixels, vectors, **widths).item(), abs=1e-5)
    assert found["information/dependence_text"] == pytest.approx(cka(words, vectors, **widths).item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", family_names())
def test_images_are_sent_in_batches_and_come_back_from_their_vectors(family):
    tested, images = model(family=family), bytes_images(7)
    sent, channel = through(tested.tokenizer, images, 3, batch=3)
    assert sent.vectors.shape == (7, 4, 4)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = tested.tokenizer.encode(pictures)
    torch.testing.assert_close(channel.entropy(), posterior.entropy(), atol=1e-4, rtol=1e-4)
    assert torch.equal(through(tested.tokenizer, images, 3, batch=3)[0].vectors, sent.vectors)
    assert not torch.equal(through(tested.tokenizer, images, 4, batch=3)[0].vectors, sent.vectors)
    decoded = reconstruct(tested.tokenizer, sent.vectors, batch=2)
    expected = ((tested.tokenizer.decode(sent.vectors).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert (decoded.float() - expected).abs().max() <= 0.51


@torch.no_grad()
@pytest.mark.parametrize("family", family_names())
def test_drawings_from_a_budget_decode_the_first_tokens_alone(family):
    tested, codec = model(family=family), Words()
    settings = {"seed": 2, "precision": "fp32"}
    whole = draw(tested, CAPTIONS, codec, Sampling(), **settings)
    assert whole.shape == (4, 16, 16, 3)
    assert torch.equal(draw(tested, CAPTIONS, codec, Sampling(), budget=4, **settings), whole)
    less = draw(tested, CAPTIONS, codec, Sampling(), budget=2, **settings)
    tested.tokenizer.decode = lambda vectors, decode=tested.tokenizer.decode: decode(
        vectors * (torch.arange(4) < 2)[:, None]
    )
    assert torch.equal(draw(tested, CAPTIONS, codec, Sampling(), **settings), less)
    assert not np.array_equal(less, whole)
