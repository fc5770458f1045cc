"""Several processes, as on a pod: two of two devices each train as one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.training.test_loop import final_state
from tests.training.tiny import tiny_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
START = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.argv[:3] = ["train.py"]
import runpy
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    flags = [f"--workdir={tmp_path / 'two'}", *tiny_flags()]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, address, str(i), *flags], cwd=ROOT, env=environment
        )
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    one, two = final_state(tiny_run[0]), final_state(tmp_path / "two")
    for a, b in zip(*map(jax.tree.leaves, (one.masks, two.masks)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (one.ema_params, two.ema_params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
