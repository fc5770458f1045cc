"""The denoisers of ChiroDiff: a bidirectional GRU and a Transformer on noisy pen points.

Das et al. (2023), arXiv 2304.03785, and its published code. Parameter names follow that code, so
that `convert.chirodiff_from_torch` needs no table. Sequences are [batch, length, 3] with x, y, pen,
padded at the end; padding never affects valid points.
"""

import functools
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.layers import QKVAttention, dense, embed_labels, reference_init
from sparsejax.types import Array, Dtype

_Saved: TypeAlias = tuple[Array, ...]  # what the backward pass reads

REPRESENTATIONS = ("threeseqdel", "threeseqabs")
TIME_EMBEDDINGS = ("randomfourier", "sinusoidal")


def fourier_features(weights: Array, times: Array) -> Array:
    """Return random Fourier features: all sines, then all cosines, of 8 pi `weights` x `times`.

    Args:
      weights: fixed random numbers, [features / 2, 1].
      times: [...], in [0, 1].

    Returns:
      [..., features] float32.
    """
    angles = 2 * jnp.pi * 4 * weights[:, 0] * times[..., None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sinusoidal_features(features: int, steps: int, t: Array) -> Array:
    """Return sines and cosines of t, interleaved, of wavelengths from 2 pi to 2 pi `steps`.

    Args:
      features: number of features, even.
      steps: T, the base of the wavelengths (10000 in Transformers).
      t: [...] int, in 0..T-1.

    Returns:
      [..., features] float32.
    """
    rates = steps ** (-jnp.arange(0, features, 2) / features)
    angles = t[..., None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*t.shape, features)


def motion(noisy: Array, representation: str) -> Array:
    """Return position and velocity of each point, both computed from the noisy sequence.

    Args:
      noisy: [batch, length, 3]: offsets (`threeseqdel`) or points (`threeseqabs`), and pen.
      representation: `threeseqdel` or `threeseqabs`.

    Returns:
      [batch, length, 5]: position and velocity; the pen stays next to what `noisy` holds.
    """
    xy = noisy[..., :2]
    if representation == "threeseqdel":
        return jnp.concatenate([jnp.cumsum(xy, axis=1), noisy], axis=-1)
    velocity = jnp.diff(xy, axis=1, prepend=jnp.zeros_like(xy[:, :1]))
    return jnp.concatenate([noisy, velocity], axis=-1)


class _Denoiser(nn.Module):
    """Base class of the denoisers: their arguments and the embedding of diffusion time.

    Attributes:
      steps: diffusion steps T.
      layers: number of layers.
      hidden: width H.
      pe_dim: number of features of a time embedding, even.
      time_embedding: `randomfourier` (its matrix, never trained, is the variable `pe_proj_W` of
        the collection `constants`) or `sinusoidal`.
      representation: `threeseqdel` (offsets) or `threeseqabs` (points).
      dtype: dtype of matrix products; everything else is float32.
      classes: number of labels; 0 for a network without labels. The features of a label stand
        beside those of time; no label has zeros.
      label_dropout: rate at which training leaves labels out, for classifier-free guidance.
    """

    steps: int = 1000
    layers: int = 3
    hidden: int = 96
    pe_dim: int = 8
    time_embedding: str = "randomfourier"
    representation: str = "threeseqdel"
    dtype: Dtype = jnp.float32
    classes: int = 0
    label_dropout: float = 0.1

    def _embed(self, t_index: Array, labels: Array | None) -> Array:
        """Return the features of time and of labels, [batch, features]."""
        time = self._embed_time(t_index)
        if not self.classes:
            return time
        label = embed_labels(labels, len(time), self.classes, 4 * self.pe_dim)
        return jnp.concatenate([time, label], axis=-1)

    def _embed_time(self, t_index: Array) -> Array:
        if self.time_embedding == "sinusoidal":
            return sinusoidal_features(self.pe_dim, self.steps, t_index)
        weights = self._fourier_weights("pe_proj_W")
        return fourier_features(weights, (t_index + 1) / self.steps)

    def _fourier_weights(self, name: str) -> Array:
        shape = (self.pe_dim // 2, 1)
        return self.variable(
            "constants", name, lambda: jax.random.normal(self.make_rng("params"), shape)
        ).value


class BiGRUDenoiser(_Denoiser):
    """Bidirectional GRU that predicts the noise of each point.

    Call: `(noisy [batch, length, 3], t_index [batch] int in 0..T-1, lengths [batch] int, labels=
    [batch] int) -> eps [batch, length, 3]`; labels go from 0 to `classes`, which stands for none
    (default: no labels). Each layer sees only the valid points: the backward direction starts at
    the last of them. The defaults are the published network, 416,859 parameters.
    """

    @nn.compact
    def __call__(
        self,
        noisy: Array,
        t_index: Array,
        lengths: Array,
        timestamps: Array | None = None,
        labels: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Predict the noise; `timestamps` and `train`, for the Transformer, are ignored."""
        del timestamps, train
        length = noisy.shape[1]
        time = self._embed(t_index, labels)[:, None].repeat(length, axis=1)
        valid = jnp.arange(length)[None, :, None] < lengths[:, None, None]
        x = jnp.concatenate([motion(noisy, self.representation), time], axis=-1)
        for i in range(self.layers):
            x = BiGRULayer(self.hidden, self.dtype, name=f"rnn_l{i}")(x, valid)
        x = dense(x, self.hidden, "out_proj", dtype=self.dtype)
        x = jnp.concatenate([x, time], axis=-1)
        return dense(x, 3, "final_proj_0", dtype=self.dtype).astype(jnp.float32)


class BiGRULayer(nn.Module):
    """One layer of a bidirectional GRU with PyTorch's arithmetic.

    Call: `(x [batch, length, features], valid [batch, length, 1] bool) -> [batch, length,
    2 hidden]`, forward and backward direction, zero where not valid. Kernels are [features,
    3 hidden], gates r, z, n; each direction has one for the input (ih) and one for the state (hh).
    """

    hidden: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array) -> Array:
        """Run both directions in one scan."""
        features, hidden = x.shape[-1], self.hidden
        ih = [Affine(features, hidden, name=f"{d}_ih")() for d in ("forward", "backward")]
        hh = [Affine(hidden, hidden, name=f"{d}_hh")() for d in ("forward", "backward")]
        hidden = hh[0][0].shape[0]  # fewer in a compact network
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        # For r and z only the sum of both biases matters; n needs the state's bias separately.
        added = [
            b + jnp.pad(w[: 2 * hidden], (0, hidden)) for (_, b), (_, w) in zip(ih, hh, strict=True)
        ]
        own = jnp.stack([b[2 * hidden :] for _, b in hh])[:, None]
        # Time first. In reverse, padding comes first and leaves the state at zero.
        both = [jnp.swapaxes(y, 0, 1) for y in (x, x[:, ::-1])]
        products = [cast(y) @ cast(w) + b for y, (w, _), b in zip(both, ih, added, strict=True)]
        present = jnp.stack([jnp.swapaxes(y, 0, 1) for y in (valid, valid[:, ::-1])], 1)
        kernel = jnp.stack([cast(w) for w, _ in hh])
        states = recur(jnp.stack(products, 1).astype(jnp.float32), kernel, own, present)
        outputs = states[:, 0], states[::-1, 1]
        return jnp.concatenate([jnp.swapaxes(y, 0, 1) for y in outputs], axis=-1)


class Affine(nn.Module):
    """Kernel [features, 3 hidden] and bias [3 hidden] of a GRU, initialized as in PyTorch."""

    features: int
    hidden: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Return kernel and bias."""
        init = reference_init(self.hidden)["bias_init"]
        width = 3 * self.hidden
        kernel = self.param("kernel", init, (self.features, width))
        return kernel, self.param("bias", init, (width,))


@jax.custom_vjp
def recur(inputs: Array, kernel: Array, bias: Array, valid: Array) -> Array:
    """Run a GRU in both directions over time; the first state is zero.

    h' = (1 - z) n + z h with n = tanh(i_n + r (W_n h + b_n)): the reset gate comes after the
    product with the state, as in PyTorch. The derivative is written out (`_recur_backward`) so
    that the kernel's gradient is one large product instead of one per time step.

    Args:
      inputs: [length, 2, batch, 3 hidden] float32: the inputs' part of gates r, z, n, with all
        biases except b_n; the second direction already in its own order of time.
      kernel: [2, hidden, 3 hidden], in the dtype of the products.
      bias: b_n, [2, 1, hidden] float32.
      valid: [length, 2, batch, 1] bool; the state is zero where it is False.

    Returns:
      States [length, 2, batch, hidden] float32.
    """
    return _recur_forward(inputs, kernel, bias, valid)[0]


def _recur_forward(inputs: Array, kernel: Array, bias: Array, valid: Array) -> tuple[Array, _Saved]:
    hidden = kernel.shape[1]

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        inputs, valid = now
        # One batched product and few slices make the fastest loop under XLA.
        products = jnp.einsum("dbh,dhk->dbk", state.astype(kernel.dtype), kernel)
        products = products.astype(jnp.float32)
        r, z = jnp.split(nn.sigmoid((inputs + products)[..., : 2 * hidden]), 2, axis=-1)
        h_n = products[..., 2 * hidden :] + bias
        n = nn.tanh(inputs[..., 2 * hidden :] + r * h_n)
        state = jnp.where(valid, n + z * (state - n), 0)
        return state, (state, r, z, n, h_n)

    first = jnp.zeros((*inputs.shape[1:3], hidden), jnp.float32)
    _, (states, *gates) = jax.lax.scan(step, first, (inputs, valid))
    return states, (kernel, valid, states, *gates)


def _recur_backward(saved: _Saved, d_states: Array) -> tuple[Array, Array, Array, None]:
    kernel, valid, states, r, z, n, h_n = saved
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    # Everything that doesn't depend on later steps, for all steps at once: derivatives of the state
    # by the arguments of n and z, of n's argument by r's, and of the state by the previous one.
    by_n = jnp.where(valid, (1 - z) * (1 - n**2), 0)
    by_z = jnp.where(valid, (before - n) * z * (1 - z), 0)
    n_by_r = h_n * r * (1 - r)
    kept = jnp.where(valid, z, 0)
    transposed = jnp.swapaxes(kernel, 1, 2)

    def step(d_later: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        d_state, by_n, by_z, n_by_r, kept, r = now
        d_state = d_state + d_later
        d_n = d_state * by_n
        d_products = jnp.concatenate([d_n * n_by_r, d_state * by_z, d_n * r], axis=-1)
        part = jnp.einsum("dbk,dkh->dbh", d_products.astype(kernel.dtype), transposed)
        return d_state * kept + part.astype(jnp.float32), (d_products, d_n)

    nows = (d_states, by_n, by_z, n_by_r, kept, r)
    _, (d_products, d_n) = jax.lax.scan(step, jnp.zeros_like(states[0]), nows, reverse=True)
    hidden = kernel.shape[1]
    d_inputs = jnp.concatenate([d_products[..., : 2 * hidden], d_n], axis=-1)
    lower = d_products.astype(kernel.dtype)
    d_kernel = jnp.einsum("ldbh,ldbk->dhk", before.astype(kernel.dtype), lower)
    d_bias = jnp.sum(d_products[..., 2 * hidden :], axis=(0, 2))[:, None]
    return d_inputs, d_kernel, d_bias, None


recur.defvjp(_recur_forward, _recur_backward)


class TransformerDenoiser(_Denoiser):
    """Transformer encoder that predicts the noise of each point.

    Call: as `BiGRUDenoiser`, and `timestamps` [batch, length] in [0, 1], the time at which each
    point was drawn (default: evenly spaced over the padded length). A token for the origin comes
    before the first point; the noise of point i is read from the tokens of points i - 1 and i.
    Post-norm layers, SiLU, inner width 2 `hidden`.

    Attributes:
      heads: number of attention heads, a divisor of `hidden`.
    """

    heads: int = 4

    @nn.compact
    def __call__(
        self,
        noisy: Array,
        t_index: Array,
        lengths: Array,
        timestamps: Array | None = None,
        labels: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Predict the noise."""
        del train
        length = noisy.shape[1]
        present = jnp.arange(length) < lengths[:, None]
        if timestamps is None:
            timestamps = jnp.broadcast_to(jnp.linspace(0, 1, length), present.shape)
        timestamps = jnp.where(present, timestamps, 0)
        points = motion(noisy, self.representation)
        points, timestamps = (
            jnp.pad(y, [(0, 0), (1, 0), *[(0, 0)] * (y.ndim - 2)]) for y in (points, timestamps)
        )
        pace = fourier_features(self._fourier_weights("seq_proj_W"), timestamps)
        time = self._embed(t_index, labels)[:, None].repeat(length + 1, axis=1)
        x = jnp.concatenate([points, pace, time], axis=-1)
        x = dense(x, self.hidden, "embedder", dtype=self.dtype)
        valid = jnp.arange(length + 1) < lengths[:, None] + 1
        for i in range(self.layers):
            layer = EncoderLayer(self.heads, self.dtype, name=f"transformer_layers_{i}")
            x = layer(x, valid)
        x = jnp.concatenate([x[:, :-1], x[:, 1:], time[:, 1:]], axis=-1)
        return dense(x, 3, "final_proj_0", dtype=self.dtype).astype(jnp.float32)


class EncoderLayer(nn.Module):
    """Post-norm layer of a Transformer encoder: attention, then SiLU between two dense layers.

    Call: `(x [batch, length, hidden], valid [batch, length] bool) -> [batch, length, hidden]`;
    tokens that are not valid get no attention.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array) -> Array:
        """Apply the layer."""
        batch, length, hidden = x.shape
        project = functools.partial(dense, dtype=self.dtype)
        qkv = nn.Dense(
            3 * hidden,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="self_attn_in_proj",
        )(x)
        qkv = qkv.reshape(batch, length, 3, self.heads, -1).swapaxes(2, 3)
        attended = QKVAttention(name="attention")(qkv, valid).reshape(x.shape)
        x = self._norm("norm1", x + project(attended, hidden, "self_attn_out_proj"))
        inner = nn.silu(project(x, 2 * hidden, "linear1"))
        return self._norm("norm2", x + project(inner, hidden, "linear2"))

    def _norm(self, name: str, x: Array) -> Array:
        return nn.LayerNorm(epsilon=1e-5, name=name)(x.astype(jnp.float32))
