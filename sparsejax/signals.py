"""Signals that ask a process to stop: Ctrl-C, a closed terminal, a scheduler's SIGTERM.

Python runs signal handlers only between bytecode instructions, and so not while XLA compiles. Here
a thread reads signals as they arrive (`signal.set_wakeup_fd`). A watched process exits with one
line and the status 128 + the signal's number; inside `saving` it is asked to stop instead, and only
a second Ctrl-C exits at once. Signals that were ignored at the start stay ignored, as nohup and
background jobs require.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeAlias

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


OnStop: TypeAlias = Callable[[], object]


class Request:
    """A request to stop, which may not have been made yet.

    Attributes:
      signum: first signal received, or None.
      after: what is finished before stopping, for the message.
    """

    def __init__(self, on_stop: OnStop | None = None) -> None:
        """Create a request; `on_stop()` is called in another thread when it is made."""
        self.signum: signal.Signals | None = None
        self.after, self.on_stop = "this step", on_stop


# Signal handlers belong to the process, so this state does too.
_hint, _is_quiet, _is_watching = "", False, False
_request: Request | None = None
_last_request: Request | None = None
_terminals: tuple[int, ...] = ()
_at_end: list[Callable[[], object]] = []


def watch(hint: str = "", *, quiet: bool = False) -> None:
    """From now on, exit with a one-line message on a signal; call it first in a script.

    Does nothing outside the main thread.

    Args:
      hint: text to add to the message, such as how to resume.
      quiet: print nothing, for a process whose parent prints.
    """
    global _hint, _is_quiet
    _hint, _is_quiet = hint, quiet
    _install(SIGNALS)


@contextlib.contextmanager
def saving(
    on_stop: OnStop | None = None, signums: tuple[signal.Signals, ...] = SIGNALS
) -> Iterator[Request]:
    """Yield a Request: inside the context, the first signal only makes that request.

    A second SIGINT exits at once. Further SIGTERMs and SIGHUPs have no effect, because schedulers
    and closing terminals send several. Outside the main thread, unless `watch` was called, signals
    belong to someone else and the request is never made.

    Args:
      on_stop: called in another thread, without arguments, when the request is made.
      signums: signals to handle, unless `watch` handles them already.
    """
    global _request, _last_request
    uninstall = None if _is_watching else _install(signums)
    outer, _request = _request, Request(on_stop)
    _last_request = _request
    try:
        yield _request
    finally:
        _request = outer
        if uninstall:
            uninstall()


@contextlib.contextmanager
def at_end(function: Callable[[], object]) -> Iterator[None]:
    """Call a function, in another thread, if a signal or `end` ends the process inside the context.

    Exit handlers and `finally` don't run then. It has half a second.
    """
    _at_end.append(function)
    try:
        yield
    finally:
        _at_end.remove(function)


def received() -> signal.Signals | None:
    """Return the signal that made the last `saving` context's request, or None."""
    return _last_request.signum if _last_request else None


def exit_status(signum: int) -> int:
    """Return the exit status that shells report for a process ended by a signal.

    Examples:
      >>> exit_status(signal.SIGINT)
      130
    """
    return 128 + int(signum)


def say(line: str) -> None:
    """Write a line to stderr, even if the terminal is gone."""
    if _is_quiet:
        return
    end_of_typed = "\n" if 2 in _terminals else ""  # the terminal's ^C, or a progress bar
    with contextlib.suppress(OSError):
        os.write(2, f"{end_of_typed}{line}\n".encode())


@contextlib.contextmanager
def ignored(signum: int) -> Iterator[None]:
    """Ignore a signal inside the context; processes started there ignore it too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signum, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signum, previous)


def take(signum: int) -> None:
    """Handle a signal (again), whoever handles it now, if this process is watched."""
    if _is_watching and threading.current_thread() is threading.main_thread():
        signal.signal(signum, _wake)


def _install(signums: tuple[signal.Signals, ...]) -> Callable[[], None] | None:
    """Install the handlers and their thread; return a function that undoes this, or None."""
    global _is_watching, _terminals
    if _is_watching or threading.current_thread() is not threading.main_thread():
        return None
    _is_watching, _terminals = True, tuple(fd for fd in (0, 1, 2) if _is_terminal(fd))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {
        signum: signal.signal(signum, _wake)
        for signum in signums
        if signal.getsignal(signum) is not signal.SIG_IGN and not _is_native(signum)
    }
    threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True).start()

    def uninstall() -> None:
        global _is_watching
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_writer)
        os.close(writer)  # ends the thread
        _is_watching = False

    return uninstall


def _is_native(signum: int) -> bool:
    """Return whether native code, unknown to Python, handles a signal.

    JAX handles SIGTERM this way in multi-process runs.
    """
    if signal.getsignal(signum) is not signal.SIG_DFL:
        return signal.getsignal(signum) is None
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return False
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signum - 1) & 1)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _wake(signum: int, frame: FrameType | None) -> None:
    """Do nothing: Python has already written the signal's number to the wakeup file."""
    del signum, frame


def _listen(reader: int) -> None:
    while signums := os.read(reader, 64):
        for signum in signums:
            if signum in SIGNALS:
                _receive(signal.Signals(signum))
    os.close(reader)


def _receive(signum: signal.Signals) -> None:
    request = _request
    if signum == signal.SIGHUP:
        _leave_terminals()
    if request is None:
        end(exit_status(signum), f"Stopped by {signum.name}. {_hint}".rstrip())
    elif request.signum is None:
        request.signum = signum
        at_once = "; Ctrl-C again ends at once" if signum == signal.SIGINT else ""
        say(f"{signum.name}: stopping after {request.after}{at_once}.")
        if request.on_stop:
            request.on_stop()
    elif signum == signal.SIGINT:
        end(exit_status(signum), f"Ended at once. {_hint}".rstrip())


def _leave_terminals() -> None:
    """Redirect output from a vanished terminal, where every print would fail, to /dev/null."""
    for fd in _terminals:
        if not _is_terminal(fd):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, fd)
            os.close(null)


def end(status: int, line: str) -> NoReturn:
    """End this process at once, from any thread, with a last line on stderr.

    Exit handlers and `finally` don't run; what `at_end` was given does.

    Args:
      status: exit status.
      line: what to say.
    """
    # In threads, since a full pipe or a slow disk would block. Buffered output comes first.
    for function in (_flush, *_at_end):
        with contextlib.suppress(RuntimeError):
            thread = threading.Thread(target=function, daemon=True)
            thread.start()
            thread.join(0.5)
    say(line)
    for fd in sorted({1, 2} & set(_terminals))[:1]:
        with contextlib.suppress(OSError):
            os.write(fd, _SHOW_CURSOR.encode())
    # No exit handlers: they would tear down what native threads are still using.
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
