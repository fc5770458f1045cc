"""The first stages of CompVis Latent Diffusion: autoencoders that map pixels to latents and back.

Rombach et al. (2022), section 3.1 and appendix G; channels last. Modules are named as in the
reference: `encoder.down.0.block.1.conv1.weight` is `encoder/down_0/block_1/conv1/kernel` here.

The published first stages were trained with two more losses: LPIPS, a distance in the features of a
pretrained VGG network, and, after a warm-up, the hinge loss of a patch discriminator (Esser et al.
2021). Both sharpen what L1 alone leaves blurred. Neither is needed to run a published first
stage.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.layers import (
    GroupNorm,
    QKVAttention,
    at_least_float32,
    conv,
    reference_init,
    upsample,
)
from sparsejax.types import Array, Dtype, PRNGKey, Shape


def _norm(x: Array, groups: int, name: str, dtype: Dtype) -> Array:
    return GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name)(x)


class _ResBlock(nn.Module):
    features: int
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for i in (1, 2):
            h = nn.silu(_norm(h, self.norm_groups, f"norm{i}", self.dtype))
            h = conv(h, self.features, 3, f"conv{i}", dtype=self.dtype)
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "nin_shortcut", dtype=self.dtype)
        return x + h


class _Attention(nn.Module):
    """Single-head attention over all positions."""

    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        h = _norm(x, self.norm_groups, "norm", self.dtype)
        qkv = jnp.stack([conv(h, channels, 1, name, dtype=self.dtype) for name in "qkv"], axis=-2)
        qkv = qkv.reshape(batch, height * width, 1, 3, channels)
        h = QKVAttention(name="attention")(qkv).reshape(x.shape)
        return x + conv(h, channels, 1, "proj_out", dtype=self.dtype)


class _Middle(nn.Module):
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        features = h.shape[-1]
        h = _ResBlock(features, self.norm_groups, self.dtype, name="block_1")(h)
        h = _Attention(self.norm_groups, self.dtype, name="attn_1")(h)
        return _ResBlock(features, self.norm_groups, self.dtype, name="block_2")(h)


class _Resampled(nn.Module):
    """A convolution that halves (strided) or doubles (after nearest neighbours) the size."""

    doubles: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.doubles:
            return conv(upsample(x), x.shape[-1], 3, "conv", dtype=self.dtype)
        # The reference pads only at the bottom and right.
        padding = ((0, 1), (0, 1))
        return conv(x, x.shape[-1], 3, "conv", stride=2, padding=padding, dtype=self.dtype)


class _Level(nn.Module):
    """The blocks at one resolution, and the change to the next."""

    features: int
    num_res_blocks: int
    resample: str  # downsample, upsample, or "" at the last level
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        for i in range(self.num_res_blocks):
            h = _ResBlock(self.features, self.norm_groups, self.dtype, name=f"block_{i}")(h)
        if not self.resample:
            return h
        return _Resampled(self.resample == "upsample", self.dtype, name=self.resample)(h)


class Encoder(nn.Module):
    """Images [batch, height, width, channels] to [batch, height / f, width / f, out_channels]."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Encode."""
        h = conv(x, self.channels, 3, "conv_in", dtype=self.dtype)
        last = len(self.channel_mult) - 1
        for i, mult in enumerate(self.channel_mult):
            h = _Level(
                mult * self.channels,
                self.num_res_blocks,
                "downsample" if i < last else "",
                self.norm_groups,
                self.dtype,
                name=f"down_{i}",
            )(h)
        h = _Middle(self.norm_groups, self.dtype, name="mid")(h)
        h = nn.silu(_norm(h, self.norm_groups, "norm_out", self.dtype))
        return conv(h, self.out_channels, 3, "conv_out", dtype=self.dtype)


