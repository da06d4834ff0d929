"""Real unified multimodal LLMs of transformers: adapters, the joint step, tuning and saving.

An adapter wraps a model's own classes; everything else here knows no model. Nothing is loaded before it is asked for.
"""
