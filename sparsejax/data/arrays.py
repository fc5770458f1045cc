"""Images in memory as a file that a config can name."""

import hashlib
import re

import numpy as np

from sparsejax.atomic import write_npz
from sparsejax.rendering.pixels import to_pixels
from sparsejax.storage import cache_folder, require_writable
from sparsejax.types import ArrayLike, NumpyArray, Pictures

_TRAIN, _VALIDATION = 0, 1  # numbers of splits, as `data.archives` describes them


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    held_out: ArrayLike | None = None,
    name: str = "arrays",
) -> str:
    """Write images to an npz in the cache folder (`SPARSEJAX_CACHE`), for `config.task.source`.

    The file's name contains a hash of the arrays: a run that is resumed with others raises an
    error, and the same arrays always give the same file.

    Args:
      images: [count, height, width, channels] with 1 or 3 channels, or [count, height, width];
        uint8, or floats in [-1, 1], as samples are. Arrays of numpy or jax.
      labels: [count] whole numbers from 0, the classes: metrics compare images in the features of
        a classifier of them, and networks with `model.classes` are trained on them.
      held_out: images that aren't trained on, as `images`: the split `validation` (default: none;
        then `config.task.held_out` sets aside a fraction).
      name: short name of the data, for figures: letters, digits, `_`, `.` and `-`.

    Returns:
      Path of the file.

    Raises:
      ValueError: an array has another shape, type or range, or the name other characters.
      ConfigError: the cache folder can't be written to.

    Examples:
      `config.task.source = from_arrays(images)`, with `config.task.dataset = "files"`, as in
      configs/folder.py.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name is {name!r}; accepted: letters, digits, '_', '.' and '-'")
    parts = [_pixels("images", images)]
    parts += [] if held_out is None else [_pixels("held_out", held_out)]
    shape, others = list(parts[0].shape[1:]), list(parts[-1].shape)
    if others[1:] != shape:
        raise ValueError(f"held_out has the shape {others}; accepted: [count, *{shape}], as images")
    counts = [len(part) for part in parts]
    classes = np.zeros(counts[0], np.int64) if labels is None else np.asarray(labels)
    if classes.shape != (counts[0],) or classes.dtype.kind not in "iu":
        found = f"{classes.dtype} {list(classes.shape)}"
        raise ValueError(f"labels are {found}; accepted: whole numbers [{counts[0]}]")
    arrays: dict[str, NumpyArray] = {
        "images": np.concatenate(parts),
        "label": np.pad(classes.astype(np.int64), (0, sum(counts[1:]))),
        "split": np.repeat([_TRAIN, _VALIDATION][: len(counts)], counts),
    }
    path = cache_folder() / "arrays" / f"{name}-{_digest(arrays)}.npz"
    if not path.exists():
        require_writable(path.parent, "SPARSEJAX_CACHE")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)
    return str(path)


def _pixels(name: str, images: ArrayLike) -> Pictures:
    """Return images as 8-bit pictures; raise ValueError if they can't be meant as such."""
    images = np.asarray(images)
    fits = images.ndim == 3 or images.ndim == 4 and images.shape[3] in (1, 3)
    if not fits or not images.size:
        accepted = (
            "[count, height, width, channels] with 1 or 3 channels, or [count, height, width]"
        )
        raise ValueError(f"{name} has the shape {list(images.shape)}; accepted: {accepted}")
    if images.dtype == np.uint8:
        return images
    accepted = "uint8, or floats in [-1, 1]"
    if images.dtype.kind != "f":
        raise ValueError(f"{name} is {images.dtype}; accepted: {accepted}")
    low, high = float(images.min()), float(images.max())
    if not -1 <= low <= high <= 1:
        raise ValueError(f"{name} holds floats from {low:g} to {high:g}; accepted: {accepted}")
    if low >= 0:
        hint = "2 * images - 1 maps [0, 1] to them"
        raise ValueError(f"{name} holds no float below 0; accepted: {accepted} ({hint})")
    return to_pixels(images)


def _digest(arrays: dict[str, NumpyArray]) -> str:
    content = hashlib.sha256()
    for key, array in arrays.items():
        content.update(f"{key} {array.dtype} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()[:16]
