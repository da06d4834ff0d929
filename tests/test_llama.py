"""The layers of a Llama written out, against transformers' own and numerical gradients."""

import pytest
import torch

from infotok.models import family_names, llama
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.packing import Blocks, Part, pack
from tiny import images, model, normal, seeded, texts


def parts(width, dtype=torch.float64):
    """An image, three questions of several widths, a caption and the image to draw, of two examples."""
    lengths = [3, 5, 4, 5, 4, 3]
    valid = [torch.ones(2, n, dtype=torch.bool) for n in lengths]
    valid[2][1, 2:] = valid[4][0, 1:] = False
    sees = [(), (0,), (0,), (0,), (), (4,)]
    starts = [torch.zeros(2, dtype=torch.long), *[torch.full((2,), 3)] * 3, torch.zeros(2, dtype=torch.long)]
    starts.append(valid[4].sum(1))
    given = zip(lengths, valid, starts, sees, strict=True)
    return [
        Part(normal(2, n, width, seed=index, dtype=dtype), some, start, seen, bidirectional=index in (0, 5))
        for index, (n, some, start, seen) in enumerate(given)
    ]


def blocks_of(given):
    made = Blocks(given)
    assert len(made.blocks) == 4
    return made


def test_columns_that_see_each_other_stand_in_blocks():
    """The hand-worked case: image and question, image and question, image and question, caption and drawing."""
    made = blocks_of(parts(4))
    place = torch.arange(24)[:, None]
    found = made.spread(place)[..., 0]
    assert found.shape == (4, 32)
    assert found[:, : made.width].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 8, 9, 10, 11, 0],
        [0, 1, 2, 12, 13, 14, 15, 16],
        [17, 18, 19, 20, 21, 22, 23, 0],
    ]
    assert made.pick(made.spread(place)[:, : made.width]).equal(place)
    assert made.pick(made.place(place)).equal(place)
    assert made.total(made.spread(torch.ones(24, 1)))[:, 0].tolist() == [3.0] * 3 + [1.0] * 21


def test_a_block_allows_what_the_whole_sequence_does():
    given = parts(4)
    made, (_, allowed, _) = blocks_of(given), pack(given)
    columns = made.spread(torch.arange(24)[:, None])[..., 0]
    found = torch.zeros_like(allowed)
    for block, mask in enumerate(made.mask(allowed).unbind(1)):
        for row in range(made.columns[block]):
            for column in range(made.padded):
                if column >= made.columns[block]:
                    assert not mask[:, row, column].any()
                else:
                    found[:, columns[block, row], columns[block, column]] |= mask[:, row, column]
    assert found.equal(allowed)


def test_one_block_where_several_would_hold_more():
    """An image of 9 columns beside questions of 1 column each: 6 blocks of 10² pairs, where the whole has 15²."""
    image = Part(torch.zeros(1, 9, 4), torch.ones(1, 9, dtype=torch.bool), torch.tensor([0]), bidirectional=True)
    short = [Part(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool), torch.tensor([9]), (0,)) for _ in range(6)]
    assert (len(Blocks([image, *short]).blocks), Blocks([image, *short]).width) == (1, 15)
    assert len(Blocks([image, *short[:1]]).blocks) == 1


def backbone():
    torch.manual_seed(0)
    made = Backbone.create(BackboneConfig(name="llama", width=16, layers=2, heads=2), 20).double()
    for name, weight in made.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)  # gains of 1 would hide that they are used
    return made


def test_hidden_states_and_gradients_are_those_of_transformers():
    tested, given = backbone(), parts(16)
    for part in given:
        part.embeddings.requires_grad_()
    valid = torch.cat([part.valid for part in given], 1)
    upstream = normal(2, 24, 16, seed=9) * valid[..., None]
    found = []
    for hidden in (torch.cat(tested.read(given), 1), tested(*pack(given))):
        tested.zero_grad()
        inputs = [part.embeddings for part in given]
        weights = [
            weight for name, weight in tested.named_parameters() if "embed" not in name and "lm_head" not in name
        ]
        found.append([hidden * valid[..., None], *torch.autograd.grad((hidden * upstream).sum(), inputs + weights)])
    assert tested.written_out
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # theirs rotates and normalizes in float32


@pytest.mark.parametrize("family", family_names())
def test_losses_and_gradients_of_a_step_are_those_of_transformers(family):
    tested, found = model(family=family), []
    for written_out in (True, False):
        tested.backbone.written_out = written_out
        tested.zero_grad()
        out = tested(images(), texts(), seeded())
        (out.answer_loss + out.drawing.loss + out.text.square().mean()).backward()
        found.append([out.answer_loss, out.drawing.loss, out.text])
        found[-1] += [weight.grad.clone() for weight in tested.parameters() if weight.grad is not None]
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bf16_it_is_transformers_to_the_rounding_of_bf16():
    tested, given = backbone().float(), parts(16, torch.float32)
    with torch.no_grad():
        exact = torch.cat(tested.read(given), 1)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = torch.cat(tested.read(given), 1), tested(*pack(given))
    valid = torch.cat([part.valid for part in given], 1)
    errors = [(hidden - exact)[valid].square().mean().sqrt().item() for hidden in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("which", ["norm", "attention", "mlp"])
def test_gradients_written_out_are_the_numerical_ones(which):
    given = parts(4)
    blocks = blocks_of(given)
    x = torch.cat([part.embeddings for part in given], 1)[:, :, :4].requires_grad_()
    if which == "norm":
        assert torch.autograd.gradcheck(lambda x: llama.Normalized.apply(x, 1e-6), x)
        return
    if which == "mlp":
        weights = [normal(*shape, seed=1).requires_grad_() for shape in ((3, 4), (3, 4), (4, 3))]
        assert torch.autograd.gradcheck(lambda *given: llama.Gated.apply(*given, 1e-6), (x, *weights))
        return
    weight, out = normal(12, 4, seed=1).requires_grad_(), normal(4, 4, seed=2).requires_grad_()
    angles = normal(48, 4, seed=3)
    mask = torch.zeros(2, 4, blocks.width, blocks.padded).double()
    mask.masked_fill_(~blocks.mask(pack(given)[1]), -1e9)

    def attended(x, weight, out):
        return llama.Attended.apply(x, weight, out, angles.cos(), angles.sin(), mask, blocks, 2, 1e-6)

    assert torch.autograd.gradcheck(attended, (x, weight, out))
    derived = llama.Attended.compute(x, weight, out, angles.cos(), angles.sin(), mask, blocks, 2, 1e-6)[0]
    assert torch.equal(derived, attended(x, weight, out))
