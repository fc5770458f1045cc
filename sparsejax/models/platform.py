"""What computations run on, for the layers whose fastest form depends on it."""

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from sparsejax.types import Dtype


def platform() -> str:
    """Return the name of JAX's default platform, `cpu`, `gpu` or `tpu`.

    Inside of `jax.default_device` it is that of the device.
    """
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def has_fused_attention(dtype: Dtype, head_channels: int) -> bool:
    """Return whether cuDNN has attention that never stores its weights, for such queries.

    It takes half-precision numbers and NVIDIA GPUs from Ampere on
    (https://docs.nvidia.com/deeplearning/cudnn).

    Args:
      dtype: of the queries.
      head_channels: channels of an attention head.
    """
    if dtype not in (jnp.bfloat16, jnp.float16) or head_channels % 8 or head_channels > 128:
        return False
    if platform() != "gpu" or "cuda" not in get_backend().platform_version:
        return False
    return float(jax.local_devices()[0].compute_capability) >= 8
