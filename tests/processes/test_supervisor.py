"""A supervised process ends with one line, whatever ends it: real processes, that don't train."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from sparsejax import signals
from sparsejax.processes import supervisor

ROOT = pathlib.Path(__file__).resolve().parents[2]
START = """
import os, signal, sys, time
from sparsejax.processes import supervisor
supervisor.supervise()
facts = dict(coordinator=sys.argv[1], number=2, process=int(sys.argv[2]), timeout=3)
supervisor.report(phase=sys.argv[3], workdir="runs/a", **facts)
print(os.getpid(), flush=True)
"""
GOES_ON = "The same command in each process resumes the run in runs/a from its last checkpoint"


@pytest.fixture
def address():
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start():
    """Start a supervised process that reports itself and then runs code."""
    processes = []

    def start(code, address="", process=1, phase="training"):
        words = [sys.executable, "-c", START + code, address, str(process), phase]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(words, cwd=ROOT, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def end_of(process):
    """Return exit status and stderr."""
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


@pytest.mark.parametrize("status", [0, 2, 143])
def test_a_process_that_ends_by_itself_has_said_what_there_is_to_say(start, status):
    assert end_of(start(f"sys.exit({status})")) == (status, "")


def test_a_killed_process_is_named(start):
    status, errors = end_of(start("os.kill(os.getpid(), signal.SIGKILL)"))
    assert status == 137
    assert errors.startswith("error: process 1 of 2 was ended by SIGKILL (out of memory?). ")
    assert errors.count("\n") == 1
    assert GOES_ON in errors


def test_an_abort_without_a_coordinator_is_the_loss_of_process_0(start, address):
    """JAX's runtime aborts a process that lost contact with it."""
    status, errors = end_of(start("os.abort()", address))
    assert status == supervisor.LOST
    line = f"error: process 0 of 2, the coordinator at {address}, was lost (Connection refused). "
    assert errors.startswith(line + GOES_ON)
    assert errors.count("\n") == 1


def test_an_abort_with_a_coordinator_is_its_own(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        status, errors = end_of(start("os.abort()", address))
    assert status == 128 + signal.SIGABRT
    assert errors.startswith("error: the runtime ended process 1 of 2, ")
    assert GOES_ON in errors


@pytest.mark.parametrize(
    ("process", "line"),
    [
        (0, "error: process 0 of 2 couldn't join the others at {} within 3 s; accepted: each "),
        (1, "error: process 1 of 2 can't reach process 0 at {}: Connection refused\n"),
    ],
)
def test_an_abort_before_all_have_joined_is_an_error_of_the_flags(start, address, process, line):
    status, errors = end_of(start("os.abort()", address, process, "joining"))
    assert status == 2
    assert errors.startswith(line.format(address))
    assert errors.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_are_passed_on(start, signum):
    code = f"""
signal.signal({signum:d}, lambda signum, _: os._exit(100 + signum))
print("ready", flush=True)
while True:  # a signal just before a sleep would wait for its end
    time.sleep(0.1)
"""
    process = start(code)
    process.stdout.readline()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert end_of(process) == (100 + signum, "")


def test_signals_that_were_ignored_at_the_start_are_not_passed_on(start):
    """As nohup requires, whatever the process itself does with them."""
    code = """
for signum in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(signum, lambda signum, _: os._exit(100 + signum))
print("ready", flush=True)
while True:  # a signal just before a sleep would wait for its end
    time.sleep(0.1)
"""
    with signals.ignored(signal.SIGHUP):
        process = start(code)
    process.stdout.readline()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (100 + signal.SIGTERM, "")


def test_processes_that_it_leaves_behind_are_not_waited_for(start):
    """They hold the other end of the pipe by which it has reported of itself."""
    code = """
left = os.fork()
if left:
    print(left, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.close(1), os.close(2)
time.sleep(300)
"""
    process = start(code)
    process.stdout.readline()
    left = int(process.stdout.readline())
    try:
        status, errors = end_of(process)
        assert is_running(left)
    finally:
        os.kill(left, signal.SIGKILL)
    assert status == 137
    assert GOES_ON in errors


def test_a_terminals_ctrl_c_comes_once(start):
    """It goes to all processes of a group, to which the supervised one doesn't belong."""
    process = start("time.sleep(60)")
    child = int(process.stdout.readline())
    assert child != process.pid
    assert os.getpgid(child) == child


def test_a_process_ends_with_the_one_that_supervises_it(start):
    process = start("time.sleep(60)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    began = time.monotonic()
    while is_running(child) and time.monotonic() - began < 30:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(process):
    """Whether a process is there, and not only its entry that nobody has read yet."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
