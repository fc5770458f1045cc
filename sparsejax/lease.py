"""Leases: one process at a time writes to a folder, on one machine or on storage that many share.

A lease is a file in the folder, `lease-NUMBER.json`, which names its holder and is renewed while it
is held; the highest number counts. Creating a file is exclusive everywhere, locks (flock) are not:
whoever creates the first file, or the one after a dead holder's, holds the lease.

A holder on this host is dead if its process is. The clocks of other hosts may differ from ours, so
their lease is stale once it hasn't changed for `PATIENCE` seconds of watching.
"""

import contextlib
import datetime
import errno
import functools
import json
import logging
import os
import pathlib
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from sparsejax import signals
from sparsejax.errors import ConfigError

RENEW_EVERY = 10.0  # seconds
PATIENCE = 60.0  # seconds without renewal after which a lease of another host is stale

_SHORT = 5.0  # seconds that are waited without a word

Guard: TypeAlias = Callable[[], None]  # raises HeldError once the lease is someone else's

logger = logging.getLogger(__name__)


class HeldError(ConfigError):
    """Another process writes to a folder; the message says which, and since when."""


class Holder(NamedTuple):
    """Content of a lease file.

    Attributes:
      token: random text, another one for every lease.
      host: name of the holder's host.
      boot: id of that host's boot; empty where it can't be told.
      namespace: id of the holder's process ids, which a container has for itself.
      pid: its process id.
      started: its start in clock ticks since boot: process ids are used again.
      since: when the lease was taken, by the holder's clock.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str

    def __str__(self) -> str:
        """Return "process PID on HOST, since DATE"."""
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike[str],
    *,
    patience: float | None = PATIENCE,
    renew_every: float = RENEW_EVERY,
) -> Iterator[Guard]:
    """Hold the lease of a folder while the context lasts, however it ends.

    A thread renews it. The lease of a dead process is taken over: at once if it ran on this host,
    otherwise after watching it for `patience` seconds.

    Args:
      folder: folder to write to; created if need be, and removed again if it stays empty.
      patience: seconds to watch another host's lease; None to raise HeldError instead.
      renew_every: seconds between renewals.

    Yields:
      Guard: call it before each write. It raises HeldError if the lease was taken over, after this
      process had been suspended or cut off from the storage for longer than others' patience.

    Raises:
      HeldError: another process holds the lease.
      OSError: no file can be created in the folder.
    """
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path, file, holder = _acquire(folder, patience)
    guard = functools.partial(require_held, path, holder.token)
    ended = threading.Event()

    thread = threading.Thread(
        target=_renew, args=(file, holder, ended, renew_every), name="lease", daemon=True
    )
    thread.start()

    def release() -> None:
        ended.set()
        thread.join(0.3)
        with contextlib.suppress(OSError, HeldError):
            guard()
            path.unlink()

    try:
        with signals.at_end(release):
            yield guard
    finally:
        release()
        with contextlib.suppress(OSError):
            for created in missing:
                created.rmdir()


@contextlib.contextmanager
def hold_in_turn(folder: str | os.PathLike[str]) -> Iterator[Guard]:
    """Hold the lease of a folder once nobody else holds it, however long that takes."""
    began, is_told = time.monotonic(), False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                guard = stack.enter_context(hold(folder))
                break
            except HeldError as refusal:
                if not is_told and time.monotonic() > began + _SHORT:
                    logger.info("%s; waiting until that has ended", refusal)
                    is_told = True
                time.sleep(random.uniform(0.05, 0.2))
        yield guard


def require_held(path: pathlib.Path, token: str) -> None:
    """Check that a lease is still held.

    Args:
      path: its file.
      token: its token.

    Raises:
      HeldError: the file is gone, or another process's.
    """
    content = _read(path)
    if content is None or token.encode() not in content:
        _, content = _newest(path.parent, _numbers(path.parent))
        taken = f"was taken over by {_name(content)}" if content else f"is gone: no {path.name}"
        raise HeldError(
            f"the lease of {str(path.parent)!r} {taken}; this process writes nothing more there"
        )


def _acquire(folder: pathlib.Path, patience: float | None) -> tuple[pathlib.Path, int, Holder]:
    """Create the lease file that counts; return its path, its open file and its content."""
    holder, taken = _this_process(), 0
    seen, since, is_told = b"", time.monotonic(), False
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # whoever created it may have removed it
        before = _numbers(folder)
        # A listing may be old on shared storage, which an exclusive creation never is.
        number, content = _newest(folder, before | {taken})
        is_alive = _is_alive(content, seen) if content is not None else False
        if is_alive or (is_alive is None and patience is None):
            raise HeldError(f"{str(folder)!r} is in use by {_name(content)}")
        if is_alive is None and content is not None and patience is not None:
            if content != seen:
                seen, since = content, time.monotonic()
            waited = time.monotonic() - since
            if waited > patience / 30 and not is_told:
                _say(folder, content, patience)
                is_told = True
            if waited < patience:
                time.sleep(min(1.0, patience / 20))
                continue
        path = _path(folder, number + 1)
        file = create(path, holder)
        if file is None:  # another process was faster
            taken = number + 1
        elif _numbers(folder) - before - {number + 1} or _has_changed(folder, number, content):
            # Others ended and began since `before` was listed, with numbers from 1 again.
            os.close(file)
            path.unlink()
        else:
            for old in before - {number + 1}:  # it was listed, but gone when read
                _path(folder, old).unlink(missing_ok=True)
            return path, file, holder
        time.sleep(random.uniform(0, 0.05))


def _say(folder: pathlib.Path, content: bytes, patience: float) -> None:
    logger.info(
        "%s is held by %s; waiting up to %.0f s for a sign of life before taking over",
        *(folder, _name(content), patience),
    )


def _is_alive(content: bytes, seen: bytes) -> bool | None:
    """Return whether the holder of a lease is alive, where it has been watched; None if unknown.

    Args:
      content: of its file.
      seen: content that was seen before; empty if there was none.
    """
    holder = _parse(content)
    if holder is None:  # damaged, or being written
        return None
    is_alive = _is_running(holder)
    return True if is_alive is None and seen not in (b"", content) else is_alive


def _path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"lease-{number}.json"


def _numbers(folder: pathlib.Path) -> set[int]:
    """Return the numbers of the lease files in a folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    matches = (re.fullmatch(r"lease-([1-9]\d{0,17})\.json", name) for name in names)
    return {int(match[1]) for match in matches if match}


