"""Rows of results.jsonl, one per run: reading them, and what a single row says."""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from sparsejax.errors import ConfigError

Row: TypeAlias = dict[str, Any]  # a line of results.jsonl
JSON: TypeAlias = Any  # a value from JSON
Layers: TypeAlias = Mapping[str, tuple[int, int]]  # (active, weights) by path

PICTURES = "8-bit"  # what rows say whose samples were clipped and rounded
HELD_OUT = "held-out loss"
FEW = 200  # distances of fewer samples say little
_REQUIRED = ("run", "method", "sparsity", "seed", "steps", "measures")
# What the values of a row are; of those that aren't needed, None stands for "not recorded".
_TEXTS = ("run", "method", "structure", "reference", "pictures", "commit", "device", "date")
_NUMBERS = ("sparsity", "drop_fraction", "update_interval")
_WHOLE = ("seed", "steps", "parameters")
_OBJECTS = ("measures", "config", "versions", "evaluation")
_HIGHER_IS_BETTER = ("precision", "recall", "IS", "accuracy", "worst accuracy")


def read_results(path: str | os.PathLike[str]) -> list[Row]:
    """Read the lines of a results file; where a run occurs twice, its last line counts.

    Args:
      path: a .jsonl file, or a folder that holds results.jsonl.

    Returns:
      List of rows.

    Raises:
      ConfigError: there is no such file, a line is damaged or lacks a key that is needed, or
        there is no line.
    """
    path = pathlib.Path(path)
    file = path / "results.jsonl" if os.path.isdir(path) else path
    rows, damaged = parse_results(file)
    for number, (_, problem) in damaged.items():
        raise ConfigError(f"{file}, line {number}: {problem}")
    if not rows:
        raise ConfigError(f"{file} holds no runs")
    return rows


def parse_results(
    file: pathlib.Path, also: Sequence[str] = ()
) -> tuple[list[Row], dict[int, tuple[bytes, str]]]:
    """Read the lines of a results file, and those that are damaged apart.

    Args:
      file: a .jsonl file.
      also: keys that every row needs besides those that reports need.

    Returns:
      Tuple of the rows, one per run, and `{number of a line: (the line, what is wrong with it)}`.

    Raises:
      ConfigError: the file can't be read.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"results {str(file)!r} can't be read: {error}") from error
    rows: dict[str, Row] = {}
    damaged: dict[int, tuple[bytes, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, (*_REQUIRED, *also))
        except ValueError as error:
            damaged[number] = line, str(error)
        else:
            rows[row["run"]] = row
    return list(rows.values()), damaged


def _parse_row(line: bytes, required: Sequence[str]) -> Row:
    """Return a line's row; raise ValueError if it is damaged."""
    try:
        row = json.loads(line.decode())
        # Half a pair of surrogates, which JSON can escape, is no text.
        row = json.loads(json.dumps(row, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from error
    missing = [key for key in required if not isinstance(row, dict) or key not in row]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    problem = _problem(row)
    if problem:
        raise ValueError(problem)
    return row


def _problem(row: Row) -> str:
    """Return what is wrong with the values of a row; empty text if nothing is."""
    for key, value in row.items():
        fits, accepted = _fits(key, value)
        if not fits and not (value is None and key not in _REQUIRED):
            return f"{key} is {repr(value)[:50]}; accepted: {accepted}"
    return ""


def _fits(key: str, value: JSON) -> tuple[bool, str]:
    """Return whether a key of a row can hold a value, and which ones it can."""
    if key in _TEXTS:
        return isinstance(value, str), "text"
    if key in _NUMBERS:
        return is_number(value) and not isinstance(value, bool), "a number"
    if key in _WHOLE:
        return _is_whole(value), "a whole number"
    if key == "block_size":
        pair = value if isinstance(value, list) else [value, value]
        return len(pair) == 2 and all(map(_is_whole, pair)), "a whole number, or two"
    if key == "layers":
        pairs = value.values() if isinstance(value, dict) else [None]
        return all(map(_is_count, pairs)), "an object of pairs: active weights, and all of them"
    return isinstance(value, dict) or key not in _OBJECTS, "an object"


def _is_whole(value: JSON) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and is_number(value)


def _is_count(pair: JSON) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_whole, pair)):
        return False
    return 0 <= pair[0] <= pair[1] and pair[1] > 0


class Run(NamedTuple):
    """What a row says of its run, read once.

    Attributes:
      name: of the run, also of its workdir.
      seed: of the run.
      numbers: the finite numbers of the row: its measures, and its own keys.
      layers: counts of each layer in the order of execution; empty if the row has none.
      sparse_density: of the layers that are sparse, taken together; None if there is none.
      measured_on: what features were computed from, `8-bit` pictures or unrounded `floats`.
      has_gaps: whether a measure is no finite number.
      row: the line of results.jsonl.
      shown: the same with absolute paths shortened, which mean nothing on another machine.
    """

    name: str
    seed: int
    numbers: dict[str, float]
    layers: Layers
    sparse_density: float | None
    measured_on: str
    has_gaps: bool
    row: Row
    shown: Row


