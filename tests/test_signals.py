"""Signals end processes in one line: real processes, that wait in native code as XLA does."""

import contextlib
import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading

import pytest

from sparsejax import signals

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Locking a native lock twice waits for ever, and no signal wakes the main thread up.
WAIT = """
import ctypes, sys
from sparsejax import signals
def wait():
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
WATCHING = (
    WAIT
    + """
signals.watch("The same command goes on.")
print("ready", flush=True)
wait()
"""
)
SAVING = (
    WAIT
    + """
import time
signals.watch("More.")
with signals.saving() as request:
    request.after = "compilation"
    print("ready", flush=True)
    end = time.monotonic() + 20
    while request.signum is None and time.monotonic() < end:
        ctypes.CDLL(None).usleep(10_000)
    if "--slow" in sys.argv:
        wait()
    print("saved", flush=True)
sys.exit(signals.exit_status(signals.received()))
"""
)


# Makes its standard input, a terminal, the one that its session belongs to.
IN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


@pytest.fixture
def start():
    """Start Python with code; whatever is left of it is killed after the test."""
    processes = []

    def start(code, *arguments, prefix=(), **options):
        command = [*prefix, sys.executable, "-c", code, *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        environment = os.environ | {"PYTHONPATH": "."}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, **options
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(process):
    for line in process.stdout:
        if line == "ready\n":
            return
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("signum", signals.SIGNALS)
def test_a_watching_process_ends_in_one_line(start, signum):
    process = start(WATCHING)
    wait_until_ready(process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=10)
    assert errors == f"Stopped by {signum.name}. The same command goes on.\n"
    assert process.returncode == 128 + signum


@pytest.mark.parametrize("signum", signals.SIGNALS)
def test_a_saving_process_is_told_at_once_and_ends_by_itself(start, signum):
    process = start(SAVING)
    wait_until_ready(process)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=10)
    assert output == "saved\n"
    assert errors.startswith(f"{signum.name}: stopping after compilation")
    assert errors.count("\n") == 1
    assert process.returncode == 128 + signum


def test_a_second_ctrl_c_ends_at_once_and_other_repeated_signals_do_not(start):
    process = start(SAVING, "--slow")
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: stopping after compilation.\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    assert (output, errors) == ("", "Ended at once. More.\n")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("ignored", "prefix"),
    [
        (signal.SIGHUP, ["nohup"]),
        (signal.SIGINT, ["sh", "-c", '"$@" & wait $!', "sh"]),
        (signal.SIGTERM, ["sh", "-c", 'trap "" TERM; exec "$@"', "sh"]),
    ],
    ids=["nohup", "background", "trap"],
)
@pytest.mark.parametrize("code", [WATCHING, SAVING], ids=["watching", "saving"])
def test_ignored_signals_stay_ignored(start, ignored, prefix, code):
    report = "import os; print(os.getpid(), flush=True)\n"
    process = start(report + code, prefix=prefix)
    pid = int(process.stdout.readline())
    wait_until_ready(process)
    os.kill(pid, ignored)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    other = signal.SIGTERM if ignored == signal.SIGINT else signal.SIGINT
    os.kill(pid, other)
    _, errors = process.communicate(timeout=10)
    assert ignored.name not in errors
    assert other.name in errors
    assert process.returncode == 128 + other


def read_to_end(terminal):
    """Everything that a terminal was sent; it comes in pieces, and its end is an error."""
    seen = b""
    while True:
        try:
            piece = os.read(terminal, 1024)
        except OSError:
            return seen
        if not piece:
            return seen
        seen += piece


def test_a_terminal_gets_its_cursor_back(start):
    """Ctrl-C as a terminal sends it: the byte 3, to the process in front."""
    master, slave = pty.openpty()
    code = 'import sys; sys.stdout.write("\\x1b[?25l")\n' + IN_TERMINAL + WATCHING
    process = start(code, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while b"ready\r\n" not in seen:
        seen += os.read(master, 1024)
    os.write(master, b"\x03")
    assert process.wait(timeout=10) == 130
    seen = read_to_end(master)
    os.close(master)
    line = b"Stopped by SIGINT. The same command goes on."
    assert seen == b"^C\r\n" + line + b"\r\n\x1b[?25h"


def test_a_closed_terminal_does_not_keep_a_process_from_saving(start, tmp_path):
    """Every write to it fails then; `saved` is printed all the same, to nowhere."""
    master, slave = pty.openpty()
    code = IN_TERMINAL + SAVING.replace(
        "sys.exit", f"open({str(tmp_path / 'saved')!r}, 'w').close(); sys.exit"
    )
    process = start(code, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while b"ready\r\n" not in seen:
        seen += os.read(master, 1024)
    os.close(master)
    assert process.wait(timeout=10) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").exists()


def test_handlers_are_given_back():
    before = [signal.getsignal(signum) for signum in signals.SIGNALS]
    with signals.saving() as request:
        assert signal.getsignal(signal.SIGINT) not in before
        assert request.signum is None
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_other_threads_leave_signals_alone():
    seen = []

    def body():
        with signals.saving() as request:
            seen.append((request.signum, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, signal.getsignal(signal.SIGINT))]
