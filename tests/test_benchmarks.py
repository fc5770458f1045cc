"""The command for an accelerator runs all its jobs, survives failures and goes on where it stopped.

The whole of it runs at tiny sizes on a CPU.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator

ROOT = pathlib.Path(__file__).parents[1]
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
LATER = 2.0**40  # seconds since the epoch
SETTINGS = accelerator.Settings(32, 8, 2, "bfloat16", True, "python", LATER)
DYING = """
import os, pathlib, sys, time
from benchmarks import accelerator
settings = accelerator.Settings(32, 8, 2, "bfloat16", True, "python", 2.0**40)
jobs = [
    ("first", lambda settings, results: os._exit(9), 1),
    ("second", lambda settings, results: {"summary": "fine"}, 1),
    ("third", lambda settings, results: time.sleep(600), 1),
]
accelerator.run_jobs(jobs, settings, pathlib.Path(sys.argv[1]))
"""


def succeed(settings, results):
    return {"summary": f"after {sorted(results)}"}


def fail(settings, results):
    raise MemoryError("out of memory\nand more lines")


def refuse(settings, results):
    raise AssertionError("this job is finished")


def jobs_of(path):
    return json.loads(path.read_text())["jobs"]


def test_a_failing_job_is_recorded_and_does_not_stop_the_rest(tmp_path):
    path = tmp_path / "record.json"
    accelerator.run_jobs([("a", succeed, 1), ("b", fail, 1), ("c", succeed, 1)], SETTINGS, path)
    jobs = jobs_of(path)
    assert [job["status"] for job in jobs.values()] == ["done", "failed", "done"]
    assert jobs["b"]["reason"] == "MemoryError: out of memory"
    assert jobs["c"]["result"] == {"summary": "after ['a']"}


def test_each_result_is_on_disk_before_the_next_job_starts(tmp_path):
    path, seen = tmp_path / "record.json", []

    def look(settings, results):
        seen.extend((name, job["status"]) for name, job in jobs_of(path).items())
        return {"summary": ""}

    accelerator.run_jobs([("a", succeed, 1), ("b", look, 1)], SETTINGS, path)
    assert seen == [("a", "done"), ("b", "started")]


def test_a_second_call_runs_what_was_skipped_and_repeats_nothing(tmp_path):
    path = tmp_path / "record.json"
    short = SETTINGS._replace(deadline=time.time() + 60)
    accelerator.run_jobs([("a", succeed, 1), ("b", fail, 1)], short, path)
    accelerator.run_jobs([("c", succeed, 1e9), ("d", succeed, 1)], short._replace(deadline=0), path)
    first = jobs_of(path)
    assert [job["status"] for job in first.values()] == ["done", "failed", "skipped", "skipped"]
    assert "0 s were left" in first["d"]["reason"]
    again = [("a", refuse, 1), ("b", refuse, 1), ("c", succeed, 1e9), ("d", succeed, 1)]
    accelerator.run_jobs(again, SETTINGS, path)
    second = jobs_of(path)
    assert {name: second[name] for name in "ab"} == {name: first[name] for name in "ab"}
    assert [second[name]["status"] for name in "cd"] == ["done", "done"]


def test_finished_jobs_and_jobs_that_were_cut_off_tell_what_the_others_will_take():
    done = {"status": "done", "seconds": 30.0, "expected": 10}
    record = {"jobs": {"a": done, "b": {"status": "skipped", "cut_off": 500.0}}}
    assert accelerator.expected_seconds(record, "c", 20) == 60
    assert accelerator.expected_seconds(record, "b", 20) == 600
    assert accelerator.expected_seconds({"jobs": {}}, "c", 20) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a record of this command"),
        ('{"settings": {}, "jobs": []}', "not a record of this command"),
        ('{"settings": {"model_channels": 224}, "jobs": {}}', "--model-channels 224, not 32"),
    ],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        accelerator.read_record(path, SETTINGS)
    assert path.read_text() == text


def test_another_device_ends_the_command(tmp_path):
    record = {"machine": {"device": "8 x TPU v9"}, "jobs": {}}
    with pytest.raises(SystemExit, match="measured on 8 x TPU v9, not"):
        accelerator.check_machine(tmp_path / "record.json", record, SETTINGS)
    with pytest.raises(SystemExit, match="--tiny"):
        accelerator.check_machine(
            tmp_path / "record.json", {"machine": None}, SETTINGS._replace(tiny=False)
        )


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_one_that_hangs_is_ended(tmp_path):
    path = tmp_path / "record.json"
    settings = SETTINGS._replace(deadline=time.time() + 60)
    accelerator.run_worker([sys.executable, "-c", DYING, str(path)], settings, path)
    jobs = jobs_of(path)
    assert jobs["first"]["reason"] == "its process ended with exit status 9"
    assert [job["status"] for job in jobs.values()] == ["failed", "done", "skipped"]
    assert "cut off after" in jobs["third"]["reason"]


@pytest.mark.slow
def test_all_jobs_run_at_tiny_sizes(tmp_path):
    path = tmp_path / "record.json"

    def call(minutes):
        command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--json={path}"]
        done = subprocess.run(
            [*command, f"--minutes={minutes}", "--torch-python=absent"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILATION},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    call(0)
    names = [name for name, _, _ in accelerator.JOBS + accelerator.PROCESS_JOBS]
    jobs = jobs_of(path)
    assert list(jobs) == names
    assert all(job["status"] == "skipped" and job["reason"] for job in jobs.values())

    shown = call(60).stdout
    jobs = jobs_of(path)
    failed = {name: job["reason"] for name, job in jobs.items() if job["status"] != "done"}
    assert set(failed) == {"PyTorch, eager", "PyTorch, compiled"}, failed
    assert all("no PyTorch in absent" in reason for reason in failed.values())
    for sparsity in (0.75, 0.9):
        for layer in jobs[f"block layers {sparsity}"]["result"]["layers"]:
            assert len(layer["differences"]) == 3
            assert max(layer["differences"].values()) < 0.02  # bfloat16
    assert all(name in shown for name in names)

    before = path.read_bytes()
    assert " ..." not in call(60).stderr
    assert path.read_bytes() == before
