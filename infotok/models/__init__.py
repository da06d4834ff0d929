"""Backbone, packing of sequences, and one module per family of unified multimodal LLM."""

import pkgutil
from pathlib import Path


def family_names() -> list[str]:
    """Names that `grid.family` may take: the modules of `infotok.models.families`, whose name the function must not
    bear: the import of one of them would put the package in the function's place."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "families")]))
