"""Metrics: one JSON object per line of metrics.jsonl, and the same scalars in trackers."""

import contextlib
import json
import logging
import math
import os
import pathlib
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jax

from sparsejax.atomic import append_lines, set_aside, write_text
from sparsejax.storage import parse_json
from sparsejax.training.memory import peak_memory
from sparsejax.training.steps import SKIPPED, STEP_METRICS
from sparsejax.training.tracking import Trackers
from sparsejax.types import Metrics, PathLike, Pictures, PRNGKey, PyTree, Schedule, Value

# Fields that differ between two equal runs.
WALL_CLOCK = ("seconds", "steps_per_second", "interval_seconds", "peak_memory_bytes")
FILE = "metrics.jsonl"
DAMAGED_FILE = "metrics.damaged.jsonl"

Line: TypeAlias = dict[str, float]  # a line of metrics.jsonl: `step` and numbers by name
Written: TypeAlias = list[int]  # number of lines and CRC-32 of all of them

logger = logging.getLogger(__name__)


def read_metrics(path: PathLike) -> list[Line]:
    """Read the lines of a metrics file, skipping those that are invalid.

    Args:
      path: of a metrics.jsonl, which need not exist.

    Returns:
      List of dictionaries: `step` int, all other values numbers.
    """
    return _parse(path)[0]


def _parse(path: PathLike, first: int = 0) -> tuple[list[Line], list[bytes]]:
    """Return the metrics of a file, and the lines (bytes) that are damaged.

    A kill can truncate the last line. That counts as damage only if its step is before `first`,
    since later steps are written again.
    """
    path = pathlib.Path(path)
    metrics: list[Line] = []
    damaged: list[bytes] = []
    # Read as bytes: damage may be anything, and text has more line endings than "\n".
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for line in lines:
        parsed = _parse_line(line)
        if parsed is not None:
            metrics.append(parsed)
        elif line.strip(b"\0 \t\r"):
            damaged.append(line)
    parsed = _parse_line(torn)
    begun = re.match(rb'\{"step": (\d+),', torn)
    if parsed is None and begun and int(begun[1]) < first:
        damaged.append(torn)
    return metrics + ([] if parsed is None else [parsed]), damaged


