"""Data parallelism: one small place for pmap, so that it can be exchanged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.types import Batch, PyTree

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


def replicate(tree: PyTree) -> PyTree:
    """Copy a pytree to all devices, placed as `data_parallel` functions return it.

    Without it their second call would compile again, for a state that lies elsewhere.
    """
    devices = jax.local_device_count()
    copy = jax.pmap(lambda tree, _: tree, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return copy(tree, jnp.zeros(devices))


def shard_batch(batch: Batch) -> Batch:
    """Split the leading axis of a host batch over this process's devices.

    Args:
      batch: pytree of arrays [batch / processes, ...].

    Returns:
      Pytree of arrays [local devices, batch / devices, ...].
    """
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
