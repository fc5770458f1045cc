"""The methods of sparse training, each as short as its difference from the others.

`static` draws a random topology and keeps it (Static-DM). `rigl` grows where the dense
gradient is largest (RigL-DM; Evci et al. 2020). `magran` grows at random (MagRan-DM; SET
with plain magnitude, Mocanu et al. 2018). `dense` is the baseline. What moves, single weights,
blocks or channels, is a `structure`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from sparsejax.sparsity import masks as masks_lib
from sparsejax.sparsity import topology
from sparsejax.sparsity.structure import WEIGHT

_POSITIONAL = ("key", "params", "masks", "gradients", "fraction")


@dataclasses.dataclass(frozen=True)
class Method:
    """How masks begin and how they change.

    Attributes:
      name: the method's name.
      update: `update(key, params, masks, gradients, fraction, *, step=None, density=None) ->
        (params, masks)`: the topology update. `params` come in masked and go out masked;
        `gradients` are dense (not masked), with respect to `probe(key, params, masks)`;
        `fraction` is the drop fraction; `step` is the number of optimizer steps taken, an int32
        scalar, and `density` the density that the caller asks of every layer, floats in the
        structure of `init`'s sparsities: the training loop passes 1 minus those, a loop of your
        own may pass what its schedule says of the step. None: not said. A function that takes
        neither may leave them out.
      init: `init(key, params, sparsities) -> masks`: the first topology. `sparsities` has the
        structure of params, or of the groups of channels.
      probe: `probe(key, params, masks) -> params` at which gradients are taken: `params`
        themselves, except for channels (see `structure.channel`).
      is_dynamic: whether `update` changes anything, so whether it need be called.
      uses_gradients: whether `update` looks at the dense gradients, which cost FLOPs.
      changes_density: whether layers may have another number of active weights after `update`.
        Costs are then summed over what each step had; packed optimizer state, whose shapes are
        static, is refused.

    Raises:
      ValueError: a method that changes density and is not dynamic; an `update` that takes other
        arguments than these, or can't be called.
    """

    name: str
    update: Callable[..., tuple[Any, Any]]
    init: Callable[..., Any] = masks_lib.random_masks
    probe: Callable[..., Any] = lambda key, params, masks: params
    is_dynamic: bool = True
    uses_gradients: bool = False
    changes_density: bool = False

    def __post_init__(self):
        if self.changes_density and not self.is_dynamic:
            raise ValueError(f"method {self.name!r} changes density; accepted: is_dynamic=True")
        object.__setattr__(self, "update", _taking_step_and_density(self.name, self.update))


def _taking_step_and_density(name, update):
    """Return `update` that accepts `step` and `density` and drops those it has no parameter for.

    Raises:
      ValueError: it can't be called as the training loop does.
    """
    try:
        signature = inspect.signature(update)
        parameters = signature.parameters.values()
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        taken = [key for key in ("step", "density") if takes_all or key in signature.parameters]
        signature.bind(*_POSITIONAL, **dict.fromkeys(taken))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"update of method {name!r} can't be called: {error}; accepted: update("
            f"{', '.join(_POSITIONAL)}, *, step=None, density=None), the last two of which may be "
            "left out"
        ) from error
    if len(taken) == 2:
        return update

    @functools.wraps(update)
    def update_ignoring(*args, **kwargs):
        return update(*args, **{k: v for k, v in kwargs.items() if k in taken})

    return update_ignoring


def dense(structure):
    """Return the baseline: no masks."""
    del structure
    return Method("dense", _keep, _no_masks, is_dynamic=False)


def static(structure):
    """Return Static-DM: a random topology that stays."""
    return Method("static", _keep, _random_init(structure), is_dynamic=False)


def rigl(structure):
    """Return RigL-DM: drop the smallest, grow where the mean |dense gradient| is largest."""

    def update(key, params, masks, gradients, fraction, *, step=None, density=None):
        del step, density
        scores = structure.grow_scores(gradients)
        return _rewire(structure, key, params, masks, scores, fraction)

    init = _random_init(structure)
    return Method("rigl", update, init, structure.probe, uses_gradients=True)


def magran(structure):
    """Return MagRan-DM: drop the smallest, grow at random."""

    def update(key, params, masks, gradients, fraction, *, step=None, density=None):
        del gradients, step, density
        scores = _random_scores(key, structure.unit_masks(masks))
        return _rewire(structure, key, params, masks, scores, fraction)

    return Method("magran", update, _random_init(structure))


METHODS = {"dense": dense, "static": static, "rigl": rigl, "magran": magran}


def _rewire(structure, key, params, masks, grow_scores, fraction):
    units = structure.unit_masks(masks)
    units = topology.rewire(structure.pool(params), units, grow_scores, fraction)
    after = structure.spread(units, params)
    return structure.revive(key, params, masks, after), after


def _random_init(structure):
    def init(key, params, sparsities):
        if structure is WEIGHT:
            return masks_lib.random_masks(key, params, sparsities)
        units = jax.eval_shape(structure.pool, params)
        masks = masks_lib.random_masks(key, units, sparsities)
        return masks_lib.place_like(structure.spread(masks, params), params)

    return init


def _keep(key, params, masks, gradients, fraction, *, step=None, density=None):
    del key, gradients, fraction, step, density
    return params, masks


def _random_scores(key, masks):
    leaves, treedef = jax.tree.flatten(masks)
    keys = [jax.random.fold_in(key, index) for index in range(len(leaves))]
    return treedef.unflatten(
        [jax.random.uniform(k, m.shape) for k, m in zip(keys, leaves, strict=True)]
    )


def _no_masks(key, params, sparsities):
    del key, sparsities
    return masks_lib.dense_masks(params)


def get_method(name, structure=WEIGHT):
    """Return the method of this name: `dense`, `static`, `rigl` or `magran`.

    Args:
      name: the method's.
      structure: what moves as one, of `structure`: `WEIGHT`, `block(size)`, `channel(...)`.

    Returns:
      Method.

    Raises:
      ValueError: no method has this name.

    Example:
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
    return METHODS[name](structure)
