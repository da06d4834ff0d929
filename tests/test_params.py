"""Bad configurations: one line that names file, line, key and remedy."""

from pathlib import Path

import pytest
import yaml

from infotok.errors import InfotokError
from infotok.options import Section
from pipeline.config.params import load_params
from pipeline.config.study import Study, names

ROOT = Path(__file__).parent.parent
SCENES = """# a comment
grid:
  family: [ar]
  arm: [none-0-0, dib-0.01-1, dib-0.03-1]
  tokens: [4, 8]
  seed: [0]

data:
  source: scenes
  nuisance: 1.0
  validation: 1000

tokenizer:
  encoder: patch
  noise: 0.3
  nested_dropout: 0.0

backbone:
  width: 64

train:
  batch: 48
  target_bits: 0.0
  prior: marginal

kernels:
  bandwidth: dimension

generation:
  decoding_steps: 8
  temperatures: [1.0, 0.5]
  guidance: [1.0, 2.0]
"""


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InfotokError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("  nuisance:", "  nuisanse:", "unknown key 'data.nuisanse'; did you mean 'nuisance'?"),
        ("  validation: 1000", "  validation: many", "'data.validation' is 'many'"),
        ("dib-0.01-1,", "vib--0.003-1,", "is not <estimator>-<beta>-<gamma> with plain decimals"),
        ("dib-0.01-1,", "vib-0.003--1,", "is not <estimator>-<beta>-<gamma> with plain decimals"),
        ("dib-0.01-1,", "vibe-0.003-1,", "unknown estimator; known: none, ceb, dib, hsic, vib"),
        ("dib-0.01-1,", "vib,", "is not <estimator>-<beta>-<gamma>"),
        ("dib-0.01-1,", "dib-0.01,", "is not <estimator>-<beta>-<gamma>"),
        ("dib-0.01-1,", "dib-0.010-1,", "must be written dib-0.01-1"),
        ("dib-0.01-1,", "dib-0-1,", "has beta 0, which no estimator weighs; write none-0-1"),
        ("dib-0.01-1,", "none-0.1-1,", "has no estimator for its beta to weigh; write none-0-1"),
        ("tokens: [4, 8]", "tokens: [4, 5]", "possible token budgets: 1, 2, 4, 8, 16"),
        ("tokens: [4, 8]", "tokens: []", "'grid.tokens' is empty"),
        ("seed: [0]", "seed: [0, 0]", "'grid.seed' repeats 0"),
        ("seed: [0]", "seed: [-1]", "'grid.seed[0]' is -1"),
        ("family: [ar]", "family: [arr]", "unknown; known: ar, flow, mask"),
        ("  noise: 0.3", "  noise: 1.0", "'tokenizer.noise' is 1.0"),
        ("  nested_dropout: 0.0", "  nested_dropout: 1.5", "'tokenizer.nested_dropout' is 1.5"),
        ("  target_bits: 0.0", "  target_bits: -1", "'train.target_bits' is -1"),
        ("  prior: marginal", "  prior: learned", "'train.prior' is 'learned'"),
        ("  prior: marginal", "  parallel: both", "'train.parallel' is 'both': input should be 'replicate' or 'shard'"),
        ("  bandwidth: dimension", "  bandwidth: -2.0", "'kernels.bandwidth"),
        ("  decoding_steps: 8", "  decoding_steps: 0", "'generation.decoding_steps' is 0"),
        ("  temperatures: [1.0, 0.5]", "  temperatures: [0.5]", "'generation.temperatures' is [0.5]: must contain 1.0"),
        ("  guidance: [1.0, 2.0]", "  guidance: [2.0]", "'generation.guidance' is [2.0]: must begin with 1.0"),
        ("  target_bits: 0.0", "  caption_dropout: 0.0", "is 0, but generation.guidance [1.0, 2.0] compares"),
        (
            "train:\n",
            "train:\n  consistency: likelihood\n  describe: 0\n",
            "'train': consistency: likelihood is of the caption that describe asks for; set describe above 0",
        ),
        ("backbone:\n", "backbone:\n  heads: 5\n", "'backbone': width must be an even multiple of heads (5), got 64"),
        (
            "train:\n  batch: 48",
            "train:\n  batch: 48\n  batch: 64",
            "not valid YAML (a key stands twice; keep one of the two)",
        ),
        ("  width: 64", "  width: 64\n\tlayers: 2", "a line begins with a tab; indent with spaces"),
        ("train:\n  batch: 48", "train:\n  batch: 48\n---", "a second document begins here; remove the line `---`"),
        ("train:\n  batch: 48", "train: !mine\n  batch: 48", "tags such as `!name` mean nothing here"),
        ("  nested_dropout: 0.0", "  nested_dropout:", "'tokenizer.nested_dropout' is empty; write its value, or"),
        ("  nested_dropout: 0.0", "  nested_dropout: a", "'tokenizer.nested_dropout' is 'a': must be a number"),
        ("  nested_dropout: 0.0", "  3: 0.0", "the key 3 of 'tokenizer' is no text; keys are names"),
        ("  target_bits: 0.0", "  balance: 1", "'train.balance' is 1: must be true or false"),
        ("  target_bits: 0.0", "  steps: true", "'train.steps' is true: must be a whole number"),
        ("tokens: [4, 8]", "tokens: 4", "'grid.tokens' is 4: must be a list, such as [a, b]"),
        ("seed: [0]", "seed: [9223372036854775808]", "'grid.seed[0]' is 9223372036854775808"),
        ("  bandwidth: dimension", "  bandwidth: wide", "'kernels.bandwidth' is 'wide'"),
        (
            "  source: scenes\n",
            "",
            "'data.source' is missing; known sources: coco, easy_vqa, free_scenes, huggingface, ",
        ),
        ("train:\n", "trian:\n", "unknown key 'trian'; did you mean 'train'?"),
    ],
)
def test_a_bad_value_is_named_with_its_file_line_and_remedy(tmp_path, before, after, says):
    assert SCENES.count(before) == 1
    path = tmp_path / "params.yaml"
    path.write_text(SCENES)
    assert load_params(path)
    message = refused(path, SCENES.replace(before, after))
    assert says in message
    place, line, _ = message.removeprefix(str(path)).split(":", 2)
    assert place == ""
    first = SCENES[: SCENES.index(before)].count("\n") + 1
    # What is missing is named with the line of the section that lacks it.
    assert first - (not after) <= int(line) <= first + max(before.count("\n"), after.count("\n"))


