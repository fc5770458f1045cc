"""The Inception network of 2015-12-05 (Szegedy et al. 2016) that FID is defined by.

As in torch-fidelity's `FeatureExtractorInceptionV3`: average pools exclude the padding, and the
last block uses max pooling.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.types import Array, Params

_Layer: TypeAlias = tuple[str, int, int | tuple[int, int]]  # name, features, kernel

SIZE = 299  # side of the input in pixels


@functools.cache
def parameter_shapes() -> Params:
    """Return the network's parameters as a tree of `jax.ShapeDtypeStruct`."""
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), x)["params"]


class InceptionV3(nn.Module):
    """The network; its modules are named as in the PyTorch ports.

    Call: x [batch, 299, 299, 3] float32 in [-1, 1] -> dictionary of all features by name; see
    `metrics.inception_features`.
    """

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Compute the features of x."""
        features = {}
        x = _Conv(32, 3, 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = _Conv(32, 3, 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _Conv(64, 3, name="Conv2d_2b_3x3")(x)
        x = _halve(x)
        features["64"] = _mean(x)
        x = _Conv(80, 1, name="Conv2d_3b_1x1")(x)
        x = _Conv(192, 3, 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halve(x)
        features["192"] = _mean(x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = _BlockA(pool_features, name=f"Mixed_5{letter}")(x)
        x = _BlockB(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _BlockC(inner, name=f"Mixed_6{letter}")(x)
        features["768"] = _mean(x)
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(_average_pool, name="Mixed_7b")(x)
        x = _BlockE(_max_pool, name="Mixed_7c")(x)
        features["2048"] = _mean(x)
        features["logits_unbiased"], features["logits"] = _Head(name="fc")(features["2048"])
        return features


class _Conv(nn.Module):
    """Convolution, BatchNorm with stored moments, ReLU."""

    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        x = nn.Conv(
            self.features,
            kernel,
            self.stride,
            self.padding,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(_Norm(name="bn")(x))


class _Norm(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        return (x - mean) * (scale / jnp.sqrt(var + 1e-3)) + bias


class _Head(nn.Module):
    """The classifier; returns logits without and with its biases."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], 1008))
        bias = self.param("bias", nn.initializers.zeros, (1008,))
        logits = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        return logits, logits + bias


class _BlockA(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
        return _join(
            _chain(x, ("branch1x1", 64, 1)),
            _chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            _chain(x, *double),
            _chain(_average_pool(x), ("branch_pool", self.pool_features, 1)),
        )


class _BlockB(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = _chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        return _join(
            _Conv(384, 3, 2, "VALID", name="branch3x3")(x),
            _Conv(96, 3, 2, "VALID", name="branch3x3dbl_3")(double),
            _halve(x),
        )


class _BlockC(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = self.inner
        single = (
            ("branch7x7_1", inner, 1),
            ("branch7x7_2", inner, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        )
        double = (
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        )
        return _join(
            _chain(x, ("branch1x1", 192, 1)),
            _chain(x, *single),
            _chain(x, *double),
            _chain(_average_pool(x), ("branch_pool", 192, 1)),
        )


class _BlockD(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = _chain(x, ("branch3x3_1", 192, 1))
        cross = _chain(
            x,
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
        )
        return _join(
            _Conv(320, 3, 2, "VALID", name="branch3x3_2")(single),
            _Conv(192, 3, 2, "VALID", name="branch7x7x3_4")(cross),
            _halve(x),
        )


class _BlockE(nn.Module):
    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = _chain(x, ("branch3x3_1", 384, 1))
        double = _chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        return _join(
            _chain(x, ("branch1x1", 320, 1)),
            _chain(single, ("branch3x3_2a", 384, (1, 3))),
            _chain(single, ("branch3x3_2b", 384, (3, 1))),
            _chain(double, ("branch3x3dbl_3a", 384, (1, 3))),
            _chain(double, ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(self.pool(x), ("branch_pool", 192, 1)),
        )


def _chain(x: Array, *layers: _Layer) -> Array:
    """Apply convolutions one after another."""
    for name, features, kernel in layers:
        x = _Conv(features, kernel, name=name)(x)
    return x


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=(1, 2))


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _average_pool(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")
