"""Backbone, packing of sequences, and one module per family of unified multimodal LLM."""

import pkgutil
from pathlib import Path


def families() -> list[str]:
    """Names that `grid.family` may take: the modules of `infotok.models.families`."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "families")]))
