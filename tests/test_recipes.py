"""Recipes: what a stage depends on is what it reads and imports, all of it and nothing else."""

import ast
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import grimp
import pytest
from smoke import PARAMS, ROOT, run

from infotok.data import source_names
from infotok.examiners.perceptual import Distortion
from infotok.information.objective import estimator_names
from infotok.mllm.loading import adapter_names
from infotok.models import family_names
from infotok.training.joint import JointConfig
from pipeline.config import params as sections
from pipeline.config.cells import NONE, Cell
from pipeline.config.params import Params
from pipeline.config.recipes import FRAME, PLUGINS, PROJECT, fingerprint, imported, modules_of, runs_of, write_recipes
from pipeline.config.study import Study, stage_name
from pipeline.graph import FROM_SCRATCH, REPORT, STAGES
from pipeline.running.stage import Stage

CELL_STAGES = FROM_SCRATCH.of_cells
EVALUATED = {"understand", "generate", "answer", "render", "report"}
# A cell for every family and every estimator, none among them.
ESTIMATORS = [NONE, *estimator_names()]
CELLS = [
    Cell(family, estimator, 0.0 if estimator == NONE else 0.01, 1.0, 4, 0)
    for family in family_names()
    for estimator in ESTIMATORS
]
# Of pretrained models the families are names that the section `models` gives to models of any kind.
PRETRAINED_CELLS = [
    Cell(kind, estimator, 0.0 if estimator == NONE else 0.01, 1.0, 16, 0)
    for kind in adapter_names()
    for estimator in ESTIMATORS
]


def everything() -> list[tuple[str, Cell | None, str]]:
    """Every stage with every cell and source that may change what it imports."""
    out: dict[tuple, tuple] = {}
    for name, spec in [*STAGES.items(), (REPORT.name, REPORT)]:
        cells = PRETRAINED_CELLS if "adapter" in spec.plugins else CELLS
        for cell in cells if spec.axes else [None]:
            for source in source_names() if "source" in spec.plugins else ["scenes"]:
                params = SimpleNamespace(data=SimpleNamespace(source=source), kind_of=lambda family: family)
                modules = modules_of(spec, params, cell)
                out.setdefault(tuple(modules), (name, cell, modules))
    return list(out.values())


def independently(modules: list[str], graph: grimp.ImportGraph) -> set[str]:
    """The import closure by another library's graph of modules: with the packages around them, without the frame."""
    found, ahead = set(), list(modules)
    while ahead:
        name = ahead.pop()
        if name in found or any(name == part or name.startswith(f"{part}.") for part in FRAME):
            continue
        found.add(name)
        ahead += [*graph.find_modules_directly_imported_by(name)]
        ahead += [name.rpartition(".")[0]] if "." in name else []
    return found


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_what_a_stage_imports_is_what_an_independent_library_finds():
    graph = grimp.build_graph(*PROJECT, exclude_type_checking_imports=True, cache_dir=None)
    compared = everything()
    # Each stage that runs once, a source each, tokenizers by family, and cells by family, for train by estimator too.
    small = len(source_names()) + 3 + len(family_names()) * (3 + len(ESTIMATORS))
    assert len(compared) == small + len(adapter_names()) * (4 + len(ESTIMATORS))
    for stage, cell, modules in compared:
        found = {module_of(path) for path in imported(modules, ROOT)}
        assert found == independently(modules, graph), (stage, cell)


def test_every_plugin_is_found_by_the_recipes():
    kinds = {"source": source_names(), "family": family_names(), "estimator": estimator_names()}
    for kind, names in (kinds | {"adapter": adapter_names()}).items():
        folder = ROOT / PLUGINS[kind].replace(".", "/")
        assert [f"{name}.py" for name in names] == sorted(path.name for path in folder.glob("[a-z]*.py"))
        loaded = {module for _, _, modules in everything() for module in modules}
        assert {f"{PLUGINS[kind]}.{name}" for name in names} <= loaded


