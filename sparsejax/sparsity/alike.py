"""Test whether an optimizer treats all weights alike, whatever array they are in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.mirrors import map_mirrors
from sparsejax.types import Leaf, NumpyArray, Optimizer, Params, Shape

_SHAPE, _ACTIVE = (4, 6), 12  # of each of two layers
_SCALES = (1.0, 1e-4, 1e4, 1.0, 10.0, 0.1, 1.0, 100.0)  # of the gradients, to reach thresholds
_ACCEPTED = (
    "accepted: optimizers that treat all weights alike, as adam, adamw, sgd, lion and rmsprop do, "
    "with schedules and clip_by_global_norm; or vouched=True, if you know that this one does"
)


def check_alike(inner: Optimizer) -> None:
    """Check that an optimizer's update of a weight doesn't depend on the array that holds it.

    Eight updates of two small arrays, half of whose weights are inactive, are compared with updates
    of the active weights alone, regrouped into two vectors. Norms and means of a layer, factored
    moments, labels and noise lead to different updates; a norm over all weights doesn't.

    Args:
      inner: optax transformation.

    Raises:
      ValueError: the update does depend on the array, or the trial fails; one line says why.
    """
    # In float64: some sum over all weights, which rounds in another order if they are regrouped.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        try:
            reason = _difference(inner)
        except Exception as error:  # noqa: BLE001  whatever a transformation raises
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"it can't be tried ({said})"
    _refuse(reason)


def check_shapes(inner: Optimizer, params: Params, flat: Params) -> None:
    """Check that an optimizer's state of flat params is the flattened state of whole params.

    Args:
      inner: optax transformation.
      params: pytree of arrays.
      flat: the same params, flat.

    Raises:
      ValueError: it has statistics of other shapes, such as adafactor's rows and columns.
    """
    _refuse(_difference_of_shapes(inner, params, flat))


def _refuse(reason: str | None) -> None:
    if reason:
        raise ValueError(f"can't keep the state of this optimizer flat: {reason}; {_ACCEPTED}")


def _difference_of_shapes(inner: Optimizer, params: Params, flat: Params) -> str | None:
    # In the structure of `flat`: params may have nodes of a library's own, such as variables.
    params = jax.tree.map(lambda _, p: jax.ShapeDtypeStruct(p.shape, p.dtype), flat, params)
    whole, ours = jax.eval_shape(inner.init, params), jax.eval_shape(inner.init, flat)

    def made_flat(leaf: Leaf, _: Leaf, lengths: tuple[int, Shape]) -> Leaf:
        ndim, shape = lengths
        return jax.ShapeDtypeStruct((*leaf.shape[: leaf.ndim - ndim], *shape), leaf.dtype)

    lengths = jax.tree.map(lambda param, small: (param.ndim, small.shape), params, flat)
    expected = map_mirrors(made_flat, whole, whole, params, lengths)
    structures: list[Any] = [jax.tree.structure(state) for state in (expected, ours)]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(state)] for state in (expected, ours)]
    same = structures[0] == structures[1] and shapes[0] == shapes[1]
    return None if same else "its state isn't of single weights"


def _difference(inner: Optimizer) -> str | None:
    """Return how an optimizer's updates of active weights change when these are regrouped."""
    rng = np.random.default_rng(0)
    weights = 2 * _SHAPE[0] * _SHAPE[1]
    active = rng.permutation(weights)[: 2 * _ACTIVE]
    layer_scales = np.repeat([1.0, 1e3], weights // 2)  # so that layers have different statistics

    def draw(scale: float) -> NumpyArray:
        drawn = np.zeros(weights)
        drawn[active] = scale * (layer_scales * rng.normal(size=weights))[active]
        return drawn

    def to_layers(vector: NumpyArray) -> Params:
        a, b = np.split(vector, 2)
        shape = _SHAPE if vector.size == weights else a.shape
        return {"a": jnp.asarray(a.reshape(shape)), "b": jnp.asarray(b.reshape(shape))}

    def to_vector(layers: Params) -> NumpyArray:
        return np.concatenate([np.ravel(layers["a"]), np.ravel(layers["b"])])

    whole = draw(1.0)
    flat = whole[active]
    states = [inner.init(to_layers(vector)) for vector in (whole, flat)]
    if reason := _difference_of_shapes(inner, to_layers(whole), to_layers(flat)):
        return reason
    has_moved = False
    for scale in _SCALES:
        gradients = draw(scale)
        update, states[0] = inner.update(to_layers(gradients), states[0], to_layers(whole))
        theirs, states[1] = inner.update(to_layers(gradients[active]), states[1], to_layers(flat))
        ours, theirs = to_vector(update)[active], to_vector(theirs)
        if not np.allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(ours).max(), equal_nan=True):
            return "its update of a weight depends on the array that holds the weight"
        whole[active] += ours
        flat = flat + theirs
        has_moved |= bool(np.any(ours))
    return None if has_moved else f"it moves no weight in {len(_SCALES)} updates"
