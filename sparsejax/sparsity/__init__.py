"""Sparse training as pure functions of two pytrees, `params` and `masks`.

The masks tree has the structure of the params tree. A sparsified leaf has a boolean array
of the parameter's shape (True = active weight); a leaf that stays dense has a 0-d boolean
True, which broadcasts. This package imports jax, optax and chex only, so it serves any
training loop and any way of writing networks.

The names that a training loop needs are here; each is imported when it is first used:

    from sparsejax import sparsity

    sparsities = sparsity.erdos_renyi_kernel(params, 0.8)       # how sparse each layer is
    masks = sparsity.random_masks(key, params, sparsities)      # the first topology
    params = sparsity.apply_masks(params, masks)
    optimizer = sparsity.sparse_updates(optax.adamw(1e-3))      # or sparsity.packed: less memory
    rigl = sparsity.get_method("rigl")
    schedule = sparsity.UpdateSchedule(100, 100, 7500)          # when the topology changes
    params, masks, state = sparsity.update_topology(
        rigl, optimizer, key, params, masks, state, gradients, fraction
    )
    print(sparsity.summarize(params, masks).total)

Everything else is in the modules `costs`, `distributions`, `flat`, `masks`, `method`, `methods`,
`pruning`, `schedules`, `selection`, `structure`, `topology`, `topology_update` and `transforms`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsejax.sparsity import (
        costs,
        distributions,
        flat,
        masks,
        methods,
        schedules,
        selection,
        structure,
        topology,
        topology_update,
        transforms,
    )
    from sparsejax.sparsity.distributions import erdos_renyi_kernel, uniform
    from sparsejax.sparsity.masks import (
        apply_masks,
        dense_masks,
        is_sparsifiable,
        random_masks,
        summarize,
    )
    from sparsejax.sparsity.methods import Method, get_method, register_method
    from sparsejax.sparsity.schedules import UpdateSchedule
    from sparsejax.sparsity.topology_update import update_topology
    from sparsejax.sparsity.transforms import packed, reset_inactive, sparse_updates

_HOME = {
    "Method": "methods",
    "UpdateSchedule": "schedules",
    "apply_masks": "masks",
    "dense_masks": "masks",
    "erdos_renyi_kernel": "distributions",
    "get_method": "methods",
    "is_sparsifiable": "masks",
    "packed": "transforms",
    "random_masks": "masks",
    "register_method": "methods",
    "reset_inactive": "transforms",
    "sparse_updates": "transforms",
    "summarize": "masks",
    "uniform": "distributions",
    "update_topology": "topology_update",
}

__all__ = [
    "Method",
    "UpdateSchedule",
    "apply_masks",
    "costs",
    "dense_masks",
    "distributions",
    "erdos_renyi_kernel",
    "flat",
    "get_method",
    "is_sparsifiable",
    "masks",
    "methods",
    "packed",
    "random_masks",
    "register_method",
    "reset_inactive",
    "schedules",
    "selection",
    "sparse_updates",
    "structure",
    "summarize",
    "topology",
    "topology_update",
    "transforms",
    "uniform",
    "update_topology",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME:
        return importlib.import_module(f"{__name__}.{name}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
