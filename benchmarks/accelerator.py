"""All that was never measured on a GPU or TPU, in order of worth, within some minutes.

    python -m benchmarks.accelerator --minutes 9 --json FILE [--torch-python OTHER/bin/python]
    python -m benchmarks.accelerator --minutes 9 --tiny       (all jobs at tiny sizes, on a CPU)

Each result is written to the file as it comes. A job that fails is recorded with the reason, and
the rest goes on; one that is expected to take longer than what is left is skipped. The same command
goes on where the last call stopped: it runs what was skipped or cut off.

Steps, sampling and updates are timed in turn with the dense network, in one process; compilation
is counted apart. PyTorch and train.py run in processes of their own, one after another.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.accelerator_layers import attention, block_layers, convolutions, matrix_peak
from benchmarks.accelerator_processes import digits, pytorch
from benchmarks.accelerator_unet import compact_step, dense_step, sampling, topology
from benchmarks.arguments import count
from benchmarks.timing import machine, one_line
from sparsejax import command_line
from sparsejax.atomic import write_text

# (name, job, seconds that it is expected to take at the published size), in order of worth.
JOBS = [
    ("matrix peak", matrix_peak, 15),
    ("convolutions", convolutions, 30),
    ("attention", attention, 15),
    ("dense step", dense_step, 90),
    ("channels 0.5, step", partial(compact_step, "channel", 0.5), 80),
    ("channels 0.75, step", partial(compact_step, "channel", 0.75), 80),
    ("block layers 0.75", partial(block_layers, 0.75), 25),
    ("block layers 0.9", partial(block_layers, 0.9), 25),
    ("blocks 0.75, step", partial(compact_step, "block", 0.75), 100),
    ("blocks 0.9, step", partial(compact_step, "block", 0.9), 100),
    ("channels 0.5, sampling", partial(sampling, "channel", 0.5), 60),
    ("blocks 0.9, sampling", partial(sampling, "block", 0.9), 60),
    ("blocks 0.9, topology update", partial(topology, "block", 0.9), 80),
    ("masked 0.9, topology update", partial(topology, "weight", 0.9), 80),
]
# They start processes that need the accelerator for themselves.
PROCESS_JOBS = [
    ("PyTorch, eager", partial(pytorch, "eager channels_last"), 60),
    ("PyTorch, compiled", partial(pytorch, "compile channels_last"), 150),
    ("digits dense", partial(digits, "dense"), 60),
    ("digits channels", partial(digits, "rigl,0.75,channel"), 60),
    ("digits blocks", partial(digits, "rigl,0.75,block8"), 60),
]
FINISHED = ("done", "failed")  # these jobs aren't run again


class Settings(NamedTuple):
    """Settings of all jobs; a second call must have the same, but for the last two."""

    model_channels: int
    size: int
    batch: int
    dtype: str
    tiny: bool
    torch_python: str
    deadline: float  # seconds since the epoch


def read_record(path, settings):
    """Return what the file holds, or a new record; ends the command if it is of another kind."""
    ours = dict(list(settings._asdict().items())[:-2])
    if not path.exists():
        return {"settings": ours, "machine": None, "jobs": {}}
    try:
        record = json.loads(path.read_text())
        theirs = record["settings"]
        assert isinstance(record["jobs"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        sys.exit(f"--json {path}: not a record of this command; accepted: one, or a new file")
    for key, value in ours.items():
        if theirs.get(key) != value:
            name = key.replace("_", "-")
            sys.exit(f"--json {path}: measured with --{name} {theirs.get(key)}, not {value}")
    return record


def check_machine(path, record, settings):
    """Record the machine; ends the command if it is another one, or has no accelerator."""
    here = machine()
    if jax.default_backend() == "cpu" and not settings.tiny:
        sys.exit("no GPU or TPU is seen by JAX; --tiny runs all jobs at tiny sizes on a CPU")
    before = record["machine"]
    if before and before["device"] != here["device"]:
        sys.exit(f"--json {path}: measured on {before['device']}, not {here['device']}")
    write(path, record | {"machine": before or here})


def write(path, record):
    """Write the record, all or nothing."""
    write_text(path, json.dumps(record, indent=2) + "\n")


def expected_seconds(record, name, seconds):
    """Return how long a job should take: as long, in proportion, as the finished ones did."""
    done = [job for job in record["jobs"].values() if job["status"] == "done"]
    planned = sum(job["expected"] for job in done)
    pace = sum(job["seconds"] for job in done) / planned if done else 1
    cut_off = record["jobs"].get(name, {}).get("cut_off", 0)
    return max(pace * seconds, 1.2 * cut_off)


def cut_off(began):
    """Return the entry of a job that had to end with the time."""
    spent = time.time() - began
    reason = f"cut off after {spent:.0f} s, when the time was up"
    return {"status": "skipped", "reason": reason, "cut_off": spent}


def run_jobs(jobs, settings, path):
    """Run the jobs that aren't finished and fit into the time; record what became of each.

    Args:
      jobs: list of (name, job, seconds that it is expected to take).
      settings: Settings.
      path: file of the record.
    """
    for name, job, seconds in jobs:
        record = read_record(path, settings)
        entry = record["jobs"].get(name, {})
        if entry.get("status") in FINISHED:
            continue
        needed = expected_seconds(record, name, seconds)
        left = max(0, settings.deadline - time.time())
        if needed > left:
            reason = f"takes about {needed:.0f} s, {left:.0f} s were left"
            record["jobs"][name] = entry | {"status": "skipped", "reason": reason}
            write(path, record)
            continue
        record["jobs"][name] = entry | {"status": "started", "began": (began := time.time())}
        write(path, record)
        print(f"{name} ...", file=sys.stderr, flush=True)
        results = {k: job["result"] for k, job in record["jobs"].items() if "result" in job}
        try:
            result = job(settings, results)
            entry = {"status": "done", "expected": seconds, "result": result}
        except subprocess.TimeoutExpired:
            entry = cut_off(began)
        except Exception as error:
            entry = {"status": "failed", "reason": one_line(error)}
        record["jobs"][name] = entry | {"seconds": time.time() - began}
        write(path, record)


def run_worker(command, settings, path):
    """Run a command that runs jobs, again where its process died; kill it when the time is up.

    The job that the process died in is recorded as failed, that which was cut off as skipped.
    """
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | os.environ
    while True:
        left = max(1, settings.deadline - time.time())
        try:
            done = subprocess.run(command, env=environment, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            done = None
        if done and done.returncode == 0:
            return
        record = read_record(path, settings)
        started = [k for k, job in record["jobs"].items() if job["status"] == "started"]
        if done and not started:
            sys.exit(done.returncode)  # it said why
        for name in started:
            if done:
                reason = f"its process ended with exit status {done.returncode}"
                record["jobs"][name] = {"status": "failed", "reason": reason}
            else:
                record["jobs"][name] = cut_off(record["jobs"][name]["began"])
        write(path, record)
        if not done:
            return


def report(record):
    """Print the table."""
    settings = record["settings"]
    table = Table(
        title="UNet, {model_channels} base channels, {batch} x {size} x {size}, {dtype}, ".format(
            **settings
        )
        + (record["machine"] or {"device": "unknown device"})["device"]
    )
    for heading in ("job", "", "seconds", "result, or reason"):
        table.add_column(heading)
    for name, _, _ in JOBS + PROCESS_JOBS:
        job = record["jobs"][name]
        text = job["result"]["summary"] if "result" in job else job["reason"]
        table.add_row(name, job["status"], f"{job.get('seconds', 0):.0f}", text)
    Console(width=140).print(table)


def parse():
    """Return the arguments of the command line."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.accelerator")
    parser.add_argument("--minutes", type=float, default=9, help="for all, from the start")
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        default=pathlib.Path("runs/accelerator.json"),
        help="file of the results (default: %(default)s)",
    )
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--model-channels", type=count, default=224, help="224: the published UNet")
    parser.add_argument("--size", type=count, default=64, help="height and width of the latents")
    parser.add_argument("--batch", type=count, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="all jobs at tiny sizes, on a CPU too")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Run what fits into the time, and print a table of all jobs."""
    arguments = parse()
    if arguments.tiny:
        arguments.model_channels, arguments.size, arguments.batch = 32, 8, 2
    is_worker = arguments.deadline is not None
    arguments.deadline = arguments.deadline or time.time() + 60 * arguments.minutes
    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    path = arguments.json
    if is_worker:
        # Compilation is timed, so that of an earlier process must not be reused.
        jax.config.update("jax_enable_compilation_cache", settings.tiny)
        check_machine(path, read_record(path, settings), settings)
        run_jobs(JOBS, settings, path)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worker ends too
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the worker's
    path.parent.mkdir(parents=True, exist_ok=True)
    record = read_record(path, settings)
    for name, entry in record["jobs"].items():
        if entry["status"] == "started":  # the command was killed
            record["jobs"][name] = {"status": "skipped", "reason": "the command ended during it"}
    write(path, record)
    command = [sys.executable, "-m", "benchmarks.accelerator", *sys.argv[1:]]
    run_worker([*command, f"--deadline={settings.deadline}"], settings, path)
    # Those that the worker didn't come to are recorded as skipped.
    run_jobs(JOBS, settings._replace(deadline=0), path)
    run_jobs(PROCESS_JOBS, settings, path)
    report(read_record(path, settings))


if __name__ == "__main__":
    command_line.run(main)
