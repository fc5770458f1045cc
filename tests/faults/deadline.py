"""The CPU time that one input may take: a busy machine takes no more of it."""

import contextlib
import signal
from collections.abc import Iterator

SECONDS = 20  # for one file of some kilobytes
HANGS = 300  # seconds by the clock, for one that waits


class TooSlow(BaseException):  # noqa: N818  no OSError, which readers turn into a refusal
    """An input took too long."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """Raise TooSlow in the block after `SECONDS` of CPU time, or if it hangs."""

    def ended(signum: int, frame: object) -> None:
        limit = "of CPU time" if signum == signal.SIGPROF else "by the clock"
        seconds = SECONDS if signum == signal.SIGPROF else HANGS
        raise TooSlow(f"not done within {seconds} s {limit}")

    signal.signal(signal.SIGPROF, ended)
    signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
