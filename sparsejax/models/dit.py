"""The diffusion transformer (DiT) of Peebles and Xie (2023) with adaLN-Zero, channels last.

Modules are named as in the reference, with underscores for the dots before numbers:
`blocks.0.adaLN_modulation.1.weight` is `blocks_0/adaLN_modulation_1/kernel` here.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.models.convolutions import convolve
from sparsejax.models.layers import QKVAttention, at_least_float32
from sparsejax.models.unet import timestep_embedding
from sparsejax.types import Array, Dtype, Keys, PRNGKey, Shape

# Width, depth and heads of the published sizes (Peebles and Xie 2023, table 1).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_TIME_FREQUENCIES = 256
_NORM_EPS = 1e-6

_small_normal = nn.initializers.normal(0.02)


def position_embedding(grid: int, dim: int) -> Array:
    """Return the fixed embedding of the positions of a square grid, row by row.

    The first half of the channels encodes the column, the second half the row, each in sines, then
    cosines, of geometric frequencies.

    Args:
      grid: number of rows and of columns.
      dim: channels, a multiple of 4.

    Returns:
      [grid ** 2, dim] float32.

    Examples:
      >>> [round(x, 2) for x in position_embedding(2, 4)[1].tolist()]
      [0.84, 0.54, 0.0, 1.0]
    """
    frequencies = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4))
    angles = np.arange(grid)[:, None] * frequencies
    along = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    # Only here as large as the image, so that the shapes of a network can be found without memory.
    columns = jnp.broadcast_to(jnp.asarray(along)[None], (grid, grid, dim // 2))
    rows = jnp.broadcast_to(jnp.asarray(along)[:, None], (grid, grid, dim // 2))
    return jnp.concatenate([columns, rows], axis=2).reshape(grid**2, dim)


def _xavier_uniform(key: PRNGKey, shape: Shape, dtype: Dtype = jnp.float32) -> Array:
    """Initialize a kernel as the matrix [all inputs of an output, outputs], convolutions too."""
    limit = math.sqrt(6 / (math.prod(shape[:-1]) + shape[-1]))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def _dense(
    x: Array,
    features: int,
    name: str,
    *,
    dtype: Dtype,
    init: nn.initializers.Initializer = _xavier_uniform,
) -> Array:
    return nn.Dense(features, dtype=dtype, name=name, kernel_init=init)(x)


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Return x [batch, length, channels], scaled and shifted by vectors [batch, channels]."""
    return x * (1 + scale[:, None]) + shift[:, None]


