"""Metrics: one JSON object a line in metrics.jsonl, the same scalars in TensorBoard."""

import json
import pathlib

# Fields that differ between two equal runs.
WALL_CLOCK = ("seconds", "steps_per_second")


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
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in kept))
        replacement.replace(path)
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
