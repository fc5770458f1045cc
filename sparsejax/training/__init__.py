"""Training: state, steps, loop, checkpoints. Knows a task only by its record of functions."""

from sparsejax.training.runs import load_run

__all__ = ["load_run"]
