"""Run and train a network without what its masks leave out (`compact.network`).

A compact tree is an ordinary tree of smaller arrays, so step, optimizer and EMA work on it as they
are. Checkpoints hold full-shape states: whether a run trained compact can't be seen in them.
"""

from typing import Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.compact.network import Compiled, compile_blocks, compile_channels
from sparsejax.types import Masks, Params, PyTree

# Records of parts that this one doesn't know of.
Model: TypeAlias = Any  # `families.Model`
TrainState: TypeAlias = Any  # `training.state.TrainState`


def compile_network(sparsity: ConfigDict, model: Model, masks: Masks) -> Compiled | None:
    """Compile the network of a model, where the structure of its masks allows.

    Args:
      sparsity: `config.sparsity`, resolved.
      model: Model.
      masks: concrete masks.

    Returns:
      `compact.network.Compiled`, or None if no layer would become smaller.
    """
    if sparsity.method == "dense" or sparsity.structure == "weight":
        return None
    masks = jax.device_get(masks)
    if sparsity.structure == "block":
        compiled = compile_blocks(masks, sparsity.block_size)
    else:
        params = jax.eval_shape(model.init, jax.random.key(0))
        compiled = compile_channels(masks, model.units(params))
    return compiled if compiled.layers else None


def without_inactive(
    sparsity: ConfigDict, model: Model, params: Params, masks: Masks
) -> tuple[Model, PyTree]:
    """Return a model and parameters that compute the same with less, to sample and to measure.

    Args:
      sparsity: `config.sparsity`, resolved.
      model: Model.
      params: masked params.
      masks: concrete masks.

    Returns:
      Tuple of Model and what it takes in place of params; those given where nothing is compiled.
    """
    compiled = compile_network(sparsity, model, masks)
    if compiled is None:
        return model, params
    ready = jax.jit(lambda params: compiled.prepare(compiled.shrink(params)))(params)
    return model._replace(apply=compiled.bind(model.apply)), ready


def compact_model(compiled: Compiled, model: Model) -> Model:
    """Return the model on compact params."""
    bound = compiled.bind(model.apply)

    def apply(compact, *inputs, **options):
        return bound(compiled.prepare(compact), *inputs, **options)

    return model._replace(apply=apply)


def shrink_state(compiled: Compiled, state: TrainState) -> TrainState:
    """Return the TrainState of the compact network.

    Args:
      compiled: Compiled.
      state: TrainState of full shape; whole, not flat.

    Returns:
      TrainState whose params, moments and EMA are compact trees; `ever_active` is ().
    """
    treedef = jax.tree.structure(state.params)

    @jax.jit  # one program: what it does to each layer would compile by itself
    def shrink(trees):
        return _map_mirrors(compiled.shrink, trees, treedef)

    params, opt_state, ema_params = shrink((state.params, state.opt_state, state.ema_params))
    return state._replace(
        params=params,
        masks=compiled.masks,
        opt_state=opt_state,
        ema_params=ema_params,
        ever_active=(),
    )


def outline(state: TrainState) -> TrainState:
    """Return what `expand_state` needs of the first state: kernels are shapes without memory."""

    def leaf(x):
        if np.ndim(x) < 2 or x.dtype == bool:
            return np.asarray(x)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    return jax.tree.map(leaf, state)


def expand_state(compiled: Compiled, state: TrainState, first: TrainState) -> TrainState:
    """Return the full-shape TrainState, host arrays.

    Args:
      compiled: Compiled.
      state: of `shrink_state`, trained since.
      first: `outline` of the state before it was shrunk: its masks, and the biases of channels
        that were left out.

    Returns:
      TrainState, as a masked run would save it.
    """
    treedef = jax.tree.structure(first.params)
    state = jax.device_get(state)
    return first._replace(
        step=state.step,
        params=compiled.expand(state.params, first.params),
        opt_state=_map_mirrors(compiled.expand, state.opt_state, treedef, first.opt_state),
        ema_params=compiled.expand(state.ema_params, first.ema_params),
    )


def _map_mirrors(function, tree, treedef, *others):
    """Map `function` over the subtrees that mirror params: moments, momentum."""

    def mirrors(node):
        return jax.tree.structure(node) == treedef

    return jax.tree.map(
        lambda node, *rest: function(node, *rest) if mirrors(node) else node,
        tree,
        *others,
        is_leaf=mirrors,
    )
