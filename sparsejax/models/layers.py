"""Layers that the UNet and the autoencoder share: the reference's initialization, channels last."""

import math
import zlib
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.types import Array, Dtype, Input, PRNGKey, Shape

Padding: TypeAlias = int | str | Sequence[int | tuple[int, int]]  # as `nn.Conv` takes it

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def at_least_float32(x: Array) -> Array:
    """Return `x` in float32, or in float64 if that is its dtype."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default, and the reference's."""

    def init(key: PRNGKey, shape: Shape, dtype: Dtype = jnp.float32) -> Array:
        limit = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Initializers(TypedDict):
    """Arguments of `nn.Conv` and `nn.Dense`."""

    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer


def reference_init(fan_in: int, zero: bool = False) -> Initializers:
    """Return `kernel_init` and `bias_init` for `nn.Conv` or `nn.Dense`: PyTorch's, or zeros."""
    if zero:
        return {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.zeros}
    return {"kernel_init": _kernel_init, "bias_init": _bias_init(fan_in)}


def convolve(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Input,
) -> Array:
    """Do what `lax.conv_general_dilated` does, by plain products where they are faster.

    On maps smaller than the window XLA exchanges image and kernel, for a convolution that no
    library knows: on a CPU 3x3 convolutions of 2x2 maps take 25 to 80 times as long as the product
    of patches does. A window of one is a dense layer.

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, channels, features].
      window_strides: pair of ints.
      padding: pairs (low, high) for height and width.
      **options: of `lax.conv_general_dilated`.

    Returns:
      [batch, height / stride, width / stride, features].
    """
    batch, height, width, _ = x.shape
    rows, columns, channels, features = kernel.shape
    is_small = height < rows and width < columns or rows == columns == 1
    is_plain = tuple(window_strides) == (1, 1) and isinstance(padding, list)
    if not (is_small and is_plain and channels == x.shape[-1]):
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(taps, axis=-1).reshape(-1, rows * columns * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(batch, height, width, features)


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
    """Convolve x [batch, height, width, channels] inside a compact module.

    Args:
      x: input.
      features: output channels.
      window: height and width of the kernel.
      name: of the layer.
      stride: in both directions.
      padding: as `nn.Conv` takes it; `window // 2` on every side by default.
      dtype: computation dtype.
      zero: whether kernel and bias begin at zero.

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
    """Map the last axis of x to `features`, inside a compact module; see `conv`."""
    return nn.Dense(features, dtype=dtype, name=name, **reference_init(x.shape[-1], zero))(x)


class Dropout(nn.Module):
    """Dropout whose zeros follow from a key per example, and from the layer's place in the network.

    So what is dropped of an example depends neither on the batch nor on how it is split. Call:
    x [batch, ...], PRNG keys [batch], or None to drop nothing -> the shape of x.

    Attributes:
      rate: share of zeros, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Drop features and divide the others by `1 - rate`."""
        if keys is None or not self.rate:
            return x
        keep, place = 1 - self.rate, zlib.crc32("/".join(self.path).encode())

        def draw(key: PRNGKey) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, place), keep, x.shape[1:])

        return jnp.where(jax.vmap(draw)(keys), x / keep, jnp.zeros_like(x))


class GroupNorm(nn.Module):
    """`nn.GroupNorm` that sums over positions before it sums over the channels of a group.

    On a CPU it takes a third to half the time: the long sums run along memory. Call:
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
    """Double height and width of x [batch, height, width, channels] by nearest neighbours."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class QKVAttention(nn.Module):
    """Softmax attention over split heads, without parameters of its own.

    Call: qkv [batch, length, heads, 3, head_channels] -> [batch, length, heads,
    head_channels]. The softmax is at least float32.
    """

    @nn.compact
    def __call__(self, qkv: Array, valid: Array | None = None) -> Array:
        """Attend, to keys where `valid` [batch, length] is True alone if it is given.

        Queries and keys are scaled by head_channels ** -1/4 each.
        """
        # Heads before positions: XLA's batched products want it on a CPU.
        q, k, v = (jnp.swapaxes(qkv[..., i, :], 1, 2) for i in range(3))
        scale = qkv.shape[-1] ** -0.25
        weights = at_least_float32((q * scale) @ jnp.swapaxes(k * scale, 2, 3))
        if valid is not None:
            weights = jnp.where(valid[:, None, None], weights, -jnp.inf)
        # The softmax, divided by its sum after the product: that is the smaller array.
        largest = jax.lax.stop_gradient(weights.max(axis=-1, keepdims=True))
        weights = jnp.exp(weights - largest)
        total = weights.sum(axis=-1, keepdims=True)
        attended = (weights.astype(v.dtype) @ v) / total.astype(v.dtype)
        return jnp.swapaxes(attended, 1, 2)
