"""Several processes, as on a pod: two of two devices each train as one process does."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sparsejax import lease
from sparsejax.training import checkpoints
from sparsejax.training.metrics_log import read_metrics
from tests.training.test_loop import assert_equal_masks, final_state
from tests.training.tiny import tiny_flags, with_devices

ROOT = pathlib.Path(__file__).resolve().parents[2]
START = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.argv[:3] = ["train.py"]
import runpy
runpy.run_path("train.py", run_name="__main__")
"""


def start_two(workdir, **options):
    """Start train.py in two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": with_devices(2)}
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    flags = [f"--workdir={workdir}", *tiny_flags()]
    return [
        subprocess.Popen(
            [sys.executable, "-c", START, address, str(i), *flags],
            cwd=ROOT,
            env=environment,
            **options,
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_run, tmp_path):
    processes = start_two(tmp_path / "two")
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert not list((tmp_path / "two").glob("lease-*"))
    one, two = final_state(tiny_run[0]), final_state(tmp_path / "two")
    assert_equal_masks(one, two)
    for a, b in zip(*map(jax.tree.leaves, (one.ema_params, two.ema_params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_one_process_stops_both_at_the_same_step(signum, tmp_path):
    """The second process gets it; the first writes the checkpoint."""
    workdir = tmp_path / "stopped"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = start_two(workdir, **pipes)
    while not read_metrics(workdir / "metrics.jsonl"):
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[1].send_signal(signum)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    saved = checkpoints.list_steps(workdir / "checkpoints")[-1]
    for process, text, by in zip(processes, errors, (signal.SIGTERM, signum), strict=True):
        assert process.returncode == 128 + by
        assert f"Stopped by {by.name}; step {saved} is saved." in text
        assert "Traceback" not in text
    assert 10 <= saved < 40


@pytest.mark.slow
def test_where_another_process_trains_both_are_refused_in_one_line(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with lease.hold(tmp_path):
        processes = start_two(tmp_path, **pipes)
        errors = [process.communicate(timeout=300)[1] for process in processes]
    for process, text in zip(processes, errors, strict=True):
        assert process.returncode == 2
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert f"workdir {str(tmp_path)!r} is in use by process {os.getpid()} on " in line
        assert "Traceback" not in text
