"""The training state, its beginning, and the keys that all randomness comes from."""

import logging
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sparsejax.families import Model
from sparsejax.seeds import check_seed
from sparsejax.sparsity.flat import active_indices, static_counts, to_flat, whole_indices
from sparsejax.sparsity.masks import apply_masks, pack_bits
from sparsejax.sparsity.transforms import FlatTransformation
from sparsejax.training.plan import build_method, layer_sparsities, trains_compiled
from sparsejax.types import Array, Masks, NumpyArray, Optimizer, OptState, Params, PRNGKey, PyTree

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: optimizer steps taken, int32 scalar.
      params: parameters, exactly zero wherever the mask is False.
      masks: the mask pytree (see `sparsejax.sparsity`).
      opt_state: state of the optimizer; fresh wherever the mask is False. Whole, or flat: of
        active weights alone.
      ema_params: exponential moving average of params, zero wherever the mask is False; whole or
        flat as `opt_state` is. `ema_params_of` returns it whole.
      indices: where the entries of flat layers belong (see `sparsity.flat`); 0-d True for each
        layer of a state that is whole.
      ever_active: the weights that were active at some time, as mask bits (`masks.pack_bits`):
        what the run has explored (in-time over-parameterisation, Liu et al. 2021).
    """

    step: Array
    params: Params
    masks: Masks
    opt_state: OptState
    ema_params: Params
    indices: PyTree
    ever_active: PyTree


def named_key(seed: int, purpose: str) -> PRNGKey:
    """Return the PRNG key of a named purpose: `init`, `masks`, `steps`, `topology`, `samples`.

    Args:
      seed: Python int in [0, 2^32).
      purpose: any string; keys of different purposes are independent.

    Raises:
      ValueError: `seed` is not such a number; JAX would take it modulo 2^32.
    """
    return jax.random.fold_in(jax.random.key(check_seed(seed)), zlib.crc32(purpose.encode()))


def create_state(
    config: ml_collections.ConfigDict, model: Model, optimizer: Optimizer
) -> TrainState:
    """Return the state before the first step: masks drawn, params masked, EMA equal to params.

    Args:
      config: resolved ConfigDict.
      model: Model.
      optimizer: the optax transformation of the train step.

    Returns:
      TrainState on the default device; its optimizer state and EMA are flat with
      `optimizer.packed`, unless the run trains compact, where all is small already.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer.
    """
    if config.sparsity.method == "dense":
        logger.info("method dense ignores sparsity.level = %g", config.sparsity.level)
    return jax.jit(_creation(config, model, optimizer))(*_first_keys(config))


def abstract_state(
    config: ml_collections.ConfigDict, model: Model, optimizer: Optimizer
) -> TrainState:
    """Return what `create_state` returns, of `jax.ShapeDtypeStruct`: nothing is computed."""
    return jax.eval_shape(_creation(config, model, optimizer), *_first_keys(config))


def _first_keys(config: ml_collections.ConfigDict) -> tuple[PRNGKey, PRNGKey]:
    return named_key(config.seed, "init"), named_key(config.seed, "masks")


def _creation(
    config: ml_collections.ConfigDict, model: Model, optimizer: Optimizer
) -> Callable[[PRNGKey, PRNGKey], TrainState]:
    """Return the function of two keys that makes the first state."""
    sparsities = layer_sparsities(config.sparsity, model)
    method = build_method(config.sparsity, model)
    is_flat = config.optimizer.packed and not trains_compiled(config.sparsity)
    counts = active_counts(config, model) if is_flat else None

    def create(init_key: PRNGKey, masks_key: PRNGKey) -> TrainState:
        params = model.init(init_key)
        masks = method.init(masks_key, params, sparsities)
        return state_from(params, masks, optimizer, counts)

    return create


def active_counts(config: ml_collections.ConfigDict, model: Model) -> PyTree:
    """Return how many active weights each layer of the run has, from the first step to the last.

    Args:
      config: resolved ConfigDict.
      model: Model.

    Returns:
      Pytree as `flat.static_counts` returns it, found by drawing the run's first masks.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer.
    """
    params = jax.eval_shape(model.init, named_key(config.seed, "init"))
    sparsities = layer_sparsities(config.sparsity, model)
    method = build_method(config.sparsity, model)
    return static_counts(method.init(named_key(config.seed, "masks"), params, sparsities))


def state_from(
    params: Params, masks: Masks, optimizer: Optimizer, counts: PyTree | None = None
) -> TrainState:
    """Return the state of step 0 with these params (masked here) and masks.

    Args:
      params: pytree of arrays.
      masks: masks of `params`.
      optimizer: made by `sparsity.transforms.sparse_updates`.
      counts: `sparsity.flat.static_counts` of the masks for a state whose moments and EMA are
        flat; whole by default.

    Returns:
      TrainState.

    Raises:
      ValueError: `optimizer` keeps flat state by itself, or masks that are not traced have other
        counts.
    """
    if isinstance(optimizer, FlatTransformation):
        raise ValueError("optimizer is packed; accepted: sparse_updates, with counts= for flat")
    params = apply_masks(params, masks)
    indices = whole_indices(params) if counts is None else active_indices(masks, counts)
    ours = to_flat(params, indices)
    ever_active = jax.tree.map(jnp.copy, pack_bits(masks))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        masks=masks,
        opt_state=optimizer.init(ours),
        ema_params=jax.tree.map(jnp.copy, ours),
        indices=indices,
        ever_active=ever_active,
    )


def ema_params_of(state: TrainState) -> Params:
    """Return the EMA of the parameters, whole.

    Args:
      state: TrainState.

    Returns:
      Pytree of the shapes of `state.params`; of host arrays where the state is flat.
    """

    def put(index: Array, leaf: Array, param: Array) -> Array | NumpyArray:
        if index.ndim == 0:
            return leaf
        # By numpy: the state may be spread over several processes, and nothing compiles.
        full = np.zeros(param.size, leaf.dtype)
        full[np.asarray(index)] = np.asarray(leaf)
        return full.reshape(param.shape)

    return jax.tree.map(put, state.indices, state.ema_params, state.params)
