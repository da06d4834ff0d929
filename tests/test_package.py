"""What `pip install .` gives to who plugs the regularizer into a model of their own: infotok alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from smoke import ROOT, copy_of_the_code
from test_plugin import readme_example

import infotok

SOURCES = ["infotok", "pyproject.toml", "README.md", "LICENSE"]
# Hides every installed distribution but those named and what they require in turn, and the checkout's own packages.
ALONE = """
import re, sys
from importlib.metadata import distribution, packages_distributions, PackageNotFoundError
def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()
given, waiting = set(), {given!r}
while waiting:
    name = waiting.pop()
    if name in given:
        continue
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        continue
    given.add(name)
    waiting += [canonical(re.match(r"[\\w.-]+", line)[0]) for line in requires if "extra ==" not in line]
installed = packages_distributions()
class Alone:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        owners = [canonical(owner) for owner in installed.get(name, [])]
        hidden = name in ("pipeline", "stages") or (owners and not given & set(owners))
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Alone(finder) for finder in sys.meta_path]
"""


def alone(*given: str) -> str:
    return ALONE.format(given=list(given))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as a build leaves folders of its own behind that a later one would take up."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip(["wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel):
    folder = wheel.parent / "site"
    pip(["install", "--no-compile", "--target", str(folder), str(wheel)])
    return folder


def pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(site: Path, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        required = Parser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist")
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"infotok", metadata.partition("/")[0]}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "infotok").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "infotok/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    always = {line.split(">")[0] for line in required if "extra ==" not in line}
    assert always == {"torch", "numpy", "pydantic"}


def test_the_readmes_example_runs_on_the_package_alone(site):
    code = alone("infotok", "vector-quantize-pytorch") + readme_example()
    code += "\nimport infotok; print(infotok.__file__, term.loss.isfinite().item())"
    done = run(site, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "infotok" / "__init__.py"), "True"]


def test_all_estimators_need_torch_numpy_and_pydantic_alone(site):
    code = alone("infotok") + (
        "import pkgutil, torch, infotok, infotok.information.estimators as estimators\n"
        "for name in infotok.__all__: getattr(infotok, name)\n"
        "for module in pkgutil.iter_modules(estimators.__path__):\n"
        "    ib = infotok.InformationBottleneck(module.name, beta=0.1, tokens=2, codebook=4)\n"
        "    kernels = dict(inputs=torch.randn(8, 6), vectors=torch.randn(8, 2, 3)) if module.name == 'hsic' else {}\n"
        "    print(module.name, ib(torch.randn(8, 2, 4), torch.randn(8, 2, 4), **kernels).loss.isfinite().item())\n"
    )
    done = run(site, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    names = sorted(path.stem for path in (ROOT / "infotok/information/estimators").glob("[a-z]*.py"))
    assert done.stdout.split("\n")[:-1] == [f"{name} True" for name in names]


def test_information_and_the_mathematics_behind_it_need_no_more(site):
    """Every module of `infotok.information`, and every name that it offers."""
    code = alone("infotok") + (
        "import importlib, pkgutil, infotok.information as information\n"
        "for module in pkgutil.walk_packages(information.__path__, 'infotok.information.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(all(callable(getattr(information, name)) for name in information.__all__))\n"
    )
    done = run(site, sys.executable, "-c", code)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def imported(folder: Path) -> set[str]:
    """Top-level names that the modules of a folder import, also within functions."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def test_what_is_imported_is_required_by_the_package_or_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["pipeline"], *extras["mllm"], *extras["lmms"]]
    lines += [*extras["ray"], *extras["slurm"]]
    required = {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}
    names = set().union(*(imported(ROOT / folder) for folder in ("infotok", "pipeline", "stages")))
    names -= {*sys.stdlib_module_names, "infotok", "pipeline", "stages"}
    owners = packages_distributions()
    assert {name for name in names if not required & {canonical(owner) for owner in owners.get(name, [])}} == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_not_given_is_hidden(site):
    """So that the tests above can fail."""
    for name in ("transformers", "pipeline", "stages"):
        done = run(site, sys.executable, "-c", alone("infotok") + f"import {name}")
        assert f"No module named '{name}'" in done.stderr


def test_the_command_says_its_version_and_where_the_pipeline_runs(site):
    command = str(site / "bin" / "infotok")
    assert run(site, command, "--version").stdout == f"infotok {infotok.__version__}\n"
    done = run(site, command, "sweep")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the pipeline runs from a checkout of infotok")
    assert done.stderr.count("\n") == 1


def infotok_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command of this checkout, called in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infotok", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_checkouts_command_runs_from_any_folder(tmp_path):
    done = infotok_in(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout


def test_within_another_checkout_that_ones_code_runs(tmp_path):
    other = copy_of_the_code(tmp_path)
    init = other / "infotok" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{infotok.__version__}"', '"9.9"'))
    for folder in (other, other / "studies" / "smoke"):
        assert infotok_in(folder, "--version").stdout == "infotok 9.9\n"
    assert infotok_in(tmp_path.parent, "--version").stdout == f"infotok {infotok.__version__}\n"
