"""Download a file once, whole or not at all.

A transfer that is cut off leaves FILE.partial, which the next one continues if the server still has
the same file (HTTP Range and If-Range).
"""

import contextlib
import functools
import http.client
import logging
import os
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sparsejax import lease
from sparsejax.data.recorded import (
    Download,
    by_hand,
    check_partial,
    is_intact,
    misfit,
    read_record,
    write_record,
)
from sparsejax.errors import ConfigError, reason
from sparsejax.quantities import quantity
from sparsejax.storage import storage_problem

_TIMEOUT = 60.0  # seconds without an answer
_ATTEMPTS = 5  # at a transfer that is cut off, as long as each brings something
_BLOCK = 2**18  # bytes
_CUT_OFF = (ConnectionError, TimeoutError, http.client.IncompleteRead)

logger = logging.getLogger(__name__)


def ensure(file: Download) -> None:
    """Make sure that a file is there and as it was recorded; download it if it is missing.

    Processes that need the same file wait for the first one to download it.

    Args:
      file: the file.

    Raises:
      ConfigError: the file can't be downloaded, or isn't the one that was recorded.
    """
    if is_intact(file):
        return
    try:
        with lease.hold_in_turn(file.path.parent) as guard:
            if not is_intact(file):
                _receive(file)
                record = check_partial(file)
                guard()
                write_record(file, record)
                file.partial.replace(file.path)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ConfigError(
            f"{file.title}: {file.url} can't be downloaded: {_problem(error)}. Give the same "
            f"command again once that is solved, or {by_hand(file)}"
        ) from error


def _receive(file: Download) -> None:
    """Receive a file into its partial one, whole; go on where a transfer is cut off."""
    for attempt in range(_ATTEMPTS):
        before = _size(file.partial)
        try:
            _transfer(file, is_first=attempt == 0)
            return
        except _CUT_OFF as error:
            if attempt == _ATTEMPTS - 1 or _size(file.partial) <= before:
                raise
            logger.info("%s: %s; going on", file.title, _problem(error))


def _transfer(file: Download, is_first: bool) -> None:
    """Receive what the partial file lacks, or all of it; raise if less arrives."""
    with _open(file) as answer:
        start = _size(file.partial) if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        if answer.length is None and not answer.chunked:
            raise OSError("the server doesn't say where it ends, so it could be cut off unnoticed")
        total = None if answer.length is None else start + answer.length
        block = answer.read(_BLOCK)
        problem = misfit(file, block) if not start and (block or not total) else ""
        if problem:
            raise OSError(f"what the server sends {problem}")
        if not start:  # before the record speaks of another version
            file.partial.unlink(missing_ok=True)
        tag = answer.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
        write_record(file, read_record(file) | {"url": file.url, "validator": validator})
        if is_first:
            _announce(file, start, total)
        with _progress(file.path.name, start, total) as show, file.partial.open("ab") as out:
            while block:
                out.write(block)
                show(len(block))
                block = answer.read(_BLOCK)
            out.flush()
            os.fsync(out.fileno())
    if total not in (None, _size(file.partial)):
        raise ConnectionError(f"cut off after {_size(file.partial):,} of {total:,} bytes")


def _open(file: Download) -> http.client.HTTPResponse:
    """Ask for what the partial file lacks; for everything if it can't be continued."""
    validator, held = read_record(file).get("validator"), _size(file.partial)
    headers = {}
    if held and isinstance(validator, str) and validator and validator.isprintable():
        headers = {"Range": f"bytes={held}-", "If-Range": validator}
    try:
        request = urllib.request.Request(file.url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if not headers or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        file.partial.unlink()
        return _open(file)
    is_part = answer.status == http.HTTPStatus.PARTIAL_CONTENT
    if is_part and not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
        answer.close()
        file.partial.unlink(missing_ok=True)
        raise OSError("the server sends another part of it than it was asked for")
    return answer


def _announce(file: Download, start: int, total: int | None) -> None:
    size = f" ({quantity(total)}B)" if total else ""
    held = f", of which {quantity(start)}B are here," if start else ""
    logger.info(
        "%s: downloading %s%s%s from %s; licence: %s; kept in %s",
        *(file.title, file.path.name, size, held, file.url, file.licence, file.path.parent),
    )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "cut off"
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code} ({error.reason})"
    if isinstance(error, urllib.error.URLError):
        return reason(error.reason) if isinstance(error.reason, Exception) else str(error.reason)
    return storage_problem(error) or reason(error)


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal while the context lasts; yields `show(bytes that arrived)`."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(name, total=total, completed=start)
        yield functools.partial(progress.advance, bar)
