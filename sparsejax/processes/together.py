"""The failure or loss of one process of a run ends all of them, each with one line.

Processes share the key-value store of JAX's coordinator. There each says once a second that it is
alive, and the first to fail says why. A thread of each process reads this; it ends the process
where the main thread can't, since that waits for the others in a collective operation.
"""

import contextlib
import itertools
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from sparsejax import signals
from sparsejax.command_line import one_line
from sparsejax.errors import ConfigError, reason
from sparsejax.processes import supervisor
from sparsejax.processes.joining import Processes
from sparsejax.storage import storage_problem

POLL = 1.0  # seconds
# Polls without a sign of life after which a process is lost; polls, not seconds, since those in
# which this process itself was suspended don't count.
SILENCE = 40
SUSPECTED = 10  # instead, once an operation failed that needs the others
GRACE = 6.0  # seconds for a process to fail by itself after another has
UNWINDING = 40.0  # seconds from an exception to the end of its process
_EXPECTED = (ConfigError, OSError, FloatingPointError, SystemExit)  # have no traceback
_ALIVE, _FAILED, _LEFT = "sparsejax/alive/", "sparsejax/failed", "sparsejax/left/"


class Failure(NamedTuple):
    """Why a run of several processes ends: the line to say, and the exit status."""

    status: int
    line: str


class Watch:
    """What one process knows of all: shared by its main thread, `beat` and `judge`."""

    def __init__(self, client: Any, processes: Processes, workdir: object) -> None:
        self.client, self.workdir = client, workdir
        self.count, self.index = processes.number, processes.process
        self.quiet = [0] * self.count  # polls since a process was heard of
        self.contact = 0  # polls since the store answered
        self.silence = SILENCE
        self.failure: Failure | None = None  # that of another process
        self.own: Failure | None = None
        self.left: set[int] = set()
        self.ended, self.ending = threading.Event(), threading.Lock()

    def beat(self) -> None:
        """Say that this process is alive, and hear the others."""
        seen: dict[str, str] = {}
        for beat in itertools.count():
            with contextlib.suppress(Exception):  # the store is gone or slow: `contact` tells
                self._exchange(str(beat), seen)
                self.contact = 0
            if self.ended.wait(POLL):
                return

    def _exchange(self, beat: str, seen: dict[str, str]) -> None:
        self.client.key_value_set(f"{_ALIVE}{self.index}", beat, allow_overwrite=True)
        for key, value in self.client.key_value_dir_get(_ALIVE):
            if seen.get(key) != value:
                seen[key] = value
                self.quiet[int(key.rpartition("/")[2])] = 0
        self.left = {int(key.rpartition("/")[2]) for key, _ in self.client.key_value_dir_get(_LEFT)}
        for _, value in self.client.key_value_dir_get(_FAILED):
            self.failure = Failure(*json.loads(value))

    def judge(self) -> None:
        """End this process once another has failed or is lost."""
        while not self.ended.wait(POLL):
            self.contact += 1
            for i in range(self.count):
                # Nobody can be heard while the store doesn't answer.
                self.quiet[i] += self.contact < 3
            if self.failure:
                if not self.ended.wait(GRACE) and not self.own:
                    self.end(self.failure)
            elif self.index and self.contact >= self.silence:
                self.end(self.interrupted(0, "was lost"))
            else:
                expected = set(range(self.count)) - self.left - {self.index}
                for i in sorted(expected):
                    if self.quiet[i] >= self.silence:
                        self.end(self.interrupted(i, "was lost"))

    def interrupted(self, index: int, how: str) -> Failure:
        """Return the Failure of a run that can go on as it is.

        Args:
          index: of the process that causes it.
          how: what became of that process: completes "process 1 of 2 ...".
        """
        line = f"error: process {index} of {self.count} {how}. {supervisor.going_on(self.workdir)}"
        return Failure(supervisor.LOST, line)

    def post(self, failure: Failure) -> None:
        """Tell the others why the run ends; the first to do so is heard. Never blocks."""

        def put() -> None:
            with contextlib.suppress(Exception):  # another was first, or the store is gone
                self.client.key_value_set(f"{_FAILED}/0", json.dumps(failure))

        _briefly(put)

    def leave(self) -> None:
        """Tell the others that this process needs them no more. Never blocks."""

        def put() -> None:
            with contextlib.suppress(Exception):
                self.client.key_value_set(f"{_LEFT}{self.index}", "", allow_overwrite=True)

        _briefly(put)

    def wait_for_others(self, timeout: float | None = None) -> None:
        """Wait until all others have left; one that is lost ends this process meanwhile."""
        began = time.monotonic()
        while timeout is None or time.monotonic() - began < timeout:
            others = set(range(self.count)) - self.left - {self.index}
            if not others or (timeout and min(self.quiet[i] for i in others) >= SUSPECTED):
                return
            time.sleep(POLL / 10)

    def end(self, failure: Failure) -> NoReturn:
        """End this process, and have the others end."""
        self.ending.acquire()  # for ever: a process says one last line
        self.post(failure)
        self.leave()
        if self.index == 0:  # its end is that of the store, which the others still have to read
            self.wait_for_others(GRACE + 4 * POLL)
        signals.end(failure.status, failure.line)

    def fail(self, error: BaseException) -> None:
        """Tell the others of an exception; this process ends soon, if not by itself."""
        if self.own:
            return
        if not isinstance(error, _EXPECTED):
            # An operation that another process failed or left: the threads find out which.
            self.silence = SUSPECTED
            time.sleep((SUSPECTED + 2) * POLL)
            if self.failure:
                time.sleep(GRACE + POLL)
        self.own = self.describe(error)
        self.post(self.own)
        timer = threading.Timer(UNWINDING, self.end, (self.own,))
        timer.daemon = True
        timer.start()

    def describe(self, error: BaseException) -> Failure:
        """Return the line and the status that an exception of this process ends all with."""
        this = f"error: process {self.index} of {self.count}: "
        if isinstance(error, SystemExit):
            return Failure(1, this + str(error.code).removeprefix("error: "))
        if isinstance(error, ConfigError | FloatingPointError):
            return Failure(2 if isinstance(error, ConfigError) else 1, this + one_line(error))
        return Failure(1, this + (storage_problem(error) or reason(error)))


