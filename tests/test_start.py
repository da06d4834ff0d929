"""What a command loads before it answers: half a second of imports would be felt at every `--help`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"transformers", "mlflow", "dvc", "datasets", "matplotlib", "pandas"}


def loaded(code: str) -> set[str]:
    """Top-level packages that are loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


HELP = """
import sys
from stages.cli import app
sys.argv = ["infotok", "--help"]
try:
    app()
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize(
    ("code", "not_yet"),
    [
        (HELP, HEAVY | {"torch", "pyarrow", "numpy", "yaml"}),
        # Every section of the parameters is a component's own configuration, and most components compute with torch.
        ("from pipeline.config.study import Study; Study('smoke').params.cells()", HEAVY),
    ],
    ids=["help", "parameters"],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code, not_yet):
    assert loaded(code) & not_yet == set()
