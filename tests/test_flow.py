"""The flow family against closed-form velocities, scipy's integrator and naive passes."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest, norm
from torch import distributions, nn

from infotok.models.families.flow import integrate
from infotok.models.family import Sampling
from infotok.tokenizer.base import Tokens
from tiny import gradients, images, model, seeded, texts


def gaussian_velocity(x, t, mean, deviation):
    """E[x_1 - x_0 | x_t = x] on the line from x_0 ~ N(0, 1) to x_1 ~ N(mean, deviation^2)."""
    variance = (1 - t) ** 2 + t**2 * deviation**2
    return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)


def test_integration_of_a_gaussian_target_lands_on_mean_plus_deviation_times_start():
    mean, deviation = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 1.5, 0.1])
    start = torch.randn(50, 3, generator=seeded())
    end = integrate(lambda x, t: gaussian_velocity(x, t, mean, deviation), start, 200)
    torch.testing.assert_close(end, mean + deviation * start, atol=2e-3, rtol=0)


def test_the_error_of_integration_falls_with_the_square_of_the_steps():
    start, errors = torch.tensor([[1.0, -2.0]]).double(), []
    for steps in (8, 16, 32):
        end = integrate(lambda x, t: t.double() - x, start, steps)
        errors.append((end - (start + 1) / math.e).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_integration_of_a_mixture_follows_the_mixture():
    weights, means, deviations = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0]), torch.tensor([0.4, 0.6])

    def velocity(x, t):
        variance = (1 - t) ** 2 + t**2 * deviations**2
        share = (weights.log() + distributions.Normal(t * means, variance.sqrt()).log_prob(x)).softmax(-1)
        return (share * gaussian_velocity(x, t, means, deviations)).sum(-1, keepdim=True)

    end = integrate(velocity, torch.randn(4000, 1, generator=seeded(1)), 64)[:, 0].numpy()

    def cumulative(x):
        return 0.3 * norm.cdf(x, -2, 0.4) + 0.7 * norm.cdf(x, 1, 0.6)

    assert kstest(end, cumulative).pvalue > 1e-3
    assert kstest(end, norm(end.mean(), end.std()).cdf).pvalue < 1e-6


def roused(**changes):
    """A flow model whose velocity is not 0 and whose tokens are not standard, as they are at the start of training."""
    tested = model(family="flow", **changes)
    with torch.no_grad():
        for layer in (tested.family.head.modulation, tested.family.head.outward):
            nn.init.normal_(layer.weight, std=0.2, generator=seeded(8))
        tested.family.mean.copy_(torch.randn(tested.family.mean.shape, generator=seeded(9)))
        tested.family.variance.copy_(0.1 + torch.rand(tested.family.mean.shape, generator=seeded(10)))
    return tested


def standard(tested, vectors):
    """Vectors in the units that the flow works in."""
    return (vectors - tested.family.mean) / tested.family.variance.sqrt()


def test_before_training_a_drawn_token_is_the_noise_that_temperature_scales():
    tested, batch = model(family="flow"), texts()

    def drawn(temperature):
        sampling = Sampling(temperature=temperature)
        parts = tested.backbone, tested.tokenizer, batch.captions, batch.captions_valid, sampling, seeded(3)
        return tested.family.draw(*parts).vectors

    generator = seeded(3)
    noise = torch.stack([torch.randn(3, 4, generator=generator) for _ in range(4)], 1)
    torch.testing.assert_close(drawn(1.0), noise)
    torch.testing.assert_close(drawn(0.25), 0.25 * noise)


def states(tested, words, vectors):
    """Hidden states (places, width) of a plain causal pass over one caption and the tokens so far, standardized."""
    family, llama = tested.family, tested.backbone.model
    inputs = torch.cat([family.begin[None], family.project(vectors)])
    inputs = inputs + family.place[1, : len(inputs)]
    sequence = torch.cat([llama.get_input_embeddings()(words), inputs])[None]
    return llama.base_model(inputs_embeds=sequence).last_hidden_state[0, len(words) :]


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_every_token_is_the_end_of_its_flow_given_caption_and_earlier_tokens(guidance):
    tested, batch = roused(), texts()
    sampling = Sampling(guidance=guidance, temperature=0.8, ode_steps=48)
    drawn = tested.family.draw(
        tested.backbone, tested.tokenizer, batch.captions, batch.captions_valid, sampling, seeded(4)
    ).vectors
    drawn, generator = standard(tested, drawn), seeded(4)
    noise = torch.stack([torch.randn(3, 4, generator=generator) for _ in range(4)], 1)
    for row in range(3):
        words = batch.captions[row][batch.captions_valid[row]]
        told, bare = states(tested, words, drawn[row, :-1]), states(tested, words[:1], drawn[row, :-1])
        for place in range(4):

            def slope(time, x, told=told[place], bare=bare[place]):
                x, time = torch.tensor(x, dtype=torch.float32), torch.tensor([time], dtype=torch.float32)
                with_caption, without = (tested.family.head(x, time, hidden) for hidden in (told, bare))
                return (without + guidance * (with_caption - without)).double().numpy()

            solved = solve_ivp(slope, (0, 1), 0.8 * noise[row, place].double().numpy(), rtol=1e-5, atol=1e-6)
            assert drawn[row, place].numpy() == pytest.approx(solved.y[:, -1], abs=5e-3)
    assert (drawn - 0.8 * noise).abs().mean() > 0.3  # the flow moved the noise


@torch.no_grad()
def test_a_drawn_token_sees_the_caption_and_earlier_tokens_only():
    tested, batch = roused(), texts()
    vectors = torch.randn(3, 4, 4, generator=seeded(5))

    def predicted(vectors):
        out = tested.predict(Tokens(vectors), batch.captions, batch.captions_valid, seeded()).distribution
        return torch.cat([out.mean, out.log_variance], -1)

    before = predicted(vectors)
    for place in range(4):
        changed = vectors.clone()
        changed[:, place] += 1
        moved = (predicted(changed) - before).abs().amax((0, 2)) > 1e-4
        assert moved.tolist() == [other > place for other in range(4)]


@torch.no_grad()
def test_the_density_is_the_normal_that_the_head_names_and_never_narrower_than_the_channel():
    tested, batch = roused(noise=0.3), texts()
    tested.family.density.weight.mul_(2)
    tested.family.density.bias[4:] -= 2
    vectors = torch.randn(3, 4, 4, generator=seeded(6))
    found = tested.predict(Tokens(vectors), batch.captions, batch.captions_valid, seeded())
    lengths = []
    for row in range(3):
        words = batch.captions[row][batch.captions_valid[row]]
        hidden = states(tested, words, standard(tested, vectors)[row, :-1])
        mean, log_variance = tested.family.density(hidden).chunk(2, -1)
        unit = tested.family.variance.sqrt()
        deviation = (0.5 * log_variance).exp() * unit
        assert (deviation < 0.3).any()
        assert (deviation > 0.3).any()
        normal = distributions.Normal(mean * unit + tested.family.mean, deviation.clamp_min(0.3))
        lengths.append(normal.log_prob(vectors[row]).sum(-1))
    torch.testing.assert_close(found.distribution.log_prob(vectors), torch.stack(lengths), atol=1e-4, rtol=1e-4)
    assert found.weight is None


@torch.no_grad()
def test_training_follows_the_tokens_moments_and_evaluation_leaves_them():
    family, generator = model(family="flow", tokens=2, dimension=2).family, seeded(12)
    mean, deviation = torch.tensor([[3.0, -1.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.1], [2.0, 1.0]])
    family.train()
    for _ in range(250):
        family.generation_inputs(Tokens(mean + deviation * torch.randn(128, 2, 2, generator=generator)), generator)
    # A moving average with momentum 0.05 is worth about 39 batches.
    error = 1 / math.sqrt(39 * 128)
    assert ((family.mean - mean).abs() < 4 * error * deviation).all()
    assert ((family.variance / deviation**2 - 1).abs() < 4 * error * math.sqrt(2) + 0.01).all()
    before = family.mean.clone(), family.variance.clone()
    family.eval().generation_inputs(Tokens(torch.randn(8, 2, 2)), generator)
    assert torch.equal(family.mean, before[0])
    assert torch.equal(family.variance, before[1])


@torch.no_grad()
def test_drawn_tokens_are_scaled_back_to_the_tokenizers():
    tested, batch = model(family="flow"), texts()
    parts = tested.backbone, tested.tokenizer, batch.captions, batch.captions_valid, Sampling()
    noise = tested.family.draw(*parts, seeded(3)).vectors  # of a flow that moves nothing yet
    tested.family.mean.copy_(torch.arange(16.0).view(4, 4))
    tested.family.variance.fill_(0.25)
    drawn = tested.family.draw(*parts, seeded(3)).vectors
    torch.testing.assert_close(drawn, torch.arange(16.0).view(4, 4) + 0.5 * noise)


def test_the_generator_is_taught_the_tokens_and_does_not_teach_them():
    tested = roused()
    tested(images(), texts(), seeded()).drawing.loss.backward()
    assert gradients(tested.tokenizer) == 0
    assert gradients(tested.backbone) > 0
    for part in (tested.family.head, tested.family.density, tested.family.project):
        assert gradients(part) > 0


def test_training_on_a_known_conditional_gaussian_teaches_its_mean_and_deviation():
    tested = model(family="flow", tokens=1, dimension=2, noise=0.1).train()
    gain, deviation = torch.tensor([1.0, -0.5]), torch.tensor([0.3, 0.8])
    family, generator, steps = tested.family, seeded(10), 400
    groups = [{"params": family.head.parameters()}, {"params": family.density.parameters()}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.05], total_steps=steps)
    asked = torch.ones(256, 1, dtype=torch.bool)
    for _ in range(steps):
        hidden = torch.zeros(256, 1, 16)
        hidden[..., :2] = torch.randn(256, 1, 2, generator=generator)
        target = hidden[..., :2] * gain + deviation * torch.randn(256, 1, 2, generator=generator)
        optimizer.zero_grad()
        family.predict(hidden, Tokens(target), asked, generator).loss.backward()
        optimizer.step()
        schedule.step()
    count = 4000
    with torch.no_grad():
        for state in (torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]), torch.tensor([-0.5, 1.5])):
            hidden = torch.cat([state, torch.zeros(14)]).expand(count, -1)
            noise = torch.randn(count, 2, generator=generator)
            drawn = integrate(lambda x, t, h=hidden: family.head(x, t.expand(count, 1), h), noise, 16)
            density = family.predict(hidden[None, :1], Tokens(noise[None, :1]), asked[:1], generator).distribution
            mean, error = state * gain, 1 / math.sqrt(count)
            # Three standard errors of the sample, and a twentieth for what so short a training leaves.
            assert ((drawn.mean(0) - mean).abs() / deviation < 3 * error + 0.05).all()
            assert ((drawn.std(0) / deviation - 1).abs() < 3 * error / math.sqrt(2) + 0.05).all()
            assert kstest(((drawn - drawn.mean(0)) / drawn.std(0))[:, 0], norm.cdf).statistic < 1.95 * error + 0.02
            assert ((density.mean[0, 0] - mean).abs() / deviation < 0.06).all()
            assert ((0.5 * density.log_variance[0, 0]).exp() / deviation - 1).abs().max() < 0.05
