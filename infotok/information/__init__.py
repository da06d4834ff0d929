"""Estimators of information: rates, bounds, kernel dependence and the Gaussian closed forms.

Names load on first use: whoever needs one module of this package need not load torch for the others.
"""

from importlib import import_module

_HOMES = {
    "bounds": ("information_bounds",),
    "dependence": ("cka", "hsic", "permuted_hsic"),
    "gaussian": ("gaussian_information_bottleneck", "population_hsic_gaussian"),
    "rate": ("categorical_code_length", "categorical_entropy", "categorical_rate", "code_statistics", "gaussian_rate"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
