"""The UNet of CompVis Latent Diffusion, channels last.

Rombach et al. (2022); the architecture is that of Dhariwal and Nichol (2021). With another time
embedding, epsilon and padding it becomes that of Ho et al. (2020), published as google/ddpm-*.
Modules are named as in the reference, with underscores for the dots before numbers:
`input_blocks.1.0.in_layers.2.weight` is `input_blocks_1_0/in_layers_2/kernel` here.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.models.layers import (
    Dropout,
    GroupNorm,
    QKVAttention,
    at_least_float32,
    conv,
    dense,
    embed_labels,
    upsample,
)
from sparsejax.types import Array, Dtype, Keys


def timestep_embedding(
    t: Array,
    dim: int,
    max_period: float = 10_000.0,
    *,
    freq_shift: int = 0,
    flip_sin_to_cos: bool = True,
) -> Array:
    """Embed diffusion steps in cosines, then sines, of geometric frequencies.

    Args:
      t: diffusion steps, [batch].
      dim: width of the embedding; if odd, the last column is zero.
      max_period: longest period divided by 2 pi: that of the last frequency if `freq_shift` is 1,
        as in Ho et al. (2020); that of the frequency after it if `freq_shift` is 0.
      freq_shift: 0 or 1, less than `dim // 2`; see `max_period`.
      flip_sin_to_cos: False puts the sines first.

    Returns:
      [batch, dim], float64 if `t` is float64, else float32.
    """
    half, t = dim // 2, at_least_float32(t)
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / (half - freq_shift))
    angles = t[:, None] * frequencies.astype(t.dtype)
    waves = [jnp.cos(angles), jnp.sin(angles)]
    embedding = jnp.concatenate(waves if flip_sin_to_cos else waves[::-1], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def _norm(x: Array, groups: int, name: str, *, epsilon: float, dtype: Dtype = None) -> Array:
    return GroupNorm(groups, epsilon=epsilon, dtype=dtype, name=name)(x)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions around an added time embedding, and a skip connection.

    Call: x [batch, height, width, channels], embedding [batch, dim] ->
    [batch, height, width, features].
    """

    features: int
    norm_groups: int
    dropout: float = 0.0
    dtype: Dtype = None
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, embedding: Array, dropout_keys: Keys | None = None) -> Array:
        """Apply the block; PRNG keys [batch] enable dropout."""
        norm = functools.partial(_norm, epsilon=self.norm_eps, dtype=self.dtype)
        h = nn.silu(norm(x, self.norm_groups, "in_layers_0"))
        h = conv(h, self.features, 3, "in_layers_2", dtype=self.dtype)
        shift = dense(nn.silu(embedding), self.features, "emb_layers_1", dtype=self.dtype)
        h = h + shift[:, None, None, :]
        h = nn.silu(norm(h, self.norm_groups, "out_layers_0"))
        h = Dropout(self.dropout)(h, dropout_keys)
        h = conv(h, self.features, 3, "out_layers_3", dtype=self.dtype, zero=True)
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "skip_connection", dtype=self.dtype)
        return x + h


class AttentionBlock(nn.Module):
    """Normalized self-attention over all positions, with a skip connection.

    Call: x [batch, height, width, channels] -> the same shape. The qkv projection is laid
    out head by head: [head][q, k, v][channel].
    """

    num_head_channels: int
    norm_groups: int
    dtype: Dtype = None
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the block."""
        batch, height, width, channels = x.shape
        h = _norm(x, self.norm_groups, "norm", epsilon=self.norm_eps, dtype=self.dtype)
        h = h.reshape(batch, height * width, channels)
        qkv = dense(h, 3 * channels, "qkv", dtype=self.dtype)
        # The projection determines the number of heads: compact networks have fewer.
        qkv = qkv.reshape(batch, height * width, -1, 3, self.num_head_channels)
        h = QKVAttention(name="attention")(qkv)
        h = h.reshape(batch, height * width, -1)
        h = dense(h, channels, "proj_out", dtype=self.dtype, zero=True)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Halve height and width by a strided 3x3 convolution.

    Attributes:
      dtype: computation dtype.
      padding: zeros on every side; 0 pads one row and column at the bottom and right only.
    """

    dtype: Dtype = None
    padding: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [batch, height, width, channels] to [batch, height / 2, width / 2, channels]."""
        padding = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
        return conv(x, x.shape[-1], 3, "op", stride=2, padding=padding, dtype=self.dtype)


class Upsample(nn.Module):
    """Double height and width by nearest neighbours, then a 3x3 convolution."""

    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [batch, height, width, channels] to [batch, 2 height, 2 width, channels]."""
        return conv(upsample(x), x.shape[-1], 3, "conv", dtype=self.dtype)


