"""The exponential moving average of the parameters, which samples are drawn with."""

import jax
import jax.numpy as jnp

from sparsejax.types import Array, ArrayLike, Masks, Params


def ema_decay(step: ArrayLike, decay: float) -> Array:
    """Return min(decay, (1 + step) / (10 + step)): EMA with warm-up, as Latent Diffusion's.

    Args:
      step: number of EMA updates, this one included.
      decay: the limit.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update_ema(ema_params: Params, params: Params, decay: ArrayLike) -> Params:
    """Return `decay * ema_params + (1 - decay) * params`, leaf by leaf."""
    return jax.tree.map(lambda ema, p: ema - (1 - decay) * (ema - p), ema_params, params)


def move_ema(ema_params: Params, params: Params, before: Masks, after: Masks) -> Params:
    """Return the EMA after a topology update.

    Args:
      ema_params: the EMA before the update.
      params: the parameters after it, masked.
      before: masks before the update.
      after: masks after it.

    Returns:
      Pytree: weights that stay active keep their EMA; newly active ones start at their value in
      `params`, usually zero; inactive ones are zero.
    """
    return jax.tree.map(
        lambda ema, param, old, new: jnp.where(old & new, ema, param),
        ema_params,
        params,
        before,
        after,
    )
