"""Progress of a run: a bar on a terminal, otherwise a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from sparsejax.types import PyTree

_LINE_EVERY = 15.0  # seconds, without a terminal
_LONG = 5.0  # seconds; what takes longer is worth a line


class Show(Protocol):
    """Shows how far a run is."""

    def __call__(self, step: int, loss: float | None = None, speed: float | None = None) -> None:
        """Show steps taken, and loss and steps per second where they are known (host numbers)."""


class Bar(NamedTuple):
    """What shows the progress of a run.

    Attributes:
      show: see `Show`.
      during: `during(what)` is a context that shows what is done in place of training, such as
        "compiling train step", and for how long.
    """

    show: Show
    during: Callable[[str], contextlib.AbstractContextManager[None]]

    def compiling(self, what: str, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Return a function that shows "compiling" and `what` during its first call."""
        is_first = True

        def call(*arguments: PyTree) -> PyTree:
            nonlocal is_first
            if not is_first:
                return function(*arguments)
            is_first = False
            with self.during(f"compiling {what}"):
                return function(*arguments)

        return call


@contextlib.contextmanager
def progress_bar(steps: int, start: int, density: float | None) -> Iterator[Bar]:
    """Show progress while the context lasts; yields a Bar.

    On a terminal, it is a live bar; elsewhere a line every 15 seconds, and one after whatever took
    more than 5 seconds in place of training.

    Args:
      steps: steps of the whole run.
      start: steps already taken.
      density: density of the sparsifiable weights to show; None if it changes during the run.
    """
    said = "" if density is None else f"density {density:.3f}"
    if not sys.stdout.isatty():
        yield Bar(_line_printer(steps, said), _print_if_long)
        return
    columns = (
        _Doing(Column(no_wrap=True)),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]} steps/s"),
        TextColumn(said),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console()) as progress:
        known: dict[str, Any] = {"loss": "-", "speed": "-", "doing": None}
        bar = progress.add_task("training", total=steps, completed=start, **known)

        def show(step: int, loss: float | None = None, speed: float | None = None) -> None:
            fields: dict[str, Any] = {} if loss is None else {"loss": f"{loss:.4f}"}
            fields |= {} if speed is None else {"speed": f"{speed:.1f}"}
            progress.update(bar, completed=step, **fields)

        @contextlib.contextmanager
        def during(what: str) -> Iterator[None]:
            progress.update(bar, doing=(what, time.monotonic()), refresh=True)
            yield
            progress.update(bar, doing=None)

        yield Bar(show, during)


class _Doing(ProgressColumn):
    """What is being done; for how long, if that is not training."""

    def render(self, task: Task) -> Text:
        """Return the text of this column, which a thread asks for ten times a second."""
        doing = task.fields["doing"]
        if doing is None:
            return Text(task.description)
        what, began = doing
        return Text(f"{what}, {time.monotonic() - began:.0f} s")


def _line_printer(steps: int, said: str) -> Show:
    printed = -_LINE_EVERY

    def show(step: int, loss: float | None = None, speed: float | None = None) -> None:
        nonlocal printed
        now = time.monotonic()
        if loss is None or (now - printed < _LINE_EVERY and step < steps):
            return
        printed = now
        pace = f"{speed:.1f} steps/s" if speed else "- steps/s"
        left = f"{(steps - step) / speed:.0f} s left" if speed else ""
        parts = [f"step {step}/{steps}", f"loss {loss:.4f}", pace, said, left]
        print("  ".join(filter(None, parts)), flush=True)

    return show


@contextlib.contextmanager
def _print_if_long(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    if seconds > _LONG:
        print(f"{what} took {seconds:.0f} s", flush=True)
