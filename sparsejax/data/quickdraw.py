"""Read drawings from Google's Quick, Draw! files: ndjson, raw or simplified.

Every line is a drawing: JSON with `word`, `key_id` and `drawing`, a list of strokes, each [xs, ys,
milliseconds] in raw files and [xs, ys] in simplified ones. Drawings that Google's network didn't
recognize (`recognized` is false) are kept.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from sparsejax.data import listing
from sparsejax.data.drawings import Drawing, Found, as_text, attempt, split_of, with_times
from sparsejax.data.items import SourceError
from sparsejax.limits import check_limit, limits, too_large
from sparsejax.types import NumpyArray, Value

_WORD = re.compile(rb'\s*{\s*"word"\s*:\s*("(?:[^"\\]|\\.)*+")')


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """List the ndjson files of a source, sorted.

    Args:
      path: an ndjson file or a folder.

    Raises:
      SourceError: it doesn't exist, the folder has none, or the file has another suffix.
    """
    if not path.exists():
        raise SourceError("it doesn't exist")
    if not path.is_dir():
        if path.suffix.lower() != ".ndjson":
            raise SourceError("its name doesn't end in .ndjson")
        return [path]
    found = [file for file in _visible(path) if _is_ndjson(file)]
    if not found:
        raise SourceError(": ".join(filter(None, ["it holds no .ndjson file", left_out(path)])))
    return found


def left_out(path: pathlib.Path) -> str:
    """Describe what isn't read in a folder, including its folders; see `listing.left_out`."""
    if not path.is_dir():
        return ""
    return listing.left_out([file for file in _visible(path) if not _is_ndjson(file)], path)


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.iterdir() if listing.is_visible(file.name))


def _is_ndjson(file: pathlib.Path) -> bool:
    return file.suffix.lower() == ".ndjson" and file.is_file()


def read(path: pathlib.Path, words: Sequence[str] = ()) -> Iterator[Found]:
    """Read drawings line by line, sorted by file name.

    The split follows from the hash of `key_id`; the label is the word's index among the sorted
    words. Other words are skipped.

    Args:
      path: an ndjson file or a folder of them.
      words: words to keep; () keeps all.

    Yields:
      Drawing, or Broken for an invalid line, named "FILE line N".

    Raises:
      SourceError: there is no file, or a word has no drawing.
    """
    found = _words(path)
    missing = sorted(set(words) - found)
    if missing:
        listed = ", ".join(sorted(found)[:50]) or "(none)"
        raise SourceError(f"it has no drawing of {', '.join(missing)}; its words are {listed}")
    labels = {word: label for label, word in enumerate(sorted(set(words or found)))}
    others = found - labels.keys()
    for name, line in _lines(path):
        word = _word(line)
        if word in others:
            continue
        yield attempt(name, _drawing, line, name, labels.get(word or "", 0))


def _drawing(line: bytes | None, name: str, label: int) -> Drawing:
    if line is None:
        raise too_large("drawing_bytes", "bytes")
    try:
        key, strokes = _parse(line)
        return Drawing(name, split_of(key), label, strokes)
    except (json.JSONDecodeError, UnicodeError, RecursionError) as error:
        raise ValueError("it isn't JSON in UTF-8, or is cut short") from error


def _lines(path: pathlib.Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield the lines of all files with their names; None for one of too many bytes."""
    for file in files(path):
        name = as_text(file.name)
        with file.open("rb") as lines:
            for number, line in enumerate(_bounded(lines), 1):
                if line is None or line.strip():
                    yield f"{name} line {number}", line


def _bounded(lines: IO[bytes]) -> Iterator[bytes | None]:
    """Yield lines, None for one of too many bytes, of which no more is held at once."""
    most = limits().drawing_bytes
    while line := lines.readline(most + 1):
        if len(line) <= most:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = lines.readline(most)
        yield None


def _words(path: pathlib.Path) -> set[str]:
    """Return the words in the files; lines that can't be read are skipped."""
    words = (_word(line) for _, line in _lines(path))
    return {word for word in words if word is not None}


def _word(line: bytes | None) -> str | None:
    """Return a line's word, or None; the drawing isn't parsed if `word` comes first."""
    if line is None:
        return None
    start = _WORD.match(line)
    try:
        word = json.loads(start[1]) if start else json.loads(line)["word"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return word if isinstance(word, str) and len(word) <= limits().word_letters else None


def _parse(line: bytes) -> tuple[str, list[NumpyArray]]:
    """Return the key_id and strokes of a line; raise ValueError if it is invalid."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("it isn't a JSON object")
    missing = [key for key in ("word", "key_id", "drawing") if key not in record]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    word, key, drawing = record["word"], record["key_id"], record["drawing"]
    if not isinstance(word, str) or not isinstance(key, str):
        raise ValueError("word or key_id isn't text")
    check_limit("word_letters", len(word), "letters of its word")
    if not isinstance(drawing, list):
        raise ValueError("drawing isn't a list")
    strokes = [_stroke(stroke) for stroke in drawing]
    check_limit("drawing_points", sum(map(len, strokes)), "points")
    columns = {stroke.shape[1] for stroke in strokes}
    if len(columns) > 1:
        raise ValueError("only some strokes have times")
    if columns == {2}:
        return key, with_times(strokes)
    if strokes and (np.diff(np.concatenate(strokes)[:, 2]) < 0).any():
        raise ValueError("its times fall")
    return key, strokes


def _stroke(lists: Value) -> NumpyArray:
    """Convert lists of x, y and possibly t to an array [points, 2 or 3]."""
    fits = isinstance(lists, list) and len(lists) in (2, 3)
    if not fits or not all(isinstance(values, list) for values in lists):
        raise ValueError("a stroke isn't two or three lists")
    if len({len(values) for values in lists}) > 1:
        raise ValueError("a stroke's lists differ in length")
    if not all(set(map(type, values)) <= {int, float} for values in lists):
        raise ValueError("a stroke holds more than numbers")
    try:
        stroke = np.array(lists, np.float64).T
    except OverflowError as error:
        raise ValueError("a stroke has values that aren't finite") from error
    if not np.isfinite(stroke).all():
        raise ValueError("a stroke has values that aren't finite")
    return stroke
