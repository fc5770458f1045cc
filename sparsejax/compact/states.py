"""Run and train compact networks (`compact.network`).

A compact tree is an ordinary tree of smaller arrays, so step, optimizer and EMA work on it
unchanged. Checkpoints hold full-shape states and don't show whether a run trained compact.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from sparsejax.compact.network import CompactNetwork
from sparsejax.types import Indices, Masks, Params, PyTree

# Records of `families` and `training`, which this module doesn't import: it uses these fields only.
Model: TypeAlias = Any  # `families.Model`: init, apply, units
TrainState: TypeAlias = (
    Any  # `training.state.TrainState`: step, params, masks, opt_state, ema_params
)


def without_inactive(
    network: CompactNetwork | None, model: Model, params: Params, masks: Masks
) -> tuple[Model, Params]:
    """Return an equivalent model and parameters that compute less, for sampling and evaluation.

    Args:
      network: CompactNetwork; None if no layer would become smaller.
      model: Model.
      params: masked params.
      masks: their masks, concrete.

    Returns:
      Tuple of Model and its compact params; `model` and `params` themselves without a `network`.
    """
    if network is None:
        return model, params
    indices = jax.jit(network.trees.indices)(masks)
    small = jax.jit(network.trees.shrink)(params, indices)
    return compact_model(network, model, indices), small


def compact_model(network: CompactNetwork, model: Model, indices: Indices) -> Model:
    """Return the model on compact params at these indices, concrete or traced."""
    return model._replace(apply=network.bind(model.apply, indices))


def shrink_state(network: CompactNetwork, state: TrainState) -> TrainState:
    """Return the TrainState of the compact network.

    Args:
      network: CompactNetwork.
      state: TrainState of full shape; whole, not flat.

    Returns:
      TrainState whose params, moments and EMA are compact trees; `ever_active` is ().
    """
    trees, treedef = network.trees, jax.tree.structure(state.params)

    @jax.jit  # one program: otherwise the operations on each layer compile separately
    def shrink(parts: PyTree, masks: Masks) -> PyTree:
        indices = trees.indices(masks)
        return _map_mirrors(lambda tree: trees.shrink(tree, indices), parts, treedef)

    parts = (state.params, state.opt_state, state.ema_params)
    params, opt_state, ema_params = shrink(parts, state.masks)
    return state._replace(
        params=params,
        masks=trees.masks(state.masks),
        opt_state=opt_state,
        ema_params=ema_params,
        ever_active=(),
    )


def outline(state: TrainState) -> TrainState:
    """Return what `expand_state` needs of the state before it was shrunk; no weights."""
    masks, indices, ever_active = jax.device_get((state.masks, state.indices, state.ever_active))
    return state._replace(
        params=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params
        ),
        masks=masks,
        opt_state=(),
        ema_params=(),
        indices=indices,
        ever_active=ever_active,
    )


def expand_state(network: CompactNetwork, state: TrainState, first: TrainState) -> TrainState:
    """Return the full-shape TrainState, host arrays.

    Args:
      network: CompactNetwork.
      state: from `shrink_state`, trained since.
      first: `outline` of the state before it was shrunk.

    Returns:
      TrainState, as a masked run would save it.
    """
    state, treedef = jax.device_get(state), jax.tree.structure(first.params)
    indices = jax.jit(network.trees.indices)(first.masks)
    program = jax.jit(network.trees.expand)

    def expand(compact: PyTree) -> PyTree:  # one tree at a time: whole ones are large
        return jax.device_get(program(compact, indices))

    return first._replace(
        step=state.step,
        params=expand(state.params),
        opt_state=_map_mirrors(expand, state.opt_state, treedef),
        ema_params=expand(state.ema_params),
    )


def _map_mirrors(
    function: Callable[[PyTree], PyTree], tree: PyTree, treedef: jax.tree_util.PyTreeDef
) -> PyTree:
    """Map `function` over the subtrees that mirror params: moments, momentum."""

    def mirrors(node: PyTree) -> bool:
        return jax.tree.structure(node) == treedef

    return jax.tree.map(
        lambda node: function(node) if mirrors(node) else node, tree, is_leaf=mirrors
    )
