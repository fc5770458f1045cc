"""Run and train compact networks (`compact.network`).

A compact tree is an ordinary tree of smaller arrays, so step, optimizer and EMA work on it
unchanged. Checkpoints hold full-shape states and don't show whether a run trained compact.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from sparsejax.compact.network import CompactNetwork
from sparsejax.types import Array, Input, NumpyArray, Params, PyTree

# Records of `families` and `training`, which this module doesn't import: it uses these fields only.
Model: TypeAlias = Any  # `families.Model`: init, apply, units
TrainState: TypeAlias = (
    Any  # `training.state.TrainState`: step, params, masks, opt_state, ema_params
)


def without_inactive(
    network: CompactNetwork | None, model: Model, params: Params
) -> tuple[Model, PyTree]:
    """Return an equivalent model and parameters that compute less, for sampling and evaluation.

    Args:
      network: CompactNetwork of the masks; None if no layer would become smaller.
      model: Model.
      params: masked params.

    Returns:
      Tuple of Model and its compact params; `model` and `params` themselves without a `network`.
    """
    if network is None:
        return model, params
    ready = jax.jit(lambda params: network.prepare(network.shrink(params)))(params)
    return model._replace(apply=network.bind(model.apply)), ready


def compact_model(network: CompactNetwork, model: Model) -> Model:
    """Return the model on compact params."""
    bound = network.bind(model.apply)

    def apply(compact: Params, *inputs: Input, **options: Input) -> PyTree:
        return bound(network.prepare(compact), *inputs, **options)

    return model._replace(apply=apply)


def shrink_state(network: CompactNetwork, state: TrainState) -> TrainState:
    """Return the TrainState of the compact network.

    Args:
      network: CompactNetwork.
      state: TrainState of full shape; whole, not flat.

    Returns:
      TrainState whose params, moments and EMA are compact trees; `ever_active` is ().
    """
    treedef = jax.tree.structure(state.params)

    @jax.jit  # one program: otherwise the operations on each layer compile separately
    def shrink(trees: PyTree) -> PyTree:
        return _map_mirrors(network.shrink, trees, treedef)

    params, opt_state, ema_params = shrink((state.params, state.opt_state, state.ema_params))
    return state._replace(
        params=params,
        masks=network.masks,
        opt_state=opt_state,
        ema_params=ema_params,
        ever_active=(),
    )


def outline(state: TrainState) -> TrainState:
    """Return what `expand_state` needs of the first state; its kernels are shapes only."""

    def leaf(x: Array) -> NumpyArray:
        if np.ndim(x) < 2 or x.dtype == bool:
            return np.asarray(x)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    return jax.tree.map(leaf, state)


def expand_state(network: CompactNetwork, state: TrainState, first: TrainState) -> TrainState:
    """Return the full-shape TrainState, host arrays.

    Args:
      network: CompactNetwork.
      state: from `shrink_state`, trained since.
      first: `outline` of the state before it was shrunk: its masks and shapes.

    Returns:
      TrainState, as a masked run would save it.
    """
    treedef = jax.tree.structure(first.params)
    state = jax.device_get(state)
    return first._replace(
        step=state.step,
        params=network.expand(state.params, first.params),
        opt_state=_map_mirrors(network.expand, state.opt_state, treedef, first.opt_state),
        ema_params=network.expand(state.ema_params, first.ema_params),
    )


def _map_mirrors(
    function: Callable[..., PyTree], tree: PyTree, treedef: jax.tree_util.PyTreeDef, *others: PyTree
) -> PyTree:
    """Map `function` over the subtrees that mirror params: moments, momentum."""

    def mirrors(node: PyTree) -> bool:
        return jax.tree.structure(node) == treedef

    return jax.tree.map(
        lambda node, *rest: function(node, *rest) if mirrors(node) else node,
        tree,
        *others,
        is_leaf=mirrors,
    )
