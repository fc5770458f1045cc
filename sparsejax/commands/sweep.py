"""Train and evaluate a grid of methods, sparsities and seeds: see `evaluation.sweep`."""

from sparsejax.evaluation.sweep import main

__all__ = ["main"]
