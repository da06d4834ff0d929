"""InfoTok: Information-Bottleneck regularized visual tokens for unified multimodal LLMs (arXiv 2602.01554)."""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Categorical", "Gaussian", "InformationBottleneck", "Kernels", "Regularization", "posterior_logits"]


def __getattr__(name: str):
    """The plug-in, imported when it is asked for: the command line answers before torch is loaded, and no stage of the
    pipeline depends on it by importing this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("infotok.information.bottleneck"), name)
