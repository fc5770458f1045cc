"""Groups of runs that differ in nothing but the seed: means, spreads, and how to write them."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from sparsejax.quantities import quantity

_METHODS = ("dense", "small_dense", "small_dense_flops", "static", "rigl", "magran")
_HIGHER_IS_BETTER = ("precision", "recall", "IS")
_STRUCTURES = ("weight", "block", "channel")
_DIGITS = 3


class Group(NamedTuple):
    """Runs of one setting.

    Attributes:
      method: name of the method or of the small dense model.
      structure: what is pruned and grown as one, such as `weight` or `block 64`.
      sparsity: of the whole model; of a small dense one, that of the model it is as small as.
      drop_fraction: None where there is none.
      update_interval: None where there is none.
      steps: optimizer steps.
      rows: lines of results.jsonl, one a seed.
    """

    method: str
    structure: str
    sparsity: float
    drop_fraction: float | None
    update_interval: int | None
    steps: int
    rows: list


class Spread(NamedTuple):
    """Mean and standard deviation of `count` numbers; `std` is None where there is but one."""

    mean: float
    std: float | None
    count: int


class Difference(NamedTuple):
    """A difference of means with its 95 % interval; `low` and `high` may be None."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self):
        """Whether there is an interval and it doesn't contain zero."""
        return self.low is not None and not self.low <= 0 <= self.high


def group_rows(rows):
    """Gather rows that differ in the seed only: the same setting, networks of one size.

    Args:
      rows: lines of results.jsonl.

    Returns:
      List of Group, by sparsity, then method and structure, then the largest drop fraction first;
      the rows of each by seed.
    """
    names = ("sparsity", "drop_fraction", "update_interval", "steps", "parameters")
    gathered = {}
    for row in rows:
        key = (row["method"], _structure(row), *(row.get(name) for name in names))
        gathered.setdefault(key, []).append(row)
    groups = [
        Group(*key[:-1], sorted(found, key=lambda row: row["seed"]))
        for key, found in gathered.items()
    ]
    return sorted(groups, key=_order)


def _structure(row):
    """Name the structure of a row; one that is older than the key is of single weights."""
    size = row.get("block_size")
    return (row.get("structure") or "weight") + (f" {size}" if size else "")


def structures(groups):
    """List the structures of sparse groups, single weights first.

    Args:
      groups: list of Group.

    Returns:
      Names such as `weight`, `block 8`, `channel`, each once.
    """
    return sorted({group.structure for group in groups if is_sparse(group)}, key=_structure_order)


def _structure_order(name):
    kind, _, size = name.partition(" ")
    rank = _STRUCTURES.index(kind) if kind in _STRUCTURES else len(_STRUCTURES)
    return rank, kind, int(size) if size.isdigit() else 0


def _order(group):
    rank = _METHODS.index(group.method) if group.method in _METHODS else len(_METHODS)
    fraction, interval = -(group.drop_fraction or 0), group.update_interval or 0
    setting = (_structure_order(group.structure), fraction, interval, group.steps or 0)
    return group.sparsity, rank, group.method, *setting


def is_sparse(group):
    """Tell whether a group has masks: neither dense nor a small dense model."""
    return group.method not in _METHODS[:3]


def describe(group, groups, level=True):
    """Name a group by what tells it from the others.

    Args:
      group: Group.
      groups: all that it is shown with.
      level: whether to name the sparsity.

    Returns:
      String such as `rigl, S 0.9, p 0.05`.
    """
    parts = [group.method]
    if is_sparse(group) and len(structures(groups)) > 1:
        parts.append(group.structure)
    if level and group.sparsity:
        parts.append(f"S {group.sparsity:g}")
    for key, sign in (("drop_fraction", "p"), ("update_interval", "dT")):
        known = {getattr(other, key) for other in groups} - {None}
        if len(known) > 1 and getattr(group, key) is not None:
            parts.append(f"{sign} {getattr(group, key):g}")
    if len({other.steps for other in groups}) > 1:
        parts.append(f"{group.steps:,} steps")
    if sum(other[:-1] == group[:-1] for other in groups) > 1:
        parts.append(f"{quantity(group.rows[0].get('parameters', 0))} parameters")
    return ", ".join(parts)


