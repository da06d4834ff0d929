"""The console script `infotok`: hands over to the pipeline of the checkout that this package lies in.

The package may be installed alone, for who plugs the regularizer into a model of their own. The pipeline (stages/,
pipeline/, studies/) runs from a checkout, in which this package was installed by `pip install -e .`.
"""

import sys
from importlib import import_module
from pathlib import Path

import infotok


def checkout(package: Path) -> Path | None:
    """The folder beside `package` that holds the pipeline, if there is one."""
    return package.parent if (package.parent / "stages" / "cli.py").is_file() else None


def main() -> int:
    """Run the command; returns its exit code where none of the pipeline runs."""
    if sys.argv[1:] == ["--version"]:
        print(f"infotok {infotok.__version__}")
        return 0
    root = checkout(Path(infotok.__file__).parent)
    if root is None:
        print(
            "error: the pipeline runs from a checkout of infotok, installed there with `pip install -e '.[pipeline]'`; "
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
        print(
            f"error: the pipeline needs {error.name}, which is not installed here: "
            f"run `pip install -e '.[pipeline]'` in {root}",
            file=sys.stderr,
        )
        return 2
    cli.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
