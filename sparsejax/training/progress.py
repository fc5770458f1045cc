"""Progress of a run: a bar on a terminal, otherwise a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show: TypeAlias = Callable[..., None]  # of step, loss, steps per second

_LINE_EVERY = 15.0  # seconds, without a terminal


@contextlib.contextmanager
def progress_bar(steps: int, start: int, density: float | None) -> Iterator[Show]:
    """Show progress while the context lasts; yields `show(step, loss, steps_per_second)`.

    On a terminal, a live bar; elsewhere a line every 15 seconds. `show` takes host numbers
    and may be called with None for loss and speed where they aren't known yet.

    Args:
      steps: steps of the whole run.
      start: steps already taken.
      density: density of the sparsifiable weights to show; None if it changes during the run.
    """
    said = "" if density is None else f"density {density:.3f}"
    if not sys.stdout.isatty():
        yield _line_printer(steps, said)
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {model.fields[loss]}"),
        TextColumn("{model.fields[speed]} steps/s"),
        TextColumn(said),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console()) as progress:
        bar = progress.add_task("training", total=steps, completed=start, loss="-", speed="-")

        def show(step: int, loss: float | None = None, speed: float | None = None) -> None:
            fields: dict[str, Any] = {} if loss is None else {"loss": f"{loss:.4f}"}
            fields |= {} if speed is None else {"speed": f"{speed:.1f}"}
            progress.update(bar, completed=step, **fields)

        yield show


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
