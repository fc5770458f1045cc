"""The held-out loss: on examples kept out of training, with the same noise for every run."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.families import Model
from sparsejax.training.keys import named_key
from sparsejax.types import Array, Batch, Params, PRNGKey


def held_out_loss(
    model: Model, batches: Iterable[Batch], params: Params, *, seed: int = 0, draws: int = 4
) -> float:
    """Return the mean loss over the held-out examples.

    Every run gets the same diffusion times and the same noise for an example, so the noise adds
    nothing to the difference between two runs.

    Args:
      model: Model.
      batches: the held-out examples, from `Data.held_out`.
      params: EMA weights.
      seed: seed of the noise.
      draws: number of times and noises drawn per example.
    """
    key = named_key(seed, "held out")

    @functools.partial(jax.jit, static_argnums=4)
    def losses(params: Params, batch: Batch, key: PRNGKey, first: int, count: int) -> Array:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = jax.vmap(lambda draw: fold(draw, first + jnp.arange(count)))
        each = keys(fold(key, jnp.arange(draws)))
        return jax.lax.map(lambda k: model.loss(model.apply, params, batch, k, False), each)

    total, examples = 0.0, 0
    for batch in batches:
        count = len(jax.tree.leaves(batch)[0])
        total += count * np.mean(losses(params, batch, key, examples, count))
        examples += count
    return float(total / examples)