class UNet(nn.Module):
    """Predict the noise in x at diffusion step t.

    Call: `UNet(...).apply({"params": params}, x [batch, height, width, in_channels],
    t [batch])` -> [batch, height, width, out_channels], at least float32. The defaults are the
    published model for CelebA-HQ and LSUN-Bedrooms latents: 274,056,163 parameters.

    Attributes:
      in_channels: channels of x.
      out_channels: channels of the predicted noise.
      model_channels: width at full resolution, a multiple of `norm_groups`.
      num_res_blocks: residual blocks at each resolution on the way down (one more on the
        way up).
      attention_resolutions: downsampling factors (1, 2, 4, ...) at which attention follows
        each residual block.
      channel_mult: width at each resolution, as a multiple of `model_channels`; each
        resolution but the last is followed by a halving.
      num_head_channels: channels of an attention head.
      dropout: dropout rate inside residual blocks.
      norm_groups: groups of every GroupNorm; 32 in the published models. A narrow network
        needs fewer: groups of one channel would normalize the time embedding away.
      dtype: computation dtype; parameters are float32.
      remat: whether the backward pass recomputes the inside of each block: less memory, about a
        third more time.
      norm_eps: epsilon of every GroupNorm; 1e-6 in google/ddpm-*.
      freq_shift: 0 or 1; with 1, as in google/ddpm-*, the last frequency of the time embedding is
        1e-4, with 0 the next one would be (`timestep_embedding`).
      flip_sin_to_cos: whether the time embedding has its cosines first; False, as in
        google/ddpm-*, puts the sines first.
      downsample_padding: zeros on every side before a halving, 0 or 1; 0, as in google/ddpm-*, pads
        one row at the bottom and one column at the right only.
      classes: number of labels; 0 for a network without labels. A label is embedded and added to
        the time embedding, as in Dhariwal and Nichol (2021); no label adds nothing.
      label_dropout: rate at which training leaves labels out, for classifier-free guidance.
    """

    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 224
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8, 4, 2)
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_head_channels: int = 32
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Dtype = None
    remat: bool = False
    norm_eps: float = 1e-5
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    downsample_padding: int = 1
    classes: int = 0
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
          x: noisy examples, [batch, height, width, in_channels].
          t: diffusion steps, [batch].
          labels: [batch] int from 0 to `classes`, which stands for no label (default: no labels).
          train: enables dropout.
          dropout_keys: PRNG keys [batch]; if None, they are split from the rng `dropout`.

        Returns:
          [batch, height, width, out_channels] float32.
        """
        if not (train and self.dropout):
            dropout_keys = None
        elif dropout_keys is None:
            dropout_keys = jax.random.split(self.make_rng("dropout"), len(x))
        embedding = self._embed_time(t)
        if self.classes:
            width = embedding.shape[-1]
            embedding += embed_labels(labels, len(x), self.classes, width, self.dtype)

        def res_block(h: Array, features: int, name: str) -> Array:
            cls = nn.remat(ResBlock) if self.remat else ResBlock
            arguments = (features, self.norm_groups, self.dropout, self.dtype, self.norm_eps)
            return cls(*arguments, name=name)(h, embedding, dropout_keys)

        def block(h: Array, features: int, factor: int, name: str) -> Array:
            h = res_block(h, features, f"{name}_0")
            return self._attend(h, f"{name}_1") if factor in self.attention_resolutions else h

        h = conv(x, self.model_channels, 3, "input_blocks_0_0", dtype=self.dtype)
        skips = [h]
        levels = len(self.channel_mult)
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                features = mult * self.model_channels
                h = block(h, features, 2**level, f"input_blocks_{len(skips)}")
                skips.append(h)
            if level + 1 < levels:
                name = f"input_blocks_{len(skips)}_0"
                h = Downsample(self.dtype, self.downsample_padding, name=name)(h)
                skips.append(h)

        h = res_block(h, h.shape[-1], "middle_block_0")
        h = self._attend(h, "middle_block_1")
        h = res_block(h, h.shape[-1], "middle_block_2")

        index = 0
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, mult * self.model_channels, 2**level, f"output_blocks_{index}")
                if level > 0 and i == self.num_res_blocks:
                    place = 2 if 2**level in self.attention_resolutions else 1
                    h = Upsample(self.dtype, name=f"output_blocks_{index}_{place}")(h)
                index += 1

        h = _norm(h, self.norm_groups, "out_0", epsilon=self.norm_eps, dtype=self.dtype)
        h = nn.silu(h)
        h = conv(h, self.out_channels, 3, "out_2", dtype=self.dtype, zero=True)
        return at_least_float32(h)

    def _embed_time(self, t: Array) -> Array:
        """Return the time embedding, [batch, 4 model_channels]."""
        embedding = timestep_embedding(
            t,
            self.model_channels,
            freq_shift=self.freq_shift,
            flip_sin_to_cos=self.flip_sin_to_cos,
        )
        width = 4 * self.model_channels
        embedding = dense(embedding, width, "time_embed_0", dtype=self.dtype)
        return dense(nn.silu(embedding), width, "time_embed_2", dtype=self.dtype)

    def _attend(self, h: Array, name: str) -> Array:
        cls = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        arguments = (self.num_head_channels, self.norm_groups, self.dtype, self.norm_eps)
        return cls(*arguments, name=name)(h)
