"""Estimators of I(X;Z), found by their file names: one module each with `penalty(observed)` and, optionally,
`consistency(observed)`, an estimate of I(Z;T), and `independent(observed)`, what an estimate of the penalty from so few
images would be if images and tokens were independent."""
