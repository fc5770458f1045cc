"""Sparse-to-sparse training of diffusion models.

    python -m sparsejax train --config digits:rigl,0.75
    python -m sparsejax sample --run runs/digits-rigl-0.75-0 --count 64
    python -m sparsejax evaluate --workdirs runs/digits-rigl-0.75-0,runs/digits-dense-0
    python -m sparsejax export --workdir runs/digits-rigl-0.75-0 --output exported --sparse

With the package installed, `sparsejax COMMAND` does the same.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sparsejax import __version__, command_line, compilations, signals
from sparsejax.errors import nearest
from sparsejax.processes import joining, supervisor

_RESUMES, _REPEATS = "The same command resumes it.", "The same command starts over."


class Command(NamedTuple):
    """A command: its line in `--help`, and what is printed when a signal ends it."""

    summary: str
    when_stopped: str


COMMANDS = {
    "train": Command("Train a model, or resume an interrupted run.", _RESUMES),
    "evaluate": Command("Evaluate and compare trained runs.", _REPEATS),
    "sample": Command("Draw samples from a trained model.", _REPEATS),
    "export": Command("Write a trained model for other programs, or to share it.", _REPEATS),
    "prepare": Command("Prepare the data of a config before training.", _RESUMES),
    "sweep": Command("Train and evaluate a grid of methods, sparsities and seeds.", _RESUMES),
    "report": Command("Write the report of a results file again.", _REPEATS),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word of a command line names.

    Args:
      argv: words of the command line (default: those of this process).
    """
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or [""]
    if name in ("--help", "-h"):
        print(_help())
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        if name == "train" and joining.are_several(rest):
            supervisor.supervise()  # before anything that threads and forks don't share
        signals.watch(COMMANDS[name].when_stopped)  # before the imports that take seconds
        run(name, rest)
    else:
        print(f"error: {_problem(name)}; see --help", file=sys.stderr)
        sys.exit(2)


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command in this process; see `command_line.run`.

    Args:
      name: one of `COMMANDS`.
      argv: its flags.
    """

    def call() -> None:
        # Of several processes, one that finds a program in its cache may leave another one waiting
        # that doesn't, since XLA divides the search for the fastest GPU kernels among them.
        if not joining.are_several(argv):
            compilations.keep()
        importlib.import_module(f"sparsejax.commands.{name}").main(argv)

    command_line.run(call)


def _problem(name: str) -> str:
    accepted = f"accepted: {', '.join(COMMANDS)}"
    if not name:
        return f"a command must be given; {accepted}"
    return f"there is no command {name!r}; {accepted}; nearest: {nearest(name, COMMANDS)}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m sparsejax COMMAND [flags]\n",
            __doc__,
            "commands:",
            *lines,
            "\npython -m sparsejax COMMAND --help explains one of them.",
        ]
    )


if __name__ == "__main__":
    main()
