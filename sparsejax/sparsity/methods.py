"""Methods of sparse training, each defined by its difference from the others.

`static` draws a random topology and keeps it (Static-DM). `rigl` grows where the dense
gradient is largest (RigL-DM; Evci et al. 2020). `magran` grows at random (MagRan-DM; SET
with plain magnitude, Mocanu et al. 2018). `dense` is the baseline; `gradual` and `one_shot` begin
dense and are pruned (`pruning`). The unit that moves, a single
weight, block or channel, is a `structure`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.sparsity import masks as masks_lib
from sparsejax.sparsity.method import Init, Method
from sparsejax.sparsity.pruning import gradual, one_shot
from sparsejax.sparsity.structure import WEIGHT, Structure
from sparsejax.types import (
    ArrayLike,
    Gradients,
    Masks,
    Params,
    PRNGKey,
    Scores,
    Sparsities,
    Units,
)

_SMALL = 2**14  # entries of a layer whose scores are drawn together with others


Factory: TypeAlias = Callable[[Structure], Method]


def dense(structure: Structure) -> Method:
    """Return the baseline: no masks."""
    del structure
    return Method("dense", _keep, _no_masks, is_dynamic=False)


def static(structure: Structure) -> Method:
    """Return Static-DM: a random topology that never changes."""
    return Method("static", _keep, random_topology(structure), is_dynamic=False)


def rigl(structure: Structure) -> Method:
    """Return RigL-DM: drop the smallest units, grow those of largest mean |dense gradient|."""

    def update(
        key: PRNGKey, params: Params, masks: Masks, gradients: Gradients, fraction: ArrayLike
    ) -> tuple[Params, Masks]:
        scores = structure.grow_scores(gradients)
        return drop_and_grow(structure, key, params, masks, scores, fraction)

    init = random_topology(structure)
    return Method("rigl", update, init, structure.probe, uses_gradients=True)


def magran(structure: Structure) -> Method:
    """Return MagRan-DM: drop the smallest units, grow others at random."""

    def update(
        key: PRNGKey, params: Params, masks: Masks, gradients: Gradients, fraction: ArrayLike
    ) -> tuple[Params, Masks]:
        del gradients
        scores = _random_scores(key, structure.unit_masks(masks))
        return drop_and_grow(structure, key, params, masks, scores, fraction)

    return Method("magran", update, random_topology(structure))


METHODS: dict[str, Method | Factory] = {
    "dense": dense,
    "static": static,
    "rigl": rigl,
    "magran": magran,
    "gradual": gradual,
    "one_shot": one_shot,
}


def drop_and_grow(
    structure: Structure,
    key: PRNGKey,
    params: Params,
    masks: Masks,
    grow_scores: Scores,
    fraction: ArrayLike,
) -> tuple[Params, Masks]:
    """Drop the units of smallest magnitude and grow those with the largest scores.

    Args:
      structure: unit that is pruned and regrown.
      key: PRNG key, for the values of regrown channels.
      params: pytree of arrays, masked.
      masks: masks of `params`.
      grow_scores: one array for each array of `structure.pool(params)`, of the same shape.
      fraction: drop fraction in [0, 1], Python or traced scalar.

    Returns:
      Tuple `(params, masks)`, as `Method.update` returns them.
    """
    units = structure.unit_masks(masks)
    units = structure.rewire(structure.pool(params), units, grow_scores, fraction)
    after = structure.spread(units, params)
    return structure.revive(key, params, masks, after), after


def random_topology(structure: Structure) -> Init:
    """Return the `init` of a Method that draws the active units of a structure at random.

    Args:
      structure: unit that is pruned and regrown.

    Returns:
      `init(key, params, sparsities) -> masks`.
    """

    def init(key: PRNGKey, params: Params, sparsities: Sparsities) -> Masks:
        if structure is WEIGHT:
            return masks_lib.random_masks(key, params, sparsities)
        units = jax.eval_shape(structure.pool, params)
        masks = structure.draw(key, units, sparsities)
        return masks_lib.place_like(structure.spread(masks, params), params)

    return init


def _keep(
    key: PRNGKey,
    params: Params,
    masks: Masks,
    gradients: Gradients,
    fraction: ArrayLike,
) -> tuple[Params, Masks]:
    del key, gradients, fraction
    return params, masks


def _random_scores(key: PRNGKey, units: Units) -> Scores:
    """Return uniform scores, those of layer i drawn with `fold_in(key, i)`.

    Small layers are drawn as rows of one array and cut to size: one generator to compile.
    """
    leaves, treedef = jax.tree.flatten(units)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(leaves)))
    scores = [
        None if leaf.size <= _SMALL else jax.random.uniform(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    small = [index for index, array in enumerate(scores) if array is None]
    longest = max((leaves[index].size for index in small), default=0)
    rows = jax.vmap(lambda key: jax.random.uniform(key, (longest,)))(keys[jnp.array(small, int)])
    for index, row in zip(small, rows, strict=True):
        scores[index] = row[: leaves[index].size].reshape(leaves[index].shape)
    return jax.tree.unflatten(treedef, scores)


def _no_masks(key: PRNGKey, params: Params, sparsities: Sparsities) -> Masks:
    del key, sparsities
    return masks_lib.dense_masks(params)


def register_method(name: str, method: Method | Factory) -> None:
    """Register a method of your own, for `get_method` and `config.sparsity.method`.

    Registering a name again from the same place replaces its method, so that a module can be
    reloaded and a notebook cell run again.

    Args:
      name: letters, digits, `_` and `-`; not the name of another method.
      method: Method for single weights; or a function from a structure to a Method, like `rigl`,
        for a method that also supports blocks and channels.

    Raises:
      ValueError: the name is malformed or taken, or `method` is neither.

    Examples:
      >>> from sparsejax.sparsity import topology
      >>> def largest_gradients(key, params, masks, gradients, fraction):
      ...     masks = topology.rewire(params, masks, jax.tree.map(abs, gradients), fraction)
      ...     return masks_lib.apply_masks(params, masks), masks
      >>> register_method("mine", Method("mine", largest_gradients, uses_gradients=True))
      >>> get_method("mine").uses_gradients
      True
      >>> del METHODS["mine"]
    """
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w-]*", name)):
        accepted = "letters, digits, _ and -, a letter first"
        raise ValueError(f"name of a method is {name!r}; accepted: {accepted}")
    if not (isinstance(method, Method) or callable(method)):
        accepted = "a Method, or a function of a structure that returns one"
        raise ValueError(f"method {name!r} is {method!r}; accepted: {accepted}")
    if name in METHODS and _origin(METHODS[name]) != _origin(method):
        other = ".".join(_origin(METHODS[name]))
        raise ValueError(f"method {name!r} is {other} already; accepted: another name")
    METHODS[name] = method


def _origin(method: Method | Factory) -> tuple[str, str]:
    """Return the module and name of the function that implements a method."""
    function = method.update if isinstance(method, Method) else method
    kind = type(function)
    name = getattr(function, "__qualname__", kind.__qualname__)
    return getattr(function, "__module__", kind.__module__), name


def get_method(name: str, structure: Structure = WEIGHT) -> Method:
    """Return the method of this name, one of `METHODS`.

    Args:
      name: name of the method.
      structure: unit that is pruned and regrown: `WEIGHT`, `block(size)` or `channel(...)`.

    Returns:
      Method.

    Raises:
      ValueError: no method has this name, or it doesn't support this structure.

    Examples:
      >>> import jax.numpy as jnp
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
    method = METHODS[name]
    if not isinstance(method, Method):
        method = method(structure)
    elif structure is not WEIGHT:
        raise ValueError(f"method {name!r} moves single weights; accepted: structure weight")
    if not isinstance(method, Method):
        raise ValueError(f"method {name!r} returns {method!r}; accepted: a Method")
    return dataclasses.replace(method, name=name)
