"""Whether DVC can work in this checkout, told before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infotok.errors import InfotokError
from pipeline.config.study import Study


def check_workspace(study: Study) -> None:
    """
    Raises:
        InfotokError: the checkout is no repository of git or of DVC, or results would lie behind a link.
    """
    root = study.root.resolve()
    if not (root / ".dvc").is_dir():
        raise InfotokError(f"{root}: has no folder .dvc, as copies without hidden files lack it; run `dvc init` there")
    if not any((folder / ".git").exists() for folder in (root, *root.parents)) and not _without_git(root):
        raise InfotokError(
            f"{root}: is no git repository, as a downloaded archive is none, and DVC needs one; run `git init` there, "
            "or `dvc config --local core.no_scm true`"
        )
    check_results(study)


def check_results(study: Study) -> None:
    """
    Raises:
        InfotokError: results would lie behind a link.
    """
    for folder in (study.results, study.reports):
        for path in (folder.parent, folder):
            if path.is_symlink():
                raise InfotokError(
                    f"{path}: is a link, and DVC keeps no results behind links; remove it. To keep them on another "
                    "disk: `dvc cache dir --local <folder>`, then `dvc config --local cache.type symlink`"
                )


def _without_git(root: Path) -> bool:
    """Whether DVC is told to do without git."""
    command = [sys.executable, "-m", "dvc", "config", "core.no_scm"]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    return said.strip().lower() == "true"
