"""Sampling over all devices of this process, with a fixed batch shape."""

from collections.abc import Callable

import jax
import numpy as np

from sparsejax.families import Data, Model
from sparsejax.parallel import on_local_devices
from sparsejax.types import Frozen, NumpyArray, PRNGKey, PyTree


def frozen_of(model: Model, data: Data) -> Frozen:
    """Return what sampling needs besides params.

    Args:
      model: Model.
      data: its Data.

    Returns:
      The Data's `inputs` where samples are reconstructions of examples, otherwise what the Model
      keeps frozen.

    Raises:
      ConfigError: a first stage that the Model needs is missing, or not that of the training.
    """
    return data.inputs() if data.inputs else model.frozen()


def make_sampler(
    model: Model, frozen: Frozen, key: PRNGKey, count: int
) -> Callable[..., NumpyArray]:
    """Return `draw(params, start=0)`: `make_keyed_sampler` with a fixed key."""
    draw = make_keyed_sampler(model, frozen, count)
    return lambda params, start=0: draw(params, key, start)


def make_keyed_sampler(model: Model, frozen: Frozen, count: int) -> Callable[..., NumpyArray]:
    """Return `draw(params, key, start=0)`: examples `start` to `start + count - 1`, host array.

    The examples are those of `model.sample`, whatever the number of devices; the key determines
    their endless sequence.

    Args:
      model: Model.
      frozen: what it samples with besides params; stays on the devices.
      count: number of examples per call.

    Returns:
      Function, compiled at its first call.
    """
    devices = jax.local_device_count()
    share = -(-count // devices)
    sample = on_local_devices(
        lambda params, frozen, key, start: model.sample(
            model.apply, params, frozen, key, share, start
        )
    )
    frozen = jax.tree.map(jax.numpy.asarray, frozen)

    def draw(params: PyTree, key: PRNGKey, start: int = 0) -> NumpyArray:
        starts = start + share * np.arange(devices, dtype=np.int32)
        return sample(params, frozen, key, starts)[:count]

    return draw
