"""8-bit pictures: the one way from samples to what is measured, shown and written."""

import numpy as np

# Recorded with numbers and in names of caches, since measures of unrounded floats (older versions)
# are not comparable with these.
PICTURES = "8-bit"
_HALF_RANGE = np.float32(127.5)


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Map pixels to [-1, 1].

    Args:
      images: uint8 of any shape, an array of numpy or jax.

    Returns:
      float32 of the same shape.

    Examples:
      >>> to_unit_range(np.array([0, 51, 255], np.uint8)).tolist()
      [-1.0, -0.6000000238418579, 1.0]
    """
    return images.astype(np.float32) / _HALF_RANGE - 1


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Turn floats in [-1, 1] into 8-bit pictures: clipped, rounded to nearest, halves to even.

    The only way from samples to pictures: measures, grids and files all see what it returns.

    Args:
      images: floats of any shape, an array of numpy or jax.

    Returns:
      uint8 of the same shape.

    Raises:
      ValueError: images are integers, or hold values that aren't finite.

    Examples:
      >>> to_pixels(np.array([-1.0, 0.0, 40.0])).tolist()
      [0, 128, 255]
    """
    images = np.asarray(images)
    if images.dtype.kind in "iub":
        raise ValueError(f"images are {images.dtype}; accepted: floats in [-1, 1]")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("images hold values that aren't finite; accepted: floats in [-1, 1]")
    return np.round((np.clip(images, -1, 1) + 1) * _HALF_RANGE).astype(np.uint8)


def are_finite(examples: np.ndarray) -> np.ndarray:
    """Return which examples hold only finite values.

    Args:
      examples: [count, ...] floats.

    Returns:
      [count] bool.
    """
    examples = np.asarray(examples).astype(np.float32)
    return np.isfinite(examples).reshape(len(examples), -1).all(axis=1)
