"""Feature extractors by name: from images to the numbers that metrics compare."""

import functools
import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.errors import ConfigError
from sparsejax.metrics import inception_features
from sparsejax.metrics.cache import load_or_compute
from sparsejax.metrics.classifier import FEATURES, load_classifier
from sparsejax.metrics.inception_weights import load_inception
from sparsejax.metrics.names import EXTRACTORS
from sparsejax.rendering.pixels import PICTURES, to_unit_range
from sparsejax.types import Apply, Array, NumpyArray, Params, PathLike, Shape

# `extract(pictures)` and `labelled()`; see `Extractor` and `build_extractor`.
Extract: TypeAlias = Callable[[NumpyArray], tuple[NumpyArray, NumpyArray | None]]
Labelled: TypeAlias = Callable[[], tuple[NumpyArray, NumpyArray]]

_SIDE = 16  # side of the images whose pixels are compared
_AT_ONCE = 250

logger = logging.getLogger(__name__)


class Extractor(NamedTuple):
    """A function from pictures to features, and the name that accompanies every number.

    Attributes:
      name: name such as `classifier:digits`, `pixels:8x8`, `inception:2048`.
      dim: dimension of the features.
      extract: `extract(pictures [count, height, width, channels] uint8) -> (features [count, dim]
        float32, logits [count, classes] float32 or None)`; raises ValueError for floats, which
        `rendering.pixels.to_pixels` converts to pictures.
    """

    name: str
    dim: int
    extract: Extract


def build_extractor(
    kind: str | None,
    label: str,
    labelled: Labelled | None,
    shape: Shape,
    weights: PathLike | None = None,
) -> Extractor:
    """Return the extractor of this kind for images of this shape.

    Args:
      kind: one of `EXTRACTORS` (default: the classifier if there are labels to train it on, else
        pixels).
      label: short name of the data.
      labelled: `labelled() -> (images [count, height, width, channels] uint8, labels [count]
        int)`, to train the classifier on; None without labels.
      shape: (height, width, channels) of the images.
      weights: path of Inception's weight file; see `inception_weights`.

    Raises:
      ConfigError: unknown kind, no labels, or no weight file.
    """
    if kind is not None and kind not in EXTRACTORS:
        raise ConfigError(f"extractor {kind!r}; accepted: {', '.join(EXTRACTORS)}")
    if kind == "inception":
        return Extractor("inception:2048", 2048, _in_batches(_inception, load_inception(weights)))
    if kind != "pixels":
        examples = labelled() if labelled else None
        if examples is not None and examples[1].max() > 0 and examples[1].min() >= 0:
            model, params = load_classifier(label, *examples)
            extract = _in_batches(model.apply, {"params": params}, to_unit_range)
            return Extractor(f"classifier:{label}", FEATURES, extract)
        missing = f"{label} has no labels of several classes to train a classifier on"
        if kind == "classifier":
            raise ConfigError(f"extractor 'classifier': {missing}; accepted: pixels, inception")
        logger.info("%s: features are pixels", missing)
    height, width = (min(side, _SIDE) for side in shape[:2])
    extract = _in_batches(functools.partial(_pixels, height, width), (), to_unit_range)
    return Extractor(f"pixels:{height}x{width}", height * width * shape[2], extract)


def reference_features(extractor: Extractor, images: NumpyArray) -> NumpyArray:
    """Return the features of reference images, computed once and cached.

    Args:
      extractor: Extractor.
      images: [count, height, width, channels] uint8.

    Returns:
      [count, dim] float32.
    """
    # The features of one image identify the weights.
    digest = hashlib.sha256(extractor.extract(images[:1])[0].tobytes())
    digest.update(f"{PICTURES} {images.shape}".encode() + images.tobytes())
    name = f"reference-{extractor.name}-{digest.hexdigest()[:16]}".replace(":", "-")
    shapes = {"features": (len(images), extractor.dim)}
    features = load_or_compute(name, lambda: {"features": extractor.extract(images)[0]}, shapes)
    return features["features"]


def _in_batches(
    extract: Apply,
    params: Params,
    prepare: Callable[[NumpyArray], NumpyArray] = lambda pictures: pictures,
) -> Extract:
    """Compile an extractor and run it on batches of one size, padding the last one."""
    extract, params = jax.jit(extract), jax.device_put(params)

    def in_batches(images: NumpyArray) -> tuple[NumpyArray, NumpyArray | None]:
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(f"pictures are {images.dtype}; accepted: uint8")
        parts = []
        for start in range(0, len(images), _AT_ONCE):
            batch = images[start : start + _AT_ONCE]
            count = len(batch)
            padded = np.pad(batch, [(0, _AT_ONCE - count), (0, 0), (0, 0), (0, 0)])
            found = extract(params, prepare(padded))
            parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    return in_batches


def _pixels(height: int, width: int, params: Params, images: Array) -> tuple[Array, None]:
    del params
    shape = (len(images), height, width, images.shape[-1])
    small = jax.image.resize(images, shape, "linear", antialias=True)
    return (small.reshape(len(images), -1) + 1) / 2, None


def _inception(params: Params, pixels: Array) -> tuple[Array, ...]:
    pixels = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))  # grey becomes RGB
    return inception_features.extract(params, pixels, ("2048", "logits_unbiased"))
