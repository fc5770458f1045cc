"""The effect of drop fraction and update interval: groups that differ in that setting only."""

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsejax.reports import marks, style
from sparsejax.reports.documents import Block, Part, Plot, Section, Table, anchor
from sparsejax.reports.groups import Comparison, Group
from sparsejax.reports.results import headed
from sparsejax.reports.spreads import decimals, difference, spread, write_difference, write_spread

Line: TypeAlias = list[Group]  # by rising values of the one setting in which they differ

SETTINGS = {
    "drop_fraction": "drop fraction p at the first update (share of the active weights)",
    "update_interval": "update interval dT (optimizer steps)",
}
_WORDS = {"drop_fraction": "drop fraction", "update_interval": "update interval"}
_SIGNS = {"drop_fraction": "p", "update_interval": "dT"}
_STROKES = ("-", "--", "-.", ":")


def effects_section(comparison: Comparison) -> Part:
    """Write the section of a report: a figure and a table for each setting that was varied."""
    groups = comparison.groups
    blocks: list[Block] = []
    for setting, measure in itertools.product(_WORDS, comparison.measures[:1]):
        lines = effect_lines(groups, measure, setting)
        if not lines:
            continue
        caption = (
            f"`{measure}` (vertical) against the {_WORDS[setting]} (horizontal), one panel per "
            f"method. {style.MEANING}"
        )
        if setting == "drop_fraction" and any(group.method == "static" for group in groups):
            caption += " Hollow marks at p = 0 are the static model of the same S."
        name = f"{anchor(measure.split('@')[0])}-{anchor(setting)}"
        blocks.append(Plot(name, effect(groups, lines, measure, setting), caption))
        blocks.append(_table(groups, lines, measure, setting))
    if not blocks:
        return None, (
            "the effect of drop fraction and update interval (no method has two values of either, "
            "all else equal)"
        )
    return Section("Drop fraction and update interval", blocks), ""


def effect_lines(groups: Sequence[Group], measure: str, setting: str) -> list[Line]:
    """Find the groups that differ in one setting only.

    Args:
      groups: the runs by setting.
      measure: name of a measure that they have.
      setting: one of `SETTINGS`.

    Returns:
      Lists of two or more groups, each by rising values of the setting.
    """
    lines: dict[tuple, Line] = {}
    for group in groups:
        if getattr(group, setting) is not None and measure in group.numbers:
            same = group.without(setting)
            lines.setdefault(same, []).append(group)
    return [
        sorted(line, key=lambda group: getattr(group, setting))
        for line in lines.values()
        if len(line) > 1
    ]