# A process is part of one run at most.
running: Watch | None = None


@contextlib.contextmanager
def together(processes: Processes, workdir: object) -> Iterator[None]:
    """While the context lasts, the failure or loss of one process ends all of them.

    An exception ends this process: its message is the last line of all. The context is left once
    all processes are about to leave it, and JAX's processes part then.

    Args:
      processes: what `joining.join` returned.
      workdir: folder of the run, for the message.

    Raises:
      BaseException: what the body raises, if it is a signal's; any other exception ends the
        process here.
    """
    global running
    from jax._src.distributed import global_state  # has no public name

    running = watch = Watch(global_state.client, processes, workdir)
    supervisor.report(workdir=str(workdir))
    for target in (watch.beat, watch.judge):
        threading.Thread(target=target, name="processes", daemon=True).start()

    def stopped() -> None:
        watch.post(watch.interrupted(watch.index, "was stopped by a signal"))

    try:
        with signals.at_end(stopped), failing():
            yield
    except BaseException as error:
        if watch.own:
            if not isinstance(error, _EXPECTED):
                traceback.print_exc()
            watch.own = watch.describe(error)
            watch.end(watch.own)
        _part(watch)  # a signal: all processes end after the same step
        raise
    _part(watch)


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Tell the other processes of an exception inside the context, before it is handled further.

    Handling it may need the others, which wait for this process. In a run of one process this does
    nothing.

    Raises:
      BaseException: what the body raises.
    """
    try:
        yield
    except BaseException as error:
        is_stop = isinstance(error, SystemExit) and not isinstance(error.code, str)
        if running and not is_stop:
            running.fail(error)
        raise


def _part(watch: Watch) -> None:
    """Wait until all processes have come here, and leave them."""
    global running
    import jax

    watch.leave()
    watch.wait_for_others()
    watch.ended.set()
    running = None
    jax.distributed.shutdown()


def _briefly(function: Callable[[], None], timeout: float = 2.0) -> None:
    """Call a function in a thread, and don't wait for longer than that."""
    with contextlib.suppress(RuntimeError):
        thread = threading.Thread(target=function, daemon=True)
        thread.start()
        thread.join(timeout)
