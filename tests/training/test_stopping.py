"""Ctrl-C and its like at the scripts themselves: one line, nothing lost, no traceback."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from sparsejax import signals
from sparsejax.training import checkpoints, loop
from sparsejax.training.metrics_log import read_metrics
from tests.training.test_loop import ROOT, assert_equal_runs
from tests.training.tiny import SMALL, small_config, tiny_config, tiny_flags

COMMANDS = {
    "train": ["train.py"],
    "evaluate": ["evaluate.py", "--workdirs=nowhere"],
    "sweep": ["-m", "sparsejax", "sweep", "--config=configs/digits.py"],
    "report": ["-m", "sparsejax", "report", "--results=nowhere"],
    "export": ["-m", "sparsejax", "export", "--workdir=nowhere", "--output=nowhere"],
    "prepare": ["-m", "sparsejax", "prepare", "--config=configs/digits.py"],
}


@pytest.fixture
def start():
    """Start Python with arguments; what is left of it is killed after the test."""
    processes = []

    def start(*arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def catches(process, signum):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search("SigCgt:\\s*(\\w+)", status)[1], 16) >> (signum - 1) & 1


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_ctrl_c_ends_every_command_in_one_line_while_it_still_imports(start, command):
    process = start(*command)
    while not catches(process, signal.SIGTERM):
        time.sleep(0.001)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output == ""
    assert re.fullmatch(r"Stopped by SIGINT\. The same command [a-z ]+\.\n", errors)
    assert process.returncode == 130


def wait_for_compilation(process):
    for line in process.stdout:
        if "the first steps compile" in line:
            return
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_ctrl_c_while_it_compiles_is_answered_and_saves_the_first_step(small_run, start, tmp_path):
    process = start("train.py", f"--workdir={tmp_path}", *tiny_flags(**SMALL))
    wait_for_compilation(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    (saved,) = checkpoints.list_steps(tmp_path / "checkpoints")
    # XLA's own remarks about compilations that it finds in its cache aside.
    lines = [line for line in errors.splitlines() if not re.match(r"[EWI]\d{4} ", line)]
    answer, line = lines[-2:]
    assert answer == (
        "SIGINT: stopping after compilation and the first step; Ctrl-C again ends at once."
    )
    assert line == (
        f"Stopped by SIGINT; step {saved} is saved. The same command resumes the run in {tmp_path}."
    )
    assert "Traceback" not in output + errors
    assert process.returncode == 130
    assert saved == 1
    assert loop.train(small_config(), tmp_path)
    assert_equal_runs(small_run, tmp_path)


@pytest.mark.slow
def test_a_second_ctrl_c_while_it_compiles_ends_at_once(start, tmp_path):
    process = start("train.py", f"--workdir={tmp_path}", *tiny_flags())
    wait_for_compilation(process)
    process.send_signal(signal.SIGINT)
    while "stopping after" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "Ended at once. The same command resumes it.\n")
    assert process.returncode == 130
    assert checkpoints.list_steps(tmp_path / "checkpoints") == []


@pytest.mark.slow
def test_every_signal_saves_wherever_it_comes(tiny_run, start, tmp_path):
    """One run, stopped by each signal in turn: at steps that neither log nor save."""
    reached = 0
    for signum in signals.SIGNALS:
        process = start("train.py", f"--workdir={tmp_path}", *tiny_flags())
        wait_for_compilation(process)
        while not (tmp_path / "metrics.jsonl").exists() or (
            max([0, *(line["step"] for line in read_metrics(tmp_path / "metrics.jsonl"))])
            <= reached
        ):
            time.sleep(0.001)
            assert process.poll() is None
        process.send_signal(signum)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 128 + signum
        saved = checkpoints.list_steps(tmp_path / "checkpoints")[-1]
        assert f"Stopped by {signum.name}; step {saved} is saved." in errors
        assert "Traceback" not in errors
        assert reached < saved <= 40
        reached = saved
    assert loop.train(tiny_config(), tmp_path)
    assert_equal_runs(tiny_run[0], tmp_path)


@pytest.mark.slow
def test_a_stopped_sweep_saves_its_run_and_goes_on(start, tmp_path):
    """Ctrl-C, and the SIGTERM of a scheduler, reach the run; the sweep ends in one line."""
    command = ["-m", "sparsejax", "sweep", "--config=configs/digits.py", *tiny_flags()]
    command += ["--methods=static", "--levels=0.75", "--samples=40", "--metrics=fd"]
    command += ["--extractor=pixels", f"--output={tmp_path}", "--batch=40"]
    for signum in (signal.SIGINT, signal.SIGTERM):
        process = start(*command)
        wait_for_compilation(process)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 128 + signum
        assert errors.splitlines()[-1].startswith(f"Stopped by {signum.name}. The same command")
        assert "Traceback" not in errors
        (run,) = (tmp_path / "runs").iterdir()
        assert checkpoints.list_steps(run / "checkpoints")
        assert not (run / "error.txt").exists()
    process = start(*command)
    assert process.communicate(timeout=200)[1].count("Traceback") == 0
    assert process.returncode == 0
    assert os.path.getsize(tmp_path / "results.jsonl") > 100
