"""A mirror of the results in MLflow."""
