"""The console script `infotok`: hands over to the pipeline of a checkout.

The package may be installed alone, for who plugs the regularizer into a model of their own. The pipeline (stages/,
pipeline/, studies/) runs from a checkout, in which this package was installed by `pip install -e .`: the one around the
current folder, else the one that this package lies in.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

import infotok

MARKS = ("infotok/__main__.py", "pipeline/graph.py", "stages/cli.py")  # what a checkout holds
NEEDS = "`pip install -e '.[pipeline]'`"


def checkout(here: Path, package: Path) -> Path | None:
    """The checkout around a folder, found upwards; else the one that holds this package, if it lies in one."""
    for folder in (here, *here.parents, package.parent):
        if all((folder / mark).is_file() for mark in MARKS):
            return folder
    return None


def main() -> int:
    """Run the command; returns its exit code where none of the pipeline runs."""
    package = Path(infotok.__file__).resolve().parent
    root = checkout(Path.cwd(), package)
    if root is not None and not root.samefile(package.parent):
        _hand_over(root)
    if sys.argv[1:] == ["--version"]:
        print(f"infotok {infotok.__version__}")
        return 0
    if root is None:
        print(
            f"error: the pipeline runs from a checkout of infotok, installed there with {NEEDS}; "
            "this installation is the package alone, for `import infotok`",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(root))
    try:
        cli = import_module("stages.cli")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("infotok", "pipeline", "stages"):
            raise
        print(f"error: the pipeline needs {error.name}: run {NEEDS} in {root}", file=sys.stderr)
        return 2
    cli.main()
    return 0


def _hand_over(root: Path) -> None:
    """Become the same command of another checkout, all of whose code must be its own."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if paths[0] != str(root):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, paths)])}
        os.execve(sys.executable, [sys.executable, "-m", "infotok", *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
