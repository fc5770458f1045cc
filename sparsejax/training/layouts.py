"""Layouts of the states in older checkpoints, and how to convert them."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from sparsejax.sparsity.flat import active_indices, is_flat
from sparsejax.sparsity.masks import pack_bits, unpack_bits
from sparsejax.sparsity.mirrors import map_mirrors
from sparsejax.sparsity.transforms import FlatState, reset_inactive
from sparsejax.training.state import TrainState
from sparsejax.types import Masks, NumpyArray, Optimizer, Params, PyTree

Tree: TypeAlias = dict[str, Any]  # `TrainState._asdict()`: the fields that a checkpoint holds


def find_layout(example: Tree, leaves: int) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Return the layout of a checkpoint, recognized by its number of arrays.

    Args:
      example: the state that is expected today.
      leaves: number of arrays in the checkpoint.

    Returns:
      Tuple of the tree to restore, with the leaves of `example`, and a function that converts what
      was restored to today's layout. Today's layout itself if none has that number of arrays.
    """
    for layout, convert in _layouts(example):
        if len(jax.tree.leaves(layout)) == leaves:
            return layout, convert
    return example, lambda tree: tree


def _layouts(example: Tree) -> Iterator[tuple[Tree, Callable[[Tree], Tree]]]:
    yield example, lambda tree: tree

    # Older: a whole state without indices...
    without = {name: tree for name, tree in example.items() if name != "indices"}
    whole = jax.tree.map(lambda _: np.array(True), example["indices"])
    yield without, lambda tree: tree | {"indices": whole}

    # ... and a flat one, with indices and EMA in the optimizer's state.
    held = FlatState(
        example["opt_state"], example["indices"], example["ema_params"], example["step"]
    )

    def take_out(tree: Tree) -> Tree:
        held = tree["opt_state"]
        parts = {"opt_state": held.inner, "ema_params": held.ema, "indices": held.indices}
        return tree | parts

    yield without | {"opt_state": held, "ema_params": ()}, take_out


def complete_state(
    state: TrainState,
    complete: Callable[[Params, Masks], tuple[Params, Masks]],
    optimizer: Optimizer,
) -> TrainState:
    """Give a state the masks of biases and scales of channels, which older versions left dense.

    Args:
      state: TrainState of host arrays.
      complete: `complete(params, masks) -> (params, masks)`, as `plan.complete_units`.
      optimizer: the optax transformation of the train step.

    Returns:
      TrainState of host arrays: params and EMA zero, and moments fresh, where the masks are False.
      `state` itself if no mask is missing.
    """
    params, masks = complete(state.params, state.masks)
    if masks is state.masks:
        return state
    _, ever = complete(params, unpack_bits(state.ever_active, params))
    if is_flat(state.indices):
        state = _more_flat(state, params, active_indices(masks), optimizer)
    else:
        opt_state = reset_inactive(optimizer, state.opt_state, params, masks)
        ema_params, _ = complete(state.ema_params, state.masks)
        state = state._replace(opt_state=opt_state, ema_params=ema_params)
    state = state._replace(params=params, masks=masks, ever_active=pack_bits(ever))
    return jax.device_get(state)


def _more_flat(
    state: TrainState, params: Params, indices: PyTree, optimizer: Optimizer
) -> TrainState:
    """Make layers flat that a flat state of host arrays still holds whole."""

    def take(leaf: NumpyArray, index: NumpyArray) -> NumpyArray:
        return leaf[..., index] if index.ndim else leaf

    small = jax.tree.map(
        lambda param, index: take(np.ravel(param), index) if index.ndim else param,
        *(params, state.indices),
    )
    indices = jax.device_get(indices)
    added = jax.tree.map(
        lambda old, new: np.array(True) if old.ndim else new, state.indices, indices
    )
    return state._replace(
        opt_state=map_mirrors(
            lambda leaf, _, index: take(leaf, index),
            *(state.opt_state, optimizer.init(small), small, added),
        ),
        ema_params=jax.tree.map(take, state.ema_params, added),
        indices=indices,
    )
