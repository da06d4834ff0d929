"""Studies of pretrained models: what their params.yaml may say, and which stages they have."""

import json
import re
from pathlib import Path

import pytest
import yaml

from infotok.errors import InfotokError, SettingError
from infotok.mllm.options import ModelConfig
from pipeline.config.params import Params, PretrainedParams, load_params
from pipeline.config.recipes import parameters_of
from pipeline.config.study import Study
from pipeline.graph import FROM_SCRATCH, PRETRAINED
from pipeline.sweep.jobs import jobs

ROOT = Path(__file__).parent.parent
STUDY = """\
models:
  one: {name: ./one}
  two: {name: owner/two, decoder: two.ckpt}
grid:
  family: [one, two]
  arm: [none-0-0, dib-0.01-0]
  tokens: [16]
  seed: [0, 1]
data:
  source: jsonl
  path: mine
tune:
  steps: 10
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(before="", after=""):
        assert not before or STUDY.count(before) == 1
        (tmp_path / "params.yaml").write_text(STUDY.replace(before, after, 1) if before else STUDY)
        return load_params(tmp_path / "params.yaml")

    return write


def test_the_section_models_makes_it_a_study_of_pretrained_models(written):
    params = written()
    assert isinstance(params, PretrainedParams)
    assert params.graph is PRETRAINED
    assert params.weights == ["one", "two.ckpt"]
    small = yaml.safe_load(STUDY) | {"grid": {"arm": ["none-0-0"]}}
    del small["models"], small["tune"]
    assert Params.model_validate(small).graph is FROM_SCRATCH


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("name: ./one", "nmae: ./one", ":2: unknown key 'models.one.nmae'; did you mean 'name'?"),
        ("  one: {name: ./one}\n", "  one:\n", ":2: 'models.one' is empty"),
        ("  family: [one, two]\n", "", ":4: 'grid.family' is missing; give some of one, two"),
        ("  tokens: [16]\n", "", ":4: 'grid.tokens' is missing; give the most of an image"),
        ("  one: {name: ./one}", "  one: ./one", ":2: 'models.one' is './one': must be a section; write {name: ./one}"),
        (
            "{name: ./one}",
            "{name: ./one, revision: a}",
            ":2: 'models.one': has a revision, which a folder has not; leav",
        ),
        (
            "tune:\n",
            "calibrate: {settle: true}\ntune:\n",
            "'calibrate.settle' is of a training, and calibrate.steps is 0",
        ),
        (
            "family: [one, two]",
            "family: [three]",
            "'grid.family[0]' is 'three', no name in the section models, which has one, two",
        ),
        ("  one: {name: ./one}", "  a-b: {name: ./one}", "'models.a-b' names files; use letters, digits, '_' and '.'"),
        ("  steps: 10", "  stepz: 10", "unknown key 'tune.stepz'; did you mean 'steps'?"),
        (
            "tune:\n",
            "train:\n",
            "'train' is no section of a study with `models`, whose own are models, calibrate, tune",
        ),
        ("  steps: 10", "  tokenizer: frozen", "'tune.tokenizer' is frozen, so the arm dib-0.01-0 has nothing to pres"),
        ("  steps: 10", "  caption_dropout: 0.0", "'tune.caption_dropout' is 0, but generation.guidance [1.0, 3.0]"),
        ("  steps: 10", "  caption_dropout: 0.0\n  prior: model\ngeneration:\n  guidance: [1.0]", "the prior `model`"),
        ("  steps: 10", "  accumulate: 3", "'tune.accumulate' is 3, which does not divide tune.batch, 8"),
        ("  steps: 10", "  batch: 0", "'tune.batch' is 0"),
        ("  steps: 10", "  train: all", "'tune.train' is 'all'"),
    ],
)
def test_a_bad_value_is_named_with_its_line_and_remedy(written, before, after, says):
    with pytest.raises(InfotokError) as error:
        written(before, after)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_are_named_with_their_line_and_nothing_else_needs_them(written, tmp_path):
    params, study = written(), Study("default", tmp_path)
    assert study.params.cells()

    def said():
        with pytest.raises(SettingError) as error:
            params.check_files()
        return str(study.located(error.value)).removeprefix(f"{tmp_path}/")

    assert said().startswith("params.yaml:2: models.one.name: ./one: there is no such folder; give one that save_")
    (tmp_path / "one").mkdir()
    assert said().startswith("params.yaml:2: models.one.name: ./one: holds no config.json; give a folder that save_")
    (tmp_path / "one/config.json").write_text('{"model_type": "emu3"}')
    assert said().startswith("params.yaml:3: models.two.decoder: two.ckpt: there is no such file")
    (tmp_path / "two.ckpt").touch()
    params.check_files()


@pytest.mark.parametrize("page", ["mllm.md", "gpu.md"])
def test_the_study_of_a_page_is_one_that_eight_processes_can_share(tmp_path, page):
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    (tmp_path / "params.yaml").write_text(shown)
    tune = load_params(tmp_path / "params.yaml").tune
    assert tune.batch % (8 * tune.accumulate) == 0


def test_a_folder_that_could_be_a_name_on_the_hub_is_to_be_marked(written, tmp_path):
    (tmp_path / "owner/two").mkdir(parents=True)
    with pytest.raises(InfotokError, match=r"is a folder here, and could be a name on the hub; write ./owner/two"):
        written()


@pytest.mark.parametrize(("before", "line"), [("owner/two", 3), ("two.ckpt", 3), ("mine", 11)])
def test_a_home_folder_is_to_be_written_whole(written, before, line):
    with pytest.raises(InfotokError, match=rf"params\.yaml:{line}: .*~ stands for no folder here; write"):
        written(before, "~/two")


def test_the_kind_of_a_model_is_its_configuration_s(tmp_path):
    model = ModelConfig(name=str(tmp_path / "some"))
    with pytest.raises(InfotokError, match="there is no such folder"):
        _ = model.kind
    (tmp_path / "some").mkdir()
    with pytest.raises(InfotokError, match=r"holds no config.json; give a folder that save_pretrained has written"):
        _ = model.kind
    for content in ("{", "[]", "{}"):
        (tmp_path / "some/config.json").write_text(content)
        with pytest.raises(InfotokError, match="names no model_type"):
            _ = model.kind
    (tmp_path / "some/config.json").write_text(json.dumps({"model_type": "emu3"}))
    assert model.kind == "emu3"


def test_a_name_that_no_hub_knows_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nobody/nothing", "three/part/name"):
        with pytest.raises(InfotokError, match=r"cannot be found on the Hugging Face hub") as error:
            _ = ModelConfig(name=name).kind
        assert "\n" not in str(error.value)


def test_a_cell_depends_on_its_own_model_alone(written, tmp_path):
    params = written()
    study = Study("default", tmp_path)
    cells = {cell.family: cell for cell in params.cells()}
    assert parameters_of(study, "inspect", cells["two"])["models"]["name"] == "owner/two"
    assert parameters_of(study, "tune", cells["one"])["models"]["name"] == "./one"
    assert set(parameters_of(study, "report")["models"]) == {"one", "two"}


def test_jobs_of_pretrained_models_wait_for_what_they_share(written):
    params = written()
    made = {job.name: job for job in jobs(PRETRAINED, params.cells())}
    assert list(made)[:3] == ["configure", "prepare", "judge"]
    assert made["inspect@one-16"].after == ("prepare",)
    assert made["calibrate@one-16-1"].after == ("prepare", "inspect@one-16")
    cell = made["two-dib-0.01-0-16-1"]
    assert [stage for stage, _ in cell.stages] == ["tune", "answer", "render"]
    assert cell.after == ("prepare", "calibrate@two-16-1", "judge")
    assert len(made) == 3 + 2 + 4 + 8
    order = list(made)
    assert all(order.index(name) < order.index(job.name) for job in made.values() for name in job.after)
