"""Commands: terminals that know few letters, and lines that no command understands."""

import subprocess
import sys

import pytest
from smoke import ROOT, environment

from stages import cli
from stages.common import COMMANDS, main


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


@pytest.mark.parametrize(
    ("program", "words", "says"),
    [
        ("infotok", "train --bogus 3", "no such option: --bogus; "),
        ("infotok", "draw --image 3", "no such option: --image (Possible options: --images); "),
        ("infotok", "tun", "no such command 'tun'. Did you mean 'tune'?; "),
        ("infotok", "plan extra", "got unexpected extra argument(s) (extra); "),
        ("infotok", "draw-model", "missing option '--model'; "),
        ("infotok", "tune --tokens few", "invalid value for '--tokens': "),
        ("infotok", "track --study", "option '--study' requires an argument"),
        *((stage, "--bogus", "no such option: --bogus; ") for stage in COMMANDS),
    ],
)
def test_a_command_line_that_means_nothing_is_one_line(program, words, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [program, *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main() if program == "infotok" else main(program)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")
    assert line.endswith("--help` shows what it takes") == (";" in says or ":" in says)


@pytest.mark.parametrize(("words", "shown"), [("--version", "infotok 0."), ("train --help", "Train tokenizer, priors")])
def test_a_command_line_that_asks_for_something_gets_it(words, shown, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["infotok", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert shown in capsys.readouterr().out
