"""Training: state, steps, loop, checkpoints. Knows a model only by its record of functions."""

from sparsejax.training.runs import load_run, load_sparse_run, save_sparse_run

__all__ = ["load_run", "load_sparse_run", "save_sparse_run"]