def test_no_module_uses_names_that_a_package_loads_on_demand():
    """Such names are for users: the walk over import statements would not see where they lead."""
    lazy = {path.parent for path in ROOT.glob("infotok/**/__init__.py") if "def __getattr__" in path.read_text()}
    packages = {".".join(folder.relative_to(ROOT).parts): folder for folder in lazy}
    assert packages
    for path in (path for name in PROJECT for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (folder := packages.get(node.module)):
                names = {alias.name for alias in node.names}
                unseen = {n for n in names if not (folder / f"{n}.py").exists() and not (folder / n).is_dir()}
                assert unseen <= {"__version__"}, path


@pytest.mark.parametrize("stage", [*STAGES, REPORT.name])
def test_evaluation_is_imported_by_what_evaluates_alone(stage):
    used = {path for name, _, modules in everything() if name == stage for path in imported(modules, ROOT)}
    assert any(path.startswith("infotok/evaluation/") for path in used) == (stage in EVALUATED)


@pytest.fixture
def copied(tmp_path):
    """The study `smoke` in a copy of the code, its recipes written."""
    for name in PROJECT:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / PARAMS).parent.mkdir(parents=True)
    shutil.copy(ROOT / PARAMS, tmp_path / PARAMS)
    write_recipes(Study("smoke", tmp_path))
    return tmp_path


def recipes(folder: Path) -> dict[str, str]:
    """Path below `recipes/` -> content."""
    base = folder / "runs/smoke/recipes"
    return {str(path.relative_to(base)): path.read_text() for path in sorted(base.rglob("*.json"))}


def stages_changed(folder: Path, before: dict[str, str]) -> set[str]:
    """The stages any of whose recipes has changed, of a fresh look; all of a stage's recipes must have."""
    write_recipes(Study("smoke", folder))
    after = recipes(folder)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    stages = {re.split(r"[/.]", name)[0] for name in changed}
    assert changed == {name for name in after if re.split(r"[/.]", name)[0] in stages}
    return stages


def comment(path: Path) -> None:
    with open(path, "a") as file:
        file.write("# a comment\n")


def test_the_recipes_of_a_grid_are_one_of_each_run_and_the_report(copied):
    study = Study("smoke", copied)
    runs = [stage_name(*run).replace("@", "/") for run in runs_of(study)]
    assert sorted(recipes(copied)) == sorted(f"{run}.json" for run in [*runs, "report"])
    train = json.loads(recipes(copied)["train/ar-ceb-0.01-1-4-0.json"])
    assert train["cell"] == {
        "family": "ar", "estimator": "ceb", "beta": 0.01, "gamma": 1.0, "tokens": 4, "seed": 0, "arm": "ceb-0.01-1"
    }  # fmt: skip
    assert train["parameters"]["train"] == study.params.train.model_dump(mode="json", exclude={"parallel"})
    assert "infotok/information/estimators/ceb.py" in train["code"]
    pretrain = json.loads(recipes(copied)["pretrain/ar-4-0.json"])
    assert pretrain["cell"] == {"family": "ar", "tokens": 4, "seed": 0}


@pytest.mark.parametrize(
    "new",
    [
        "infotok/information/estimators/new.py",
        "infotok/models/families/new.py",
        "infotok/data/sources/new.py",
        "infotok/evaluation/new.py",
        "infotok/examiners/new.py",
        "pipeline/report/new.py",
        "stages/new.py",
    ],
)
def test_a_new_file_changes_no_recipe(copied, new):
    assert not (copied / new).exists()
    before = recipes(copied)
    (copied / new).write_text("from infotok.evaluation import statistics\n\n\ndef new():\n    pass\n")
    assert stages_changed(copied, before) == set()


@pytest.mark.parametrize(
    ("edited", "stages"),
    [
        ("infotok/examiners/judge.py", {"judge", "generate"}),
        ("infotok/examiners/matcher.py", {"judge", "generate"}),
        ("infotok/evaluation/geneval_prompts.py", {"generate"}),
        ("infotok/evaluation/blind.py", {"understand"}),
        ("infotok/evaluation/statistics.py", {"understand", "report"}),
        ("infotok/training/pretrain.py", {"pretrain"}),
        ("infotok/training/batches.py", {"train"}),
        ("infotok/information/bottleneck.py", {"train", "understand", "generate"}),
        ("infotok/information/dependence.py", {"train", "understand", "generate"}),
        ("infotok/information/estimators/vib.py", set()),
        ("infotok/models/families/flow.py", set()),
        ("infotok/models/families/ar.py", {"pretrain", *CELL_STAGES}),
        ("infotok/data/sources/jsonl.py", set()),
        ("infotok/data/sources/scenes.py", {"prepare"}),
        ("infotok/data/intake.py", set()),
        ("infotok/errors.py", {*FROM_SCRATCH.stages, "report"}),
        ("stages/perceptual.py", {"perceptual"}),
        ("stages/cli.py", set()),
        ("pipeline/tracking/store.py", set()),
        ("pipeline/sweep/jobs.py", set()),
        ("pipeline/running/stage.py", set()),
        ("pipeline/graph.py", set()),
    ],
)
def test_an_edited_file_changes_the_recipes_of_the_stages_that_import_it(copied, edited, stages):
    before = recipes(copied)
    comment(copied / edited)
    assert stages_changed(copied, before) == stages


