"""Quality against cost: a mark per setting, from the cheapest to the dearest."""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsejax.reports import marks, style
from sparsejax.reports.documents import Block, Part, Plot, Section, anchor
from sparsejax.reports.groups import Comparison, Group
from sparsejax.reports.results import HELD_OUT

COSTS = {
    "forward_flops": "FLOPs of one forward pass, one example",
    "active_parameters": "active parameters",
}
# The largest drop fraction of a method is a full mark, the next one hollow, then halves.
_FILLS = ("full", "hollow", "left", "bottom", "right", "top")
_MOST_LINES = 12

Rank: TypeAlias = float | tuple[int, int]  # sorted with others of its kind


def pareto_section(comparison: Comparison) -> Part:
    """Write the section of a report: a figure per measure and cost."""
    groups, measures = comparison.groups, comparison.measures
    chosen = measures[:1] + [name for name in measures[1:] if name == HELD_OUT]
    blocks: list[Block] = []
    for measure, (cost, words) in itertools.product(chosen, COSTS.items()):
        figure = pareto(groups, measure, cost)
        if figure:
            caption = [f"`{measure}` (vertical) against {words} (horizontal).", style.MEANING]
            if len(groups) > 1:
                caption.append("Settings of nearly equal cost are drawn side by side.")
            if _joins_levels(groups):
                caption.append("Thin lines join the levels of one setting.")
            if any(group.method == "dense" for group in groups):
                caption.append("The horizontal line and band: dense, ± one standard deviation.")
            name = f"{anchor(measure.split('@')[0])}-{anchor(cost)}"
            blocks.append(Plot(name, figure, " ".join(caption)))
    if not blocks:
        return None, "quality against cost (no run has a finite measure of quality)"
    return Section("Quality against cost", blocks), ""


@style.styled
def pareto(groups: Sequence[Group], measure: str, cost: str) -> Figure | None:
    """Plot a measure against a cost: one mark per group, a faint dot per run.

    Dense runs are a line with a band too. Marks of nearly the same cost stand side by side.

    Args:
      groups: the runs by setting.
      measure: name of a measure.
      cost: one of `COSTS`.

    Returns:
      Figure, or None if no run has both numbers.
    """
    groups = [group for group in groups if measure in group.numbers and cost in group.numbers]
    if not groups:
        return None
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    values = [group.numbers[measure] for group in groups]
    spreads = [group.spreads[measure] for group in groups]
    xs, step = marks.side_by_side(axes, [group.spreads[cost].mean for group in groups])
    looks = _looks(groups)
    _dense_lines(axes, groups, measure)
    _connect_levels(axes, groups, xs, measure)
    dots = [found if len(found) > 1 else [] for found in values]
    marks.draw(axes, xs, spreads, looks, dots, step / 2, zorder=2)
    marks.log_if_wide(axes, values)
    axes.margins(y=0.12)
    axes.set(xlabel=COSTS[cost], ylabel=style.label(measure))
    axes.grid(alpha=0.25)
    ends = [
        [*group_values, one.low, one.high]
        for group_values, one in zip(values, spreads, strict=True)
    ]
    marks.write_levels(figure, axes, [group.sparsity for group in groups], xs, ends)
    figure.legend(handles=_legend(groups, looks), loc="outside right upper")
    return figure


def _series(group: Group) -> tuple:
    """Return what marks of one look have in common: all but the level."""
    setting = (group.drop_fraction, group.update_interval, group.steps)
    return group.method, group.structure, *setting


def _looks(groups: Sequence[Group]) -> list[style.Look]:
    """Return the look of each group's mark.

    A method has a colour and, for each structure, a shape; a drop fraction has a filling, an
    update interval a size.
    """
    looks: list[style.Look] = []
    for group in groups:
        colour, marker = style.mark(group)
        ours = [other for other in groups if other.method == group.method]
        fill = _FILLS[_rank(group, ours, lambda other: -(other.drop_fraction or 0)) % len(_FILLS)]
        size = _rank(group, ours, _interval) / max(1, len(set(map(_interval, ours))) - 1)
        looks.append(
            {
                "color": colour,
                "marker": marker,
                "markersize": (10 if marker == "*" else 6.5) * (1 + 0.5 * size),
                "fillstyle": "full" if fill == "hollow" else fill,
                "markerfacecolor": "white" if fill == "hollow" else colour,
                "markerfacecoloralt": "white",
            }
        )
    return looks


def _interval(group: Group) -> tuple[int, int]:
    return group.update_interval or 0, group.steps or 0


def _rank(group: Group, groups: Sequence[Group], key: Callable[[Group], Rank]) -> int:
    return sorted({key(other) for other in groups}).index(key(group))


def _dense_lines(axes: Axes, groups: Sequence[Group], measure: str) -> None:
    for group in groups:
        if group.method == "dense":
            one = group.spreads[measure]
            axes.axhline(one.mean, color=style.BLACK, linewidth=1, alpha=0.6, zorder=1)
            if one.std:
                band: style.Look = {
                    "color": style.BLACK,
                    "alpha": 0.08,
                    "linewidth": 0,
                    "zorder": 0,
                }
                axes.axhspan(one.low, one.high, **band)


def _joins_levels(groups: Sequence[Group]) -> bool:
    """Tell whether lines join the levels of a setting: there are some, and not too many."""
    series = list(map(_series, groups))
    return len(set(series)) < len(series) and len(set(series)) <= _MOST_LINES


def _connect_levels(axes: Axes, groups: Sequence[Group], xs: np.ndarray, measure: str) -> None:
    """Draw a thin line through the levels of each method and setting."""
    means = [group.spreads[measure].mean for group in groups]
    for key in dict.fromkeys(map(_series, groups)) if _joins_levels(groups) else ():
        ours = [index for index, group in enumerate(groups) if _series(group) == key]
        if len(ours) > 1:
            colour, _ = style.MARKS.get(key[0], style.OTHER)
            ours.sort(key=lambda index: xs[index])
            line = [[places[index] for index in ours] for places in (xs, means)]
            axes.plot(*line, color=colour, linewidth=0.8, alpha=0.4, zorder=1)


def _legend(groups: Sequence[Group], looks: Sequence[style.Look]) -> list[Line2D]:
    """Return a handle per series, in the order of the methods."""
    handles: list[tuple[str, Line2D]] = []
    seen: set[tuple] = set()
    for group, look in zip(groups, looks, strict=True):
        if _series(group) in seen:
            continue
        seen.add(_series(group))
        handle = Line2D([], [], linestyle="none", label=group.series, **look)
        handles.append((group.method, handle))
        if group.method == "dense":
            line: style.Look = {"color": style.BLACK, "linewidth": 1, "alpha": 0.6}
            handles.append(("dense", Line2D([], [], label="dense: mean (± std)", **line)))
    rank = {method: index for index, method in enumerate(style.MARKS)}
    handles.sort(key=lambda handle: rank.get(handle[0], len(rank)))
    return [handle for _, handle in handles]