def read_row(row: Row) -> Run:
    """Return what a row says of its run.

    Examples:
      >>> run = read_row({"run": "a", "seed": 3, "measures": {"FD": 1.5, "KID": None}})
      >>> run.numbers, run.measured_on
      ({'seed': 3.0, 'FD': 1.5}, '8-bit')
    """
    values = row | row["measures"]
    numbers = {name: float(value) for name, value in values.items() if is_number(value)}
    layers = row.get("layers") or {}
    return Run(
        row["run"],
        row["seed"],
        numbers,
        layers,
        sparse_density(layers),
        _measured_on(row),
        not all(map(is_number, row["measures"].values())),
        row,
        shortened(row),
    )


def is_number(value: JSON) -> bool:
    """Tell whether a value from JSON is a finite number."""
    if isinstance(value, int):
        return abs(value) < 2**1023  # of which a float can be made
    return isinstance(value, float) and math.isfinite(value)


def sparse_density(layers: Layers) -> float | None:
    """Return the density of the layers that are sparse, taken together; None if there is none."""
    sparse = [(active, weights) for active, weights in layers.values() if active < weights]
    if not sparse:
        return None
    return sum(active for active, _ in sparse) / sum(weights for _, weights in sparse)


def _measured_on(row: Row) -> str:
    # Older rows don't say so. Inception has always rounded; other measures are of no pictures.
    of_pictures = any(re.search(r"\[(classifier|pixels)", name) for name in row["measures"])
    return row.get("pictures", "floats" if of_pictures else PICTURES)


def shortened(value: JSON) -> JSON:
    """Return a value from JSON with its absolute paths shortened to their last part.

    Examples:
      >>> shortened({"source": "/home/somebody/data/digits.npz", "size": 8})
      {'source': '.../digits.npz', 'size': 8}
    """
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(part) for part in value]
    if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)", value):
        return ".../" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def varied_keys(runs: Sequence[Run], *, shared: bool = False) -> dict[str, list[str]]:
    """Return the config keys whose values differ between runs, and these values as JSON.

    Args:
      runs: of a results file; one whose row lacks a config or a key has null there.
      shared: whether to leave out keys that not all of the configs have, as older ones don't.

    Returns:
      `{key: values}`, such as `{"sparsity.level": ["0.5", "0.75"]}`.
    """
    configs = [_flat(run.shown.get("config") or {}) for run in runs]
    names = dict.fromkeys(key for config in configs for key in config)
    if shared:
        known = [config for config in configs if config]
        names = {name: None for name in names if all(name in config for config in known)}
        configs = known
    values = {
        name: list(dict.fromkeys(json.dumps(config.get(name), default=str) for config in configs))
        for name in names
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _flat(config: Row, prefix: str = "") -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def metric_of(measure: str) -> str:
    """Return the metric of a measure's name.

    Examples:
      >>> metric_of("KID[classifier:digits]@1797"), metric_of("held-out loss")
      ('KID', 'held-out loss')
    """
    return measure.split("[")[0].split("@")[0].strip()


def sample_count(measure: str) -> int | None:
    """Return the number of samples that a measure is of, None if it isn't one of samples.

    Examples:
      >>> sample_count("KID[classifier:digits]@1797"), sample_count("held-out loss")
      (1797, None)
    """
    found = re.search(r"@(\d+)$", measure)
    return int(found[1]) if found else None


def is_of_few(measure: str) -> bool:
    """Tell whether a measure is of so few samples that noise and bias outweigh most differences."""
    return (sample_count(measure) or FEW) < FEW


def is_spread(measure: str) -> bool:
    """Tell whether a measure is the spread of another one, such as `KID std[...]`."""
    return metric_of(measure).endswith(" std")


def higher_is_better(measure: str) -> bool:
    """Tell the direction of a measure by its metric: precision, recall, IS and accuracy go up."""
    return metric_of(measure) in _HIGHER_IS_BETTER


def headed(measure: str) -> str:
    """Return a measure's name with an arrow in the direction that is better."""
    return f"{measure} {'↑' if higher_is_better(measure) else '↓'}"


def measure_names(rows: Iterable[Row], spreads: bool = False) -> list[str]:
    """List the measures of quality, a Frechet distance first, unless it is of too few samples.

    Args:
      rows: lines of results.jsonl.
      spreads: whether to list `KID std[...]` and the like too.

    Returns:
      Names of which at least one row has a finite number.
    """
    names = dict.fromkeys(
        name
        for row in rows
        for name, value in row["measures"].items()
        if is_number(value) and (spreads or not is_spread(name))
    )
    return sorted(names, key=lambda name: (is_of_few(name), metric_of(name) not in ("FD", "FID")))
