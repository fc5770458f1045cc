"""Processes that are forked from one that has imported everything: they start at once.

JAX must not have created a backend in the parent, since its threads would be missing in the child.
What runs in a child is what `python -m sparsejax` runs, and a child is killed as any process is.
"""

import contextlib
import os
import pathlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

MEMORY = 8 * 2**30  # bytes of address space


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
      status: exit status; negative if a signal killed it.
      output: what it wrote to stdout.
      errors: what it wrote to stderr.
      cpu: seconds of CPU time.
      left: whether processes that it had started were still running 10 s later.
    """

    status: int
    output: str
    errors: str
    cpu: float
    left: bool

    def problems(self, *accepted: int) -> list[str]:
        """Say what a user must never see: a traceback, another status, more than the last line."""
        found = [f"exit status {self.status}"] if self.status not in accepted else []
        if "Traceback" in self.errors + self.output:
            found.append("a traceback: " + (self.errors.strip() or self.output).splitlines()[-1])
        if self.left:
            found.append("a process that it had started went on without it")
        return found


def run(
    call: Callable[[], object],
    folder: pathlib.Path,
    *,
    kill_at: float | None = None,
    signum: int = signal.SIGKILL,
    timeout: float = 900,
    memory: int = MEMORY,
) -> Ended:
    """Run a function in a forked process, which leads a process group of its own.

    Args:
      call: function without arguments; SystemExit gives the exit status, as in a script.
      folder: folder for what the process prints.
      kill_at: seconds of CPU time after which the process is sent `signum`; None for never.
      signum: signal to send.
      timeout: seconds after which a process hangs: it is killed, and TimeoutError raised.
      memory: bytes of address space that the process may take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of this process could hold a lock that the child would wait for. jemalloc, which
    # pyarrow brings where datasets is installed, takes its own locks at a fork.
    names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    others = [name for name in names if name != "jemalloc_bg_thd"]
    assert len(others) == 1, f"only a process of one thread is forked, not of {names}"
    pid = os.fork()
    if pid == 0:
        _become(paths, memory)
        _run_and_exit(call)
    began = time.monotonic()
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if kill_at is not None and _cpu_seconds(pid) >= kill_at:
            os.kill(pid, signum)
            kill_at = None
        if time.monotonic() - began > timeout:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"still running after {timeout:.0f} s")
        time.sleep(0.01)
    left = _end_group(pid)
    texts = (path.read_text(errors="replace") for path in paths)
    seconds = usage.ru_utime + usage.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), *texts, seconds, left)


def _become(paths: tuple[pathlib.Path, pathlib.Path], memory: int) -> None:
    os.setsid()
    # Ignored ones, as those of processes in the background, would stay ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, path in ((0, os.devnull), (1, paths[0]), (2, paths[1])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_and_exit(call: Callable[[], object]) -> None:
    status = 0
    try:
        call()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # as Python itself ends a script
        status = 1
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a file that may not grow, a full disk
                stream.flush()
        os._exit(status)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process: moments that don't depend on how busy a machine is."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end_group(group: int) -> bool:
    """Wait for the rest of a process group, and kill it after 10 s; return whether it had to be."""
    deadline = time.monotonic() + 10
    while _is_alive(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def _is_alive(group: int) -> bool:
    """Return whether a process group has a process that isn't a zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, own, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(own) == group and state not in "ZX":
                return True
    return False
