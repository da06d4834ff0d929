"""Estimators of I(X;Z), found by their file names: one module each with `penalty(observed)` and, where the penalty does
not already keep image and text consistent, `consistency(observed)`, an estimate of I(Z;T). `independent(observed)` is
what the penalty would be under independence, where that is not 0."""
