"""InfoTok: Information-Bottleneck regularized visual tokens for unified multimodal LLMs (arXiv 2602.01554)."""

__version__ = "0.1.0"
