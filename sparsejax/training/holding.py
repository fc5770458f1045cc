"""One trainer per workdir: the first process of a run holds its lease."""

import contextlib
import itertools
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sparsejax import lease
from sparsejax.command_line import one_line
from sparsejax.errors import ConfigError
from sparsejax.training.runs import check_writable
from sparsejax.types import PathLike

_TIMEOUT = 10 * 60 * 1000  # milliseconds
_MESSAGE = 1024  # bytes
_times = itertools.count()


@contextlib.contextmanager
def hold_workdir(workdir: PathLike) -> Iterator[lease.Guard]:
    """Hold a workdir's lease while the context lasts; see `lease.hold`.

    In a run of several processes the first one holds it, and all of them are refused if it is.

    Args:
      workdir: path; created if need be.

    Yields:
      Guard to call before each write; in other processes than the first it does nothing.

    Raises:
      ConfigError: another process trains there, or the run's files can't be written.
    """
    guard: lease.Guard = _nothing
    refused: ConfigError | OSError | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                check_writable(workdir)
                guard = stack.enter_context(lease.hold(workdir))
            except lease.HeldError as error:
                accepted = "another --workdir, or the same command once that process has ended"
                refused = ConfigError(f"workdir {error}; accepted: {accepted}")
            except (ConfigError, OSError) as error:
                refused = error
        message = _message_of_first(one_line(refused) if refused else "")
        if refused:
            raise refused
        if message:
            raise ConfigError(message)
        yield guard


def _nothing() -> None:
    """Do nothing."""


def _message_of_first(message: str) -> str:
    """Return the first process's message in all processes."""
    if jax.process_count() == 1:
        return message
    # The first one may have waited for longer than a collective operation would.
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f"sparsejax-lease-{next(_times)}", timeout_ms=_TIMEOUT)
    buffer = np.zeros(_MESSAGE, np.uint8)
    text = np.frombuffer(message.encode()[:_MESSAGE], np.uint8)
    buffer[: len(text)] = text
    received = multihost_utils.broadcast_one_to_all(buffer)
    return bytes(np.asarray(received)).rstrip(b"\0").decode(errors="replace")
