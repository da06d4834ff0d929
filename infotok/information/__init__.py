"""Estimators of information: rates, bounds, kernel dependence and the Gaussian closed forms.

Names load on first use, so that importing the package costs no torch import.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infotok.information.bounds import information_bounds
    from infotok.information.gaussian import gaussian_information_bottleneck, population_hsic_gaussian
    from infotok.information.hsic import cka, hsic, permuted_hsic
    from infotok.information.rate import (
        categorical_code_length,
        categorical_entropy,
        categorical_rate,
        code_statistics,
        gaussian_rate,
    )

__all__ = [
    "categorical_code_length",
    "categorical_entropy",
    "categorical_rate",
    "cka",
    "code_statistics",
    "gaussian_information_bottleneck",
    "gaussian_rate",
    "hsic",
    "information_bounds",
    "permuted_hsic",
    "population_hsic_gaussian",
]

_HOME = {
    "categorical_code_length": "rate",
    "categorical_entropy": "rate",
    "categorical_rate": "rate",
    "cka": "hsic",
    "code_statistics": "rate",
    "gaussian_information_bottleneck": "gaussian",
    "gaussian_rate": "rate",
    "hsic": "hsic",
    "information_bounds": "bounds",
    "permuted_hsic": "hsic",
    "population_hsic_gaussian": "gaussian",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the submodule `hsic` would bind it over the function `hsic`: the function keeps the name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
