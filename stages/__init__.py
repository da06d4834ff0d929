"""Stages of the pipeline, each a program: `python -m stages.<name>`."""

import os

if "INFOTOK_WORKER" in os.environ:  # before the stage's module loads what the worker has loaded
    from pipeline.running.worker import hand_over

    hand_over()
