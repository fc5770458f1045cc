"""Metrics: one JSON object a line in metrics.jsonl, the same scalars in TensorBoard."""

import json
import math
import pathlib
import time

import jax

from sparsejax.atomic import write_text
from sparsejax.training import checkpoints
from sparsejax.training.memory import peak_memory
from sparsejax.training.optimizers import learning_rate_schedule

# Fields that differ between two equal runs.
WALL_CLOCK = ("seconds", "steps_per_second", "peak_memory_bytes")


def read_metrics(path):
    """Read metrics lines; a torn last line, left by a kill, is dropped.

    Args:
      path: of a metrics.jsonl, which need not exist.

    Returns:
      List of dictionaries.
    """
    path, lines = pathlib.Path(path), []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class MetricsWriter:
    """Append metrics to workdir/metrics.jsonl and workdir/tensorboard.

    Opening it cuts the lines after `step`, so that a resumed run repeats none.
    """

    def __init__(self, workdir, step, tensorboard=True):
        path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, step, values):
        """Write one line: `step` and a dictionary of floats."""
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self):
        """Close the files."""
        self._file.close()
        if self._board:
            self._board.close()


class MetricsLog:
    """Holds the metrics of steps on the device until they are written, `log.every` steps."""

    def __init__(self, config, workdir, start, pending, steps_key):
        """Go on after step `start`, with the metrics that its checkpoint had pending."""
        self._workdir, self._steps_key = workdir, steps_key
        self._learning_rate = learning_rate_schedule(config)
        self._writer = None
        if jax.process_index() == 0:
            self._writer = MetricsWriter(workdir, start, config.log.tensorboard)
        self._pending = [tuple(item) for item in pending]
        self._clock, self._clock_step = time.monotonic(), start

    def add(self, step, metrics):
        """Keep one step's metrics, arrays on the device."""
        self._pending.append((step, metrics))

    def pending(self):
        """Fetch and return what is not yet written, as JSON-able data.

        Raises:
          FloatingPointError: a loss or a gradient norm is not finite.
        """
        fetched = jax.device_get(self._pending)
        self._pending = [(step, {k: float(v) for k, v in m.items()}) for step, m in fetched]
        for step, metrics in self._pending:
            # A finite loss with other gradients makes weights that no checkpoint may keep.
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
                self._refuse(step, metrics)
        return self._pending

    def flush(self):
        """Write a line for each topology update and one for the mean of the steps.

        Returns:
          Tuple of the mean loss and steps per second.
        """
        lines = self.pending()
        step = lines[-1][0]
        now = time.monotonic()
        speed = (step - self._clock_step) / max(now - self._clock, 1e-9)
        mean = {
            name: math.fsum(metrics[name] for _, metrics in lines) / len(lines)
            for name in ("loss", "grad_norm")
        }
        if self._writer:
            for update_step, metrics in lines:
                if "replaced" in metrics:
                    names = ("drop_fraction", "replaced", "ever_active")
                    self._writer.write(update_step, {name: metrics[name] for name in names})
            self._writer.write(
                step,
                mean
                | {
                    "learning_rate": float(self._learning_rate(step - 1)),
                    "seconds": time.time(),
                    "steps_per_second": speed,
                    "peak_memory_bytes": peak_memory(),
                },
            )
        self._pending, self._clock, self._clock_step = [], now, step
        return mean["loss"], speed

    def close(self):
        """Close the metrics files."""
        if self._writer:
            self._writer.close()

    def _refuse(self, step, metrics):
        saved = checkpoints.list_steps(self._workdir / "checkpoints")
        newest = f"checkpoint of step {saved[-1]}" if saved else "none"
        key = jax.random.key_data(jax.random.fold_in(self._steps_key, step - 1)).tolist()
        raise FloatingPointError(
            f"loss is {metrics['loss']}, gradient norm {metrics['grad_norm']} at step {step}; "
            f"last good state in {self._workdir}: {newest}; "
            f"the batch is that of step index {step - 1}, its key {key}"
        )
