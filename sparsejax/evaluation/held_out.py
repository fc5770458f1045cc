"""The loss on examples that no training has seen, with noise that is the same for every run."""

import functools

import jax
import numpy as np

from sparsejax.training.state import named_key


def held_out_loss(task, params, *, seed=0, draws=4):
    """Return the mean loss over the held-out examples.

    Every example gets the same diffusion times and the same noise whatever the run, so the
    difference of two runs has no noise of its own.

    Args:
      task: Task with `held_out`.
      params: EMA weights.
      seed: of the noise.
      draws: times and noises for each example.

    Returns:
      float.
    """
    key = named_key(seed, "held out")
    total = examples = 0
    for batch in task.held_out():
        count = len(jax.tree.leaves(batch)[0])
        keys = _keys(key, examples, count, draws)
        losses = [_loss(task.loss, task.apply, params, batch, keys[i]) for i in range(draws)]
        total += count * np.mean(jax.device_get(losses))
        examples += count
    return float(total / examples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _keys(key, first, count, draws):
    """Return a key for each draw and example, [draws, count]."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda draw: fold(draw, first + jax.numpy.arange(count)))(
        fold(key, jax.numpy.arange(draws))
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(loss, apply, params, batch, keys):
    return loss(apply, params, batch, keys, False)
