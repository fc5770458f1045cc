"""One long run: memory, compilations, speed and counts from the first steps to the last."""

import json
import math
import os
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
import numpy as np

from tests.faults import forks, results, workdirs

GROWTH = 64 * 2**20  # bytes of resident memory between the warm-up and the end
SLOWER = 0.05
JUDGED_FROM = 10_000  # steps: shorter runs say nothing about speed
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Notes(NamedTuple):
    """What a run noted of itself at each checkpoint, a twentieth of its steps apart.

    Attributes:
      memory: resident bytes.
      cpu: seconds of CPU time so far.
      fixed: seconds of CPU time of work that is always the same: how slow the machine is just now.
      compiled: number of compilations so far.
    """

    memory: list[int]
    cpu: list[float]
    fixed: list[float]
    compiled: list[int]


def long_run(scratch: pathlib.Path, steps: int) -> results.Line:
    """Train for many steps with a topology update in a hundred; return the line."""
    folder = scratch / "long"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    every = steps // 20
    words = workdirs.train_words(folder / "run", **_changes(steps, every))
    notes = Notes([], [], [], [])

    def call() -> None:
        _note(notes)
        from sparsejax import __main__ as command

        command.main(words)
        counts, expected = _counts(folder / "run")
        answer = {"notes": notes, "counts": counts, "expected": expected}
        (folder / "answer.json").write_text(json.dumps(answer))

    ended = forks.run(call, folder / "printed", timeout=3600)
    problems, name = ended.problems(0), f"{steps:,} steps"
    if problems:
        return results.line("long run", name, 0, unexplained=problems)
    answer = json.loads((folder / "answer.json").read_text())
    losses, figures = judge(Notes(*answer["notes"]), answer["counts"], answer["expected"], steps)
    lines = workdirs.metrics_lines(folder / "run")
    updates = [line["step"] for line in lines if "replaced" in line]
    if updates != list(range(_interval(steps), steps, _interval(steps))):
        losses.append(f"updates were at {updates}")
    figures["topology updates"] = len(updates)
    return results.line("long run", name, 0, losses=losses, figures=figures)


def _interval(steps: int) -> int:
    return max(1, steps // 201)


def _changes(steps: int, every: int) -> dict[str, object]:
    return {
        "steps": steps,
        "sparsity.update_interval": _interval(steps),
        "sparsity.begin": _interval(steps),
        "sparsity.end": steps,
        "checkpoint.every": every,
        "sample.every": every,
        "log.every": max(1, steps // 200),
        "optimizer.warmup_steps": 10,
    }


def _note(notes: Notes) -> None:
    """Note memory, time and compilations of this process whenever it saves a checkpoint."""
    from sparsejax.training import loop

    build, compiled, checked = loop.build_program, [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event == _COMPILED else None
    )

    def build_noting(*arguments: object) -> object:
        program = build(*arguments)

        def check(state: object) -> None:  # before the first step, then before each save
            program.check(state)
            if checked:
                _append(notes, len(compiled))
            checked.append(True)

        return program._replace(check=check)

    loop.build_program = build_noting


def _append(notes: Notes, compiled: int) -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    notes.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
    began = time.process_time()
    notes.cpu.append(began - sum(notes.fixed))
    _fixed_work()
    notes.fixed.append(time.process_time() - began)
    notes.compiled.append(compiled)


def _fixed_work() -> None:
    """Sort, compute and write to memory for about half a second."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        np.tanh(np.sort(rng.standard_normal(100_000)))


def _counts(workdir: pathlib.Path) -> tuple[list[int], list[int]]:
    """Return the active weights of each sparse layer, and how many there have to be."""
    from sparsejax.training import runs
    from sparsejax.training.plan import build_plan

    config = runs.read_config(workdir)
    model, state = runs.load_state(workdir)
    plan = build_plan(config, model)
    layers = zip(jax.tree.leaves(state.masks), jax.tree.leaves(plan.sparsities), strict=True)
    pairs = [
        (int(np.sum(mask)), mask.size - math.floor(np.float64(sparsity) * mask.size))
        for mask, sparsity in layers
        if mask.ndim
    ]
    return [count for count, _ in pairs], [expected for _, expected in pairs]


def judge(
    notes: Notes, counts: list[int], expected: list[int], steps: int
) -> tuple[list[str], dict[str, object]]:
    """Compare the end with what came after the first twentieth, which warms up."""
    losses = []
    growth = notes.memory[-1] - notes.memory[1]
    seconds = np.diff(notes.cpu)
    # A machine's speed drifts by more than what is looked for.
    fixed = np.add(notes.fixed[1:], notes.fixed[:-1]) / 2
    quarters = [float(np.median((seconds / fixed)[part])) for part in (slice(5), slice(-5, None))]
    slower = quarters[1] / quarters[0] - 1
    compiled = notes.compiled[-1] - notes.compiled[0]
    if growth > GROWTH:
        losses.append(f"memory grew by {growth / 2**20:.0f} MiB; accepted: {GROWTH // 2**20}")
    if steps >= JUDGED_FROM and slower > SLOWER:
        losses.append(f"the last steps take {slower:.1%} longer than the first")
    if compiled:
        losses.append(f"{compiled} compilations after the first {steps // 20:,} steps")
    if counts != expected or not counts:
        losses.append(f"active weights are {counts}, not {expected}")
    figures = {
        "MiB at the end": round(notes.memory[-1] / 2**20),
        "MiB grown": round(growth / 2**20, 1),
        "CPU ms a step, first": round(1e3 * float(seconds[0]) / (steps // 20), 2),
        "CPU ms a step, last": round(1e3 * float(seconds[-1]) / (steps // 20), 2),
        "% slower, of fixed work": round(100 * slower, 1),
        "compilations after the warm-up": compiled,
    }
    return losses, figures
