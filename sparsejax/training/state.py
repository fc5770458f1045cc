"""The training state, its beginning, and the keys that all randomness comes from."""

import logging
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.seeds import check_seed
from sparsejax.sparsity.masks import apply_masks, pack_bits
from sparsejax.sparsity.packing import static_counts
from sparsejax.sparsity.transforms import PackedState
from sparsejax.training.plan import build_method, layer_sparsities

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: optimizer steps taken, int32 scalar.
      params: parameters, exactly zero wherever the mask is False.
      masks: the mask pytree (see `sparsejax.sparsity`).
      opt_state: state of the optimizer; fresh wherever the mask is False. A PackedState holds
        the EMA too.
      ema_params: exponential moving average of params, zero wherever the mask is False; () if
        `opt_state` is a PackedState. Read it by `ema_params_of`.
      ever_active: the weights that were active at some time, as packed bits
        (`masks.pack_bits`): what the run has explored (in-time over-parameterisation, Liu et
        al. 2021).
    """

    step: jax.Array
    params: Any
    masks: Any
    opt_state: Any
    ema_params: Any
    ever_active: Any


def named_key(seed, purpose):
    """Return the PRNG key of a named purpose: `init`, `masks`, `steps`, `topology`, `samples`.

    Args:
      seed: Python int in [0, 2^32).
      purpose: any string; keys of different purposes are independent.

    Raises:
      ValueError: `seed` is not such a number; JAX would take it modulo 2^32.
    """
    return jax.random.fold_in(jax.random.key(check_seed(seed)), zlib.crc32(purpose.encode()))


def create_state(config, model, optimizer):
    """Return the state before the first step: masks drawn, params masked, EMA equal to params.

    Args:
      config: resolved ConfigDict.
      model: Model.
      optimizer: the optax transformation of the train step.

    Returns:
      TrainState on the default device.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer.
    """
    init_key, masks_key = named_key(config.seed, "init"), named_key(config.seed, "masks")
    sparsities = layer_sparsities(config.sparsity, model)
    method = build_method(config.sparsity, model)
    if method.name == "dense":
        logger.info("method dense ignores sparsity.level = %g", config.sparsity.level)

    @jax.jit
    def create(init_key, masks_key):
        params = model.init(init_key)
        return state_from(params, method.init(masks_key, params, sparsities), optimizer)

    return create(init_key, masks_key)


def active_counts(config, model):
    """Return how many active weights each layer of the run has, from the first step to the last.

    Args:
      config: resolved ConfigDict.
      model: Model.

    Returns:
      Pytree as `packing.static_counts` returns it, found by drawing the run's first masks.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer.
    """
    params = jax.eval_shape(model.init, named_key(config.seed, "init"))
    sparsities = layer_sparsities(config.sparsity, model)
    method = build_method(config.sparsity, model)
    return static_counts(method.init(named_key(config.seed, "masks"), params, sparsities))


def state_from(params, masks, optimizer):
    """Return the state of step 0 with these params (masked here) and masks.

    Args:
      params: pytree of arrays.
      masks: masks of `params`.
      optimizer: made by `sparsity.transforms.sparse_updates` or `packed`.

    Returns:
      TrainState.
    """
    params = apply_masks(params, masks)
    opt_state = optimizer.init(params, masks=masks)
    ema_params = () if isinstance(opt_state, PackedState) else jax.tree.map(jnp.copy, params)
    ever_active = jax.tree.map(jnp.copy, pack_bits(masks))
    return TrainState(jnp.int32(0), params, masks, opt_state, ema_params, ever_active)


def ema_params_of(state):
    """Return the EMA of the parameters, wherever the state holds it.

    Args:
      state: TrainState.

    Returns:
      Pytree of the shapes of `state.params`; host arrays if the optimizer state is packed.
    """
    if not isinstance(state.opt_state, PackedState):
        return state.ema_params
    # By numpy: the state may be spread over several processes, and nothing compiles.
    ema, indices = jax.device_get((state.opt_state.ema, state.opt_state.indices))

    def put(index, leaf, param):
        if not index.ndim:
            return leaf
        full = np.zeros(param.size, leaf.dtype)
        full[index] = leaf
        return full.reshape(param.shape)

    return jax.tree.map(put, indices, ema, state.params)
