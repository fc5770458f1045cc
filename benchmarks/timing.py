"""What the benchmarks share: interleaved timing, and the machine that figures belong to."""

import functools
import os
import pathlib
import platform
import statistics
import time

import jax

from sparsejax.evaluation.provenance import provenance


def interleaved(functions, rounds, clock=time.perf_counter):
    """Time functions in turn, so that whatever else the machine does falls on all of them.

    Each is called once before, to compile; every second round runs backwards.

    Args:
      functions: dictionary of names to callables that return when their work is done.
      rounds: times that each is timed.
      clock: `clock() -> seconds`.

    Returns:
      `{name: [seconds of each round]}`.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: -1 if i % 2 else 1]:
            began = clock()
            functions[name]()
            seconds[name].append(clock() - began)
    return seconds


def machine():
    """Return what the figures were measured on, a JSON-able dictionary.

    Returns:
      `cpu` (its model), `cores`, `environment` (variables that change speed), `device`, `versions`,
      `commit` and `date`.
    """
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    named = ("GLIBC_TUNABLES", "NPROC", "OMP_NUM_THREADS", "XLA_FLAGS")
    return {
        "cpu": (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "environment": {name: os.environ[name] for name in named if os.environ.get(name)},
    } | provenance()


def compare(functions, rounds=5, budget=0.3):
    """Time functions in turn, their compilation apart, waiting for the device once a round.

    Args:
      functions: `{name: callable that returns arrays}`; the others are compared with the first.
      rounds: times that each is timed.
      budget: seconds that a round of each may take; it has at least one call.

    Returns:
      `{name: figures}`: `compile`, the seconds that the first call took longer; `seconds`, the
      median of a call; `ratio`, how many times as fast as the first, the median over rounds. An
      error in any function but the first is its figure `failed`, a line.
    """
    figures, repeated = {}, {}
    for name, function in functions.items():
        try:
            first, once = timed(function, 1), timed(function, 1)
        except Exception as error:
            if not figures:
                raise
            figures[name] = {"failed": one_line(error)}
            continue
        figures[name] = {"compile": max(0.0, first - once)}
        calls = max(1, min(100, int(budget / once)))
        repeated[name] = functools.partial(timed, function, calls), calls
    seconds = interleaved({name: run for name, (run, _) in repeated.items()}, rounds)
    per_call = {name: [s / repeated[name][1] for s in taken] for name, taken in seconds.items()}
    base = next(iter(per_call.values()))
    for name, ours in per_call.items():
        figures[name]["seconds"] = statistics.median(ours)
        pairs = zip(base, ours, strict=True)
        figures[name]["ratio"] = statistics.median(theirs / own for theirs, own in pairs)
    return figures


def timed(function, calls):
    """Return the seconds of a call, the mean of some; the device is waited for at the end only."""
    began = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def one_line(error):
    """Return an exception as a line: its type and the start of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
