"""Data sources, the prepared Arrow form, questions and the text tokenizer."""

import importlib
import pkgutil
from pathlib import Path


def source_names() -> list[str]:
    """Names that `data.source` may take: the modules of `infotok.data.sources`."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "sources")]))


def source_options() -> list[type]:
    """The `Options` of every source, in the order of their names."""
    return [importlib.import_module(f"infotok.data.sources.{name}").Options for name in source_names()]