def _normalize(x: Array, epsilon: float, dtype: Dtype) -> Array:
    """Normalize the last axis, without parameters; statistics are at least float32."""
    wide = at_least_float32(x)
    wide = wide - wide.mean(-1, keepdims=True)
    variance = (wide**2).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(variance + epsilon)).astype(dtype or x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention: x [batch, length, channels] -> the same shape.

    The qkv projection is laid out [q, k, v][head][channel], as in the reference.
    """

    head_channels: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Attend from every position to every position."""
        qkv = _dense(x, 3 * x.shape[-1], "qkv", dtype=self.dtype)
        # The projection determines the number of heads: compact networks have fewer.
        qkv = qkv.reshape(*x.shape[:2], 3, -1, self.head_channels)
        attended = QKVAttention(name="attention")(jnp.swapaxes(qkv, 2, 3))
        return _dense(attended.reshape(*x.shape[:2], -1), x.shape[-1], "proj", dtype=self.dtype)


class MLP(nn.Module):
    """Two dense layers around a GELU: x [batch, length, channels] -> the same shape."""

    hidden: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the layers; the GELU is approximated by tanh."""
        h = nn.gelu(_dense(x, self.hidden, "fc1", dtype=self.dtype), approximate=True)
        return _dense(h, x.shape[-1], "fc2", dtype=self.dtype)


class DiTBlock(nn.Module):
    """Attention and an MLP, each shifted, scaled and gated by the condition (adaLN-Zero).

    Call: x [batch, length, channels], condition [batch, channels] -> [batch, length, channels].
    """

    num_heads: int
    mlp_hidden: int
    mlp_norm_eps: float
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Apply the block, at first the identity: gates begin at zero."""
        channels, zeros = x.shape[-1], nn.initializers.zeros
        modulation = _dense(
            nn.silu(condition), 6 * channels, "adaLN_modulation_1", dtype=self.dtype, init=zeros
        )
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)
        h = _modulate(_normalize(x, _NORM_EPS, self.dtype), shift, scale)
        attention = Attention(channels // self.num_heads, self.dtype, name="attn")
        x = x + gate[:, None] * attention(h)
        h = _modulate(_normalize(x, self.mlp_norm_eps, self.dtype), mlp_shift, mlp_scale)
        return x + mlp_gate[:, None] * MLP(self.mlp_hidden, self.dtype, name="mlp")(h)


class FinalLayer(nn.Module):
    """Project each position to its patch: x [batch, length, channels] -> [..., features]."""

    features: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Normalize, modulate by the condition [batch, channels], and project."""
        modulation = _dense(
            nn.silu(condition),
            2 * x.shape[-1],
            "adaLN_modulation_1",
            dtype=self.dtype,
            init=nn.initializers.zeros,
        )
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = _modulate(_normalize(x, _NORM_EPS, self.dtype), shift, scale)
        return _dense(h, self.features, "linear", dtype=self.dtype, init=nn.initializers.zeros)


class TimeEmbedder(nn.Module):
    """Embed diffusion steps t [batch] in vectors [batch, features]."""

    features: int
    freq_shift: int = 0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """Apply two dense layers to sinusoidal features."""
        h = timestep_embedding(t, _TIME_FREQUENCIES, freq_shift=self.freq_shift)
        h = nn.silu(_dense(h, self.features, "mlp_0", dtype=self.dtype, init=_small_normal))
        return _dense(h, self.features, "mlp_2", dtype=self.dtype, init=_small_normal)


class LabelEmbedder(nn.Module):
    """Embed labels [batch] in vectors; the last row, `classes`, stands for no label."""

    classes: int
    features: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        """Look the labels up."""
        table = nn.Embed(
            self.classes + 1,
            self.features,
            dtype=self.dtype,
            embedding_init=_small_normal,
            name="embedding_table",
        )
        return table(labels)


class PatchEmbedder(nn.Module):
    """Project patches to vectors: x [batch, height, width, channels] -> [batch, length, dim]."""

    patch_size: int
    features: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply a convolution whose stride is its window."""
        h = nn.Conv(
            self.features,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding=0,
            dtype=self.dtype,
            name="proj",
            kernel_init=_xavier_uniform,
            conv_general_dilated=convolve,
        )(x)
        return h.reshape(len(x), -1, self.features)


class DiT(nn.Module):
    """Predict the noise in x at diffusion step t by a transformer on patches.

    Call: `DiT(...).apply({"params": params}, x [batch, size, size, in_channels], t [batch],
    labels [batch])` -> [batch, size, size, in_channels], at least float32. Published sizes are in
    `SIZES`; DiT-XL/2 for ImageNet's latents has `in_channels=4, classes=1000, learn_sigma=True`
    and 674,834,720 parameters, 675,129,632 with its fixed position embedding.

    Attributes:
      in_channels: channels of x and of the prediction.
      patch_size: height and width of a patch; 2, 4 or 8 in the published models.
      hidden_size: width, a multiple of 4 and of `num_heads`.
      depth: number of blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of a block's MLP, as a multiple of `hidden_size`.
      classes: number of labels; 0 for a network without labels.
      label_dropout: rate at which training leaves labels out, for classifier-free guidance.
      learn_sigma: whether the network has the variances of the published models among its outputs.
        They are neither trained nor used here.
      dtype: computation dtype; parameters are float32.
      remat: whether the backward pass recomputes the inside of each block: less memory, about a
        third more time.
      freq_shift: 0 or 1; with 1, as in diffusers, the last frequency of the time embedding is
        1e-4, with 0, as in the reference, the next one would be (`timestep_embedding`).
      mlp_norm_eps: epsilon of the normalization before each MLP; 1e-6 in the reference, 1e-5 in
        diffusers' files. That of the others is 1e-6.
    """

    in_channels: int = 3
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    classes: int = 0
    learn_sigma: bool = False
    dtype: Dtype = None
    remat: bool = False
    freq_shift: int = 0
    mlp_norm_eps: float = _NORM_EPS
    label_dropout: float = 0.1

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        labels: Array | None = None,
        *,
        train: bool = False,
        dropout_keys: Keys | None = None,
    ) -> Array:
        """Predict the noise.

        Args:
          x: noisy examples, [batch, size, size, in_channels], `size` a multiple of `patch_size`.
          t: diffusion steps, [batch].
          labels: [batch] int from 0 to `classes`, which stands for no label (default: no labels).
          train: ignored: there is no dropout.
          dropout_keys: ignored.

        Returns:
          [batch, size, size, in_channels] float32.
        """
        del train, dropout_keys
        batch, size, _, channels = x.shape
        patch, grid = self.patch_size, size // self.patch_size
        h = PatchEmbedder(patch, self.hidden_size, self.dtype, name="x_embedder")(x)
        h = h + position_embedding(grid, self.hidden_size).astype(h.dtype)
        embed_time = TimeEmbedder(self.hidden_size, self.freq_shift, self.dtype, name="t_embedder")
        condition = embed_time(t)
        if self.classes:
            if labels is None:
                labels = jnp.full((batch,), self.classes)
            embedder = LabelEmbedder(self.classes, self.hidden_size, self.dtype, name="y_embedder")
            condition = condition + embedder(labels)
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        hidden = int(self.hidden_size * self.mlp_ratio)
        for i in range(self.depth):
            arguments = (self.num_heads, hidden, self.mlp_norm_eps, self.dtype)
            h = block(*arguments, name=f"blocks_{i}")(h, condition)
        outputs = channels * (2 if self.learn_sigma else 1)
        h = FinalLayer(patch**2 * outputs, self.dtype, name="final_layer")(h, condition)
        h = h.reshape(batch, grid, grid, patch, patch, outputs)[..., :channels]
        return at_least_float32(jnp.swapaxes(h, 2, 3).reshape(x.shape))
