"""Whether anything has changed since DVC last found a study up to date, told without DVC.

A `dvc repro` that has nothing to do takes 11 ms of the processor for every stage, most of it for locks that DVC writes
around each and for its two readings of dvc.lock. What it looks at are files: one whose inode, time and size are what
they were has the hash that it had. This module remembers the same three of all these files, when a `dvc repro` has
ended well. Where any differs, DVC itself is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from infotok.files import write_text
from pipeline.config.recipes import PROJECT
from pipeline.config.study import Study
from pipeline.tracking.mirror import enabled
from pipeline.tracking.store import SQLITE, store_uri

Look = dict[str, str]
MLFLOW = "MLflow"
# What `dvc repro` itself writes when nothing is left to run but the report.
CLOSING = ("dvc.lock", "reports")
PARTS = ("inputs", "results", *CLOSING, "cache", MLFLOW)


def look(study: Study) -> Look:
    """By part a digest of its files' inodes, times and sizes: what decides in DVC about this study, and MLflow's
    file."""
    from dvc.dirs import global_config_dir, system_config_dir

    root, data = study.root, getattr(study.params.data, "path", None)
    inputs = [root / name for name in (*PROJECT, ".dvcignore", ".dvc/config", ".dvc/config.local")]
    inputs += [Path(folder, "config") for folder in (global_config_dir(), system_config_dir())]
    inputs += [study.params_file, study.dvc_file, *(root / path for path in [data, *study.params.weights] if path)]
    return {
        "inputs": _digest(inputs),
        "results": _digest([study.results]),
        "dvc.lock": _digest([_lock(study)]),
        "reports": _digest([study.reports]),
        MLFLOW: _mlflow(study),
    }


def changed(study: Study) -> set[str]:
    """The parts that are not as they were when `keep` was called, all of them where it never was."""
    try:
        kept = json.loads(_file(study).read_text())
        found = look(study) | {"cache": _digest(map(Path, kept["objects"]))}
        return {part for part in PARTS if found[part] != kept["look"].get(part)}
    except (OSError, ValueError, KeyError, TypeError):
        return set(PARTS)


def keep(study: Study, before: Look, mirrored: bool) -> None:
    """Remember how all is now that DVC has found it up to date, unless it has changed while DVC looked.

    Args:
        before: `look`, as it was before DVC began. mirrored: MLflow has all results.
    """
    now, file = look(study), _file(study)
    if any(now[part] != before[part] for part in now if part not in (*CLOSING, MLFLOW)):
        file.unlink(missing_ok=True)
        return
    objects = sorted(map(str, _objects(study)))
    kept = now | {"cache": _digest(map(Path, objects)), MLFLOW: now[MLFLOW] if mirrored else ""}
    write_text(file, json.dumps({"look": kept, "objects": objects}))


def _file(study: Study) -> Path:
    return study.scratch / "up_to_date.json"


def _lock(study: Study) -> Path:
    return study.dvc_file.with_suffix(".lock")


def _mlflow(study: Study) -> str:
    """Of the file of MLflow's store. A server's runs may change without a trace here: each look differs."""
    if not enabled():
        return "off"
    if not (uri := store_uri(study)).startswith(SQLITE):
        return os.urandom(8).hex()
    path = uri.removeprefix(SQLITE)
    return _digest([Path(path), Path(f"{path}-wal"), Path(f"{path}-journal")])


def _digest(paths: Iterable[Path]) -> str:
    """Of files, and of all files in folders, with their names."""
    digest = hashlib.sha256()
    for path in paths:
        for line in _stamps(os.fspath(path)):
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamps(path: str) -> Iterator[str]:
    """A line for a file, for every file in a folder, and for what is not there. Links are followed, as DVC does."""
    try:
        status = os.stat(path)
    except OSError:
        yield f"{path} none\n"
        return
    if not stat.S_ISDIR(status.st_mode):
        yield f"{path} {status.st_ino} {status.st_mtime_ns} {status.st_size}\n"
        return
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        if name != "__pycache__":  # which .dvcignore names
            yield from _stamps(f"{path}/{name}")


def _objects(study: Study) -> Iterator[Path]:
    """What DVC's cache holds of the outputs in dvc.lock, without which it would run their stages again."""
    from dvc.repo import Repo
    from ruamel.yaml import YAML

    content = YAML(typ="safe").load(_lock(study))
    with Repo(str(study.root)) as repo:
        cache = Path(repo.cache.local.path)
    for stage in content["stages"].values():
        for out in stage.get("outs", []):
            listed = cache / out["md5"][:2] / out["md5"][2:]
            if not listed.exists():  # an output that is none of the cache's
                continue
            yield listed
            if listed.suffix == ".dir":
                for entry in json.loads(listed.read_text()):
                    yield cache / entry["md5"][:2] / entry["md5"][2:]
