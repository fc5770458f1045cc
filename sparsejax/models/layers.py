"""Layers shared by the networks, channels last, initialized as in PyTorch."""

import math
import zlib
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.convolutions import convolve
from sparsejax.models.platform import has_fused_attention
from sparsejax.types import Array, Dtype, PRNGKey, Shape

Padding: TypeAlias = int | str | Sequence[int | tuple[int, int]]  # as `nn.Conv` takes it

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def at_least_float32(x: Array) -> Array:
    """Return `x` in float32, or in float64 if that is its dtype."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), PyTorch's default."""

    def init(key: PRNGKey, shape: Shape, dtype: Dtype = jnp.float32) -> Array:
        limit = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Initializers(TypedDict):
    """Arguments of `nn.Conv` and `nn.Dense`."""

    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer


def reference_init(fan_in: int, zero: bool = False) -> Initializers:
    """Return `kernel_init` and `bias_init` for `nn.Conv` or `nn.Dense`: PyTorch's or zeros."""
    if zero:
        return {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.zeros}
    return {"kernel_init": _kernel_init, "bias_init": _bias_init(fan_in)}


def conv(
    x: Array,
    features: int,
    window: int,
    name: str,
    *,
    stride: int = 1,
    padding: Padding | None = None,
    dtype: Dtype = None,
    zero: bool = False,
) -> Array:
    """Apply a convolution inside a compact module.

    Args:
      x: [batch, height, width, channels].
      features: output channels.
      window: height and width of the kernel.
      name: name of the layer.
      stride: stride in both directions.
      padding: as for `nn.Conv` (default: `window // 2` on every side).
      dtype: computation dtype.
      zero: whether kernel and bias are initialized to zero.

    Returns:
      [batch, height / stride, width / stride, features].
    """
    return nn.Conv(
        features,
        (window, window),
        strides=stride,
        padding=window // 2 if padding is None else padding,
        dtype=dtype,
        name=name,
        conv_general_dilated=convolve,
        **reference_init(x.shape[-1] * window**2, zero),
    )(x)


def dense(x: Array, features: int, name: str, *, dtype: Dtype = None, zero: bool = False) -> Array:
    """Apply a dense layer to the last axis of x inside a compact module; see `conv`."""
    return nn.Dense(features, dtype=dtype, name=name, **reference_init(x.shape[-1], zero))(x)


class Dropout(nn.Module):
    """Dropout with one key per example, folded with the layer's path.

    What is dropped from an example thus depends neither on its batch nor on the number of devices.
    Call: x [batch, ...], PRNG keys [batch], or None to drop nothing -> the shape of x.

    Attributes:
      rate: fraction of zeros, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Set features to zero and divide the others by `1 - rate`."""
        if keys is None or not self.rate:
            return x
        keep, place = 1 - self.rate, zlib.crc32("/".join(self.path).encode())

        def draw(key: PRNGKey) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, place), keep, x.shape[1:])

        return jnp.where(jax.vmap(draw)(keys), x / keep, jnp.zeros_like(x))


class GroupNorm(nn.Module):
    """`nn.GroupNorm` that sums over positions first, then over the channels of a group.

    On a CPU it takes a third to half the time, because the long sums run along memory. Call:
    x [batch, ..., channels] -> the same shape. Statistics are at least float32.

    Attributes:
      num_groups: number of groups; None where `group_size` is given.
      group_size: channels of a group; None where `num_groups` is given.
      epsilon: added to the variance.
      dtype: of the result; that of x if None.
    """

    num_groups: int | None
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize."""
        batch, *positions, channels = x.shape
        groups = self.num_groups or channels // (self.group_size or channels)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        def group_mean(y: Array) -> Array:
            for _ in positions:  # one axis at a time: short sums round less
                y = y.mean(1)
            means = y.reshape(batch, groups, -1).mean(2)
            means = jnp.repeat(means, channels // groups, axis=1)
            return means.reshape(batch, *[1] * len(positions), channels)

        wide = at_least_float32(x)
        wide = wide - group_mean(wide)
        variance = group_mean(wide**2)
        y = wide * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return y.astype(self.dtype or x.dtype)


def upsample(x: Array) -> Array:
    """Double the height and width of x [batch, height, width, channels] by nearest neighbours."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class QKVAttention(nn.Module):
    """Multi-head softmax attention without parameters.

    Call: qkv [batch, length, heads, 3, head_channels] -> [batch, length, heads,
    head_channels]. The softmax is at least float32. Where cuDNN's attention runs, it is used.
    """

    @nn.compact
    def __call__(self, qkv: Array, valid: Array | None = None) -> Array:
        """Attend to all keys, or to those where `valid` [batch, length] is True.

        Queries and keys are each scaled by head_channels ** -1/4.
        """
        if valid is None and has_fused_attention(qkv.dtype, qkv.shape[-1]):
            q, k, v = (qkv[..., i, :] for i in range(3))
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        # Heads before positions: faster for XLA's batched products on a CPU.
        q, k, v = (jnp.swapaxes(qkv[..., i, :], 1, 2) for i in range(3))
        scale = qkv.shape[-1] ** -0.25
        weights = at_least_float32((q * scale) @ jnp.swapaxes(k * scale, 2, 3))
        if valid is not None:
            weights = jnp.where(valid[:, None, None], weights, -jnp.inf)
        # Softmax, with the division after the product, where the array is smaller.
        largest = jax.lax.stop_gradient(weights.max(axis=-1, keepdims=True))
        weights = jnp.exp(weights - largest)
        total = weights.sum(axis=-1, keepdims=True)
        attended = (weights.astype(v.dtype) @ v) / total.astype(v.dtype)
        return jnp.swapaxes(attended, 1, 2)


def embed_labels(
    labels: Array | None, batch: int, classes: int, features: int, dtype: Dtype = None
) -> Array:
    """Embed labels inside a compact module, as its layer `label_emb`.

    Args:
      labels: [batch] int from 0 to `classes`, which stands for no label (default: no labels).
      batch: size of the batch.
      classes: number of labels.
      features: number of features.
      dtype: dtype of the features.

    Returns:
      [batch, features]; zeros for no label.
    """
    initial = nn.initializers.normal(1.0)
    table = nn.Embed(classes, features, dtype=dtype, embedding_init=initial, name="label_emb")
    labels = jnp.full((batch,), classes) if labels is None else labels
    known = (labels < classes)[:, None]
    return jnp.where(known, table(jnp.minimum(labels, classes - 1)), 0)
