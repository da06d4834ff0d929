"""The discrete tokenizer: its channel, its codebook and its patches."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from infotok.errors import InfotokError
from infotok.information.channel import Categorical, gumbel, modes
from infotok.tokenizer import discrete, patch_grid
from tiny import images, seeded, tokenizer


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
    assert torch.equal(tokens.vectors, tested.embed(tokens.codes))
    assert tested.channel_of(posterior).entropy().max() < 1e-6


@pytest.mark.parametrize("channel", ["sampled", "deterministic"])
def test_straight_through_gradients_are_those_of_one_hot_codes_and_soft_codes(channel):
    """Against autograd through (hard - stop(soft) + soft) @ codebook, as the definition has it."""
    tested = tokenizer(channel=channel, relaxation=5.0)
    logits = torch.randn(3, 4, 8, generator=seeded(1)) * 10
    upstream = torch.randn(3, 4, 4, generator=seeded(2))
    noise = gumbel(logits, seeded(3)) if channel == "sampled" else torch.zeros_like(logits)

    def grads(vectors_of):
        given = logits.clone().requires_grad_()
        vectors = vectors_of(given)
        return vectors, *torch.autograd.grad((vectors * upstream).sum(), [given, tested.codebook])

    def defined(given):
        soft, codes = ((given + noise) / 5.0).softmax(-1), (given + noise).argmax(-1)
        hard = nn.functional.one_hot(codes, 8).float()
        return (hard - soft.detach() + soft) @ (tested.codes_unit() * 4**0.5)

    got = grads(lambda given: tested.sample(Categorical(given, 5.0), seeded(3)).vectors)
    for ours, reference in zip(got, grads(defined), strict=True):
        assert float(reference.detach().abs().sum()) > 0
        assert torch.allclose(ours, reference, atol=1e-6)


@pytest.mark.parametrize("cached", [1, 8, 40, 10**6])
def test_the_gradient_does_not_depend_on_how_many_tokens_are_taken_at_a_time(cached, monkeypatch):
    """1: every token alone; 40: five of the twelve, so that the last ones are fewer. Against autograd of soft codes."""
    monkeypatch.setattr(discrete, "CACHED", cached)
    tested = tokenizer(channel="deterministic", relaxation=5.0)
    logits = (torch.randn(8, 4, 3, generator=seeded(1)) * 10).permute(2, 1, 0).requires_grad_()  # not contiguous
    upstream = torch.randn(3, 4, 4, generator=seeded(2))
    (got,) = torch.autograd.grad((tested.sample(Categorical(logits), seeded()).vectors * upstream).sum(), logits)
    soft = (logits / 5.0).softmax(-1) @ (tested.codes_unit() * 4**0.5)
    torch.testing.assert_close(got, torch.autograd.grad((soft * upstream).sum(), logits)[0])


def test_the_mode_is_the_first_of_equals_and_the_code_of_another_quantizer():
    logits = torch.randint(3, (50, 4, 97), generator=seeded()).float()
    wanted = torch.tensor([[row.index(max(row)) for row in image] for image in logits.tolist()])
    assert torch.equal(modes(logits), wanted)
    theirs, tested = VectorQuantize(4, 8, use_cosine_sim=True).eval(), tokenizer(channel="deterministic")
    with torch.no_grad():
        theirs._codebook.embed.copy_(tested.codes_unit()[None])
        features = nn.functional.normalize(torch.randn(40, 4, 4, generator=seeded(1)), dim=-1)
        codes = tested.sample(tested.posterior_of(features), seeded()).codes
        assert torch.equal(codes, theirs(features)[1])


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


@pytest.mark.parametrize(("size", "tokens"), [(16, 4), (32, 8), (64, 2), (128, 64)])
@pytest.mark.parametrize("family", ["ar", "flow"])
def test_the_convolutional_tokenizer_gives_any_budget_back_at_any_size(size, tokens, family):
    tested = tokenizer(tokens=tokens, family=family, encoder="convolution", image_size=size)
    pictures = torch.rand(2, 3, size, size, generator=seeded(1)) * 2 - 1
    with torch.no_grad():
        sent = tested.sample(tested.encode(pictures), seeded())
        assert sent.vectors.shape == (2, tokens, 4)
        assert tested.decode(sent.vectors).shape == pictures.shape


@pytest.mark.parametrize(("encoder", "changed"), [("patch", {0}), ("convolution", {0, 1, 2, 3})])
def test_convolutions_see_across_the_borders_of_patches(encoder, changed):
    """Without transformer blocks, a pixel at the corner where four patches meet is one patch's or all four's."""
    tested = tokenizer(tokens=4, encoder=encoder, blocks=0)
    before = images(1)
    after = before.clone()
    after[:, :, 7, 7] += 1.0
    with torch.no_grad():
        difference = (tested.encoder(after) - tested.encoder(before)).abs().amax((0, 2))
    assert set(torch.nonzero(difference > 1e-6).flatten().tolist()) == changed


@pytest.mark.parametrize("encoder", ["patch", "convolution"])
def test_a_pixels_gradient_comes_back_through_encoder_and_decoder(encoder):
    tested = tokenizer(tokens=4, encoder=encoder, channel="deterministic")
    pictures = images(2).requires_grad_()
    tested.decode(tested.sample(tested.encode(pictures), seeded()).vectors).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in tested.encoder.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for p in tested.decoder.parameters())
