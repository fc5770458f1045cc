"""Marks with error bars and dots, put and labelled so that none lies on another."""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparsejax.quantities import quantity
from sparsejax.reports.spreads import Spread
from sparsejax.reports.style import Look

Box: TypeAlias = tuple[float, float, float, float]  # left, low, right, high

_CLOSE, _APART = 0.035, 0.035  # marks nearer than this share of the axis are put further apart


def side_by_side(axes: Axes, costs: Sequence[float]) -> tuple[np.ndarray, float]:
    """Set the x axis, and place marks on it in a way that they don't overlap.

    Marks closer to each other than they are wide are spread evenly about their place, in their
    order.

    Args:
      axes: its x axis becomes logarithmic if the costs differ by more than a factor of 3.
      costs: one per mark.

    Returns:
      Where to put the marks, and the distance of neighbours (a share of the axis).
    """
    is_log = min(costs) > 0 and max(costs) > 3 * min(costs)
    places = np.log10(costs) if is_log else np.array(costs, float)
    extent = np.ptp(places) or abs(places[0]) or 1.0
    put, step = _spread_clusters(places, extent)
    beside = (0.06 if np.ptp(places) else 0.5) * extent
    ends = put.min() - beside, put.max() + beside
    if is_log:
        axes.set_xscale("log")
        axes.set_xlim(*(10**end for end in ends))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        put = 10**put
    else:
        axes.set_xlim(*ends)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    return put, step


def _spread_clusters(places: np.ndarray, extent: float) -> tuple[np.ndarray, float]:
    """Spread the places that are too close; return all places and the step within a cluster."""
    order = np.argsort(places, kind="stable")
    clusters = [[order[0]]]
    for before, index in itertools.pairwise(order):
        if places[index] - places[before] > _CLOSE * extent:
            clusters.append([])
        clusters[-1].append(index)
    centres = [np.mean(places[cluster]) for cluster in clusters]
    sizes = [len(cluster) for cluster in clusters]
    room = np.diff(centres) / (np.add(sizes[1:], sizes[:-1]) / 2)
    step = 0.8 * min(_APART * extent, np.min(room, initial=0.6 * extent / max(sizes)))
    put = places.copy()
    for cluster, centre in zip(clusters, centres, strict=True):
        for rank, index in enumerate(sorted(cluster)):
            put[index] = centre + (rank - (len(cluster) - 1) / 2) * step
    return put, step


def _tick(value: float) -> str:
    """Write a tick without the zeros that `quantity` would show: 20 M, 1.5 M."""
    number, _, unit = quantity(value).partition(" ")
    return f"{float(number):g} {unit}".strip() if value > 0 else "0" if value == 0 else ""


def shift(axes: Axes, x: float, step: float) -> float:
    """Move a place along the x axis by a step of the axis's own scale (log10 or linear)."""
    return x * 10**step if axes.get_xscale() == "log" else x + step


def draw(
    axes: Axes,
    xs: Sequence[float] | np.ndarray,
    spreads: Sequence[Spread],
    looks: Sequence[Look],
    dots: Sequence[Sequence[float]],
    aside: float,
    zorder: float,
) -> None:
    """Draw means as marks with a bar of one standard deviation, and the runs as faint dots.

    Args:
      axes: to draw on.
      xs: where the marks go.
      spreads: mean and standard deviation per mark.
      looks: per mark.
      dots: values of the runs per mark; none are drawn where there is none.
      aside: how far from their mark dots are, as for `shift`.
      zorder: of the dots.
    """
    for x, one, look, values in zip(xs, spreads, looks, dots, strict=True):
        if len(values):
            style: Look = {"s": 8, "color": look["color"], "alpha": 0.5, "linewidths": 0}
            axes.scatter([shift(axes, x, aside)] * len(values), values, zorder=zorder, **style)
        bar: Look = {"linestyle": "none", "elinewidth": 1.2, "capsize": 2.5, "zorder": 3}
        axes.errorbar(x, one.mean, yerr=one.std, **bar, **look)


def log_if_wide(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """Make the y axis logarithmic if positive values differ by more than a factor of 20."""
    flat = [value for group in values for value in group]
    if min(flat) > 0 and max(flat) > 20 * min(flat):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def write_levels(
    figure: Figure,
    axes: Axes,
    levels: Sequence[float],
    xs: Sequence[float] | np.ndarray,
    ends: Sequence[Sequence[float]],
) -> None:
    """Write S above the marks of a level that stand together, where there is room.

    Args:
      figure: the whole figure, which is laid out for this.
      axes: of the marks; its y limits are fixed.
      levels: sparsity per mark; none is written for 0.
      xs: where the marks stand.
      ends: for each mark, values that it must not be written on: its dots and bar.
    """
    figure.draw_without_rendering()
    inch = figure.dpi / 72
    axes.set_ylim(axes.get_ylim())

    def to_points(x: float, y: float) -> np.ndarray:
        return axes.transData.transform((x, y)) / inch

    marks = []
    for x, values in zip(xs, ends, strict=True):
        if axes.get_yscale() == "log":
            values = [value for value in values if value > 0]
        (left, low), (_, high) = to_points(x, min(values)), to_points(x, max(values))
        marks.append((left - 5, low - 5, left + 5, high + 5))
    taken: list[Box] = []
    frame = axes.get_window_extent()
    for members in _neighbours(levels, [mark[0] for mark in marks]):
        text = f"S {levels[members[0]]:g}"
        left, low, right, high = (
            pick(marks[index][side] for index in members)
            for side, pick in enumerate((min, min, max, max))
        )
        width, height = 4.6 * len(text), 9
        x = (left + right - width) / 2
        for y in (high + 1, high + 11, low - 10, low - 20):
            box = (x, y, x + width, y + height)
            inside = frame.y0 / inch <= y and y + height <= frame.y1 / inch
            if inside and not any(_overlap(box, other) for other in [*marks, *taken]):
                taken.append(box)
                middle = axes.transData.inverted().transform(((x + width / 2) * inch, y * inch))
                look: Look = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "#444444"}
                axes.text(middle[0], middle[1], text, **look)
                break


def _neighbours(levels: Sequence[float], lefts: Sequence[float]) -> list[list[int]]:
    """Return lists of indices of sparse marks: those of one level that stand together."""
    found = []
    for level in dict.fromkeys(filter(None, levels)):
        ours = [index for index, other in enumerate(levels) if other == level]
        ours.sort(key=lambda index: lefts[index])
        found.append([ours[0]])
        for before, index in itertools.pairwise(ours):
            if lefts[index] - lefts[before] > 30:
                found.append([])
            found[-1].append(index)
    return found


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
