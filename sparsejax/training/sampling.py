"""Drawing samples: over all devices of this process, in programs of one shape."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sparsejax.families import Data, Model


def frozen_of(model: Model, data: Data) -> Any:
    """Return what samples are made from beside params: of the data where they reconstruct."""
    return data.inputs() if data.inputs else model.frozen()


def make_sampler(
    model: Model, frozen: Any, key: jax.Array, count: int
) -> Callable[..., np.ndarray]:
    """Return `draw(params, start=0)`: examples `start` to `start + count - 1`, host array.

    The examples are those of `model.sample`, whatever the number of devices.

    Args:
      model: Model.
      frozen: what it samples with beside params; stays on the devices.
      key: PRNG key that determines the endless sequence of examples.
      count: how many examples at once.

    Returns:
      Function of params, compiled at its first call.
    """
    devices = jax.local_devices()
    share = -(-count // len(devices))
    sample = jax.pmap(
        lambda params, frozen, start: model.sample(model.apply, params, frozen, key, share, start),
        in_axes=(None, None, 0),
        devices=devices,
    )
    frozen = jax.tree.map(jax.numpy.asarray, frozen)

    def draw(params, start=0):
        starts = start + share * np.arange(len(devices), dtype=np.int32)
        drawn = np.asarray(sample(params, frozen, starts))
        return drawn.reshape(-1, *drawn.shape[2:])[:count]

    return draw
