"""Drawing samples: over all devices of this process, in programs of one shape."""

import jax
import numpy as np


def make_sampler(task, key, count):
    """Return `draw(params, start=0)`: examples `start` to `start + count - 1`, host array.

    The examples are those of `task.sample`, whatever the number of devices.

    Args:
      task: Task.
      key: PRNG key that determines the endless sequence of examples.
      count: how many examples at once.

    Returns:
      Function of params, compiled at its first call; what the task keeps frozen stays on the
      devices.
    """
    devices = jax.local_devices()
    share = -(-count // len(devices))
    sample = jax.pmap(
        lambda params, frozen, start: task.sample(task.apply, params, frozen, key, share, start),
        in_axes=(None, None, 0),
        devices=devices,
    )
    frozen = jax.tree.map(jax.numpy.asarray, task.frozen())

    def draw(params, start=0):
        starts = start + share * np.arange(len(devices), dtype=np.int32)
        drawn = np.asarray(sample(params, frozen, starts))
        return drawn.reshape(-1, *drawn.shape[2:])[:count]

    return draw