@pytest.mark.parametrize("name", names(ROOT))
def test_the_repositorys_own_studies_are_valid_and_state_only_what_differs(name):
    study = Study(name, ROOT)
    assert study.params.cells()
    if name == "default":  # which shows what one changes first
        return
    for section, stated in yaml.safe_load(study.params_file.read_text()).items():
        default = type(study.params).model_fields[section].default
        if isinstance(default, Section) and type(default) is type(getattr(study.params, section)):
            same = {key for key, value in stated.items() if getattr(default, key) == value and key != "source"}
            assert not same, f"{section}: {same}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: is empty; write sections of parameters, at least `grid:` with its key `arm`"),
        ("# grid:\n", ":1: is empty"),
        ("[grid]\n", ":1: holds no sections"),
        ("1: 2\ngrid: {arm: [none-0-0]}\n", "the key 1 is no text; keys are names"),
        ("grid:\n", ":1: 'grid' is empty"),
        ("grid: [none-0-0]\n", ":1: 'grid' is ['none-0-0']: must be a section, its keys indented in the lines below"),
        ("? [a, b]\n: 1\n", ":1: not valid YAML (a list or section stands where a key belongs)"),
    ],
)
def test_a_file_of_no_sections_is_told_in_words_of_yaml(tmp_path, text, says):
    assert says in refused(tmp_path / "params.yaml", text)


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(SCENES.replace("seed: [0]", "seed: [010, 0o11, 1_2]").replace("noise: 0.3", "noise: 1e-1"))
    theirs, ours = load_yaml(path), load_params(path)
    assert ours.grid.seed == theirs["grid"]["seed"]
    assert ours.tokenizer.noise == theirs["tokenizer"]["noise"] == 0.1


def test_kernel_arms_need_four_images_a_step(tmp_path):
    small, path = SCENES.replace("  batch: 48\n", "  batch: 3\n"), tmp_path / "params.yaml"
    path.write_text(small)
    assert load_params(path)
    message = refused(path, small.replace("dib-0.01-1,", "hsic-0.1-1,"))
    assert "'train.batch' is 3; the hsic arms need at least 4" in message


OWN = """data:
  source: jsonl
  path: data/mine
  background: white
  validation: 0.1
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            "source: jsonl",
            "source: coco_api",
            "'data.source' is 'coco_api', unknown; known: coco, easy_vqa, free_scenes, huggingface, ",
        ),
        ("  path: data/mine\n", "", "'data.path' is missing"),
        ("  background: white", "  backgruond: white", "unknown key 'data.backgruond'; did you mean 'background'?"),
        ("background: white", "background: whyte", "'data.background' is 'whyte'"),
        ("  validation: 0.1", "  validation: 1.0", "'data.validation' is 1.0"),
        ("  validation: 0.1", "  validation: 0.95", "'data.validation' and data.test leave no share"),
        ("  validation: 0.1", "  objects: 2", "unknown key 'data.objects'"),
        ("  validation: 0.1", "  fit: squeeze", "'data.fit' is 'squeeze'"),
    ],
)
def test_a_bad_value_of_ones_own_data_is_named_too(tmp_path, before, after, says):
    start, end = SCENES.index("data:"), SCENES.index("\ntokenizer:")
    assert before in OWN
    path = tmp_path / "params.yaml"
    path.write_text(SCENES[:start] + OWN + SCENES[end:])
    assert load_params(path).data.image_size == 32
    message = refused(path, SCENES[:start] + OWN.replace(before, after) + SCENES[end:])
    assert says in message
    assert message.startswith(f"{path}:")


def test_the_convolutional_encoder_needs_a_map_that_its_tokens_divide(tmp_path):
    text, path = SCENES.replace("encoder: patch", "encoder: convolution"), tmp_path / "params.yaml"
    path.write_text(text)
    assert load_params(path)
    message = refused(path, text.replace("  nuisance: 1.0", "  image_size: 48"))
    assert "'grid.tokens[0]' is 4: tokenizer.encoder 'convolution' needs" in message


@pytest.mark.parametrize("name", ["../up", "a/b", "", "-x", "with space"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(InfotokError, match="cannot name a study"):
        Study(name)


def test_an_unknown_study_is_named_with_the_known_ones():
    with pytest.raises(
        InfotokError, match=r"there is no folder studies/smok; known: default, .*smoke.*`infotok study smok`"
    ):
        Study("smok", ROOT).params  # noqa: B018
