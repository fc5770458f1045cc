"""Sparse training as pure functions of two pytrees, `params` and `masks`.

The masks tree has the structure of the params tree. A sparsified leaf has a boolean array
of the parameter's shape (True = active weight); a leaf that stays dense has a 0-d boolean
True, which broadcasts. This package imports jax, optax and chex only, so it serves any
training loop and any way of writing networks.
"""

from sparsejax.sparsity import (
    costs,
    distributions,
    masks,
    methods,
    packing,
    schedules,
    selection,
    structure,
    topology,
    transforms,
)

__all__ = [
    "costs",
    "distributions",
    "masks",
    "methods",
    "packing",
    "schedules",
    "selection",
    "structure",
    "topology",
    "transforms",
]