def metric_of(measure):
    """Return the metric of a measure's name.

    Example:
      >>> metric_of("KID[classifier:digits]@1797"), metric_of("held-out loss")
      ('KID', 'held-out loss')
    """
    return measure.split("[")[0].split("@")[0].strip()


def is_spread(measure):
    """Tell whether a measure is the spread of another one, such as `KID std[...]`."""
    return metric_of(measure).endswith(" std")


def higher_is_better(measure):
    """Tell the direction of a measure by its metric: precision, recall and IS go up."""
    return metric_of(measure) in _HIGHER_IS_BETTER


def measure_names(rows, spreads=False):
    """List what was measured of quality, a Frechet distance first.

    Args:
      rows: lines of results.jsonl.
      spreads: whether to list `KID std[...]` and its like too.

    Returns:
      Names for which at least one row has a finite number.
    """
    names = dict.fromkeys(
        name
        for row in rows
        for name, value in row["measures"].items()
        if is_number(value) and (spreads or not is_spread(name))
    )
    return sorted(names, key=lambda name: metric_of(name) not in ("FD", "FID"))


def is_number(value):
    """Tell whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def numbers(rows, name):
    """Return the finite values of a measure, or of a key of the rows themselves."""
    values = [row["measures"][name] if name in row["measures"] else row.get(name) for row in rows]
    return [float(value) for value in values if is_number(value)]


def by_seed(rows, name):
    """Return `{seed: value}` of a measure, where it is a finite number.

    Args:
      rows: lines of results.jsonl, one a seed.
      name: of the measure.
    """
    return {row["seed"]: value for row in rows for value in numbers([row], name)}


def spread(values):
    """Return the Spread of some numbers, None of none.

    Example:
      >>> spread([1.0, 3.0])
      Spread(mean=2.0, std=1.4142135623730951, count=2)
    """
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def difference(values, baseline):
    """Return how much greater some values are, paired by seed, with a 95 % interval.

    Runs of one seed share batches and noise, so their differences spread less over seeds than the
    values themselves; the interval is Student's for the mean of the differences.

    Args:
      values: `{seed: value}`, as `by_seed` gives them.
      baseline: the same of what to compare with.

    Returns:
      Difference over the seeds that both have, without an interval if that is one; None if there
      is none.
    """
    one = spread([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline)])
    if one is None:
        return None
    if one.std is None:
        return Difference(one.mean, None, None)
    half = float(stdtrit(one.count - 1, 0.975)) * one.std / math.sqrt(one.count)
    return Difference(one.mean, one.mean - half, one.mean + half)


def decimals(spreads):
    """Return the digits after the point that a column of spreads needs.

    Three significant digits of a typical mean, one of the smallest standard deviation unless it
    is much smaller than the others, six at most.

    Args:
      spreads: list of Spread or None.

    Example:
      >>> decimals([spread([8.29]), None]), decimals([spread([0.1201, 0.1207])])
      (2, 4)
    """
    means = [abs(one.mean) for one in spreads if one and one.mean]
    stds = [one.std for one in spreads if one and one.std]
    wanted = [_DIGITS - 1 - _exponent(np.median(means))] if means else [0]
    if stds:
        wanted.append(min(-_exponent(min(stds)), 1 - _exponent(np.median(stds))))
    return int(np.clip(max(wanted), 0, 6))


def _exponent(value):
    return math.floor(math.log10(value))


def write_spread(one, digits, count=None):
    """Write `mean ± standard deviation`; how many numbers they are of, where it isn't `count`.

    Example:
      >>> write_spread(Spread(8.294, 1.4512, 2), 2, count=3)
      '8.29 ± 1.45 (n = 2)'
    """
    if one is None:
        return "–"
    text = f"{one.mean:,.{digits}f}"
    if one.std is not None:
        text += f" ± {one.std:,.{digits}f}"
    return text if count in (None, one.count) else f"{text} (n = {one.count})"


def write_difference(one, digits):
    """Write a difference with its sign and its interval, a dash where there is none.

    Args:
      one: Difference or None.
      digits: after the point.

    Example:
      >>> write_difference(Difference(-0.01, -1234.56, 2.0), 1)
      '+0.0 [-1,234.6, +2.0]'
    """
    if one is None:
        return "–"
    mean, low, high = (
        None if value is None else f"{round(value, digits) + 0.0:+,.{digits}f}" for value in one
    )
    return mean if low is None else f"{mean} [{low}, {high}]"
