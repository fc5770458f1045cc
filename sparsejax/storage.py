"""The disk: the cache folder, and folders that can't be written to, full disks, damaged files."""

import contextlib
import errno
import json
import os
import pathlib
import tempfile
from typing import Any, TypeAlias

from sparsejax.errors import ConfigError

Json: TypeAlias = Any  # a value from JSON
JsonObject: TypeAlias = dict[str, Any]


def read_object(path: pathlib.Path) -> JsonObject:
    """Read a file that holds one JSON object.

    Raises:
      ConfigError: the file can't be read, or holds something else; names it.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object")
    return value


def parse_json(text: str) -> Json:
    """Parse JSON text in which no object has two values for a key.

    Raises:
      ValueError: the text is no JSON, or a key occurs twice.
      RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(map(repr, value))}"[:200])
    return value


def cache_folder() -> pathlib.Path:
    """Return the folder `SPARSEJAX_CACHE` (default: ~/.cache/sparsejax), which need not exist.

    Raises:
      RuntimeError: it begins with `~`, and the user has no home.
    """
    return pathlib.Path(os.environ.get("SPARSEJAX_CACHE", "~/.cache/sparsejax")).expanduser()


def require_writable(folder: str | os.PathLike[str], name: str) -> None:
    """Raise ConfigError unless a folder can be created and written to; leaves nothing behind.

    Args:
      folder: folder, which need not exist.
      name: flag, config key or environment variable that named it, for the message.

    Raises:
      ConfigError: the folder can't be created or written to; names `name`, folder and reason.
    """
    folder = pathlib.Path(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(folder)  # fails if no folder can have this name
        # No folder is made and removed: another process may just have begun to use it.
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=nearest) as probe:  # without a name, if one is killed here
            probe.write(bytes(4096))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{name} is {str(folder)!r}, where nothing can be written: {reason}; "
            "accepted: a folder that can be created and written to"
        ) from error


def storage_problem(error: BaseException) -> str | None:
    """Return a one-line description if an exception reports a storage problem, else None.

    Args:
      error: exception; native libraries put the system's message into the text.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    words = [os.strerror(code) for code in codes if os.strerror(code) in str(error)]
    return words[0] if words else None
