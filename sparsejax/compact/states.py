"""Run and train compact networks (`compact.network`).

A compact tree is an ordinary tree of smaller arrays, so step, optimizer and EMA work on it
unchanged. Checkpoints hold full-shape states and don't show whether a run trained compact.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from sparsejax.compact.network import CompactNetwork
from sparsejax.sparsity.compact_trees import compact_masks, spread_masks
from sparsejax.sparsity.transforms import reset_inactive
from sparsejax.types import Indices, Input, Masks, Optimizer, Params, PyTree

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


def paired_model(network: CompactNetwork, model: Model) -> Model:
    """Return the model on pairs (compact params, indices) in place of params."""

    def apply(pair: tuple[Params, Indices], *inputs: Input, **options: Input) -> PyTree:
        params, indices = pair
        return network.bind(model.apply, indices)(params, *inputs, **options)

    return model._replace(apply=apply)


def shrink_state(network: CompactNetwork, state: TrainState) -> TrainState:
    """Return the TrainState of the compact network.

    Args:
      network: CompactNetwork.
      state: TrainState of full shape; whole, not flat.

    Returns:
      TrainState whose params, moments and EMA are compact trees, and whose masks are CompactMasks.
    """
    trees, treedef = network.trees, jax.tree.structure(state.params)

    @jax.jit  # one program: otherwise the operations on each layer compile separately
    def shrink(parts: PyTree, masks: Masks) -> PyTree:
        ours = compact_masks(trees, masks)
        return ours, _map_mirrors(lambda tree: trees.shrink(tree, ours.indices), parts, treedef)

    parts = (state.params, state.opt_state, state.ema_params)
    masks, (params, opt_state, ema_params) = shrink(parts, state.masks)
    return state._replace(params=params, masks=masks, opt_state=opt_state, ema_params=ema_params)


def state_expander(
    network: CompactNetwork, optimizer: Optimizer
) -> Callable[[TrainState], TrainState]:
    """Return `expand(state)`, the inverse of `shrink_state`, for saving.

    Args:
      network: CompactNetwork.
      optimizer: the train step's: inactive weights have the state of its `init`.

    Returns:
      Function from a compact TrainState to one of full shape, host arrays, as a masked run would
      save it. It compiles once, and runs on the host.
    """
    trees = network.trees

    @jax.jit
    def expand(state: TrainState) -> TrainState:
        treedef, indices = jax.tree.structure(state.params), state.masks.indices
        masks = spread_masks(trees, state.masks)
        parts = (state.params, state.opt_state, state.ema_params)
        parts = _map_mirrors(lambda tree: trees.expand(tree, indices), parts, treedef)
        params, opt_state, ema_params = parts
        opt_state = reset_inactive(optimizer, opt_state, params, masks)
        return state._replace(
            params=params, masks=masks, opt_state=opt_state, ema_params=ema_params
        )

    def on_host(state: TrainState) -> TrainState:
        with jax.default_device(_host_device()):
            return jax.device_get(expand(jax.device_get(state)))

    return on_host


def _host_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return jax.local_devices()[0]


def _map_mirrors(
    function: Callable[[PyTree], PyTree], tree: PyTree, treedef: jax.tree_util.PyTreeDef
) -> PyTree:
    """Map `function` over the subtrees that mirror params: moments, momentum."""

    def mirrors(node: PyTree) -> bool:
        return jax.tree.structure(node) == treedef

    return jax.tree.map(
        lambda node: function(node) if mirrors(node) else node, tree, is_leaf=mirrors
    )
