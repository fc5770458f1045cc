"""Files that are written whole or not at all, whenever the process dies."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yield a path to write to; it takes the place of `path` if the body ends without an error.

    Args:
      path: of the file to write; its folder exists.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"partial-{path.name}")
    yield partial
    partial.replace(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to the file `path`."""
    with replacing(path) as partial:
        partial.write_text(text)