def test_a_comment_anywhere_in_the_report_changes_the_report_alone(copied):
    before = recipes(copied)
    for path in (copied / "pipeline/report").glob("*.py"):
        comment(path)
    assert stages_changed(copied, before) == {"report"}


def test_an_edited_estimator_changes_the_training_of_its_own_arms(copied):
    before = recipes(copied)
    comment(copied / "infotok/information/estimators/ceb.py")
    write_recipes(Study("smoke", copied))
    after = recipes(copied)
    assert {name for name in after if after[name] != before[name]} == {"train/ar-ceb-0.01-1-4-0.json"}


READ = {name: {spec.name for spec in FROM_SCRATCH.specs if name in spec.sections} for name in Params.model_fields}


OTHER = {
    "data": {"nuisance": 0.5},
    "judge": {"steps": 41},
    "perceptual": {"seed": 7},
    "tokenizer": {"noise": 0.1},
    "pretrain": {"learning_rate": 0.5},
    "reconstruction": {"perceptual": 0.125},
    "backbone": {"heads": 2},
    "train": {"caption_dropout": 0.2},
    "kernels": {"estimator": "rff"},
    "understanding": {"batch": 7},
    "generation": {"top_k": 3},
    "report": {"title": "Another"},
    "paths": {"checkpoints": "/mnt/checkpoints"},
}


@pytest.mark.parametrize("section", sorted(READ.keys() - {"grid"}))
def test_one_key_of_params_yaml_changes_the_stages_that_read_its_section(copied, section):
    before, path = recipes(copied), copied / PARAMS
    content = sections.YamlFile(path).content
    content[section] = content.get(section, {}) | OTHER[section]
    path.write_text(json.dumps(content))  # which is YAML
    assert stages_changed(copied, before) == (READ[section] | {"report"} if section != "paths" else set())


@pytest.mark.parametrize("section", ["pretrain", "train"])
def test_how_processes_hold_the_weights_changes_no_recipe_and_no_fingerprint(copied, section):
    """So that nothing is trained again for it, and a training goes on from the checkpoints of the other setting."""
    study, path = Study("smoke", copied), copied / PARAMS
    before, content = recipes(copied), sections.YamlFile(path).content
    cell = study.params.cells()[0]
    marks = [fingerprint(study, stage, cell) for stage in ("pretrain", "train", "generate")]
    content[section] = content[section] | {"parallel": "shard"}
    path.write_text(json.dumps(content))
    changed = Study("smoke", copied)
    assert getattr(changed.params, section).parallel == "shard"
    assert stages_changed(copied, before) == set()
    assert [fingerprint(changed, stage, cell) for stage in ("pretrain", "train", "generate")] == marks


def test_every_section_is_read_by_a_stage_or_the_report_alone():
    assert {name for name, stages in READ.items() if not stages} == {"grid", "report", "paths"}


@pytest.mark.parametrize(
    ("file", "before", "after", "section"),
    [
        ("infotok/evaluation/understanding.py", "batch: Count = ", "batch: Count = 1", "understanding"),
        ("infotok/evaluation/generation.py", "seed: Seed = ", "seed: Seed = 1", "generation"),
    ],
)
def test_a_changed_default_in_the_code_changes_the_stages_that_read_it(copied, file, before, after, section):
    """The parameters of no other stage, and the code of none but these two and the report's."""
    old, path = recipes(copied), copied / file
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    shutil.copytree(ROOT / "studies/smoke", copied / "studies/smoke", dirs_exist_ok=True)
    (copied / "dvc.yaml").touch()
    (copied / "params.yaml").touch()
    done = run(copied, "stages.configure", "--study", "smoke")
    assert done.returncode == 0, done.stderr
    new = recipes(copied)
    parts = {
        part: {_stage(n) for n in new if _part(new[n], part) != _part(old[n], part)} for part in ("parameters", "code")
    }
    assert parts["parameters"] == READ[section] | {"report"}
    assert parts["code"] <= {*READ[section], "report"}
    assert parts["code"] >= READ[section]


