"""Who may import whom. Imports inside functions count; what only the type checker imports does not."""

import grimp
import pytest

from pipeline.config.recipes import PROJECT

# From the bottom: a part may import those of the lines above its own, and none of its own line.
INFOTOK = [
    ["errors"],
    ["options", "stopping", "distributed", "files", "tensors"],
    ["random", "tried"],
    ["information", "data"],
    ["tokenizer"],
    ["models"],
    ["examiners"],
    ["training"],
    ["evaluation", "mllm"],
]
PIPELINE = [
    ["graph", "pictures", "locks"],
    ["config"],
    ["results"],
    ["report"],
    ["tracking", "export"],
    ["running"],
    ["sweep"],
]
STAGES = [["common", "opening"], ["draw", "configure", "prepare", "perceptual", "judge", "pretrain", "train"]]
STAGES[1] += ["understand", "generate", "report", "inspect", "calibrate", "tune", "answer", "render"]
STAGES += [["together"], ["cli"]]


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PROJECT, exclude_type_checking_imports=True, cache_dir=None)


def part(module: str) -> str:
    """`infotok.models.families.ar` -> `models`; nothing for a package's own file."""
    return module.split(".")[1] if "." in module else ""


def imports(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    return [(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)]


def test_stages_import_the_pipeline_and_the_pipeline_imports_infotok(graph):
    order = ["infotok", "pipeline", "stages"]
    upward = [(a, b) for a, b in imports(graph) if order.index(a.split(".")[0]) < order.index(b.split(".")[0])]
    assert upward == []


def not_below(graph: grimp.ImportGraph, package: str, layers: list[list[str]]) -> list[tuple[str, str]]:
    """Imports of another part of the same package that does not lie below."""
    level = {name: index for index, names in enumerate(layers) for name in names}
    inside = [(a, b) for a, b in imports(graph) if a.startswith(f"{package}.") and b.startswith(f"{package}.")]
    between = [(a, b) for a, b in inside if part(a) != part(b)]
    return [(a, b) for a, b in between if level[part(a)] <= level[part(b)]]


def circles(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Imports that are part of a circle of modules."""
    return [(a, b) for a, b in imports(graph) if a in graph.find_upstream_modules(b)]


@pytest.mark.parametrize(("package", "layers"), [("infotok", INFOTOK), ("pipeline", PIPELINE), ("stages", STAGES)])
def test_parts_import_those_below_them(graph, package, layers):
    parts = {part(module) for module in graph.modules if module.startswith(f"{package}.")}
    assert sorted(parts - {"__main__"}) == sorted(name for names in layers for name in names)
    assert not_below(graph, package, layers) == []


def test_the_package_itself_imports_nothing_of_its_own(graph):
    """So that whoever imports one module of infotok does not depend on the others. A stage asks for its worker before
    it loads anything else."""
    for package in PROJECT:
        allowed = {"pipeline.running.worker"} if package == "stages" else set()
        assert graph.find_modules_directly_imported_by(package) == allowed


def test_no_modules_import_each_other_in_a_circle(graph):
    assert circles(graph) == []


def test_a_wrong_import_is_seen():
    graph = grimp.build_graph(*PROJECT, exclude_type_checking_imports=True, cache_dir=None)
    graph.add_import(importer="infotok.data.text", imported="infotok.models.unified")
    graph.add_import(importer="pipeline.results", imported="pipeline.tracking.store")
    assert not_below(graph, "infotok", INFOTOK) == [("infotok.data.text", "infotok.models.unified")]
    assert not_below(graph, "pipeline", PIPELINE) == [("pipeline.results", "pipeline.tracking.store")]
    assert ("infotok.data.text", "infotok.models.unified") in circles(graph)


def test_evaluation_is_imported_by_the_pipeline_and_the_stages_that_evaluate(graph):
    users = {a for a, b in imports(graph) if b.startswith("infotok.evaluation") and part(a) != "evaluation"}
    assert users
    inside = {a for a in users if a.startswith("infotok.") or a.startswith("stages.")}
    evaluating = {"understand", "generate", "answer", "render", "report"}
    assert inside <= {f"stages.{name}" for name in evaluating}


def test_data_and_information_know_no_models_and_no_training(graph):
    for module, other in imports(graph):
        if module.startswith(("infotok.data", "infotok.information")):
            assert not other.startswith(("infotok.models", "infotok.tokenizer", "infotok.training")), module