class Decoder(nn.Module):
    """[batch, height, width, z_channels] to images [batch, f height, f width, out_channels]."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Decode; level 0, the full resolution, runs last."""
        h = conv(z, self.channel_mult[-1] * self.channels, 3, "conv_in", dtype=self.dtype)
        h = _Middle(self.norm_groups, self.dtype, name="mid")(h)
        for i, mult in reversed(list(enumerate(self.channel_mult))):
            h = _Level(
                mult * self.channels,
                self.num_res_blocks + 1,
                "upsample" if i > 0 else "",
                self.norm_groups,
                self.dtype,
                name=f"up_{i}",
            )(h)
        h = nn.silu(_norm(h, self.norm_groups, "norm_out", self.dtype))
        return conv(h, self.out_channels, 3, "conv_out", dtype=self.dtype)


class Codebook(nn.Module):
    """A codebook [codes, dim], and the nearest code to each latent.

    Call: z [batch, height, width, dim] -> the nearest codes, of the same shape, and their
    indices [batch, height, width] int32. Distances are Euclidean, in float32; ties
    go to the lowest index.
    """

    codes: int
    dim: int
    limit: float

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        """Quantize z."""

        def init(key: PRNGKey, shape: Shape) -> Array:
            return jax.random.uniform(key, shape, minval=-self.limit, maxval=self.limit)

        embedding = self.param("embedding", init, (self.codes, self.dim))
        squares = jnp.sum(embedding**2, axis=-1)

        def nearest(z: Array) -> Array:
            products = jnp.einsum("hwd,kd->hwk", z, embedding, precision="highest")
            return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)

        # One image at a time: the distances of a whole batch would need too much memory.
        indices = jax.lax.map(nearest, at_least_float32(z))
        return jnp.asarray(embedding)[indices], indices


