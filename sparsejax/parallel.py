"""Data parallelism: one small place for pmap, so that it can be exchanged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.types import NumpyArray, PyTree

AXIS = "data"


def data_parallel(
    function: Callable[..., PyTree], *, donate_state: bool = False
) -> Callable[..., PyTree]:
    """Run `function(state, batch, key)` on all devices, the batch split, the rest replicated.

    Inside, `AXIS` names the device axis. What comes back must be equal on all devices; it is
    returned once, without a device axis.

    Args:
      function: pure function of a replicated pytree, a sharded batch and a replicated key.
      donate_state: whether the memory of `state` is reused; the caller's state is gone then.

    Returns:
      Compiled function of the same arguments.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=(0,) if donate_state else (),
    )


def on_local_devices(function: Callable[..., PyTree]) -> Callable[..., NumpyArray]:
    """Run `function(*shared, part)` on each device of this process, each with its own part.

    Unlike those of `data_parallel`, its calls don't wait for other processes.

    Args:
      function: pure function of replicated pytrees and, last, one device's part; returns an array
        [count, ...].

    Returns:
      Compiled function of the same arguments, the last one the parts of all devices
      [local devices, ...]; returns a host array [local devices * count, ...].
    """
    mapped = jax.pmap(
        lambda shared, part: function(*shared, part),
        in_axes=(None, 0),
        devices=jax.local_devices(),
    )

    def run(*arguments: PyTree) -> NumpyArray:
        *shared, parts = arguments
        results = np.asarray(mapped(tuple(shared), parts))
        return results.reshape(-1, *results.shape[2:])

    return run


def replicate(tree: PyTree) -> PyTree:
    """Copy a pytree to all devices, placed as `data_parallel` functions return it.

    Without it their second call would compile again, for a state that lies elsewhere.
    """
    devices = jax.local_device_count()
    copy = jax.pmap(lambda tree, _: tree, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return copy(tree, jnp.zeros(devices))


def connect_devices() -> None:
    """Connect the devices of all processes, once these are in step.

    On CPUs, the first operation that needs all devices fails if a process comes 30 seconds late,
    as one does that has to compile what another finds in a cache; later ones wait.
    """
    ones = jnp.ones(jax.local_device_count())
    total = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS, out_axes=None)(ones)
    jax.block_until_ready(total)


def shard_batch(batch: PyTree) -> PyTree:
    """Split the leading axis of a host batch over this process's devices.

    Args:
      batch: pytree of arrays [batch / processes, ...].

    Returns:
      Pytree of arrays [local devices, batch / devices, ...].
    """
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
