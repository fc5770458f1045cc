"""Sparse-to-sparse training of diffusion models in JAX and Flax.

To sample a trained model:

    run = sparsejax.load("runs/digits-rigl-0.75-0")  # or a sparse file
    samples = run.sample(jax.random.key(0), 16)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsejax.training.trained import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import `load` when it is first used: it takes seconds."""
    if name == "load":
        from sparsejax.training.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
