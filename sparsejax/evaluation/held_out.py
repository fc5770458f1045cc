"""The loss on examples that no training has seen, with noise that is the same for every run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.training.state import named_key


def held_out_loss(model, batches, params, *, seed=0, draws=4):
    """Return the mean loss over the held-out examples.

    Every example gets the same diffusion times and the same noise whatever the run, so the
    difference of two runs has no noise of its own.

    Args:
      model: Model.
      batches: the held-out ones, of `Data.held_out`.
      params: EMA weights.
      seed: of the noise.
      draws: times and noises for each example.

    Returns:
      float.
    """
    key = named_key(seed, "held out")

    @functools.partial(jax.jit, static_argnums=4)
    def losses(params, batch, key, first, count):
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = jax.vmap(lambda draw: fold(draw, first + jnp.arange(count)))
        each = keys(fold(key, jnp.arange(draws)))
        return jax.lax.map(lambda k: model.loss(model.apply, params, batch, k, False), each)

    total = examples = 0
    for batch in batches:
        count = len(jax.tree.leaves(batch)[0])
        total += count * np.mean(losses(params, batch, key, examples, count))
        examples += count
    return float(total / examples)
