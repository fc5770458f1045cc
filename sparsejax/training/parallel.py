"""Data parallelism: one small place for pmap, so that it can be exchanged."""

import jax

AXIS = "data"


def data_parallel(function, *, donate_state=False):
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


def shard_batch(batch):
    """Split the leading axis of a host batch over this process's devices.

    Args:
      batch: pytree of arrays [batch / processes, ...].

    Returns:
      Pytree of arrays [local devices, batch / devices, ...].
    """
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
