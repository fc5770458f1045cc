"""Run and train a network without what its masks leave out (`compact.network`).

A packed tree is an ordinary tree of smaller arrays, so step, optimizer and EMA work on it as they
are. Checkpoints hold full-shape states: whether a run was compiled can't be seen in them.
"""

import jax
import numpy as np

from sparsejax.compact.network import compile_blocks, compile_channels
from sparsejax.training.state import TrainState


def compile_network(sparsity, model, masks):
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


def without_inactive(sparsity, model, params, masks):
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
    ready = jax.jit(lambda params: compiled.prepare(compiled.pack(params)))(params)
    return model._replace(apply=compiled.bind(model.apply)), ready


def packed_model(compiled, model):
    """Return the model on packed params."""
    bound = compiled.bind(model.apply)

    def apply(packed, *inputs, **options):
        return bound(compiled.prepare(packed), *inputs, **options)

    return model._replace(apply=apply)


def pack_state(compiled, state):
    """Return the TrainState of the packed network.

    Args:
      compiled: Compiled.
      state: whole TrainState, its optimizer state not a PackedState.

    Returns:
      TrainState whose params, moments and EMA are packed trees; `ever_active` is ().
    """
    treedef = jax.tree.structure(state.params)

    @jax.jit  # one program: what it does to each layer would compile by itself
    def pack(trees):
        return _map_mirrors(compiled.pack, trees, treedef)

    params, opt_state, ema_params = pack((state.params, state.opt_state, state.ema_params))
    return TrainState(state.step, params, compiled.masks, opt_state, ema_params, ())


def outline(state):
    """Return what `unpack_state` needs of the first state: kernels are shapes without memory."""

    def leaf(x):
        if np.ndim(x) < 2 or x.dtype == bool:
            return np.asarray(x)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    return jax.tree.map(leaf, state)


def unpack_state(compiled, state, first):
    """Return the full-shape TrainState, host arrays.

    Args:
      compiled: Compiled.
      state: of `pack_state`, trained since.
      first: `outline` of the state before it was packed: its masks, and the biases of channels
        that were left out.

    Returns:
      TrainState, as a masked run would save it.
    """
    treedef = jax.tree.structure(first.params)
    state = jax.device_get(state)
    return TrainState(
        step=state.step,
        params=compiled.unpack(state.params, first.params),
        masks=first.masks,
        opt_state=_map_mirrors(compiled.unpack, state.opt_state, treedef, first.opt_state),
        ema_params=compiled.unpack(state.ema_params, first.ema_params),
        ever_active=first.ever_active,
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
