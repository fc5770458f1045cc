"""Several processes, as on a pod: they train as one does, and end together, each with one line."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sparsejax import lease
from sparsejax.processes.supervisor import LOST
from sparsejax.training import checkpoints
from sparsejax.training.metrics_log import read_metrics
from tests.training.test_loop import assert_equal_masks, final_state
from tests.training.tiny import tiny_flags, with_devices

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 80
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
FAULTY = """
import os
from sparsejax.data import images

batches = images.image_batches

def failing_batches(*arguments, **options):
    for step, batch in enumerate(batches(*arguments, **options)):
        if step == 15 and os.environ["FAULTY"] == "1":
            raise {error}
        yield batch

images.image_batches = failing_batches
"""


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_one(workdir, *more, devices=2, **environment):
    """Start train.py in a process of this number of devices."""
    environment = os.environ | {"XLA_FLAGS": with_devices(devices)} | environment
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    words = [sys.executable, "train.py", f"--workdir={workdir}", *more]
    return subprocess.Popen(words, cwd=ROOT, env=environment, **PIPES)


def start(workdir, *more, count=2, devices=2, of_each=({}, {}, {}, {}), steps=STEPS):
    """Start several, with variables of the environment `of_each`."""
    flags = ["--coordinator", free_address(), f"--num-processes={count}", *tiny_flags(steps=steps)]
    return [
        start_one(workdir, *flags, f"--process-id={i}", *more, devices=devices, **(of_each[i]))
        for i in range(count)
    ]


def finish(processes, timeout=600):
    """Return exit statuses and what was written to stderr."""
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], errors


def finish_soon_after_the_first(processes):
    """As `finish`; a minute after one of them has ended, all have."""
    while all(process.poll() is None for process in processes):
        time.sleep(0.1)
    return finish(processes, timeout=60)


def assert_one_last_line(text):
    """Return the last line, the only one of the project's errors; there is no traceback."""
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], text
    assert "Traceback" not in text
    return lines[-1]


def wait_for_lines(workdir, processes):
    """Wait until the first checkpoint and the metrics after it are written."""
    while len(read_metrics(workdir / "metrics.jsonl")) < 3:
        time.sleep(0.01)
        statuses = [process.poll() for process in processes]
        assert statuses == [None] * len(processes), finish(processes)


def child_of(process):
    (child,) = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


@pytest.fixture
def kept():
    """A list of processes, of which none outlives the test."""
    processes = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def whole(made_once):
    """An uninterrupted run of one process with four devices."""

    def make(folder):
        with start_one(folder / "whole", *tiny_flags(steps=STEPS), devices=4) as process:
            assert finish([process])[0] == [0]

    return made_once("whole", make) / "whole"


def assert_same_run(one, other):
    """Equal masks, and losses to 1e-5."""
    states = final_state(one), final_state(other)
    assert_equal_masks(*states)
    for a, b in zip(*(jax.tree.leaves(state.ema_params) for state in states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    lines = [read_metrics(path / "metrics.jsonl") for path in (one, other)]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]]
    losses = [[x["loss"] for x in path if "loss" in x] for path in lines]
    assert len(losses[0]) == STEPS // 10
    np.testing.assert_allclose(*losses, atol=1e-5)


@pytest.mark.faults
def test_two_processes_train_as_one(whole, tmp_path, kept):
    kept += start(tmp_path)
    statuses, errors = finish(kept)
    assert statuses == [0, 0], errors
    assert not list(tmp_path.glob("lease-*"))
    assert_same_run(whole, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("lost", "elsewhere"),
    [(0, [(1, 4)]), pytest.param(1, [(1, 1), (4, 1)], marks=pytest.mark.slow)],
)
def test_a_killed_process_ends_the_other_and_the_run_goes_on_elsewhere(
    lost, elsewhere, whole, tmp_path, kept
):
    """With `elsewhere`, numbers of processes and of devices of each."""
    workdir = tmp_path / "run"
    kept += start(workdir)
    wait_for_lines(workdir, kept)
    while not checkpoints.list_steps(workdir / "checkpoints"):  # it is written in the background
        assert [process.poll() for process in kept] == [None, None]
        time.sleep(0.01)
    kept[lost].kill()
    began = time.monotonic()
    (status,), (text,) = finish([kept[1 - lost]], timeout=90)
    assert time.monotonic() - began < 90
    assert status == LOST
    *_, line = text.splitlines()
    assert line.startswith(f"error: process {lost} of 2")
    assert "was lost" in line
    assert f"resumes the run in {workdir} from its last checkpoint" in line
    saved = checkpoints.list_steps(workdir / "checkpoints")[-1]
    assert 10 <= saved < STEPS
    for count, devices in elsewhere:
        copy = tmp_path / f"{count}x{devices}"
        shutil.copytree(workdir, copy)
        statuses, errors = finish(start(copy, count=count, devices=devices))
        assert statuses == [0] * count, errors
        assert f"resumed {copy} after step {saved}" in errors[0]
        assert_same_run(whole, copy)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_process_that_runs_out_of_memory_says_so_itself(tmp_path, kept):
    """Linux kills the largest process, which is the one that trains."""
    kept += start(tmp_path)
    wait_for_lines(tmp_path, kept)
    os.kill(child_of(kept[1]), signal.SIGKILL)
    statuses, errors = finish(kept, timeout=90)
    assert statuses == [LOST, 128 + signal.SIGKILL]
    assert errors[0].splitlines()[-1].startswith("error: process 1 of 2 was lost. ")
    line = assert_one_last_line(errors[1])
    assert line.startswith("error: process 1 of 2 was ended by SIGKILL (out of memory?). The same")


