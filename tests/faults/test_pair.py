"""Two processes that train nothing: they join, are refused a workdir together, and end together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from sparsejax import lease
from sparsejax.processes.supervisor import LOST

pytestmark = pytest.mark.faults
TOLD = 1024  # bytes
ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESS = """
import sys, time
from sparsejax import command_line, signals
from sparsejax.processes import joining, supervisor

supervisor.supervise()
signals.watch("The same command resumes it.")

def main():
    from sparsejax.errors import ConfigError
    from sparsejax.parallel import connect_devices
    from sparsejax.processes.together import together
    from sparsejax.training.holding import hold_workdir

    address, index, workdir = sys.argv[1:]
    with together(joining.join(joining.Processes(address, 2, int(index))), workdir):
        connect_devices()
        try:
            with hold_workdir(workdir):
                print("it isn't refused", flush=True)
        except ConfigError as error:
            print(error, flush=True)
        if index == "1":
            time.sleep(120)
        connect_devices()

command_line.run(main)
"""


def read_message(process):
    """Return the first line of a process's own."""
    for line in process.stdout:
        if line.startswith("workdir ") or line == "it isn't refused\n":
            return line.rstrip("\n")
    raise AssertionError(process.communicate())


def long_name(folder):
    """A folder whose message is longer than what is told of it, and cut off inside a letter."""
    for first in ("a", "aa"):
        name = folder.joinpath(first, *["ü" * 100] * 8)
        try:
            f"workdir {str(name)!r}".encode()[:TOLD].decode()
        except UnicodeDecodeError:
            return name
    raise AssertionError("letters have two bytes")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both said of a workdir that is in use; then exit statuses and last lines.

    The second one gets Ctrl-C while the first waits for it in an operation. (SIGTERM is JAX's, and
    stops a run after its first step.)
    """
    workdir = long_name(tmp_path_factory.mktemp("pair"))
    workdir.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", PROCESS, address]
    processes = []
    try:
        with lease.hold(workdir):
            for index in "01":
                more = {"PYTHONPATH": ".", "PYTHONIOENCODING": "utf-8"}
                processes.append(
                    subprocess.Popen(
                        [*words, index, workdir], cwd=ROOT, env=os.environ | more, **pipes
                    )
                )
            messages = [read_message(process) for process in processes]
        processes[1].send_signal(signal.SIGINT)
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    last = [text.splitlines()[-1] for text in errors]
    return str(workdir), messages, [process.returncode for process in processes], last


def test_a_workdir_in_use_is_refused_in_all_processes(found):
    workdir, (first, second), _, _ = found
    start = f"workdir {workdir!r} is in use by process {os.getpid()} on "
    assert first.startswith(start)
    assert first.endswith(
        "; accepted: another --workdir, or the same command once that process has ended"
    )
    assert second == first.encode()[:TOLD].decode(errors="replace") != first


def test_a_signal_to_one_before_it_trains_ends_the_other_too(found):
    """Which couldn't know: it waits in native code, and the process it waits for says nothing."""
    workdir, _, statuses, (first, second) = found
    assert statuses == [LOST, 128 + signal.SIGINT]
    assert second == "Stopped by SIGINT. The same command resumes it."
    assert first.startswith("error: process 1 of 2 was stopped by a signal. The same command in ")
    assert workdir in first