def _stage(recipe: str) -> str:
    return re.split(r"[/.]", recipe)[0]


def _part(recipe: str, part: str):
    return json.loads(recipe)[part]


def test_cells_that_leave_the_grid_take_their_recipes_with_them(copied):
    path, whole = copied / PARAMS, recipes(copied)
    text = path.read_text()
    path.write_text(text.replace("none-0-0, ceb-0.01-1", "none-0-0, dib-0.01-1"))
    write_recipes(Study("smoke", copied))
    gone = {f"{stage}/ar-ceb-0.01-1-4-0.json" for stage in CELL_STAGES}
    new = {f"{stage}/ar-dib-0.01-1-4-0.json" for stage in CELL_STAGES}
    assert recipes(copied).keys() == whole.keys() - gone | new
    # What stays is as it was: a new value of an axis runs new cells alone; the report holds the grid.
    assert {name for name in whole.keys() & recipes(copied).keys() if recipes(copied)[name] != whole[name]} == {
        "report.json"
    }


def asked_for(stage: str) -> tuple[set[str], set[str]]:
    """What a stage's module asks the running stage for: configurations and inputs."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    calls = [call for call in calls if isinstance(call.func.value, ast.Name) and call.func.value.id == "run"]
    configs = {call.args[0].id for call in calls if call.func.attr == "config"}
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    configs |= {"models" for node in asked if (node.value.id, node.attr) == ("run", "model")}
    return configs, {call.args[0].value for call in calls if call.func.attr in ("input", "remedy")}


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_of_stages_names_what_a_stage_reads_and_nothing_else(stage):
    configs, inputs = asked_for(stage)
    study = Study("smoke" if stage in FROM_SCRATCH.stages else "tiny-mllm", ROOT)
    types = {name: type(value).__name__ for name, value in study.params}
    types |= {"data": "DataOptions", "models": "models"}  # every source's own options; the cell's own model
    assert configs == {types[name] for name in STAGES[stage].sections}
    assert inputs == set(STAGES[stage].inputs)


def test_a_stage_that_asks_for_more_than_the_table_names_is_refused(copied):
    study = Study("smoke", copied)
    cell = study.params.cells()[0]
    train = Stage(STAGES["train"], study, cell, None, None)
    assert train.config(Distortion) == study.params.reconstruction
    assert train.input("pretrain") == copied / "runs/smoke/pretrain/ar-4-0"
    with pytest.raises(LookupError, match="train does not name a section ReportConfig"):
        train.config(sections.ReportConfig)
    with pytest.raises(LookupError, match="train does not name the input judge"):
        train.input("judge")
    prepare = Stage(STAGES["prepare"], study, None, None, None)
    with pytest.raises(LookupError, match="prepare does not name a section JointConfig"):
        prepare.config(JointConfig)
    with pytest.raises(LookupError, match="runs once and has no cell"):
        _ = prepare.cell


def test_an_import_anywhere_in_a_file_counts_but_for_the_type_checkers(tmp_path):
    files = {
        "stages/__init__.py": "",
        "stages/one.py": (
            "import infotok.a\n\n\ndef f():\n    from infotok import b, name\n    from pipeline.graph import x\n"
        ),
        "infotok/__init__.py": "name = 1\n",
        "infotok/a.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import infotok.c\nelse:\n    import infotok.d\n"
        ),
        "infotok/b/__init__.py": "import torch\n",
        "infotok/c.py": "",
        "infotok/d.py": "try:\n    from infotok.e.deep import thing\nexcept ImportError:\n    thing = None\n",
        "infotok/e/__init__.py": "import infotok.f\n",
        "infotok/e/deep.py": "import stages.one\n",
        "infotok/f.py": "",
        "infotok/g.py": "",
        "pipeline/graph.py": "import infotok.g\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert imported(["stages.one"], tmp_path) == sorted(
        {*files} - {"infotok/c.py", "infotok/g.py", "pipeline/graph.py"}
    )
    (tmp_path / "infotok/f.py").write_text("import infotok.c\n")  # an edit between two looks is seen
    assert "infotok/c.py" in imported(["stages.one"], tmp_path)