@pytest.mark.slow
def test_a_process_that_hangs_is_lost_too(tmp_path, kept):
    """Even the one that holds the coordinator: no connection breaks then."""
    kept += start(tmp_path)
    wait_for_lines(tmp_path, kept)
    for pid in (child_of(kept[0]), kept[0].pid):
        os.kill(pid, signal.SIGSTOP)
    statuses, errors = finish(kept[1:], timeout=90)
    assert statuses == [LOST]
    assert errors[0].splitlines()[-1].startswith("error: process 0 of 2 was lost. ")


@pytest.mark.faults
def test_a_data_set_that_one_process_lacks_ends_all_in_one_line(tmp_path, kept):
    kept += start(tmp_path / "run", of_each=({}, {"TFDS_DATA_DIR": str(tmp_path / "empty")}))
    statuses, errors = finish_soon_after_the_first(kept)
    assert statuses == [2, 2]
    for text in errors:
        line = assert_one_last_line(text)
        assert line.startswith("error: process 1 of 2: config.task.dataset is 'digits', which ")
        assert f"find in {tmp_path / 'empty'}" in line
        assert "on storage that all processes share" in line


@pytest.mark.slow
def test_a_process_that_comes_late_to_the_first_step_is_waited_for(tmp_path, kept):
    """As one that compiles what the other finds in a cache; a CPU's first operation waits 30 s."""
    late = FAULTY.replace("step == 15", "step == 0").replace("raise {error}", "time.sleep(45)")
    (tmp_path / "faulty.py").write_text(f"import time\n{late}")
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    of_each = [paths | {"FAULTY": str(i)} for i in range(2)]
    kept += start(tmp_path / "run", "--config.imports=('faulty',)", of_each=of_each, steps=10)
    statuses, errors = finish(kept)
    assert statuses == [0, 0], errors


ERRORS = {
    "OSError(5, 'Input/output error', 'shard')": (1, "Input/output error: shard", ""),
    "__import__('sparsejax.errors').errors.ConfigError('a record\\n is bad')": (
        2,
        "a record; is bad",
        "",
    ),
    "KeyError('image')": (1, "KeyError 'image'", "Traceback"),
}


@pytest.mark.faults
@pytest.mark.parametrize(
    "error", [pytest.param(e, marks=() if "OSError" in e else pytest.mark.slow) for e in ERRORS]
)
def test_an_error_of_one_process_while_training_ends_all_with_its_message(error, tmp_path, kept):
    (tmp_path / "faulty.py").write_text(FAULTY.format(error=error))
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    of_each = [paths | {"FAULTY": str(i)} for i in range(2)]
    kept += start(tmp_path / "run", "--config.imports=('faulty',)", of_each=of_each)
    statuses, errors = finish_soon_after_the_first(kept)
    status, message, trace = ERRORS[error]
    assert statuses == [status, status], errors
    assert assert_one_last_line(errors[0]) == f"error: process 1 of 2: {message}"
    # Of its own error the process also says what is saved.
    assert errors[1].splitlines()[-1].startswith(f"error: process 1 of 2: {message}")
    assert ("Traceback" in errors[1]) == bool(trace)
    assert checkpoints.list_steps(tmp_path / "run" / "checkpoints") == [10]


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.faults),
    ],
)
def test_a_signal_to_one_process_stops_both_at_the_same_step(signum, tmp_path, kept):
    """The second process gets it; the first writes the checkpoint."""
    kept += start(tmp_path)
    wait_for_lines(tmp_path, kept)
    kept[1].send_signal(signum)
    statuses, errors = finish(kept)
    saved = checkpoints.list_steps(tmp_path / "checkpoints")[-1]
    for status, text, by in zip(statuses, errors, (signal.SIGTERM, signum), strict=True):
        assert status == 128 + by
        assert f"Stopped by {by.name}; step {saved} is saved." in text
        assert "Traceback" not in text
        assert "error: " not in text
    assert 10 <= saved < STEPS


