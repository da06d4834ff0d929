"""Estimators of I(X;Z), one module each, found by their file names; `infotok.information.objective` says what a module
has."""
