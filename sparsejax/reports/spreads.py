"""Means, standard deviations and paired differences over seeds, and how they are written."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_DIGITS = 3


class Spread(NamedTuple):
    """Mean and standard deviation of `size` numbers; `std` is None for a single one."""

    mean: float
    std: float | None
    size: int

    @property
    def low(self) -> float:
        """One standard deviation below the mean."""
        return self.mean - (self.std or 0)

    @property
    def high(self) -> float:
        """One standard deviation above the mean."""
        return self.mean + (self.std or 0)


class Difference(NamedTuple):
    """A difference of means with its 95 % interval; `low` and `high` may be None."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it doesn't contain zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation, or None if `values` is empty.

    Examples:
      >>> spread([1.0, 3.0])
      Spread(mean=2.0, std=1.4142135623730951, size=2)
    """
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def spreads_of(numbers: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Return the mean and standard deviation of some numbers by their name."""
    found = {name: spread(values) for name, values in numbers.items()}
    return {name: one for name, one in found.items() if one}


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the mean difference to a baseline, paired by seed, with a 95 % interval.

    Runs of one seed share batches and noise, so their differences vary less over seeds than the
    values themselves; the interval is Student's for the mean of the differences.

    Args:
      values: `{seed: value}`.
      baseline: the same, of what to compare with.

    Returns:
      Difference over the seeds that both have, without an interval for a single seed; None if
      they share no seed.
    """
    one = spread([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline)])
    if one is None:
        return None
    if one.std is None:
        return Difference(one.mean, None, None)
    half = float(stdtrit(one.size - 1, 0.975)) * one.std / math.sqrt(one.size)
    return Difference(one.mean, one.mean - half, one.mean + half)


def decimals(spreads: Sequence[Spread | None]) -> int:
    """Return the number of digits after the point for a column of spreads.

    Three significant digits of a typical mean, one of the smallest standard deviation unless it
    is much smaller than the others, six at most.

    Examples:
      >>> decimals([spread([8.29]), None]), decimals([spread([0.1201, 0.1207])])
      (2, 4)
    """
    means = [abs(one.mean) for one in spreads if one and one.mean]
    stds = [one.std for one in spreads if one and one.std]
    wanted = [_DIGITS - 1 - _exponent(np.median(means))] if means else [0]
    if stds:
        wanted.append(min(-_exponent(min(stds)), 1 - _exponent(np.median(stds))))
    return int(np.clip(max(wanted), 0, 6))


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))


def write_spread(one: Spread | None, digits: int, count: int | None = None) -> str:
    """Write `mean ± standard deviation`, with the number of values where it isn't `count`.

    Args:
      one: what to write; None is a dash.
      digits: after the point.
      count: the number of values to expect (default: any).

    Examples:
      >>> write_spread(Spread(8.294, 1.4512, 2), 2, count=3)
      '8.29 ± 1.45 (n = 2)'
    """
    if one is None:
        return "–"
    text = f"{one.mean:,.{digits}f}"
    if one.std is not None:
        text += f" ± {one.std:,.{digits}f}"
    return text if count in (None, one.size) else f"{text} (n = {one.size})"


def write_difference(one: Difference | None, digits: int) -> str:
    """Write a difference with its sign and its interval; None is a dash.

    Args:
      one: what to write.
      digits: after the point.

    Examples:
      >>> write_difference(Difference(-0.01, -1234.56, 2.0), 1)
      '+0.0 [-1,234.6, +2.0]'
    """
    if one is None:
        return "–"
    mean, low, high = (
        None if value is None else f"{round(value, digits) + 0.0:+,.{digits}f}" for value in one
    )
    return f"{mean}" if low is None else f"{mean} [{low}, {high}]"