@pytest.mark.slow
def test_where_another_process_trains_both_are_refused_in_one_line(tmp_path, kept):
    with lease.hold(tmp_path):
        kept += start(tmp_path)
        statuses, errors = finish(kept)
    assert statuses == [2, 2]
    for text in errors:
        line = assert_one_last_line(text)
        assert f"workdir {str(tmp_path)!r} is in use by process {os.getpid()} on " in line


@pytest.mark.faults
def test_processes_that_cannot_join_say_why_in_one_line(tmp_path, kept):
    unused = free_address()
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = f"127.0.0.1:{server.getsockname()[1]}"
        flags = {
            "nobody there": ["--coordinator", unused, "--process-id=1", "--num-processes=2"],
            "port in use": ["--coordinator", used, "--process-id=0", "--num-processes=2"],
            "no cluster": ["--distributed"],
        }
        for words in flags.values():
            kept.append(start_one(tmp_path, *words, "--join-timeout=2"))
        statuses, errors = finish(kept)
    assert statuses == [2, 2, 2], errors
    nobody, in_use, no_cluster = map(assert_one_last_line, errors)
    assert f"--coordinator is {unused!r}, where process 0 can't be reached within 2 s: " in nobody
    assert f"this machine can't listen on port {used[10:]}: Address already in use" in in_use
    assert "--distributed: JAX can't find the processes of this run: " in no_cluster
    assert "accepted: a TPU pod, SLURM, Open MPI or Kubernetes, or --coordinator" in no_cluster
    assert all(len(text.splitlines()) == 1 for text in errors), errors


@pytest.mark.slow
def test_a_process_id_given_twice_ends_all_in_one_line(tmp_path, kept):
    address = ["--coordinator", free_address(), "--num-processes=3", "--join-timeout=15"]
    for index in (0, 1, 1):
        kept.append(start_one(tmp_path, *address, f"--process-id={index}", *tiny_flags()))
    statuses, errors = finish(kept)
    for index, status, text in zip((0, 1, 1), statuses, errors, strict=True):
        assert status == 2
        line = text.splitlines()[-1]
        assert line.startswith(f"error: process {index} of 3 c")
        assert "Traceback" not in text


SRUN = """
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" {flags} & pids="$pids $!"; done
for pid in $pids; do wait $pid || status=$?; done
exit ${{status:-0}}
"""


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_trains_and_is_queued_again(tmp_path, kept):
    """With stand-ins for SLURM's own commands; JAX finds the tasks by SLURM's variables."""
    text = (ROOT / "docs" / "running.md").read_text()
    (script,) = re.findall(r"```shell\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    place, workdir = tmp_path / "bin", tmp_path / "runs" / "digits"
    place.mkdir()
    flags = " ".join(f"'{flag}'" for flag in tiny_flags(steps=STEPS))
    for name, lines in {
        "srun": SRUN.format(flags=flags),
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol',
        "python": f'exec "{sys.executable}" "$@"',
    }.items():
        (place / name).write_text(f"#!/bin/bash\n{lines}\n")
        (place / name).chmod(0o755)
    job = str(os.getpid())
    environment = os.environ | {"PATH": f"{place}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": job, "XLA_FLAGS": with_devices(2)}

    def start_job():
        kept.append(subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment, **PIPES))
        return kept[-1]

    first = start_job()
    wait_for_lines(workdir, [first])
    tasks = subprocess.check_output(["pgrep", "-f", f"train.py.*{workdir} "], text=True).split()
    for task in map(int, tasks):
        os.kill(task, signal.SIGTERM)
    (status,), (errors,) = finish([first])
    assert status == 128 + signal.SIGTERM, errors
    assert (tmp_path / "scontrol").read_text() == f"requeue {job}\n"
    (status,), (errors,) = finish([start_job()])
    assert status == 0, errors
    assert f"resumed {workdir} after step" in errors
    assert int(final_state(workdir).step) == STEPS
