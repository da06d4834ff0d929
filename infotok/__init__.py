"""InfoTok: Information-Bottleneck regularized visual tokens for unified multimodal LLMs (arXiv 2602.01554)."""

__version__ = "0.1.0"
__all__ = ["Categorical", "Gaussian", "InformationBottleneck", "Kernels", "Regularization", "posterior_logits"]


def __getattr__(name: str):
    """The plug-in, imported when it is asked for: the command line answers before torch is loaded."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from infotok.information import bottleneck

    return getattr(bottleneck, name)
