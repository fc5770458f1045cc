"""Try what sparsejax survives: kills, damaged files, bad input, full disks, days alone.

    python -m tests.faults --kills 200 --seed 0 --json docs/results/reliability/seed0.json

The same command goes on where it was stopped. It ends with status 1 if anything was lost, or came
out that isn't the project's error.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import resource
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tests.faults import results

RESULTS = "docs/results/reliability"
Case = Callable[[], results.Line]
Function = Callable[[pathlib.Path, str, int, int], results.Line]
IMPORTED = (
    *("jax", "matplotlib.pyplot", "sklearn.datasets", "tensorboardX"),
    *(f"sparsejax.commands.{name}" for name in ("evaluate", "prepare", "sweep", "train")),
    *("sparsejax.evaluation.closing", "sparsejax.evaluation.sweep", "sparsejax.families"),
    *("sparsejax.reports.report", "sparsejax.training.check", "sparsejax.training.loop"),
)


class Run(NamedTuple):
    """One call of the suite.

    Attributes:
      flags: what was asked for.
      scratch: folder for everything but the results.
      lines: file of the lines of the cases.
    """

    flags: argparse.Namespace
    scratch: pathlib.Path
    lines: pathlib.Path

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the names that `--phase` asks for."""
        return [name for name in names if self.flags.phase in (None, name)]

    def cases(self, part: str, numbers: dict[str, Iterable[int]], function: Function) -> None:
        """Run the cases of a part that no line is there of yet, by phase."""
        done = {(line["part"], line["phase"], line["case"]) for line in results.read(self.lines)}
        chosen = self.flags.case
        cases = [
            functools.partial(function, self.scratch, phase, number, self.flags.seed)
            for phase, all_numbers in numbers.items()
            for number in (all_numbers if chosen is None else [chosen])
            if (part, phase, number) not in done
        ]
        run_cases(cases, self.flags.jobs, self.scratch, self.lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the flags ask for and isn't done yet; print and write the table."""
    flags = _parser().parse_args(argv)
    if flags.table:
        results.write_table(pathlib.Path(flags.table), pathlib.Path(RESULTS))
        return
    scratch = pathlib.Path(flags.scratch or tempfile.mkdtemp(prefix="sparsejax-faults-"))
    scratch = scratch.absolute()
    run = Run(flags, scratch, _lines_path(flags, scratch))
    run.lines.parent.mkdir(parents=True, exist_ok=True)
    _set_environment(scratch)
    for name in IMPORTED:
        importlib.import_module(name)
    for part, run_part in PARTS.items():
        if getattr(flags, part):
            run_part(run)
    lines = results.read(run.lines)
    rows, failures = results.rows(lines), results.failures(lines, flags.seed)
    print(results.table(rows))
    if flags.json:
        _write_json(flags, rows, failures)
    if not flags.scratch and not failures:
        shutil.rmtree(scratch)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        sys.exit(f"{len(failures)} failures; what they left is in {scratch}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kills in all phases")
    parser.add_argument(
        "--chain", type=int, default=3, metavar="N", help="kills of one run, at most"
    )
    parser.add_argument("--corruptions", type=int, default=0, metavar="N", help="damaged files")
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="absurd inputs")
    parser.add_argument("--disks", type=int, default=0, metavar="N", help="full disks and the like")
    parser.add_argument("--long", type=int, default=0, metavar="STEPS", help="steps of a long run")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--phase", help="only this phase, file kind or reader")
    parser.add_argument("--case", type=int, help="only this case of --phase, to repeat it")
    parser.add_argument("--json", metavar="FILE", help="write the table there; beside it, .jsonl")
    parser.add_argument("--table", metavar="FILE", help=f"write the tables of {RESULTS} there")
    parser.add_argument("--scratch", metavar="FOLDER", help="keep what is written there")
    return parser


def _lines_path(flags: argparse.Namespace, scratch: pathlib.Path) -> pathlib.Path:
    if flags.case is not None or not flags.json:
        return scratch / "lines.jsonl"
    return pathlib.Path(flags.json).with_suffix(".jsonl")


def _set_environment(scratch: pathlib.Path) -> None:
    """One thread, compilations shared by all processes, none of the user's folders."""
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "compilations"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Some releases of jax print kilobytes for every program that they read from that folder.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TFDS_DATA_DIR"] = str(scratch / "datasets")
    os.environ["SPARSEJAX_CACHE"] = str(scratch / "cache")


