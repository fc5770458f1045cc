"""Atomic writes: a file is written completely or not at all, even if the process is killed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yield a temporary path, which replaces `path` if the body succeeds.

    Args:
      path: file to write; its folder must exist.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"partial-{path.name}")
    yield partial
    partial.replace(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to the file `path`, as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
