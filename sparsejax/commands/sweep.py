r"""Train and evaluate a grid of methods, sparsities and seeds, one run after another, and report.

    python -m sparsejax sweep --config digits:sweep \
        --methods dense,small_dense,static,rigl,magran --levels 0.5,0.75,0.9 --seeds 0,1,2

Writes results.jsonl (one line per run), report.md and report.html to --output. The same command
resumes an interrupted sweep, and other grids of the same config can be added to the same folder.
Every run has its own process: if one fails, the others continue, and the next call tries it again.

Several processes, on one machine or many, can work on one grid: the same command, given several
times, trains each run once. With --list it prints the missing runs as commands, one per line, for
SLURM arrays, GNU parallel or Kubernetes jobs.
"""

import argparse
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sparsejax import command_line, lease, signals
from sparsejax.commands.evaluate import add_measuring, measuring
from sparsejax.config_flags import parse_with_config

if TYPE_CHECKING:
    from sparsejax.evaluation.grids import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid that the flags describe, and write its report.

    Args:
      argv: words of the command line (default: those of this process).

    Raises:
      ConfigError: the grid can't run, or its results can't be added to those in `--output`.
      SystemExit: runs failed, or a signal ended the sweep.
    """
    flags = parse_with_config(_parser(), argv)
    # Imported here since they take seconds, which --help and a mistyped flag shouldn't wait for.
    import jax

    from sparsejax.evaluation.grids import grid
    from sparsejax.evaluation.sweep import list_missing, sweep
    from sparsejax.reports.report import write_report
    from sparsejax.reports.results import read_results

    jax.config.update("jax_platforms", "cpu")  # leaves the accelerator to the runs
    output = pathlib.Path(flags.output or f"runs/sweeps/{flags.config.name}")
    workdirs = pathlib.Path(flags.workdirs or output / "runs")
    runs = grid(
        flags.config,
        methods=flags.methods,
        levels=flags.levels,
        structures=flags.structures,
        drop_fractions=flags.drop_fractions,
        update_intervals=flags.update_intervals,
        seeds=flags.seeds,
    )
    if flags.list:
        for run in list_missing(runs, output, **measuring(flags)):
            print(command_of(run, sys.argv[1:] if argv is None else argv, flags))
        return
    failed = sweep(runs, output, workdirs, **measuring(flags))
    signum = signals.received()
    if signum:
        _stop(signum, output)
    if (output / "results.jsonl").exists():  # otherwise every run failed
        with lease.hold_in_turn(output):
            write_report(output, read_results(output), runs=workdirs)
        print(f"In {output}: results.jsonl, report.md, report.html")
    if failed:
        sys.exit("failed: " + "; ".join(f"{name}: {error}" for name, error in failed.items()))


def command_of(run: "Run", argv: Sequence[str], flags: argparse.Namespace) -> str:
    """Return the command that trains and evaluates a single run of a grid.

    Args:
      run: the run.
      argv: words of the command line that describes the grid, without "sweep".
      flags: what it was parsed to.
    """
    sparsity = run.config.sparsity
    axes = {"methods": run.method, "levels": run.level, "seeds": run.config.seed}
    axes |= {"structures": sparsity.structure} if flags.structures else {}
    axes |= {"drop-fractions": sparsity.drop_fraction} if flags.drop_fractions else {}
    axes |= {"update-intervals": sparsity.update_interval} if flags.update_intervals else {}
    kept, words = [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.replace("_", "-").partition("=")
        if name == "--list":
            continue
        if name.removeprefix("--") not in axes:
            kept.append(word)
        elif not equals:
            words.pop(0)  # its value
    own = [f"--{name}={value}" for name, value in axes.items()]
    return shlex.join(["python", "-m", "sparsejax", "sweep", *kept, *own])


def _stop(signum: signal.Signals, output: pathlib.Path) -> NoReturn:
    signals.say(f"Stopped by {signum.name}. The same command resumes the sweep in {output}.")
    sys.exit(signals.exit_status(signum))


def _parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__, prog="python -m sparsejax sweep")
    words, numbers = command_line.words, command_line.numbers
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        type=words,
        default="dense,static,rigl,magran",
        help="Any of dense, static, rigl, magran, gradual, one_shot, small_dense, "
        "small_dense_flops, or your own.",
    )
    parser.add_argument(
        "--levels", type=numbers(float), default="0.5", metavar="NUMBERS", help="Sparsities."
    )
    parser.add_argument(
        "--structures",
        metavar="NAMES",
        type=words,
        default=(),
        help="Any of weight, block, channel (default: the config's).",
    )
    parser.add_argument(
        "--drop-fractions",
        type=numbers(float),
        default=(),
        metavar="NUMBERS",
        help="Drop fractions (default: the config's).",
    )
    parser.add_argument(
        "--update-intervals",
        type=numbers(int),
        default=(),
        metavar="NUMBERS",
        help="Steps between topology updates (default: the config's).",
    )
    parser.add_argument(
        "--seeds",
        type=command_line.seeds,
        default="0",
        metavar="NUMBERS",
        help="Seeds of the runs.",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="Folder for the results (default: runs/sweeps/<name of the config>).",
    )
    parser.add_argument(
        "--workdirs",
        metavar="FOLDER",
        help="Folder for the runs' workdirs (default: <output>/runs).",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="Print the missing runs as commands, one per line, without training.",
    )
    add_measuring(parser)
    return parser