def _parse_line(line: bytes) -> Line | None:
    """Return a line's dictionary, or None; zeros around it, left by a power cut, don't count."""
    try:
        values = parse_json(line.strip(b"\0").decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not _is_number(values.get("step"), int):
        return None
    if not all(map(_is_number, values.values())):
        return None
    # No run writes these if they aren't finite.
    return values if all(math.isfinite(values.get(name, 0)) for name in STEP_METRICS) else None


def _is_number(value: Value, kinds: type | tuple[type, ...] = (int, float)) -> bool:
    is_large = isinstance(value, int) and abs(value) >= 2**63  # no float may hold it
    return isinstance(value, kinds) and not isinstance(value, bool) and not is_large


class MetricsWriter:
    """Append metrics to workdir/metrics.jsonl.

    Opening it removes the lines of steps from `first` on, so that a resumed run repeats none, and
    moves invalid lines to metrics.damaged.jsonl. It says if lines are missing or changed.

    Attributes:
      last: last step that had a line when the file was opened; 0 if there was none.
    """

    def __init__(self, workdir: PathLike, first: int, written: Written | None = None) -> None:
        """Open the file.

        Args:
          workdir: pathlib.Path.
          first: first step whose lines will be written, possibly again.
          written: what `written` returned when the lines before `first` had been written.
        """
        path = pathlib.Path(workdir) / FILE
        try:
            kept, damaged = _parse(path, first)
        except OSError as error:
            logger.warning("%s can't be read: %s; set aside as %s", path, error, set_aside(path))
            kept, damaged = [], []
        if damaged:
            append_lines(path.parent / DAMAGED_FILE, damaged)
            logger.warning(
                "%s: %d damaged lines moved to %s", path, len(damaged), path.parent / DAMAGED_FILE
            )
        self.last = max((int(line["step"]) for line in kept), default=0)
        lines = [json.dumps(line) + "\n" for line in kept if line["step"] < first]
        self._count, self._sum = 0, 0
        for line in lines:
            self._add(line)
        if written is not None:
            _compare(path, first, written, [self._count, self._sum], len(damaged))
        write_text(path, "".join(lines))
        self._file = path.open("a")

    def write(self, step: int, values: Line) -> None:
        """Write one line: `step` and a dictionary of floats."""
        line = json.dumps({"step": step} | values) + "\n"
        self._file.write(line)
        self._file.flush()
        self._add(line)

    def written(self) -> Written:
        """Force the lines to the disk; return their number and the CRC-32 of all of them."""
        os.fsync(self._file.fileno())
        return [self._count, self._sum]

    def _add(self, line: str) -> None:
        self._count, self._sum = self._count + 1, zlib.crc32(line.encode(), self._sum)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _compare(
    path: pathlib.Path, first: int, written: Written, found: Written, damaged: int
) -> None:
    """Warn if lines that a checkpoint knows of are missing or changed; damaged ones are told."""
    missing = written[0] - found[0] - damaged
    if missing > 0:
        logger.warning(
            "%s: %d of the %d lines before step %d are missing", path, missing, written[0], first
        )
    elif not damaged and found != written:
        logger.warning("%s: the lines before step %d aren't as they were written", path, first)


class MetricsLog:
    """Holds the metrics of steps on the device until they are written, `log.every` steps."""

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        saved: Mapping[str, Value],
        steps_key: PRNGKey,
        learning_rate: Schedule,
        *,
        tensorboard: bool = True,
        wandb: bool = False,
        may_skip: int = 0,
    ) -> None:
        """Continue after step `start`, with what `extra` returned for its checkpoint.

        Args:
          workdir: the run's folder.
          start: steps taken.
          saved: `pending`, pairs of a step and its metrics, not written yet, and `skipped`, the
            number of steps skipped before these; `written`, of the lines written; `seconds` of
            training; each may be missing.
          steps_key: key of all steps, for the error about a loss that is not finite.
          learning_rate: schedule over the steps that are not skipped.
          tensorboard: whether to write to TensorBoard too.
          wandb: whether to write to Weights & Biases too.
          may_skip: number of steps of the whole run that may be skipped.
        """
        self._steps_key, self._learning_rate = steps_key, learning_rate
        self._may_skip, self._skipped = may_skip, saved.get("skipped", 0)
        self._writer: MetricsWriter | None = None
        self._trackers: Trackers | None = None
        pending = saved.get("pending", ())
        self._pending: list[tuple[int, Any]] = [(step, metrics) for step, metrics in pending]
        if jax.process_index() == 0:
            first = min([start + 1, *(step for step, _ in self._pending)])
            self._writer = MetricsWriter(workdir, first, saved.get("written"))
            self._trackers = Trackers(
                workdir, first, self._writer.last, tensorboard=tensorboard, wandb=wandb
            )
        self._clock = self._interval = time.monotonic()
        self._clock_step = start
        self._began = self._clock - saved.get("seconds", 0.0)  # as if without interruption

    @contextlib.contextmanager
    def uncounted(self, state: PyTree, steps: int = 0) -> Iterator[None]:
        """Exclude the time of the body (compilation, pictures) from the steps per second.

        Args:
          state: pytree of arrays; waited for first, since it belongs to the steps before.
          steps: training steps that the body takes, excluded too.
        """
        jax.block_until_ready(state)
        began = time.monotonic()
        yield
        self._clock += time.monotonic() - began
        self._clock_step += steps

    def without_first(
        self, function: Callable[..., PyTree], steps: int = 0
    ) -> Callable[..., PyTree]:
        """Return `function(state, ...)` with its first call, which compiles, uncounted."""
        is_first = True

        def call(state: PyTree, *arguments: PyTree) -> PyTree:
            nonlocal is_first
            if not is_first:
                return function(state, *arguments)
            is_first = False
            with self.uncounted(state, steps):
                return jax.block_until_ready(function(state, *arguments))

        return call

    def add(self, step: int, metrics: Metrics) -> None:
        """Keep one step's metrics, arrays on the device; wait for those of the step before.

        So one step runs and at most one is queued, which keeps the device busy. JAX by itself
        queues dozens, all of which a stopping run would have to finish.
        """
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
        self._pending.append((step, metrics))

    def pending(self) -> list[tuple[int, Line]]:
        """Fetch and return what is not yet written, as JSON-serializable data.

        A skipped step has no loss and no gradient norm, which are not finite.

        Raises:
          FloatingPointError: a metric of a train step is not finite, and the step was not skipped
            or is one too many.
        """
        fetched, skipped = jax.device_get(self._pending), self._skipped
        self._pending = []
        for step, arrays in fetched:
            metrics = {name: float(value) for name, value in arrays.items()}
            is_skipped = metrics.pop(SKIPPED, 0.0) > 0
            skipped += is_skipped
            # Gradients that are not finite corrupt the weights even if the loss is finite.
            is_finite = all(math.isfinite(metrics.get(name, 0.0)) for name in STEP_METRICS)
            if not is_finite and not (is_skipped and skipped <= self._may_skip):
                self._refuse(step, metrics, skipped - is_skipped)
            if is_skipped:
                metrics = {SKIPPED: 1.0} | _without(metrics, STEP_METRICS)
            self._pending.append((step, metrics))
        return self._pending

    def extra(self) -> dict[str, Value]:
        """Return what a checkpoint has to hold of this log, JSON-serializable.

        Raises:
          FloatingPointError: see `pending`.
        """
        written = {"written": self._writer.written()} if self._writer else {}
        pending = self.pending()  # which waits for the steps
        seconds = time.monotonic() - self._began
        return {"pending": pending, "skipped": self._skipped, "seconds": seconds} | written

    def flush(self) -> tuple[float | None, float | None]:
        """Write a line for each topology update, and one for the mean of `STEP_METRICS`.

        The mean is that of the steps that were not skipped; if steps may be skipped, `skipped` is
        the number of those that were.

        Returns:
          Tuple of the mean loss, None if all steps were skipped, and steps per second, None where
          no step was timed.
        """
        lines = self.pending()
        step = lines[-1][0]
        now = time.monotonic()
        timed = step - self._clock_step
        speed = timed / max(now - self._clock, 1e-9) if timed else None
        taken = [metrics for _, metrics in lines if SKIPPED not in metrics]
        skipped = len(lines) - len(taken)
        self._skipped += skipped
        mean = {
            name: math.fsum(metrics[name] for metrics in taken) / len(taken)
            for name in (STEP_METRICS if taken else ())
        }
        if self._writer:
            rate = float(self._learning_rate(max(step - 1 - self._skipped, 0)))
            for update_step, metrics in lines:
                of_update = _without(metrics, (*STEP_METRICS, SKIPPED))
                if of_update:
                    self._write(update_step, of_update)
            self._write(
                step,
                mean
                | ({SKIPPED: skipped} if self._may_skip else {})
                | {"learning_rate": rate, "seconds": now - self._began}
                | ({} if speed is None else {"steps_per_second": speed})
                | {"interval_seconds": now - self._interval, "peak_memory_bytes": peak_memory()},
            )
        self._pending, self._clock_step = [], step
        self._clock = self._interval = now
        return mean.get("loss"), speed

    def picture(self, step: int, pixels: Pictures | None) -> None:
        """Show a picture of samples in the trackers.

        Args:
          step: step after which they were drawn.
          pixels: [height, width, 3] uint8; None in the processes that don't draw.
        """
        if self._trackers and pixels is not None:
            self._trackers.picture(step, "samples", pixels)

    def close(self, failed: bool = False) -> None:
        """Close the metrics file and the trackers; `failed` says whether an error ends the run."""
        if self._writer and self._trackers:
            self._writer.close()
            self._trackers.close(failed)

    def _write(self, step: int, values: Line) -> None:
        if self._writer and self._trackers:
            self._writer.write(step, values)
            self._trackers.scalars(step, values)

    def _refuse(self, step: int, metrics: Line, skipped: int) -> NoReturn:
        before = f"; {skipped} such steps were skipped before" if skipped else ""
        key = jax.random.key_data(jax.random.fold_in(self._steps_key, step - 1)).tolist()
        raise FloatingPointError(
            f"{', '.join(f'{name} is {metrics[name]}' for name in STEP_METRICS)} at step {step}; "
            f"the batch is that of step index {step - 1}, its key {key}{before}; "
            f"config.optimizer.skip_nonfinite is {self._may_skip}"
        )


def _without(metrics: Line, names: Sequence[str]) -> Line:
    return {name: value for name, value in metrics.items() if name not in names}
