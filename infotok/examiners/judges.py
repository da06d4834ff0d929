"""The judge that a data set allows, and its file."""

from __future__ import annotations

from pathlib import Path

from infotok.examiners.detector import Detector
from infotok.examiners.judge import Judge
from infotok.examiners.matcher import Matcher
from infotok.tensors import load_module, read_tensors

ObjectJudge = Judge | Detector  # reads which objects an image shows
KINDS = {"objects": Judge, "detection": Detector, "matching": Matcher}


def load_judge(path: Path, remedy: str) -> ObjectJudge | Matcher:
    """A saved judge, ready to examine images.

    Raises:
        InfotokError: the file is missing or damaged; `remedy` says what would help.
    """
    tensors, description = read_tensors(path, remedy)
    judge = KINDS[description.pop("kind", "objects")](**description)
    load_module(judge, tensors, path, remedy)
    return judge.eval()
