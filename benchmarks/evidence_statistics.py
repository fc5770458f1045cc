"""Comparisons of the runs in results.jsonl: paired differences over seeds, and verdicts.

Everything is computed from the rows alone. Lower is better for both measures.
"""

import collections
import math
from typing import NamedTuple

from sparsejax.reports.results import HELD_OUT, metric_of
from sparsejax.reports.spreads import Difference, Spread, difference, spread

FD = "FD"
# Stated before the runs: how much of the baseline's value counts as nothing.
MARGINS = {FD: 0.05, HELD_OUT: 0.01}
BEATS, MATCHES, NOT_WORSE = "beats", "matches", "not worse"
WORSE, UNDECIDED = "worse", "undecided"
VERDICTS = (BEATS, MATCHES, NOT_WORSE, WORSE, UNDECIDED)
GOOD = (BEATS, MATCHES, NOT_WORSE)
HOLDS, IN_PART, FAILS, OPEN = "holds", "holds in part", "doesn't hold", "can't be decided here"


class Cell(NamedTuple):
    """Runs that differ by seed only."""

    study: str
    method: str
    level: float


class Comparison(NamedTuple):
    """A cell compared with another, in one measure.

    Attributes:
      cell: what is compared.
      baseline: what it is compared with.
      metric: `FD` or the held-out loss.
      difference: mean difference of the runs with the same seed, with Student's 95 % interval.
      gain: the same as a share of the baseline: 1 - value / baseline, seed by seed.
      margin: the difference that counts as nothing.
      verdict: one of `VERDICTS`.
      count: number of seeds.
    """

    cell: Cell
    baseline: Cell
    metric: str
    difference: Difference
    gain: Difference
    margin: float
    verdict: str
    count: int


def by_metric(row, metric):
    """Return a row's finite value of a metric, or None."""
    for name, value in row["measures"].items():
        if metric_of(name) == metric and isinstance(value, int | float) and math.isfinite(value):
            return value
    return None


def cell_of(row):
    """Return the cell that a row belongs to."""
    return Cell(row["study"], row["method"], row["sparsity"])


def by_seed(rows, cell, metric):
    """Return `{seed: value}` of a cell."""
    found = {row["seed"]: by_metric(row, metric) for row in rows if cell_of(row) == cell}
    return {seed: value for seed, value in found.items() if value is not None}


def cells_of(rows, study, methods=None):
    """Return the cells of a study that have rows, by sparsity, in the order of the rows."""
    ours = dict.fromkeys(cell_of(row) for row in rows if row["study"] == study)
    chosen = [cell for cell in ours if methods is None or cell.method in methods]
    return sorted(chosen, key=lambda cell: cell.level)


def spread_of(rows, cell, metric):
    """Return the Spread of a cell's values, None without any."""
    return spread(list(by_seed(rows, cell, metric).values()))


def verdict(one, margin):
    """Return what a difference says, given its 95 % interval; a negative one is better.

    beats: better, the whole interval is below zero. matches: equivalent, the whole interval is
    within the margin. not worse: the interval ends below the margin, but begins beyond it. worse:
    the whole interval is above zero, and not within the margin. Otherwise undecided.
    """
    if one.low is None or one.high is None:
        return UNDECIDED
    if one.high < 0:
        return BEATS
    if one.high < margin:
        return MATCHES if one.low > -margin else NOT_WORSE
    return WORSE if one.low > 0 else UNDECIDED


def compare(rows, cell, baseline, metric):
    """Return the Comparison of two cells, over the seeds that both have; None without any."""
    ours, theirs = by_seed(rows, cell, metric), by_seed(rows, baseline, metric)
    shared = sorted(ours.keys() & theirs)
    if not shared:
        return None
    found = difference(ours, theirs)
    gain = difference(
        {seed: 1 - ours[seed] / theirs[seed] for seed in shared}, dict.fromkeys(shared, 0)
    )
    margin = MARGINS[metric] * sum(theirs[seed] for seed in shared) / len(shared)
    result = verdict(found, margin)
    return Comparison(cell, baseline, metric, found, gain, margin, result, len(shared))


def with_dense(rows, study, metric, methods=None, levels=None):
    """Return the Comparisons of a study's cells with its dense runs."""
    dense = Cell(study, "dense", 0.0)
    found = [
        compare(rows, cell, dense, metric)
        for cell in cells_of(rows, study, methods)
        if cell != dense and (levels is None or cell.level in levels)
    ]
    return [one for one in found if one]


def with_method(rows, study, metric, methods, baseline):
    """Return the Comparisons of methods with another one at the same sparsity."""
    found = [
        compare(rows, cell, cell._replace(method=baseline), metric)
        for cell in cells_of(rows, study, methods)
    ]
    return [one for one in found if one]


def counts(comparisons):
    """Return `{verdict: number}`, in the order of `VERDICTS`, without zeros."""
    counted = collections.Counter(one.verdict for one in comparisons)
    return {name: counted[name] for name in VERDICTS if counted[name]}


def finding(comparisons, good=GOOD):
    """Return what comparisons say of a claim that each of them should bear out.

    holds: all are good. holds in part: some are. doesn't hold: none is, and at least one is the
    opposite (`worse`; `matches` too where only `beats` is good). Otherwise it can't be decided.
    """
    verdicts = [one.verdict for one in comparisons]
    is_good = [name in good for name in verdicts]
    if verdicts and all(is_good):
        return HOLDS
    if any(is_good):
        return IN_PART
    opposite = {WORSE} if MATCHES in good else {WORSE, MATCHES}
    return FAILS if opposite & set(verdicts) else OPEN


def epochs(row):
    """Return how often a run has seen each of its training examples."""
    return row["steps"] * row["config"]["batch_size"] / row["training_examples"]


def noise(rows, data, metric):
    """Return the Spreads of the measure's noise on a data set: of real examples, of samplings.

    Real examples in place of samples, several random draws; and one dense model, sampled with
    several seeds, that of the comparison included.
    """
    real = [row for row in rows if (row["data"], row["question"]) == (data, "real")]
    of_real = None
    if real and by_metric(real[0], metric) is not None:
        std = next(value for name, value in real[0]["spreads"].items() if metric_of(name) == metric)
        of_real = Spread(by_metric(real[0], metric), std, real[0]["draws"])
    sampled = [row for row in rows if (row["data"], row["question"]) == (data, "samples")]
    first = [row for row in rows if cell_of(row) == Cell(data, "dense", 0.0) and row["seed"] == 0]
    values = [by_metric(row, metric) for row in first + sampled]
    values = [value for value in values if value is not None]
    return of_real, spread(values) if sampled else None
