"""InfoTok: Information-Bottleneck regularized visual tokens for unified multimodal LLMs (arXiv 2602.01554)."""

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {
    "bits": ("Bits", "lookup_free"),
    "bottleneck": ("Categorical", "Gaussian", "InformationBottleneck", "Kernels", "Regularization", "posterior_logits"),
    "factored": ("Factored",),
    "nearest": ("NearestCodes", "calibrate_variance", "look_up", "nearest_codes"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """The plug-in, imported when it is asked for: the command line answers before torch is loaded, and no stage of the
    pipeline depends on it by importing this package."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"infotok.information.{_HOME[name]}"), name)
