"""Features of the Inception network that FID, KID and Inception Score are defined by.

TensorFlow's network of 2015-12-05 (Szegedy et al. 2016), as torch-fidelity's
`FeatureExtractorInceptionV3` computes it: 23,850,960 parameters. It departs from later Inception
networks where published scores require it: images are resized as in TensorFlow 1, average pools
exclude the padding, and the last block uses max pooling.
"""

import functools
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.metrics.inception import SIZE, InceptionV3
from sparsejax.types import Array, NumpyArray, Params

DIMENSIONS = {
    "64": 64,
    "192": 192,
    "768": 768,
    "2048": 2048,
    "logits_unbiased": 1008,
    "logits": 1008,
}


@overload
def extract(params: Params, images: Array | NumpyArray, features: str) -> Array: ...
@overload
def extract(
    params: Params, images: Array | NumpyArray, features: tuple[str, ...]
) -> tuple[Array, ...]: ...


def extract(
    params: Params, images: Array | NumpyArray, features: str | tuple[str, ...]
) -> Array | tuple[Array, ...]:
    """Return Inception features of images.

    The network is compiled once per batch size, whatever the size of the images, and only as far
    as `features` requires. It computes in full float32 on every device.

    Args:
      params: from `metrics.inception_weights.load_inception`.
      images: [batch, height, width, 3] uint8, RGB, of any height and width.
      features: a name, or a tuple of names, of `DIMENSIONS`. "64", "192" and "768" are means
        over positions after the first pool, the second pool and Mixed_6e, "2048" (for FID and
        KID) the means before the classifier, "logits_unbiased" (for Inception Score) its outputs
        without its biases, "logits" with them.

    Returns:
      [batch, dimension] float32 for a name; a tuple of such arrays, in the order asked for, for
      a tuple.

    Raises:
      ValueError: images have another dtype or shape, or a feature is unknown.

    Examples:
      `pooled, logits = extract(params, images, ("2048", "logits_unbiased"))`
    """
    names = (features,) if isinstance(features, str) else tuple(features)
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"features {unknown}; accepted: {', '.join(DIMENSIONS)}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; accepted: uint8 "
            "[batch, height, width, 3]"
        )
    arrays = _run(params, _prepare(images), names)
    return arrays[0] if isinstance(features, str) else arrays


def resize(images: Array, height: int, width: int) -> Array:
    """Resize by bilinear interpolation as TensorFlow 1 does.

    Pixel i of the output lies at i * input size / output size of the input, its products and
    quotients rounded to float32; nothing is smoothed first.

    Args:
      images: [batch, any height, any width, channels].
      height: of the output.
      width: of the output.

    Returns:
      [batch, height, width, channels] float32.

    Examples:
      >>> resize(np.array([[[[0], [4]]]], np.uint8), 1, 4).ravel()
      Array([0., 2., 4., 4.], dtype=float32)
    """
    return _resize_axis(_resize_axis(images.astype(jnp.float32), 2, width), 1, height)


def _resize_axis(x: Array, axis: int, size: int) -> Array:
    count = x.shape[axis]
    source = np.arange(size, dtype=np.float32) * np.float32(count / size)
    low = source.astype(np.int32)
    weight = np.expand_dims(source - low.astype(np.float32), tuple(range(1, x.ndim - axis)))
    below = jnp.take(x, low, axis)
    above = jnp.take(x, np.minimum(low + 1, count - 1), axis)
    return below + (above - below) * weight


@jax.jit
def _prepare(images: Array) -> Array:
    return (resize(images, SIZE, SIZE) - 128) / 128


@functools.partial(jax.jit, static_argnums=2)
def _run(params: Params, x: Array, names: tuple[str, ...]) -> tuple[Array, ...]:
    features: dict[str, Array] = InceptionV3().apply({"params": params}, x)  # type: ignore
    return tuple(features[name] for name in names)
