"""Bad configurations: one line that names file, line, key and remedy."""

from pathlib import Path

import pytest

from infotok.errors import InfotokError
from pipeline.config.params import load_params

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("  nuisance:", "  nuisanse:", "unknown key 'data.nuisanse'; did you mean 'nuisance'?"),
        ("  validation: 1000", "  validation: many", "'data.validation' is 'many'"),
        ("dib-0.01-1,", "vib--0.003,", "has a negative beta"),
        ("dib-0.01-1,", "vibe-0.003,", "unknown estimator; known: none, ceb, dib, hsic, vib"),
        ("dib-0.01-1,", "vib,", "is not <estimator>-<beta>"),
        ("tokens: [4, 8]", "tokens: [4, 5]", "possible token budgets: 1, 2, 4, 8, 16"),
        ("tokens: [4, 8]", "tokens: []", "'grid.tokens' is empty"),
        ("seed: [0]", "seed: [0, 0]", "'grid.seed' repeats 0"),
        ("family: [ar]", "family: [arr]", "unknown family; known: ar, flow, mask"),
        ("  noise: 0.3", "  noise: 1.0", "'tokenizer.noise' is 1.0"),
        ("  nested_dropout: 0.0", "  nested_dropout: 1.5", "'tokenizer.nested_dropout' is 1.5"),
        ("  target_bits: 0.0", "  target_bits: -1", "'train.target_bits' is -1"),
        ("  prior: marginal", "  prior: learned", "'train.prior' is 'learned'"),
        ("  bandwidth: dimension", "  bandwidth: -2.0", "'kernels.bandwidth"),
        ("  decoding_steps: 8", "  decoding_steps: 0", "'generation.decoding_steps' is 0"),
    ],
)
def test_a_bad_value_is_named_with_its_file_line_and_remedy(tmp_path, before, after, says):
    text = (ROOT / "params.yaml").read_text()
    assert before in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(before, after, 1))
    line = text[: text.index(before)].count("\n") + 1
    with pytest.raises(InfotokError) as caught:
        load_params(path)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert message.startswith(f"{path}:{line}:")


@pytest.mark.parametrize(
    "path", ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("studies/*/params.yaml"))]
)
def test_the_repositorys_own_parameters_are_valid(path):
    assert load_params(ROOT / path).cells()


def test_kernel_arms_need_four_images_a_step(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    small = text.replace("  batch: 48\n", "  batch: 3\n")
    assert small != text
    path = tmp_path / "params.yaml"
    path.write_text(small)
    assert load_params(path)
    path.write_text(small.replace("dib-0.01-1,", "hsic-0.1-1,", 1))
    with pytest.raises(InfotokError, match=r"params\.yaml:\d+: 'train\.batch' is 3; the hsic arms need at least 4"):
        load_params(path)


OWN = """data:
  source: jsonl
  path: data/mine
  seed: 0
  image_size: 32
  vocabulary: 400
  background: white
  validation: 0.1
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("source: jsonl", "source: coco", "'data.source' is 'coco', unknown; known: easy_vqa, huggingface, "),
        ("  source: jsonl\n", "  seeds: 1\n", "'data.source' is missing"),
        ("  background: white", "  backgruond: white", "unknown key 'data.backgruond'; did you mean 'background'?"),
        ("background: white", "background: whyte", "'data.background' is 'whyte'"),
        ("  validation: 0.1", "  validation: 1.0", "'data.validation' is 1.0"),
        ("  validation: 0.1", "  validation: 0.95", "'data.validation' and data.test leave no share"),
        ("  validation: 0.1", "  objects: 2", "unknown key 'data.objects'"),
        ("  validation: 0.1", "  fit: squeeze", "'data.fit' is 'squeeze'"),
    ],
)
def test_a_bad_value_of_ones_own_data_is_named_too(tmp_path, before, after, says):
    whole = (ROOT / "params.yaml").read_text()
    start, end = whole.index("data:"), whole.index("\njudge:")
    assert before in OWN
    path = tmp_path / "params.yaml"
    path.write_text(whole[:start] + OWN + whole[end:])
    assert load_params(path).data.fit == "crop"
    path.write_text(whole[:start] + OWN.replace(before, after) + whole[end:])
    with pytest.raises(InfotokError) as caught:
        load_params(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_the_convolutional_encoder_needs_a_map_that_its_tokens_divide(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("encoder: patch ", "encoder: convolution ")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert load_params(path)
    path.write_text(text.replace("image_size: 32", "image_size: 48"))
    with pytest.raises(InfotokError, match=r"params\.yaml:\d+: 'grid\.tokens\[0\]' is 4: tokenizer\.encoder 'convol"):
        load_params(path)
