"""The engine that `infotok sweep` is told to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.sweep.engines.checkout import CLONES, checkout
from pipeline.sweep.engines.engine import Opener

ENGINES = ("local", "ray", "slurm")
WORKERS = 2  # jobs at once on this machine


def choose(
    name: str,
    study: Study,
    say: Callable[[str], None],
    *,
    workers: int | None = None,
    gpus: float | None = None,
    options: Sequence[str] = (),
    clones: str | None = None,
    settings: Sequence[str] = (),
) -> Opener:
    """What opens the engine. workers: jobs at once. gpus: of a job. options: of `dvc repro` on this machine. clones:
    where other machines clone to. settings: of sbatch.

    Raises:
        InfotokError: the engine is unknown or has no such option; this checkout is nothing that others can clone.
    """
    if name not in ENGINES:
        raise InfotokError(f"--engine: '{name}' is unknown; known: {', '.join(ENGINES)}")
    if clones and name == "local":
        raise InfotokError("--clones: is of the engines ray and slurm; `--engine local` works in this checkout")
    if settings and name != "slurm":
        raise InfotokError("--slurm: is of `--engine slurm` alone")
    if name == "local":
        from pipeline.sweep.engines.local import local

        return partial(local, study=study, workers=workers or WORKERS, options=options, gpus=gpus)
    others = checkout(study, clones or CLONES)
    if study.params.paths.checkpoints is None:
        say("paths.checkpoints is not set: a training starts anew when the machine that ran it is lost")
    if "MLFLOW_TRACKING_URI" not in others.environment:
        say("MLFLOW_TRACKING_URI names no server: MLflow is filled in here when the jobs have ended")
    if name == "ray":
        from pipeline.sweep.engines.ray import cluster

        return partial(cluster, checkout=others, most=workers, gpus=gpus)
    from pipeline.sweep.engines.slurm import slurm

    return partial(slurm, checkout=others, most=workers, gpus=gpus, settings=settings)
