"""What git holds: no large file, small reports, pages whose links and commands are right."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from smoke import ROOT

import infotok
from stages.cli import app

MOST_FILE, MOST_REPORTS = 500_000, 6_000_000  # bytes
GIT = ["git", "-C", str(ROOT)]


def held() -> dict[str, int]:
    """Paths and sizes, in bytes, of all that is tracked or would be by `git add .`; links count as nothing."""
    listed = [*GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = {name: ROOT / name for name in names if name}
    return {name: path.stat().st_size for name, path in paths.items() if path.is_file() and not path.is_symlink()}


def too_large(sizes: dict[str, int]) -> list[str]:
    found = [f"{name} has {size} bytes, above {MOST_FILE}" for name, size in sizes.items() if size > MOST_FILE]
    reports = sum(size for name, size in sizes.items() if name.startswith("reports/"))
    return found + ([f"reports/ has {reports} bytes, above {MOST_REPORTS}"] if reports > MOST_REPORTS else [])


def anchors(page: str) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(name: str, text: str, sizes: dict[str, int]) -> list[str]:
    """Links of a Markdown page that lead to no held file or heading."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
        inside = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else path
        is_folder = any(other.startswith(f"{inside}/") for other in sizes)
        if inside not in sizes and not is_folder:
            found.append(f"{name}: {target}")
        elif fragment and file.suffix == ".md" and fragment not in anchors(file.read_text()):
            found.append(f"{name}: {target} (no such heading)")
    return found


def test_no_file_is_large():
    assert too_large(held()) == []


def test_large_files_are_found():
    assert too_large({"a.png": 500_001, "b.png": 500_000}) == ["a.png has 500001 bytes, above 500000"]
    many = {f"reports/x/{i}.png": 490_000 for i in range(13)}
    assert too_large(many) == ["reports/ has 6370000 bytes, above 6000000"]


@pytest.mark.parametrize("suffix", [".html", ".svg", ".tex"])
def test_what_the_report_makes_anew_is_not_held(suffix):
    assert [name for name in held() if name.startswith("reports/") and name.endswith(suffix)] == []


def test_links_lead_somewhere():
    sizes = held()
    pages = [name for name in sizes if name.endswith(".md")]
    assert [line for name in pages for line in broken(name, (ROOT / name).read_text(), sizes)] == []


def test_broken_links_are_found():
    sizes = {"docs/evidence.md": 1, "LICENSE": 1}
    text = "[a](../LICENSE) [b](gone.md) [c](https://example.org/x) [d](evidence.md#no-such-heading) [e](#the-evidence)"
    assert broken("docs/evidence.md", text, sizes) == [
        "docs/evidence.md: gone.md",
        "docs/evidence.md: evidence.md#no-such-heading (no such heading)",
    ]


def commands(text: str) -> list[list[str]]:
    """The words of every `infotok …` and `dvc repro …` that a page shows, in a block or in a line."""
    shown = re.findall(r"^ +((?:infotok|dvc repro) [^#\n]*)", text, flags=re.M)
    shown += re.findall(r"`((?:infotok|dvc repro) [^`]*)`", text)
    return [shlex.split(" ".join(line.split())) for line in shown]


def wrong(words: list[str], studies: set[str]) -> str:
    """What is not so of a command: the subcommand, an option, or the study that it names."""
    if words[0] == "dvc":
        named = [Path(word).parent.name for word in words if word.endswith("dvc.yaml")]
    else:
        group = typer.main.get_command(app)
        options = {option for parameter in group.params for option in parameter.opts}
        if words[1] not in options:
            if (command := group.commands.get(words[1])) is None:
                return f"no command {words[1]}"
            options = {option for parameter in command.params for option in parameter.opts}
        if unknown := [word for word in words[1:] if word.startswith("-") and word not in options | {"--help"}]:
            return f"no option {unknown[0]}"
        named = [value for word, value in itertools.pairwise(words) if word == "--study"]
    return "".join(f"no study {name}" for name in named if name not in studies)


def test_commands_of_the_pages_are_right():
    studies = {path.parent.name for path in ROOT.glob("studies/*/params.yaml")}
    studies |= {"mine", "<name>", "usage-or-prior"}  # that pages make
    found, count = [], 0
    for name in sorted(name for name in held() if name.endswith(".md") and name != "CHANGELOG.md"):
        for words in commands((ROOT / name).read_text()):
            count += 1
            found += [f"{name}: {shlex.join(words)}: {says}"] if (says := wrong(words, studies)) else []
    assert found == []
    assert count > 60


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("infotok sweep -j 2 --study gone", "no study gone"),
        ("infotok swep", "no command swep"),
        ("infotok sweep --params params.yaml", "no option --params"),
        ("dvc repro studies/gone/dvc.yaml", "no study gone"),
        ("infotok --install-completion", ""),
    ],
)
def test_wrong_commands_are_found(line, says):
    assert wrong(shlex.split(line), {"smoke"}) == says


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_versions_are_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == infotok.__version__
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-nodeps.lock"])
def test_the_lock_pins_and_names_no_host(name):
    lines = Path(ROOT / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == []
    assert [line for line in lines if "+" in line] == []
