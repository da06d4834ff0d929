"""Commands on terminals that know few letters."""

import subprocess
import sys

import pytest
from smoke import ROOT, environment


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("command", ["status", "plan"])
def test_tables_are_shown_in_the_letters_that_there_are(encoding, command):
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", command, "--study", "smoke"],
        cwd=ROOT, env=environment() | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip
    shown = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    assert "none-0-0" in shown
    marks = "●◐○" if encoding == "utf-8" else "x~-"
    row = next(line for line in shown.splitlines() if "none-0-0" in line)
    assert any(mark in row.rpartition("none-0-0")[2] for mark in marks)
    assert "?" not in row


def test_an_error_about_a_name_in_other_letters_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "status", "--study", "größe-中"],
        cwd=ROOT, env=environment() | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.decode("ascii").splitlines()
    assert line.startswith("error: 'gr??e-?' ")
