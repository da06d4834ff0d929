"""Estimators of I(X;Z): one module each with `penalty(observed) -> nats per image`, found by their file names."""
