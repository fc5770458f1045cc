"""optax transformations that leave inactive weights as if they weren't there."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity import packing
from sparsejax.sparsity.masks import apply_masks

# What `packed` accepts: each of these treats all weights alike, whatever array they stand in.
# A global norm sees all of them at once.
_PACKABLE = (
    "add_decayed_weights",
    "clip_by_global_norm",
    "identity",
    "scale",
    "scale_by_adam",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_schedule",
    "scale_by_stddev",
    "trace",
)


# What `sparse_updates` refuses, by the type of its state: the arrays aren't of single weights, or
# updates aren't of params.
_REFUSED = {
    "LookaheadState": "lookahead: it updates pairs of fast and slow params",
    "GaLoreState": "galore: its moments are of projections of the weights",
}
# Extra arguments that are functions of params: SAM's, line searches' and Sophia's.
_FUNCTIONS_OF_PARAMS = ("grad_fn", "value_fn", "obj_fn")


def sparse_updates(inner):
    """Wrap an optimizer so that inactive weights get no update and keep fresh state.

    Masks the gradients that go in (so a global norm sees active weights only) and the
    updates that come out (decoupled weight decay and sign updates included), then resets the
    state of inactive weights. Caveat: wrap last, outside of every other transformation, or
    what lies outside can move inactive weights again.

    What `inner` evaluates at other params sees no inactive weight either: `grad_fn` (SAM's
    `opaque_mode`), `value_fn` (line searches, `lbfgs`) and `obj_fn` (Sophia) are called with masked
    params, and what `grad_fn` returns is masked.

    Args:
      inner: optax transformation of params as they are; not `lookahead`, whose params are pairs,
        nor `flatten` and `galore`, whose state isn't of single weights.

    Returns:
      `optax.GradientTransformationExtraArgs` whose `update` takes the masks by keyword:
      `update(gradients, state, params, masks=masks)`; other keywords reach `inner`. Its state is
      that of `inner`. Its `init` takes masks too, and ignores them, as `packed` needs them there.

    Raises:
      ValueError: by `init`, if `inner` is or contains one of those that can't be wrapped.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> optimizer = sparse_updates(optax.adamw(0.1))
      >>> state = optimizer.init(params)
      >>> gradients = {"kernel": jnp.array([[1.0, 1.0]])}
      >>> updates, state = optimizer.update(gradients, state, params, masks=masks)
      >>> updates["kernel"].round(1).tolist()
      [[-0.10000000149011612, 0.0]]
    """
    inner = optax.with_extra_args_support(inner)

    def init(params, masks=None):
        del masks
        state = inner.init(params)
        _check_state(inner, state, params)
        return state

    def update(gradients, state, params, *, masks, **extra_args):
        gradients = apply_masks(gradients, masks)
        extra_args = _of_masked_params(extra_args, masks)
        updates, state = inner.update(gradients, state, params, **extra_args)
        return apply_masks(updates, masks), reset_inactive(inner, state, params, masks)

    return optax.GradientTransformationExtraArgs(init, update)


def _of_masked_params(extra_args, masks):
    """Let functions of params among the arguments see active weights only."""

    def masked(name, function):
        def call(params, *args, **kwargs):
            result = function(apply_masks(params, masks), *args, **kwargs)
            return apply_masks(result, masks) if name == "grad_fn" else result

        return call

    return extra_args | {
        name: masked(name, extra_args[name])
        for name in _FUNCTIONS_OF_PARAMS
        if callable(extra_args.get(name))
    }


def _check_state(inner, state, params):
    """Refuse a state that can't be reset weight by weight.

    Raises:
      ValueError: it names the transformation.
    """
    accepted = "accepted: transformations of params as they are, with state of their shapes"
    is_refused = lambda node: type(node).__name__ in _REFUSED  # noqa: E731
    for node in filter(is_refused, jax.tree.leaves(state, is_leaf=is_refused)):
        raise ValueError(f"can't wrap {_REFUSED[type(node).__name__]}; {accepted}")
    if _holds_a_vector_of_all(inner, state, params):
        raise ValueError(f"can't wrap flatten: its state is one vector of all weights; {accepted}")


def _holds_a_vector_of_all(inner, state, params):
    """Tell whether a state has a vector that names no parameter and grows with all of them."""
    params_with_paths = jax.tree_util.tree_leaves_with_path(params)
    total = sum(jnp.size(param) for _, param in params_with_paths)
    paths = [path for path, _ in params_with_paths if path]

    def belongs(path, leaf):
        if not paths:  # params are a single array, whose path is empty
            return leaf.size != total or jnp.ndim(params) < 2
        return any(path[i : i + len(p)] == p for p in paths for i in range(len(path)))

    def twice(param):
        shape = jnp.shape(param)
        longer = (*shape[:-1], 2 * shape[-1]) if shape else shape
        return jax.ShapeDtypeStruct(longer, jnp.result_type(param))

    grown = jax.eval_shape(inner.init, jax.tree.map(twice, params))
    return any(
        leaf.ndim == 1 and other.shape != leaf.shape and not belongs(path, leaf)
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(grown), strict=True
        )
    )


class PackedState(NamedTuple):
    """State of `packed`: one flat array for each sparsified layer, dense layers as they are.

    Attributes:
      inner: state of the inner optimizer.
      indices: flat positions of the active weights (see `sparsity.packing`).
      ema: exponential moving average of the active weights; () if none is kept.
      count: updates so far, int32 scalar.
    """

    inner: Any
    indices: Any
    ema: Any
    count: jax.Array


def packed(inner, masks, *, ema_decay=None):
    """Wrap an optimizer as `sparse_updates` does, with state for the active weights alone.

    That takes less memory. The inner optimizer sees one flat array [active] for each sparsified
    layer, and each layer that stays dense as it is. What is active is read from the state, so after
    a topology update `reset_inactive` has to be called, as `update_topology` does. Caveat: wrap
    last, as with `sparse_updates`. On a mesh the flat arrays come out replicated, however params
    are sharded; `sparse_updates` keeps state sharded as they are. Not for a method that changes
    density: shapes are static.

    Args:
      inner: optax optimizer that treats all weights alike: adam, adamw, sgd, lion or rmsprop,
        with schedules and `clip_by_global_norm`, in chains.
      masks: masks of the params, or their `packing.static_counts`; then `init` wants the masks.
      ema_decay: function of the number of the update, 1 at the first, to a decay: the state
        then holds the EMA of the active weights, which `ema_params` returns.

    Returns:
      `optax.GradientTransformationExtraArgs`: `init(params)` or `init(params, masks=masks)`
      gives a PackedState; `update(gradients, state, params, masks=masks)` is used like that of
      `sparse_updates` (and could do without the masks).

    Raises:
      ValueError: `inner` has a part that may not treat all weights alike; it is named.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.array([[True, False], [False, True]])}
      >>> optimizer = packed(optax.sgd(0.5, momentum=0.9), masks)
      >>> state = optimizer.init(params)
      >>> gradients = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = optimizer.update(gradients, state, params, masks=masks)
      >>> updates["kernel"].tolist(), state.inner[0].trace["kernel"].tolist()
      ([[-0.5, 0.0], [0.0, -0.5]], [1.0, 1.0])
    """
    refused = [name for name in _parts(inner.update) if name not in _PACKABLE]
    if refused:
        raise ValueError(
            f"can't pack the state of {', '.join(refused)}; accepted: {', '.join(_PACKABLE)}, in "
            "chains: adam, adamw, sgd, lion, rmsprop, with schedules"
        )
    inner = optax.with_extra_args_support(inner)
    given, counts = masks, packing.static_counts(masks)

    def init(params, masks=None):
        masks = given if masks is None else masks
        if any(isinstance(mask, int) for mask in jax.tree.leaves(masks)):
            raise ValueError("packed was given counts of active weights: init needs masks=")
        indices = packing.active_indices(masks, counts)
        small = packing.pack(params, indices)
        ema = () if ema_decay is None else jax.tree.map(jnp.copy, small)
        return PackedState(inner.init(small), indices, ema, jnp.int32(0))

    def update(gradients, state, params, *, masks=None, **extra_args):
        del masks
        _, indices, ema, count = state
        small = packing.pack(params, indices)
        updates, inner_state = inner.update(
            packing.pack(gradients, indices), state.inner, small, **extra_args
        )
        count = optax.safe_increment(count)
        if ema_decay is not None:
            rest = 1 - ema_decay(count)
            ema = jax.tree.map(
                lambda e, p: (e - rest * (e - p)).astype(e.dtype),
                ema,
                optax.apply_updates(small, updates),
            )
        state = PackedState(inner_state, indices, ema, count)
        return packing.unpack(updates, indices, params), state

    init.inner = inner  # `reset_inactive` is called with what was wrapped or with the wrapper
    return optax.GradientTransformationExtraArgs(init, update)


def _parts(update):
    """Yield the names of the transformations that an update function is chained of.

    optax gives them no names but those of the functions that they close over.
    """
    name = getattr(update, "__qualname__", type(update).__name__).split(".")[0]
    if not getattr(update, "__module__", "").startswith("optax."):
        yield f"{name} (not of optax)"
    elif name == "chain":
        for part in inspect.getclosurevars(update).nonlocals["update_fns"]:
            yield from _parts(part)
    elif name == "with_extra_args_support":
        yield from _parts(inspect.getclosurevars(update).nonlocals["tx"].update)
    else:
        yield name


def ema_params(state, params):
    """Return the EMA that a PackedState holds, whole: zero at inactive weights.

    Args:
      state: PackedState of an optimizer made with `ema_decay`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`, for their shapes.

    Returns:
      Pytree of arrays of the shapes of `params`.
    """
    return packing.unpack(state.ema, state.indices, params)


def reset_inactive(inner, state, params, masks):
    """Give inactive weights the optimizer state that `inner.init(params)` gives them.

    A state array belongs to a parameter if its key path ends with the parameter's path and
    the shapes agree: the moments of adam, momentum, accumulated gradients of `MultiSteps`,
    whatever wraps them; so does a stack of such arrays (the memory of `lbfgs`). Statistics of
    other shapes (adafactor's rows and columns) stay as they are. Call it after a topology update,
    before the next step. What a line search remembers of the loss is then out of date: don't ask
    `optax.value_and_grad_from_state` for the gradient of that step.

    A PackedState moves to the weights that are active now: those that were active before keep
    their state and EMA, the others get fresh state, and their value in `params` as EMA.

    Args:
      inner: the optax transformation, wrapped by `sparse_updates` or `packed`, or not.
      state: its state.
      params: pytree of arrays.
      masks: masks of `params`; with as many active weights in each layer as a PackedState has.

    Returns:
      State of the same structure.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> optimizer = optax.sgd(0.1, momentum=0.9)
      >>> _, state = optimizer.update(params, optimizer.init(params))
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> reset_inactive(optimizer, state, params, masks)[0].trace["kernel"].tolist()
      [[1.0, 0.0]]
    """
    if isinstance(state, PackedState):
        return _move(inner, state, params, masks)

    def reset(leaf, fresh, mask):
        return leaf if mask.ndim == 0 else jnp.where(mask, leaf, fresh)

    return _map_moments(reset, state, inner.init(params), params, masks)


def _move(inner, state, params, masks):
    inner = getattr(inner.init, "inner", inner)
    counts = jax.tree.map(lambda index: index.size if index.ndim else index, state.indices)
    indices = packing.active_indices(masks, counts)
    small = packing.pack(params, indices)
    places = jax.tree.map(
        lambda old, new, param: packing.positions_in(old, new, param.size) if new.ndim else new,
        state.indices,
        indices,
        params,
    )

    def move(leaf, fresh, place):
        return leaf if place.ndim == 0 else jnp.where(place >= 0, leaf[..., place], fresh)

    keeps_ema = bool(jax.tree.leaves(state.ema))
    ema = jax.tree.map(move, state.ema, small, places) if keeps_ema else ()
    moved = _map_moments(move, state.inner, inner.init(small), small, places)
    return PackedState(moved, indices, ema, state.count)


def _map_moments(function, state, fresh, params, other):
    """Apply `function(leaf, fresh, other)` to the arrays of a state that belong to a parameter.

    Args:
      function: of an array of the state, the same array of `fresh`, and a leaf of `other`.
      state: optimizer state.
      fresh: state as `init` gives it; what it lacks, such as what `optax.monitor` has measured
        since, is left as it is.
      params: the parameters that the state is of.
      other: pytree of the structure of `params`.

    Returns:
      State; arrays that belong to no parameter are as they were.
    """
    belonging = {
        path: (leaf, param.shape)
        for (path, param), leaf in zip(
            jax.tree_util.tree_flatten_with_path(params)[0],
            jax.tree.structure(params).flatten_up_to(other),
            strict=True,
        )
    }
    longest = max(map(len, belonging), default=0)
    fresh = dict(jax.tree_util.tree_leaves_with_path(fresh))

    def apply(path, leaf):
        if path not in fresh:
            return leaf
        for length in range(min(longest, len(path)), -1, -1):
            found, shape = belonging.get(path[len(path) - length :], (None, None))
            if (
                found is not None
                and jnp.shape(leaf)[max(jnp.ndim(leaf) - len(shape), 0) :] == shape
            ):
                return function(leaf, fresh[path], found)
        return leaf

    return jax.tree_util.tree_map_with_path(apply, state)