class _Autoencoder(nn.Module):
    """Base class of both autoencoders.

    Attributes:
      channels: width at full resolution, a multiple of `norm_groups`.
      channel_mult: width at each resolution, as a multiple of `channels`; each resolution but
        the last is followed by a halving.
      num_res_blocks: residual blocks at each resolution of the encoder (one more in the
        decoder).
      z_channels: channels of a latent and of a code.
      in_channels: channels of an image.
      norm_groups: groups of every GroupNorm.
      dtype: computation dtype; parameters, latents and images are float32.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 3
    in_channels: int = 3
    norm_groups: int = 32
    dtype: Dtype = None

    def _build(self, moments: int) -> None:
        """Set up both networks; `moments` is 2 if the encoder returns mean and variance."""
        sizes = (self.channels, tuple(self.channel_mult), self.num_res_blocks)
        tail = (self.norm_groups, self.dtype)
        self.encoder = Encoder(*sizes, moments * self.z_channels, *tail)
        self.decoder = Decoder(*sizes, self.in_channels, *tail)
        inside = moments * self.z_channels
        conv_1x1 = functools.partial(nn.Conv, kernel_size=(1, 1), dtype=self.dtype)
        self.quant_conv = conv_1x1(inside, **reference_init(inside))
        self.post_quant_conv = conv_1x1(self.z_channels, **reference_init(self.z_channels))

    @property
    def factor(self) -> int:
        """Downsampling factor: image side divided by latent side."""
        return 2 ** (len(self.channel_mult) - 1)


class VQModel(_Autoencoder):
    """An autoencoder whose latents are quantized to the codes of a codebook.

    The defaults are the published VQ-f4, the first stage of the CelebA-HQ and LSUN-Bedrooms
    models: 55,322,782 parameters. Diffusion runs on latents before quantization; decoding quantizes
    first.

    Attributes:
      codes: number of codes.
      code_limit: codes are initialized uniformly in +-code_limit (None: 1 / codes, as published).
        With such crowded codes, all latents start near a few of them; with 1.0 most codes are used
        from the first steps on, which short trainings need.

    Examples:
      >>> model = VQModel(channels=32, channel_mult=(1, 2), num_res_blocks=1, codes=16)
      >>> def reconstruct(key, x):
      ...     params = model.init(key, x)["params"]
      ...     z = model.apply({"params": params}, x, method="encode")
      ...     return z, model.apply({"params": params}, z, method="decode")
      >>> z, y = jax.eval_shape(reconstruct, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> z.shape, y.shape
      ((1, 4, 4, 3), (1, 8, 8, 3))
    """

    codes: int = 8192
    code_limit: float | None = None

    def setup(self) -> None:
        """Build the layers."""
        self._build(1)
        limit = 1 / self.codes if self.code_limit is None else self.code_limit
        self.codebook = Codebook(self.codes, self.z_channels, limit, name="quantize")

    def encode(self, x: Array) -> Array:
        """Return latents before quantization.

        Args:
          x: images in [-1, 1], [batch, height, width, in_channels].

        Returns:
          [batch, height / f, width / f, z_channels] float32.
        """
        return at_least_float32(self.quant_conv(self.encoder(x)))

    def quantize(self, z: Array) -> tuple[Array, Array]:
        """Return the codes nearest to latents.

        Args:
          z: [batch, height, width, z_channels].

        Returns:
          Tuple of the codes, the shape of `z`, and their indices [batch, height, width] int32.
        """
        return self.codebook(z)

    def decode(self, z: Array, *, quantize: bool = True) -> Array:
        """Return images of latents.

        Args:
          z: latents, [batch, height, width, z_channels].
          quantize: whether to quantize latents first.

        Returns:
          [batch, f height, f width, in_channels] float32, in [-1, 1] up to overshoots.
        """
        if quantize:
            z, _ = self.codebook(z)
        return at_least_float32(self.decoder(self.post_quant_conv(z)))

    def __call__(self, x: Array, noise: Array | None = None) -> tuple[Array, Array]:
        """Reconstruct images, with straight-through gradients of the quantization.

        Args:
          x: images in [-1, 1], [batch, height, width, in_channels].
          noise: ignored; for `KLModel`.

        Returns:
          Tuple of reconstructions, the shape of `x`, and the quantization loss, a scalar:
          |sg(code) - z|^2 + 0.25 |code - sg(z)|^2, means (van den Oord et al. 2017, equation
          3; the weights are those of the published first stages, whose code puts the 0.25 on
          the codes and not on the commitment).
        """
        del noise
        z = self.encode(x)
        codes, _ = self.codebook(z)
        commitment = jnp.mean((jax.lax.stop_gradient(codes) - z) ** 2)
        codes_loss = jnp.mean((codes - jax.lax.stop_gradient(z)) ** 2)
        z = z + jax.lax.stop_gradient(codes - z)
        return self.decode(z, quantize=False), commitment + 0.25 * codes_loss


class KLModel(_Autoencoder):
    """An autoencoder with Gaussian latents, regularized towards the standard normal.

    The attributes are those of `_Autoencoder`.
    """

    def setup(self) -> None:
        """Build the layers."""
        self._build(2)

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Return the mean and log variance (clipped to [-30, 20]) of latents.

        Args:
          x: images in [-1, 1], [batch, height, width, in_channels].

        Returns:
          Tuple of two arrays [batch, height / f, width / f, z_channels] float32.
        """
        moments = at_least_float32(self.quant_conv(self.encoder(x)))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def encode(self, x: Array) -> Array:
        """Return the mean latents of images; shapes as for `VQModel.encode`."""
        return self.moments(x)[0]

    def decode(self, z: Array) -> Array:
        """Return images of latents; shapes as for `VQModel.decode`."""
        return at_least_float32(self.decoder(self.post_quant_conv(z)))

    def __call__(self, x: Array, noise: Array | None = None) -> tuple[Array, Array]:
        """Reconstruct images from sampled latents.

        Args:
          x: images in [-1, 1], [batch, height, width, in_channels].
          noise: standard normal, the shape of the latents (None: decode the mean).

        Returns:
          Tuple of reconstructions, the shape of `x`, and the loss: the Kullback-Leibler
          divergence from the standard normal, summed over an image's latents, divided by its
          number of pixel values (so that it can be added to a mean over pixels), averaged over
          the batch.
        """
        mean, log_variance = self.moments(x)
        z = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        return self.decode(z), divergence / x.size
