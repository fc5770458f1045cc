"""optax transformations that treat inactive weights as if they didn't exist."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity.alike import check_alike, check_shapes
from sparsejax.sparsity.compact_trees import CompactMasks, CompactTrees
from sparsejax.sparsity.flat import (
    active_indices,
    counts_of,
    flat_masks,
    move,
    places_among,
    static_counts,
    to_flat,
    to_whole,
)
from sparsejax.sparsity.masks import apply_masks
from sparsejax.sparsity.mirrors import map_mirrors
from sparsejax.types import (
    Array,
    ArrayLike,
    Gradients,
    KeyPath,
    Leaf,
    Masks,
    Optimizer,
    OptState,
    Params,
    PyTree,
    Updates,
)

Extra: TypeAlias = Any  # whatever an optimizer takes by keyword

# What `sparse_updates` can't wrap, by the type of its state: the arrays aren't of single weights,
# or updates aren't of params.
_REFUSED = {
    "LookaheadState": "lookahead: it updates pairs of fast and slow params",
    "GaLoreState": "galore: its moments are of projections of the weights",
}
# Extra arguments that are functions of params: SAM's, line searches' and Sophia's.
_FUNCTIONS_OF_PARAMS = ("grad_fn", "value_fn", "obj_fn")


def sparse_updates(inner: optax.GradientTransformation) -> Optimizer:
    """Wrap an optimizer so that inactive weights get no update and keep fresh state.

    Masks the incoming gradients (so a global norm sees active weights only) and the outgoing
    updates (including decoupled weight decay and sign updates), then resets the state of inactive
    weights. Caveat: wrap last, outside of every other transformation; otherwise those outside can
    move inactive weights again.

    Functions that `inner` evaluates at other params don't see inactive weights either: `grad_fn`
    (SAM's `opaque_mode`), `value_fn` (line searches, `lbfgs`) and `obj_fn` (Sophia) are called with
    masked params, and the result of `grad_fn` is masked.

    Args:
      inner: optax transformation of ordinary params; not `lookahead`, whose params are pairs,
        nor `flatten` and `galore`, whose state isn't of single weights.

    Returns:
      `optax.GradientTransformationExtraArgs` whose `update` takes the masks by keyword:
      `update(gradients, state, params, masks=masks)`; other keywords are passed to `inner`. Its
      state is that of `inner`. Its `init` also accepts masks, as `packed` needs them, and ignores
      them.

    Raises:
      ValueError: raised by `init` if `inner` is or contains a transformation that can't be wrapped.

    Examples:
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

    def init(params: Params, masks: Masks | None = None) -> OptState:
        del masks
        state = inner.init(params)
        _check_state(inner, state, params)
        return state

    def update(
        gradients: Gradients, state: OptState, params: Params, *, masks: Masks, **extra_args: Extra
    ) -> tuple[Updates, OptState]:
        gradients = apply_masks(gradients, masks)
        extra_args = _of_masked_params(extra_args, masks)
        updates, state = inner.update(gradients, state, params, **extra_args)
        return apply_masks(updates, masks), reset_inactive(inner, state, params, masks)

    return optax.GradientTransformationExtraArgs(init, update)


def _of_masked_params(extra_args: dict[str, Extra], masks: Masks) -> dict[str, Extra]:
    """Wrap functions of params among the arguments so that they see active weights only."""

    def masked(name: str, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def call(params: Params, *args: Extra, **kwargs: Extra) -> PyTree:
            result = function(apply_masks(params, masks), *args, **kwargs)
            return apply_masks(result, masks) if name == "grad_fn" else result

        return call

    return extra_args | {
        name: masked(name, extra_args[name])
        for name in _FUNCTIONS_OF_PARAMS
        if callable(extra_args.get(name))
    }


def _check_state(inner: Optimizer, state: OptState, params: Params) -> None:
    """Check that a state can be reset weight by weight.

    Raises:
      ValueError: it can't; names the transformation.
    """
    accepted = "accepted: transformations of ordinary params, with state of their shapes"
    is_refused = lambda node: type(node).__name__ in _REFUSED  # noqa: E731
    for node in filter(is_refused, jax.tree.leaves(state, is_leaf=is_refused)):
        raise ValueError(f"can't wrap {_REFUSED[type(node).__name__]}; {accepted}")
    if _holds_a_vector_of_all(inner, state, params):
        raise ValueError(f"can't wrap flatten: its state is one vector of all weights; {accepted}")


def _holds_a_vector_of_all(inner: Optimizer, state: OptState, params: Params) -> bool:
    """Return whether a state has a vector that names no parameter and grows with all of them."""
    params_with_paths = jax.tree_util.tree_leaves_with_path(params)
    total = sum(jnp.size(param) for _, param in params_with_paths)
    paths = [path for path, _ in params_with_paths if path]

    def belongs(path: KeyPath, leaf: Array) -> bool:
        if not paths:  # params are a single array, whose path is empty
            return leaf.size != total or jnp.ndim(params) < 2
        return any(path[i : i + len(p)] == p for p in paths for i in range(len(path)))

    def twice(param: Leaf) -> jax.ShapeDtypeStruct:
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


class FlatState(NamedTuple):
    """State of the active weights only: a flat array per sparsified layer, dense layers as is.

    Attributes:
      inner: state of the inner optimizer.
      indices: flat positions of the active weights (see `sparsity.flat`).
      ema: exponential moving average of the active weights; () if none is kept.
      count: updates so far, int32 scalar.
    """

    inner: OptState
    indices: PyTree
    ema: Params
    count: Array  # type: ignore[assignment]  # a field that hides tuple's method


class FlatTransformation(optax.GradientTransformationExtraArgs):
    """The result of `packed`: an optax transformation whose `init` returns a FlatState."""


def packed(
    inner: optax.GradientTransformation,
    masks: Masks,
    *,
    ema_decay: Callable[[ArrayLike], ArrayLike] | None = None,
    vouched: bool = False,
) -> Optimizer:
    """Wrap an optimizer like `sparse_updates`, but with flat state, for the active weights only.

    This takes less memory. The inner optimizer sees one flat array [active] for each sparsified
    layer, and each dense layer as it is. The active weights are read from the state, so
    `reset_inactive` must be called after a topology update, as `update_topology` does. Caveats:
    wrap last, as with `sparse_updates`. On a mesh the flat arrays are replicated, however params
    are sharded, while `sparse_updates` keeps the state sharded like them. Methods that change
    density can't be used, since shapes are static.

    Args:
      inner: optax optimizer that treats all weights alike, whatever array they are in: adam,
        adamw, sgd, lion, rmsprop and similar ones, with schedules and `clip_by_global_norm`, in
        chains. It is tried on two small arrays, and the shapes of its state are compared.
      masks: masks of the params, or their `flat.static_counts`; then `init` needs the masks.
      ema_decay: function from the number of the update, starting at 1, to a decay: the state then
        holds the EMA of the active weights, which `ema_params` returns.
      vouched: True skips the trial of `inner`, for an optimizer that you know to be correct
        although it fails the trial: noise, which is redrawn, or per-layer learning rates.

    Returns:
      `optax.GradientTransformationExtraArgs`: `init(params)` or `init(params, masks=masks)`
      returns a FlatState; `update(gradients, state, params, masks=masks)` is used like that of
      `sparse_updates` (but doesn't need the masks).

    Raises:
      ValueError: `inner` doesn't treat all weights alike; raised here, or by `init` if its state
        has statistics of another shape than the params.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.array([[True, False], [False, True]])}
      >>> optimizer = packed(optax.sgd(0.5, momentum=0.9), masks)
      >>> state = optimizer.init(params)
      >>> gradients = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = optimizer.update(gradients, state, params, masks=masks)
      >>> updates["kernel"].tolist(), state.inner[0].trace["kernel"].tolist()
      ([[-0.5, 0.0], [0.0, -0.5]], [1.0, 1.0])
    """
    inner = optax.with_extra_args_support(inner)
    given, counts = masks, static_counts(masks)
    if not vouched:
        check_alike(inner)

    def init(params: Params, masks: Masks | None = None) -> FlatState:
        masks = given if masks is None else masks
        if any(isinstance(mask, int) for mask in jax.tree.leaves(masks)):
            raise ValueError("packed was given counts of active weights: init needs masks=")
        indices = active_indices(masks, counts)
        small = to_flat(params, indices)
        if not vouched:
            check_shapes(inner, params, small)
        ema = () if ema_decay is None else jax.tree.map(jnp.copy, small)
        return FlatState(inner.init(small), indices, ema, jnp.int32(0))

    def update(
        gradients: Gradients,
        state: FlatState,
        params: Params,
        *,
        masks: Masks | None = None,
        **extra_args: Extra,
    ) -> tuple[Updates, FlatState]:
        del masks
        _, indices, ema, count = state
        small = to_flat(params, indices)
        updates, inner_state = inner.update(
            to_flat(gradients, indices), state.inner, small, **extra_args
        )
        count = optax.safe_increment(count)
        if ema_decay is not None:
            rest = 1 - ema_decay(count)
            ema = jax.tree.map(
                lambda e, p: (e - rest * (e - p)).astype(e.dtype),
                ema,
                optax.apply_updates(small, updates),
            )
        state = FlatState(inner_state, indices, ema, count)
        return to_whole(updates, indices, params), state

    return FlatTransformation(init, update)


def ema_params(state: FlatState, params: Params) -> Params:
    """Return the whole EMA of a FlatState: zero at inactive weights.

    Args:
      state: FlatState of an optimizer made with `ema_decay`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`, for their shapes.

    Returns:
      Pytree of arrays of the shapes of `params`.
    """
    return to_whole(state.ema, state.indices, params)


def reset_inactive(
    inner: optax.GradientTransformation, state: OptState, params: Params, masks: Masks
) -> OptState:
    """Reset the optimizer state of inactive weights to that of `inner.init(params)`.

    A state array belongs to a parameter if its key path ends with the parameter's path and
    the shapes agree: the moments of adam, momentum, accumulated gradients of `MultiSteps`,
    whatever wraps them, or a stack of such arrays (the memory of `lbfgs`). Statistics of other
    shapes (adafactor's rows and columns) are left unchanged. Call it after a topology update,
    before the next step. The loss that a line search has stored is then out of date: don't use
    `optax.value_and_grad_from_state` for the gradient of that step.

    A FlatState moves to the weights that are active now: those that were active before keep
    their state and EMA; the others get fresh state, and their value in `params` as EMA.

    Args:
      inner: the optax transformation, wrapped by `sparse_updates` or `packed` or unwrapped.
      state: its state.
      params: pytree of arrays.
      masks: masks of `params`; each layer has as many active weights as a FlatState.

    Returns:
      State of the same structure.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> optimizer = optax.sgd(0.1, momentum=0.9)
      >>> _, state = optimizer.update(params, optimizer.init(params))
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> reset_inactive(optimizer, state, params, masks)[0].trace["kernel"].tolist()
      [[1.0, 0.0]]
    """
    if isinstance(state, FlatState):
        return _reset_flat(inner, state, params, masks)
    return map_mirrors(_reset, state, inner.init(params), params, masks)


def move_state(
    inner: optax.GradientTransformation,
    state: OptState,
    trees: CompactTrees,
    before: CompactMasks,
    after: CompactMasks,
    params: Params,
) -> OptState:
    """Move the optimizer state of compact trees to the units that are active now.

    Args:
      inner: the optax transformation, wrapped by `sparse_updates` or unwrapped.
      state: its state before the topology update.
      trees: CompactTrees.
      before: CompactMasks before the update.
      after: CompactMasks after it.
      params: compact params after it.

    Returns:
      State of the same structure and shapes: weights that stay active keep theirs, all others have
      that of `inner.init(params)`.
    """
    own = jax.tree.map(lambda p: jnp.arange(p.size, dtype=jnp.int32).reshape(p.shape), params)
    nowhere = jax.tree.map(lambda place: jnp.full_like(place, -1), own)
    places = trees.move(own, nowhere, before.indices, after.indices)
    places = jax.tree.map(lambda place, at: None if place is at else place, places, own)

    def move(leaf: Array, fresh: Array, place: Array | None) -> Array:
        if place is None:  # a layer that is whole
            return leaf
        entries = leaf.reshape(*leaf.shape[: leaf.ndim - place.ndim], -1)
        return jnp.where(place >= 0, jnp.take(entries, place, axis=-1, mode="clip"), fresh)

    fresh = inner.init(params)
    state = map_mirrors(move, state, fresh, params, places)
    return map_mirrors(_reset, state, fresh, params, after.masks)


def _reset(leaf: Array, fresh: Array, mask: Array) -> Array:
    return leaf if mask.ndim == 0 else jnp.where(mask, leaf, fresh)


def _reset_flat(inner: Optimizer, state: FlatState, params: Params, masks: Masks) -> FlatState:
    """Move flat parts to the weights that are active now; reset whole parts."""
    indices = active_indices(masks, counts_of(state.indices))
    small = to_flat(params, indices)
    if isinstance(inner, FlatTransformation):
        fresh = inner.init(params, masks=masks).inner
    else:
        fresh = inner.init(small)
    places = places_among(state.indices, indices, params)
    moved = map_mirrors(move, state.inner, fresh, small, places)
    moved = map_mirrors(_reset, moved, fresh, small, flat_masks(masks, indices))
    ema = jax.tree.map(move, state.ema, small, places) if jax.tree.leaves(state.ema) else ()
    return FlatState(moved, indices, ema, state.count)
