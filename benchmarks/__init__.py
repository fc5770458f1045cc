"""Comparisons to run from the checkout's root: `python -m benchmarks.NAME`."""
