"""What the benchmarks share: interleaved timing, and the machine that figures belong to."""

import os
import pathlib
import platform
import time

from sparsejax.evaluation.provenance import provenance


def interleaved(functions, rounds):
    """Time functions in turn, so that whatever else the machine does falls on all of them.

    Each is called once before, to compile; every second round runs backwards.

    Args:
      functions: dictionary of names to callables that return when their work is done.
      rounds: times that each is timed.

    Returns:
      `{name: [seconds of each round]}`.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: -1 if i % 2 else 1]:
            began = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def machine():
    """Return what the figures were measured on, a JSON-able dictionary.

    Returns:
      `cpu` (its model), `cores`, `device`, `versions`, `commit` and `date`.
    """
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": (models or [platform.processor()])[0], "cores": os.cpu_count()} | provenance()