def _newest(folder: pathlib.Path, numbers: set[int]) -> tuple[int, bytes | None]:
    """Return number and content of the lease that counts; 0 and None if there is none."""
    for number in sorted(numbers, reverse=True):
        content = _read(_path(folder, number))
        if content is not None:
            return number, content
    return 0, None


def _has_changed(folder: pathlib.Path, number: int, content: bytes | None) -> bool:
    """Return whether a lease that was to be taken over is another one, or renewed, by now."""
    return number > 0 and _read(_path(folder, number)) not in (None, content)


def _read(path: pathlib.Path) -> bytes | None:
    """Return the content of a file; None if it doesn't exist (any more)."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # stale: removed by another host
            return None
        raise


def _parse(content: bytes) -> Holder | None:
    """Return who holds a lease; None if its file is empty or damaged."""
    try:
        values = json.loads(content)
        holder = Holder(**{name: values[name] for name in Holder._fields})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_pid = isinstance(holder.pid, int) and 0 < holder.pid < 2**31
    texts = (value for name, value in holder._asdict().items() if name != "pid")
    return holder if is_pid and all(isinstance(text, str) for text in texts) else None


def _name(content: bytes | None) -> str:
    return str(_parse(content or b"") or "another process")


def create(path: pathlib.Path, holder: Holder) -> int | None:
    """Create a lease file, if no other process is faster.

    Args:
      path: of the file, `lease-N.json` in the folder that is to be held.
      holder: what it says of the process that holds it.

    Returns:
      File descriptor, open for writing; None if the file exists, or its folder doesn't any more.

    Raises:
      OSError: it can't be written, for instance on a full disk; no file is left then.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except (FileExistsError, FileNotFoundError):
        return None
    try:
        _write(file, holder)
    except OSError:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file


def _write(file: int, holder: Holder) -> None:
    """Write a lease, or write it again with a new date, of the same length."""
    values = holder._asdict() | {"renewed": _now("microseconds")}
    os.pwrite(file, json.dumps(values).encode() + b"\n", 0)
    os.fsync(file)


def _renew(file: int, holder: Holder, ended: threading.Event, every: float) -> None:
    """Renew a lease until it is released.

    Through the open file: once the lease is taken over this writes to a file without a name.
    """
    while not ended.wait(every):
        with contextlib.suppress(OSError):
            _write(file, holder)
    with contextlib.suppress(OSError):
        os.close(file)


def _now(precision: str) -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(" ", precision).replace("+00:00", " UTC")


def _this_process() -> Holder:
    boot, namespace = _boot()
    pid, since = os.getpid(), _now("seconds")
    started = _started(pid) or ""
    return Holder(secrets.token_hex(16), socket.gethostname(), boot, namespace, pid, started, since)


def _boot() -> tuple[str, str]:
    """Return what tells this boot of this host, and this container, from all others."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return "", ""


def _started(pid: int) -> str | None:
    """Return when a process started; empty if it has ended, None if that can't be read."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]  # field 22 of proc(5)


def _is_running(holder: Holder) -> bool | None:
    """Return whether a process of this host is running; None for other hosts and containers."""
    ours = (socket.gethostname(), *_boot())
    known = holder.boot and holder.started
    if not known or (holder.host, holder.boot, holder.namespace) != ours:
        return None
    started = _started(holder.pid)
    if started is not None:
        return started == holder.started
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user, which is hidden from us
        pass
    return None
