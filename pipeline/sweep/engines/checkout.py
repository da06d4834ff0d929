"""What other machines need of this checkout: a commit that they can fetch, and a DVC remote for results."""

from __future__ import annotations

import configparser
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.running import progress, worker
from pipeline.sweep.jobs import DEFAULTS, Job, addresses

CLONES = "~/.cache/infotok/clones"
# What DVC writes when it reports: a record of results, which decides about none.
RECORDS = (":(exclude,glob)**/dvc.lock", ":(exclude)reports")
OWN = (progress.VARIABLE, worker.VARIABLE, "INFOTOK_SHARED_DATA")  # of one process of this machine


@dataclass(frozen=True)
class Checkout:
    """Where machines get the code of a sweep, and what the stages' environment holds there. clones: the folder for
    clones, whose `~` and variables are those of each machine."""

    study: Study
    url: str
    commit: str
    environment: dict[str, str]
    clones: str = CLONES

    def order(self, job: Job, log: Path | str, progress: Path | str) -> dict[str, Any]:
        """What `pipeline.sweep.engines.task` is to do. log, progress: files on the machine that does it."""
        return {
            "url": self.url,
            "commit": self.commit,
            "targets": addresses(self.study, job),
            "environment": self.environment,
            "clones": self.clones,
            "log": str(log),
            "progress": str(progress),
        }


def checkout(study: Study, clones: str = CLONES) -> Checkout:
    """This checkout as other machines can have it.

    Raises:
        InfotokError: there are changes that no commit has; the commit is in no branch of `origin`; DVC has no remote
            that a clone would know; data or weights are here alone.
    """
    root = study.root.resolve()
    changed = _git(root, "status", "--porcelain", "--", ".", *RECORDS).splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InfotokError(
            f"{changed[0][3:]}{more}: not committed, and other machines run what a commit holds; commit and push"
        )
    _check_remote(root)
    _check_inputs(study, root)
    commit = _git(root, "rev-parse", "HEAD").strip()
    return Checkout(study, _origin(root, commit), commit, _environment(), clones)


def _git(root: Path, *command: str) -> str:
    """What a git command says.

    Raises:
        InfotokError: it failed.
    """
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise InfotokError(f"git {command[0]} fails here ({said}), and other machines get the code by git")
    return done.stdout


def _origin(root: Path, commit: str) -> str:
    """The address of `origin`, which has the commit.

    Raises:
        InfotokError: there is none, it cannot be reached, or no branch of it has the commit.
    """
    if "origin" not in _git(root, "remote").split():
        raise InfotokError("git has no remote `origin` for other machines to clone; `git remote add origin <address>`")
    url = _git(root, "remote", "get-url", "origin").strip()
    # Not over a terminal's question for a password, which nobody would see.
    fetch = ["git", "-C", str(root), "fetch", "--quiet", "origin"]
    quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(fetch, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[0]
        raise InfotokError(f"git's remote `origin` cannot be reached ({said}); other machines clone from it")
    if not _git(root, "for-each-ref", "--contains", commit, "refs/remotes/origin").strip():
        raise InfotokError(
            f"commit {commit[:10]} is in no branch of `origin`, which other machines clone; `git push` it"
        )
    return str((root / url).resolve()) if "://" not in url and (root / url).exists() else url


def _check_remote(root: Path) -> None:
    """
    Raises:
        InfotokError: .dvc/config, which clones have too, names no default remote, or a folder relative to this one.
    """
    file = root / ".dvc" / "config"
    config = configparser.ConfigParser(interpolation=None)
    config.read(file)
    name = config.get("core", "remote", fallback="")
    add = "`dvc remote add --default shared <address>`, then commit and push .dvc/config"
    if not name:
        raise InfotokError(f"{file}: names no default remote, by which results could come here; {add}")
    section = next((found for found in config.sections() if found.strip("'") == f'remote "{name}"'), "")
    address = config.get(section, "url", fallback="") if section else ""
    if not address:
        raise InfotokError(f"{file}: has no address of its default remote '{name}'; {add}")
    if "://" not in address and not Path(address).is_absolute():
        raise InfotokError(
            f"{file}: the remote '{name}' is {address}, relative to this checkout, so that other machines would look "
            "elsewhere; give an absolute folder that all of them mount, or an address such as s3://…"
        )


def _check_inputs(study: Study, root: Path) -> None:
    """
    Raises:
        InfotokError: data or weights lie in this checkout, and clones have them neither by git nor by DVC.
    """
    data = getattr(study.params.data, "path", None)
    for path in [*([data] if data else []), *study.params.weights]:
        inside = not Path(path).is_absolute()
        if inside and not _git(root, "ls-files", "--", path, f"{path.rstrip('/')}.dvc").strip():
            raise InfotokError(
                f"{study.params_file}: {path} is in this checkout alone; put it on storage that all machines share and "
                f"name it from `/` on, or `dvc add {path}`, commit, push and `dvc push`"
            )


def _environment() -> dict[str, str]:
    """The variables of this project, as jobs have them elsewhere too. MLflow by its server alone: a file is of this
    machine, and is filled in from the results when they are here."""
    variables = DEFAULTS | {n: v for n, v in os.environ.items() if n.startswith("INFOTOK_") and n not in OWN}
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if server.startswith(("http://", "https://", "databricks")):
        return variables | {"MLFLOW_TRACKING_URI": server}
    return variables | {"INFOTOK_TRACKING": "off"}
