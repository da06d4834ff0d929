"""Speed and cost, run by hand on a quiet machine: `python -m benchmarks --help`."""
