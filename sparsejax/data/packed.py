"""Read drawings from an npz of strokes: the packed layout.

Keys:
  points   [points of all drawings, 3]: x, y (y down), and pen, which is 1 on the last point of
           each stroke and 0 elsewhere; any numeric dtype
  offsets  [count + 1] int: drawing i is points[offsets[i]:offsets[i + 1]]
and optionally
  scale    a number: x and y are divided by it
  label    [count] int; otherwise 0
  split    [count] int: 0 train, 1 validation, 2 test; if there is no 2, 1 is test. Without it,
           a drawing's split follows from the hash of its name, "item i"
  words    [classes], names of the labels, by which drawings can be selected
Other keys are ignored. Strokes have no times: the distance travelled by the pen is used.
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from sparsejax import zips
from sparsejax.data.drawings import SPLITS, Broken, Drawing, Found, attempt, split_of, with_times
from sparsejax.data.items import SourceError, check, check_count, check_integers, few
from sparsejax.limits import check_limit
from sparsejax.types import NumpyArray

_KEYS = ("points", "offsets", "scale", "label", "split", "words")


def keys(path: pathlib.Path) -> set[str]:
    """Return the keys of an npz without reading its arrays.

    Args:
      path: pathlib.Path.

    Raises:
      SourceError: the file isn't an npz or is damaged.
    """
    try:
        return set(zips.names(path))
    except (zips.NpzError, OSError) as error:
        raise SourceError(zips.problem(error)) from error


def read(path: pathlib.Path, words: Sequence[str] = ()) -> Iterator[Found]:
    """Read the drawings of an npz, in order.

    Args:
      path: pathlib.Path.
      words: names of the labels to keep; the new label is the index among them, sorted. () keeps
        all drawings and labels.

    Yields:
      Drawing, or Broken for one that is invalid, named "item i".

    Raises:
      SourceError: the file isn't an npz, is damaged, has other arrays than described above, or
        lacks words.
    """
    present = keys(path)
    check({"points", "offsets"} <= present, f"its keys are {few(sorted(present))}")
    try:
        arrays = zips.read_npz(path, _KEYS)
    except (zips.NpzError, OSError) as error:
        raise SourceError(zips.problem(error)) from error
    check({"points", "offsets"} <= arrays.keys(), "it lacks points or offsets")
    points, offsets = _points_and_offsets(arrays)
    count = offsets.size - 1
    check_count(count, path)
    scale = arrays.get("scale", np.ones(()))
    fits = scale.size == 1 and _is_number(scale) and np.isfinite(scale).all() and scale > 0
    check(fits, "scale isn't one number above 0")
    splits = _splits(arrays, count)
    labels = arrays.get("label", np.zeros(count, int))
    check_integers("label", labels, count)
    labels = _chosen(labels, words, arrays) if words else labels
    for i in np.flatnonzero(labels >= 0).tolist() if words else range(count):
        name, drawn = f"item {i}", points[offsets[i] : offsets[i + 1]]
        strokes = attempt(name, _strokes, drawn, scale.item())
        if isinstance(strokes, Broken):
            yield strokes
        else:
            yield Drawing(name, splits[i], int(labels[i]), strokes)


def _points_and_offsets(arrays: dict[str, NumpyArray]) -> tuple[NumpyArray, NumpyArray]:
    points, offsets = arrays["points"], arrays["offsets"]
    shape = f"points are {points.dtype} {list(points.shape)}, not numbers [points, 3]"
    check(points.ndim == 2 and points.shape[1] == 3 and _is_number(points), shape)
    check(offsets.size > 1, "offsets are fewer than two")
    check_integers("offsets", offsets, offsets.size)
    # int64, since differences of unsigned offsets would wrap around.
    offsets = offsets.astype(np.int64)
    rises = offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] == len(points)
    check(rises, f"offsets don't rise from 0 to {len(points)}, the number of points")
    return points, offsets


def _splits(arrays: dict[str, NumpyArray], count: int) -> list[str]:
    if "split" not in arrays:
        return [split_of(f"item {i}") for i in range(count)]
    numbers = arrays["split"]
    check_integers("split", numbers, count)
    check(np.isin(numbers, range(len(SPLITS))).all(), "split holds more than 0, 1 and 2")
    names = SPLITS if (numbers == 2).any() else (SPLITS[0], SPLITS[2])
    return [names[number] for number in numbers]


def _chosen(labels: NumpyArray, words: Sequence[str], arrays: dict[str, NumpyArray]) -> NumpyArray:
    """Renumber labels by `words`; -1 if a drawing's word isn't among them."""
    check("words" in arrays, "it has no key words to choose by")
    held = [str(word) for word in arrays["words"].ravel()]
    missing = sorted(set(words) - set(held))
    check(not missing, f"it has no {', '.join(missing)}; its words are {few(held)}")
    fits = (labels >= 0).all() and (labels < len(held)).all()
    check(fits, f"label goes beyond the {len(held)} words")
    order = {word: label for label, word in enumerate(sorted(set(words)))}
    return np.array([order.get(word, -1) for word in held])[labels]


def _strokes(drawn: NumpyArray, scale: float) -> list[NumpyArray]:
    """Split a drawing's points [points, 3] into strokes, with times."""
    check_limit("drawing_points", len(drawn), "points")
    if not np.isfinite(drawn).all():
        raise ValueError("values that aren't finite")
    if not np.isin(drawn[:, 2], (0, 1)).all():
        raise ValueError("pen holds more than 0 and 1")
    if len(drawn) and not drawn[-1, 2]:
        raise ValueError("its last stroke has no end: pen is 0")
    return with_times(np.split(drawn[:, :2] / scale, np.flatnonzero(drawn[:, 2]) + 1)[:-1])


def _is_number(array: NumpyArray) -> bool:
    return np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
