"""A small process that waits for the one that trains, to have the last word however that one ends.

JAX's runtime ends a process that lost contact with process 0 by SIGABRT, from a native thread, so
nothing in that process can say what happened. Here the process forks before anything heavy is
imported: the child trains, and tells by a pipe who it is; the parent passes signals on to it, and
exits with its status. A child whose parent is killed ends too.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from typing import Any, NoReturn, TypeAlias

LOST = 75  # exit status: another process was lost, and the same command goes on (EX_TEMPFAIL)

Fact: TypeAlias = Any  # what JSON can hold
Facts: TypeAlias = dict[str, Fact]  # what a child has told of itself

_STOPPING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # passed on to the child
# The end of the child's pipe, which belongs to the process.
_writer: int | None = None


def supervise() -> None:
    """Go on in a child process; this one waits for it, and exits as it does."""
    global _writer
    lives, alive = os.pipe()  # ends with the parent
    reader, writer = os.pipe()
    # Blocked, and taken by `sigwait`. Without handlers yet, a signal would end this process.
    # One just before `waitpid` would wait for its handler as long as the child lives.
    passed = {signum for signum in _STOPPING if signal.getsignal(signum) is not signal.SIG_IGN}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed | {signal.SIGCHLD})
    child = os.fork()
    if child:
        for unused in (lives, writer):
            os.close(unused)
        _exit(_wait(child, passed), _read(reader))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for unused in (alive, reader):
        os.close(unused)
    _writer = writer
    os.setpgid(0, 0)  # a terminal's Ctrl-C then comes by the parent alone
    threading.Thread(target=_end_with, args=(lives,), name="supervised", daemon=True).start()


def report(**facts: Fact) -> None:
    """Tell the parent, if there is one, of this process: JSON-serializable values by name."""
    if _writer is not None:
        os.write(_writer, json.dumps(facts).encode() + b"\n")


def unreachable(address: str, timeout: float = 5.0) -> str | None:
    """Return why nothing can connect to a machine, or None if it can.

    Args:
      address: HOST:PORT; an IPv6 host is in brackets.
      timeout: seconds.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def going_on(workdir: object) -> str:
    """Return how to go on after a process was lost."""
    return (
        f"The same command in each process resumes the run{f' in {workdir}' if workdir else ''} "
        "from its last checkpoint, also with another number of processes or devices."
    )


def _end_with(lives: int) -> None:
    os.read(lives, 1)  # returns once the parent is gone
    os._exit(128 + signal.SIGKILL)


def _wait(child: int, passed: set[signal.Signals]) -> int:
    """Pass blocked signals on to a child until it ends; return its exit code."""
    while True:
        signum = signal.sigwait(passed | {signal.SIGCHLD})
        if signum != signal.SIGCHLD:
            os.kill(child, signum)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _read(reader: int) -> Facts:
    """Return all facts that a child has reported."""
    os.set_blocking(reader, False)  # a process that the child started may hold the other end
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 4096):
            text += part
    facts: Facts = {}
    for line in text.splitlines():
        facts |= json.loads(line)
    return facts


def _exit(code: int, facts: Facts) -> NoReturn:
    """Exit as a child did, whose exit code is -N if signal N ended it; then say why."""
    if code < 0:
        code, line = last_word(-code, facts)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"error: {line}\n".encode())
    os._exit(code)


def last_word(signum: int, facts: Facts) -> tuple[int, str]:
    """Return exit status and message for a child that a signal ended.

    Args:
      signum: the signal.
      facts: what the child has reported.
    """
    name = signal.Signals(signum).name
    coordinator, index, count = (facts.get(key) for key in ("coordinator", "process", "number"))
    this = f"process {index} of {count}" if index is not None else "this process"
    if signum != signal.SIGABRT:
        more = " (out of memory?)" if signum == signal.SIGKILL else ""
        return 128 + signum, f"{this} was ended by {name}{more}. {going_on(facts.get('workdir'))}"
    problem = unreachable(coordinator) if coordinator and index else None
    if facts.get("phase") == "joining":
        where = f" at {coordinator}" if coordinator else ""
        if problem:
            return 2, f"{this} can't reach process 0{where}: {problem}"
        return 2, (
            f"{this} couldn't join the others{where} within {facts['timeout']} s; accepted: each "
            "process once, all with the same number of processes (--join-timeout waits longer)"
        )
    if problem:
        lost = f"process 0 of {count}, the coordinator at {coordinator}, was lost"
        return LOST, f"{lost} ({problem}). {going_on(facts.get('workdir'))}"
    return 128 + signum, (
        f"the runtime ended {this}, for what its lines above say: was it suspended, is a process "
        f"id given twice, or is a lost process back already? {going_on(facts.get('workdir'))}"
    )
