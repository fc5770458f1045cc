"""The training state, its beginning, and the keys that all randomness comes from."""

import logging
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.sparsity.masks import apply_masks
from sparsejax.training.structures import build_method, layer_sparsities

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: optimizer steps taken, int32 scalar.
      params: parameters, exactly zero wherever the mask is False.
      masks: the mask pytree (see `sparsejax.sparsity`).
      opt_state: state of the optimizer; fresh wherever the mask is False.
      ema_params: exponential moving average of params, zero wherever the mask is False.
      ever_active: masks of the weights that were active at some time: what the run has explored
        (in-time over-parameterisation, Liu et al. 2021).
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
      seed: Python int.
      purpose: any string; keys of different purposes are independent.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def create_state(config, task, optimizer):
    """Return the state before the first step: masks drawn, params masked, EMA equal to params.

    Args:
      config: resolved ConfigDict.
      task: Task.
      optimizer: the optax transformation of the train step.

    Returns:
      TrainState on the default device.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer.
    """
    init_key, masks_key = named_key(config.seed, "init"), named_key(config.seed, "masks")
    sparsities = layer_sparsities(config.sparsity, task)
    method = build_method(config.sparsity, task)
    if method.name == "dense":
        logger.info("method dense ignores sparsity.level = %g", config.sparsity.level)

    @jax.jit
    def create(init_key, masks_key):
        params = task.init(init_key)
        return state_from(params, method.init(masks_key, params, sparsities), optimizer)

    return create(init_key, masks_key)


def state_from(params, masks, optimizer):
    """Return the state of step 0 with these params (masked here) and masks."""
    params = apply_masks(params, masks)
    ema_params, ever_active = jax.tree.map(jnp.copy, (params, masks))
    return TrainState(jnp.int32(0), params, masks, optimizer.init(params), ema_params, ever_active)