@style.styled
def effect(groups: Sequence[Group], lines: Sequence[Line], measure: str, setting: str) -> Figure:
    """Plot a measure against the drop fraction or the update interval, a panel per method.

    Args:
      groups: all runs by setting.
      lines: those to show, one or more, as `effect_lines` finds them.
      measure: name of a measure.
      setting: one of `SETTINGS`.
    """
    methods = list(dict.fromkeys(line[0].method for line in lines))
    figure = Figure(figsize=(min(1.8 + 3.3 * len(methods), 8.4), 3.9), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    places = _places(lines, setting)
    looks = _looks(lines, setting)
    for method, axes in zip(methods, panels, strict=True):
        _set_axis(axes, setting, places)
        for line in lines:
            if line[0].method != method:
                continue
            name = _name(setting, line, lines)
            gap = min(0.012, 0.04 / len(looks)) * (list(looks).index(name) - (len(looks) - 1) / 2)
            start = _static_like(groups, line[0]) if setting == "drop_fraction" else None
            _draw(axes, line, measure, setting, looks[name], start, places, gap)
        axes.set_title(method)
        axes.set_xlabel(SETTINGS[setting].replace(" (", "\n("))
        axes.grid(alpha=0.25)
        axes.margins(y=0.1)
    panels[0].set_ylabel(style.label(measure))
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _places(lines: Sequence[Line], setting: str) -> list[float]:
    return sorted({getattr(group, setting) for line in lines for group in line})


def _other(setting: str) -> str:
    """Return the setting that a line holds fixed."""
    return "update_interval" if setting == "drop_fraction" else "drop_fraction"


def _name(setting: str, line: Line, lines: Sequence[Line]) -> str:
    key = _other(setting)
    several = len({other[0].structure for other in lines}) > 1
    structure = f"{line[0].structure}, " if several else ""
    return f"{structure}S {line[0].sparsity:g}, {_SIGNS[key]} {getattr(line[0], key) or 0:g}"


def _looks(lines: Sequence[Line], setting: str) -> dict[str, style.Look]:
    """Return `{name: look}`: a colour per level, a mark and a stroke for structure and setting."""
    colours = [style.BLUE, style.VERMILION, style.GREEN, style.PURPLE, style.BLACK]
    colours += [style.ORANGE, style.SKY]
    levels = sorted({line[0].sparsity for line in lines})

    def other(line: Line) -> tuple[int, float]:
        value = getattr(line[0], _other(setting)) or 0
        return line[0].kind, value

    others = sorted(set(map(other, lines)))
    looks = {}
    for line in lines:
        level = levels.index(line[0].sparsity)
        rank = others.index(other(line))
        # With nothing else to tell apart, levels differ in marks and strokes too.
        rank = level if len(others) == 1 else rank
        looks[_name(setting, line, lines)] = {
            "color": colours[level % len(colours)],
            "marker": "o^sDvP*"[rank % 7],
            "linestyle": _STROKES[rank % len(_STROKES)],
            "markersize": 6,
        }
    return looks


def _static_like(groups: Sequence[Group], group: Group) -> Group | None:
    """Return the static group that is the same otherwise: a drop fraction of zero."""
    ours = ("static", group.structure, group.sparsity, group.steps)
    return next((g for g in groups if (g.method, g.structure, g.sparsity, g.steps) == ours), None)


def _draw(
    axes: Axes,
    line: Line,
    measure: str,
    setting: str,
    look: style.Look,
    start: Group | None,
    places: Sequence[float],
    gap: float,
) -> None:
    """Draw a line with its marks and dots, begun at the static model where there is one."""
    is_log = axes.get_xscale() == "log"
    extent = math.log10(places[-1] / places[0]) if is_log else places[-1]
    zero, *xs = (
        marks.shift(axes, value, gap * extent)
        for value in [0, *(getattr(group, setting) for group in line)]
    )
    spreads = [group.spreads[measure] for group in line]
    axes.plot(xs, [one.mean for one in spreads], **look | {"marker": ""}, linewidth=1.2)
    mark = {key: look[key] for key in ("color", "marker", "markersize")}
    dots = [group.numbers[measure] for group in line]
    marks.draw(axes, xs, spreads, [mark] * len(xs), dots, 0.015 * extent, zorder=1)
    static = start and start.spreads.get(measure)
    if static:
        hollow = mark | {"markerfacecolor": "white"}
        marks.draw(axes, [zero], [static], [hollow], [[]], 0, zorder=1)
        ends = [zero, xs[0]], [static.mean, spreads[0].mean]
        axes.plot(*ends, color=look["color"], linestyle=":", linewidth=0.8)


def _set_axis(axes: Axes, setting: str, places: Sequence[float]) -> None:
    if setting == "update_interval" and places[-1] > 3 * places[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    shown = [0, *places] if setting == "drop_fraction" else places
    labels = [f"{place:g}" for place in shown]
    if setting == "drop_fraction" and places[0] < 0.06 * places[-1]:
        labels[0] = ""
    axes.set_xticks(shown, labels)


def _table(groups: Sequence[Group], lines: Sequence[Line], measure: str, setting: str) -> Table:
    """Return the table of a measure by the setting, with the change from end to end."""
    other = _SIGNS[_other(setting)]
    named = [key for key in ("method", "structure", "S", other, "steps") if key in groups[0].labels]
    places = _places(lines, setting)
    digits = decimals([group.spreads.get(measure) for group in groups])
    body = []
    for line in lines:
        cells = {getattr(group, setting): group.by_seed[measure] for group in line}
        spreads = [spread(list(cells.get(place, {}).values())) for place in places]
        change = difference(cells[max(cells)], cells[min(cells)])
        body.append(
            [line[0].labels[key] for key in named]
            + [write_spread(one, digits) for one in spreads]
            + [write_difference(change, digits)]
        )
    values = (f"{_SIGNS[setting]} = {place:g}" for place in places)
    caption = (
        f"`{headed(measure)}` by {_WORDS[setting]}, mean ± standard deviation over seeds; the "
        "difference between the largest and the smallest, seed by seed, with Student's 95 % "
        "interval."
    )
    return Table(caption, [*named, *values, "largest minus smallest"], body)
