"""The methods of sparse training, each as short as its difference from the others.

`static` draws a random topology and keeps it (Static-DM). `rigl` grows where the dense
gradient is largest (RigL-DM; Evci et al. 2020). `magran` grows at random (MagRan-DM; SET
with plain magnitude, Mocanu et al. 2018). `dense` is the baseline.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.sparsity import masks as masks_lib
from sparsejax.sparsity import topology


class Method(NamedTuple):
    """How masks begin and how they change.

    Attributes:
      name: the method's name.
      update: `update(key, params, masks, gradients, fraction) -> (params, masks)`: the
        topology update. `params` come in masked and go out masked; `gradients` are dense
        (not masked), with respect to the masked params; `fraction` is the drop fraction.
      init: `init(key, params, sparsities) -> masks`: the first topology.
      is_dynamic: whether `update` changes anything, so whether it need be called.
      uses_gradients: whether `update` looks at the dense gradients, which cost FLOPs.
    """

    name: str
    update: Callable[..., tuple[Any, Any]]
    init: Callable[..., Any] = masks_lib.random_masks
    is_dynamic: bool = True
    uses_gradients: bool = False


def _keep(key, params, masks, gradients, fraction):
    del key, gradients, fraction
    return params, masks


def _rigl(key, params, masks, gradients, fraction):
    del key
    masks = topology.rewire(params, masks, jax.tree.map(jnp.abs, gradients), fraction)
    return masks_lib.apply_masks(params, masks), masks


def _magran(key, params, masks, gradients, fraction):
    del gradients
    masks = topology.rewire(params, masks, _random_scores(key, masks), fraction)
    return masks_lib.apply_masks(params, masks), masks


def _random_scores(key, masks):
    leaves, treedef = jax.tree.flatten(masks)
    keys = [jax.random.fold_in(key, index) for index in range(len(leaves))]
    return treedef.unflatten(
        [jax.random.uniform(k, m.shape) for k, m in zip(keys, leaves, strict=True)]
    )


def _no_masks(key, params, sparsities):
    del key, sparsities
    return masks_lib.dense_masks(params)


METHODS = {
    method.name: method
    for method in (
        Method("dense", _keep, _no_masks, is_dynamic=False),
        Method("static", _keep, is_dynamic=False),
        Method("rigl", _rigl, uses_gradients=True),
        Method("magran", _magran),
    )
}


def get_method(name):
    """Return the method of this name: `dense`, `static`, `rigl` or `magran`.

    Raises:
      ValueError: no method has this name.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, -3.0, 0.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, True, False, False]])}
      >>> gradients = {"kernel": jnp.array([[0.0, 0.0, 2.0, 1.0]])}
      >>> rigl = get_method("rigl")
      >>> params, masks = rigl.update(jax.random.key(0), params, masks, gradients, 0.5)
      >>> params["kernel"].tolist(), masks["kernel"].tolist()
      ([[0.0, -3.0, 0.0, 0.0]], [[False, True, True, False]])
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; accepted: {', '.join(METHODS)}")
    return METHODS[name]