def _run_kills(run: Run) -> None:
    from tests.faults import kills

    kills.CHAIN = run.flags.chain  # before the processes that run them are forked
    phases = run.chosen(kills.ALL)
    wanted = -(-run.flags.kills // max(1, len(phases)))
    kills.make_references(run.scratch, list(dict.fromkeys(map(kills.kind_of, phases))))
    while True:
        lines = results.read(run.lines)
        numbers = {phase: kills.chains_left(lines, wanted, phase) for phase in phases}
        if run.flags.case is not None:
            numbers = {} if lines else dict.fromkeys(phases, [run.flags.case])
        if not any(numbers.values()):
            return
        run.cases("kills", numbers, kills.chain)


def _run_corruptions(run: Run) -> None:
    from tests.faults import corruptions, kills

    names = run.chosen(corruptions.SHARES)
    kinds = [corruptions.KINDS[name].command for name in names if name in corruptions.KINDS]
    kills.make_references(run.scratch, list(dict.fromkeys(kinds)))
    if "train" in kinds:
        corruptions.make_half(run.scratch)
    numbers = {name: corruptions.cases_of(run.flags.corruptions, name) for name in names}
    run.cases("corruptions", numbers, corruptions.corruption)


def _run_fuzz(run: Run) -> None:
    from tests.faults import fuzz, kills

    names = run.chosen(fuzz.NAMES)
    if "sparse file of a run" in names:
        kills.make_references(run.scratch, ["train"])
    numbers = dict.fromkeys(names, fuzz.cases_of(run.flags.fuzz))
    run.cases("fuzz", numbers, fuzz.fuzz)


def _run_disks(run: Run) -> None:
    from tests.faults import corruptions, disks, kills

    phases = run.chosen(disks.PHASES)
    if not disks.may_mount():
        print("SKIPPED, since this user may not mount: " + ", ".join(disks.NEED_MOUNTS))
        phases = [phase for phase in phases if phase not in disks.NEED_MOUNTS]
    if phases:
        kills.make_references(run.scratch, ["train"])
        corruptions.make_half(run.scratch)
    share = range(-(-run.flags.disks // max(1, len(phases))))
    run.cases("disks", dict.fromkeys(phases, share), disks.trouble)


def _run_long(run: Run) -> None:
    from tests.faults import long

    name = f"{run.flags.long:,} steps"
    run.cases("long run", {name: [0]}, lambda scratch, *_: long.long_run(scratch, run.flags.long))


def run_cases(cases: Iterable[Case], jobs: int, scratch: pathlib.Path, path: pathlib.Path) -> None:
    """Run cases, several at once, each in a process of its own; append their lines."""
    running: dict[int, pathlib.Path] = {}
    for number, case in enumerate(cases):
        if len(running) == jobs:
            _wait(running, path)
        answer = scratch / f"answer-{number}.json"
        answer.unlink(missing_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _answer(case, answer)
        running[pid] = answer
    while running:
        _wait(running, path)


def _wait(running: dict[int, pathlib.Path], path: pathlib.Path) -> None:
    pid, _ = os.wait()
    answer = running.pop(pid)
    if not answer.exists():
        sys.exit(f"the suite itself failed; its lines are in {path}")
    found = json.loads(answer.read_text())
    answer.unlink()
    results.append(path, found)
    bad = found["losses"] + found["unexplained"]
    words = "; ".join(bad) or "fine"
    print(f"{found['part']}, {found['phase']}, case {found['case']}: {words}", flush=True)


def _answer(case: Case, path: pathlib.Path) -> None:
    try:
        found = case()
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        found["cpu"] = round(sum(one.ru_utime + one.ru_stime for one in used), 1)
        text = json.dumps(found)
        path.with_suffix(".partial").write_text(text)
        path.with_suffix(".partial").replace(path)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _write_json(
    flags: argparse.Namespace, rows: Sequence[results.Line], failures: Sequence[str]
) -> None:
    import jax

    import sparsejax

    words = [f"--{name}={getattr(flags, name)}" for name in PARTS if getattr(flags, name)]
    words += [f"--chain={flags.chain}"] if flags.chain != 3 else []
    command = shlex.join(["python", "-m", "tests.faults", *words, f"--seed={flags.seed}"])
    versions = {
        "Python": sys.version.split()[0],
        "jax": jax.__version__,
        "sparsejax": sparsejax.__version__,
    }
    found = {"command": command, "versions": versions, "rows": rows, "failures": failures}
    pathlib.Path(flags.json).write_text(json.dumps(found, indent=1) + "\n")


PARTS = {
    "kills": _run_kills,
    "corruptions": _run_corruptions,
    "fuzz": _run_fuzz,
    "disks": _run_disks,
    "long": _run_long,
}

if __name__ == "__main__":
    main()
