"""The figures of a comparison of many runs: functions from its rows to a matplotlib Figure.

Marks differ in shape as well as in colour; error bars and bands are one standard deviation over
seeds. A function that finds nothing to show returns None.
"""

import functools
import itertools
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparsejax.quantities import quantity
from sparsejax.reports.plots import layer_name
from sparsejax.reports.tables import (
    describe,
    group_rows,
    higher_is_better,
    is_sparse,
    numbers,
    spread,
    structures,
)

COSTS = {
    "forward_flops": "FLOPs of one forward pass, one example",
    "active_parameters": "active parameters",
}
SETTINGS = {
    "drop_fraction": "drop fraction p at the first update (share of the active weights)",
    "update_interval": "update interval dT (optimizer steps)",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "text.parse_math": False,
}
# Distinct in print and to the colour-blind (Okabe and Ito).
_BLACK, _BLUE, _ORANGE, _PURPLE = "#1A1A1A", "#0072B2", "#E69F00", "#CC79A7"
_VERMILION, _GREEN, _SKY = "#D55E00", "#009E73", "#56B4E9"
_MARKS = {
    "dense": (_BLACK, "*"),
    "small_dense": (_SKY, "s"),
    "small_dense_flops": (_PURPLE, "D"),
    "static": (_BLUE, "o"),
    "rigl": (_VERMILION, "^"),
    "magran": (_GREEN, "v"),
}
_OTHER = (_ORANGE, "P")
# The shapes of further structures, in the colours of the methods.
_SHAPES = (
    {"static": "p", "rigl": "<", "magran": ">"},
    {"static": "P", "rigl": "X", "magran": "d"},
)
# The largest drop fraction of a method is a full mark, the next one hollow, then halves.
_FILLS = ("full", "hollow", "left", "bottom", "right", "top")
_LINES = ("-", "--", "-.", ":")
_CLOSE, _APART = 0.035, 0.035  # marks nearer than this share of the axis are put further apart
_LAYERS_IN_A_COLUMN = 40
_MOST_LINES = 12


def _styled(function):
    @functools.wraps(function)
    def draw(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


@_styled
def pareto(rows, measure, cost):
    """Plot a measure against a cost: one mark a group, a faint dot a run.

    Dense runs are a line with a band too. Marks of nearly the same cost stand side by side.

    Args:
      rows: lines of results.jsonl.
      measure: name of a measure.
      cost: one of `COSTS`.

    Returns:
      Figure, or None if no row has both numbers.
    """
    groups = [group for group in group_rows(rows) if numbers(group.rows, measure)]
    groups = [group for group in groups if numbers(group.rows, cost)]
    if not groups:
        return None
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    values = [numbers(group.rows, measure) for group in groups]
    costs = np.array([np.mean(numbers(group.rows, cost)) for group in groups])
    xs, step = _side_by_side(axes, costs)
    styles = _series_styles(groups)
    for group, group_values in zip(groups, values, strict=True):
        if group.method == "dense":
            _dense_line(axes, spread(group_values))
    _connect_levels(axes, groups, xs, values)
    for group, x, group_values in zip(groups, xs, values, strict=True):
        if len(group_values) == 1:
            _errorbar(axes, x, spread(group_values), styles[_series(group)])
            continue
        aside = [_shift(axes, x, step / 2)] * len(group_values)
        colour = styles[_series(group)]["color"]
        axes.scatter(aside, group_values, s=8, color=colour, alpha=0.5, linewidths=0, zorder=2)
        _errorbar(axes, x, spread(group_values), styles[_series(group)])
    _log_if_wide(axes, values)
    axes.margins(y=0.12)
    axes.set(xlabel=COSTS[cost], ylabel=_label(measure))
    axes.grid(alpha=0.25)
    _write_levels(figure, axes, groups, xs, values)
    figure.legend(handles=_legend(groups, styles), loc="outside right upper")
    return figure


def _series(group):
    setting = (group.drop_fraction, group.update_interval, group.steps)
    return group.method, group.structure, *setting


def _mark(group, groups):
    """Return colour and shape: the method's, or another shape for all structures but the first."""
    colour, marker = _MARKS.get(group.method, _OTHER)
    others = structures(groups)[1:]
    if is_sparse(group) and group.structure in others:
        shapes = _SHAPES[others.index(group.structure) % len(_SHAPES)]
        return colour, shapes.get(group.method, marker)
    return colour, marker


def _series_styles(groups):
    """Return the arguments of `errorbar` for each method and setting.

    A method has a colour and, for each structure, a shape, a drop fraction a filling, an update
    interval a size.
    """
    styles = {}
    for group in groups:
        colour, marker = _mark(group, groups)
        ours = [other for other in groups if other.method == group.method]
        fill = _FILLS[_rank(group, ours, lambda other: -(other.drop_fraction or 0)) % len(_FILLS)]
        size = _rank(group, ours, _interval) / max(1, len(set(map(_interval, ours))) - 1)
        styles[_series(group)] = {
            "color": colour,
            "marker": marker,
            "markersize": (10 if marker == "*" else 6.5) * (1 + 0.5 * size),
            "fillstyle": "full" if fill == "hollow" else fill,
            "markerfacecolor": "white" if fill == "hollow" else colour,
            "markerfacecoloralt": "white",
        }
    return styles


def _interval(group):
    return group.update_interval or 0, group.steps or 0


def _rank(group, groups, key):
    return sorted({key(other) for other in groups}).index(key(group))


def _errorbar(axes, x, one, style, **kwargs):
    axes.errorbar(
        x,
        one.mean,
        yerr=one.std,
        linestyle="none",
        elinewidth=1.2,
        capsize=2.5,
        zorder=3,
        **style,
        **kwargs,
    )


def _legend(groups, styles):
    """Return a handle a series, in the order of the methods."""
    handles = []
    for key in dict.fromkeys(map(_series, groups)):
        group = next(group for group in groups if _series(group) == key)
        label = describe(group, groups, level=False)
        handles.append(Line2D([], [], linestyle="none", label=label, **styles[key]))
        if group.method == "dense":
            line = {"color": _BLACK, "linewidth": 1, "alpha": 0.6}
            handles.append(Line2D([], [], label="dense: mean (± std)", **line))
    rank = list(_MARKS).index
    return sorted(
        handles,
        key=lambda handle: rank(method) if (method := _method(handle)) in _MARKS else len(_MARKS),
    )


def _method(handle):
    return handle.get_label().split(":")[0].split(",")[0]


def _dense_line(axes, one):
    axes.axhline(one.mean, color=_BLACK, linewidth=1, alpha=0.6, zorder=1)
    if one.std:
        band = (one.mean - one.std, one.mean + one.std)
        axes.axhspan(*band, color=_BLACK, alpha=0.08, linewidth=0, zorder=0)


def joins_levels(groups):
    """Tell whether `pareto` joins the levels of a setting: there are some, and not too many."""
    series = list(map(_series, groups))
    return len(set(series)) < len(series) and len(set(series)) <= _MOST_LINES


def _connect_levels(axes, groups, xs, values):
    """Draw a thin line through the levels of each method and setting."""
    means = [np.mean(group_values) for group_values in values]
    for key in dict.fromkeys(map(_series, groups)) if joins_levels(groups) else ():
        ours = [index for index, group in enumerate(groups) if _series(group) == key]
        if len(ours) > 1:
            colour, _ = _MARKS.get(key[0], _OTHER)
            ours.sort(key=lambda index: xs[index])
            line = [[numbers[index] for index in ours] for numbers in (xs, means)]
            axes.plot(*line, color=colour, linewidth=0.8, alpha=0.4, zorder=1)


def _side_by_side(axes, costs):
    """Set the x axis; return where to put the marks, and the distance of neighbours.

    Marks closer to each other than they are wide are spread evenly about their place, in their
    order.
    """
    is_log = costs.min() > 0 and costs.max() > 3 * costs.min()
    places = np.log10(costs) if is_log else costs.astype(float)
    extent = np.ptp(places) or abs(places[0]) or 1.0
    order = np.argsort(places, kind="stable")
    clusters = [[order[0]]]
    for before, index in zip(order, order[1:], strict=False):
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


def _tick(value):
    """Write a tick without the zeros that `quantity` would show: 20 M, 1.5 M."""
    number, _, unit = quantity(value).partition(" ")
    return f"{float(number):g} {unit}".strip() if value > 0 else "0" if value == 0 else ""


def _shift(axes, x, step):
    return x * 10**step if axes.get_xscale() == "log" else x + step


def _log_if_wide(axes, values):
    flat = [value for group in values for value in group]
    if min(flat) > 0 and max(flat) > 20 * min(flat):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _label(measure):
    direction = "higher" if higher_is_better(measure) else "lower"
    return f"{measure}\n({direction} is better)"


def _write_levels(figure, axes, groups, xs, values):
    """Write S above the marks of a level that stand together, where there is room."""
    figure.draw_without_rendering()
    inch = figure.dpi / 72
    axes.set_ylim(axes.get_ylim())

    def to_points(x, y):
        return axes.transData.transform((x, y)) / inch

    marks = []
    for x, group_values in zip(xs, values, strict=True):
        one = spread(group_values)
        ends = [*group_values, one.mean - (one.std or 0), one.mean + (one.std or 0)]
        if axes.get_yscale() == "log":
            ends = [end for end in ends if end > 0]
        (left, low), (_, high) = to_points(x, min(ends)), to_points(x, max(ends))
        marks.append((left - 5, low - 5, left + 5, high + 5))
    taken = []
    frame = axes.get_window_extent()
    for members in _neighbours(groups, [mark[0] for mark in marks]):
        text = f"S {groups[members[0]].sparsity:g}"
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
                style = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "#444444"}
                axes.text(*middle, text, **style)
                break


def _neighbours(groups, lefts):
    """Return lists of indices of sparse groups: those of one level that stand together."""
    found = []
    for level in dict.fromkeys(group.sparsity for group in groups if group.sparsity):
        ours = [index for index, group in enumerate(groups) if group.sparsity == level]
        ours.sort(key=lambda index: lefts[index])
        found.append([ours[0]])
        for before, index in itertools.pairwise(ours):
            if lefts[index] - lefts[before] > 30:
                found.append([])
            found[-1].append(index)
    return found


def _overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@_styled
def effect(rows, measure, setting):
    """Plot a measure against the drop fraction or the update interval, a panel a method.

    Args:
      rows: lines of results.jsonl.
      measure: name of a measure.
      setting: one of `SETTINGS`.

    Returns:
      Figure; None if no method was run with two values of the setting, all else equal.
    """
    lines = effect_lines(rows, measure, setting)
    if not lines:
        return None
    groups = group_rows(rows)
    methods = list(dict.fromkeys(line[0].method for line in lines))
    figure = Figure(figsize=(min(1.8 + 3.3 * len(methods), 8.4), 3.9), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    places = sorted({getattr(group, setting) for line in lines for group in line})
    looks = _line_looks(lines, setting)
    for method, axes in zip(methods, panels, strict=True):
        _setting_axis(axes, setting, places)
        for line in lines:
            if line[0].method != method:
                continue
            name = _line_name(setting, line, lines)
            gap = min(0.012, 0.04 / len(looks)) * (list(looks).index(name) - (len(looks) - 1) / 2)
            start = _static_like(groups, line[0]) if setting == "drop_fraction" else None
            _draw_line(axes, line, measure, setting, looks[name], start, (places, gap))
        axes.set_title(method)
        axes.set_xlabel(SETTINGS[setting].replace(" (", "\n("))
        axes.grid(alpha=0.25)
        axes.margins(y=0.1)
    panels[0].set_ylabel(_label(measure))
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def effect_lines(rows, measure, setting):
    """Find the groups that differ in one setting only.

    Args:
      rows: lines of results.jsonl.
      measure: name of a measure that they have.
      setting: `drop_fraction` or `update_interval`.

    Returns:
      List of lists of two or more groups, each by rising values of the setting.
    """
    lines = {}
    for group in group_rows(rows):
        if getattr(group, setting) is not None and numbers(group.rows, measure):
            key = group._replace(rows=None, **{setting: None})
            lines.setdefault(key, []).append(group)
    return [
        sorted(line, key=lambda group: getattr(group, setting))
        for line in lines.values()
        if len(line) > 1
    ]


def _other(setting):
    """Return the key and the sign of the setting that a line holds fixed."""
    return ("update_interval", "dT") if setting == "drop_fraction" else ("drop_fraction", "p")


def _line_name(setting, line, lines):
    key, sign = _other(setting)
    several = len({other[0].structure for other in lines}) > 1
    structure = f"{line[0].structure}, " if several else ""
    return f"{structure}S {line[0].sparsity:g}, {sign} {getattr(line[0], key) or 0:g}"


def _line_looks(lines, setting):
    """Return `{name: style}`: a colour a level, a mark and a stroke for structure and setting."""
    colours = (_BLUE, _VERMILION, _GREEN, _PURPLE, _BLACK, _ORANGE, _SKY)
    levels = sorted({line[0].sparsity for line in lines})
    kinds = structures([line[0] for line in lines])

    def other(line):
        value = getattr(line[0], _other(setting)[0]) or 0
        return kinds.index(line[0].structure), value

    others = sorted(set(map(other, lines)))
    looks = {}
    for line in lines:
        level = levels.index(line[0].sparsity)
        rank = others.index(other(line))
        # With nothing else to tell apart, levels differ in marks and strokes too.
        rank = level if len(others) == 1 else rank
        looks[_line_name(setting, line, lines)] = {
            "color": colours[level % len(colours)],
            "marker": "o^sDvP*"[rank % 7],
            "linestyle": _LINES[rank % len(_LINES)],
            "markersize": 6,
        }
    return looks


def _static_like(groups, group):
    """Return the static group that is the same else: a drop fraction of zero."""
    ours = ("static", group.structure, group.sparsity, group.steps)
    return next((g for g in groups if (g.method, g.structure, g.sparsity, g.steps) == ours), None)


def _draw_line(axes, line, measure, setting, style, start, places):
    places, gap = places
    is_log = axes.get_xscale() == "log"
    extent = math.log10(places[-1] / places[0]) if is_log else places[-1]

    def put(value):
        return _shift(axes, value, gap * extent)

    xs = [put(getattr(group, setting)) for group in line]
    spreads = [spread(numbers(group.rows, measure)) for group in line]
    axes.plot(xs, [one.mean for one in spreads], **style | {"marker": ""}, linewidth=1.2)
    for x, group, one in zip(xs, line, spreads, strict=True):
        _errorbar(axes, x, one, {key: style[key] for key in ("color", "marker", "markersize")})
        values = numbers(group.rows, measure)
        dots = {"s": 8, "color": style["color"], "alpha": 0.5, "linewidths": 0}
        axes.scatter([_shift(axes, x, 0.015 * extent)] * len(values), values, **dots)
    static = start and spread(numbers(start.rows, measure))
    if static:
        hollow = {key: style[key] for key in ("color", "marker", "markersize")}
        _errorbar(axes, put(0), static, hollow | {"markerfacecolor": "white"})
        ends = [put(0), xs[0]], [static.mean, spreads[0].mean]
        axes.plot(*ends, color=style["color"], linestyle=":", linewidth=0.8)


def _setting_axis(axes, setting, places):
    if setting == "update_interval" and places[-1] > 3 * places[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    shown = [0, *places] if setting == "drop_fraction" else places
    labels = [f"{place:g}" for place in shown]
    if setting == "drop_fraction" and places[0] < 0.06 * places[-1]:
        labels[0] = ""
    axes.set_xticks(shown, labels)


@_styled
def layer_densities(rows):
    """Draw the density of each layer at each level and structure, the mean over its runs.

    Args:
      rows: lines of results.jsonl; those of dense models have nothing to show.

    Returns:
      Figure, or None if there is no sparse run.
    """
    levels, groups = {}, group_rows(rows)
    several = len(structures(groups)) > 1
    for group in groups:
        if is_sparse(group) and group.sparsity:
            level = f"{group.sparsity:g}" + (f"\n{group.structure}" if several else "")
            levels.setdefault(level, []).extend(group.rows)
    names = list(
        dict.fromkeys(
            name
            for members in levels.values()
            for row in members
            for name in (row.get("layers") or {})
        )
    )
    if not names:
        return None
    table = np.array([[_density(levels[level], name) for level in levels] for name in names])
    count = -(-len(names) // _LAYERS_IN_A_COLUMN) if len(names) <= 2 * _LAYERS_IN_A_COLUMN else 2
    height = -(-len(names) // count)
    width = (2.1 + 0.42 * len(levels)) * count
    size = max(width, 4.4), max(1.5 + 0.145 * height, 2.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for index, axes in enumerate(panels):
        part = slice(index * height, (index + 1) * height)
        mesh = _heat_map(axes, table[part], names[part], list(levels))
        axes.set_ylim(height, 0)
    panels[0].set_ylabel("layer, in the order of execution")
    figure.colorbar(
        mesh,
        ax=list(panels),
        location="bottom",
        fraction=0.02,
        aspect=40,
        label="density (share of active weights)",
    )
    return figure


def _density(rows, name):
    found = [row["layers"][name] for row in rows if name in (row.get("layers") or {})]
    return np.mean([active / weights for active, weights in found]) if found else np.nan


def _heat_map(axes, table, names, levels):
    mesh = axes.pcolormesh(table, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value < 0.5 else "black"
            text = "1" if value == 1 else f"{value:.2f}".removeprefix("0") if value < 1 else ""
            style = {"ha": "center", "va": "center_baseline", "fontsize": 6, "color": colour}
            axes.text(x + 0.5, y + 0.5, text, **style)
    axes.set_yticks(np.arange(len(names)) + 0.5, [layer_name(name) for name in names], fontsize=6.5)
    axes.set_xticks(np.arange(len(levels)) + 0.5, levels)
    if any("\n" in level for level in levels):
        axes.tick_params("x", labelsize=6.5)
    axes.tick_params(length=0)
    axes.set_xlabel("sparsity S")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    return mesh


@_styled
def ever_active(rows):
    """Plot the share of weights that were active at some time beside those active at any one time.

    Args:
      rows: lines of results.jsonl; those of dense models have nothing to show.

    Returns:
      Figure, or None if there is nothing to show.
    """
    groups, starts, ends = [], [], []
    for group in group_rows(rows):
        densities = [density for row in group.rows if (density := sparse_density(row))]
        if is_sparse(group) and densities and numbers(group.rows, "ever_active"):
            groups.append(group)
            starts.append(np.mean(densities))
            one = spread(numbers(group.rows, "ever_active"))
            ends.append((one.mean, one.mean - (one.std or 0), one.mean + (one.std or 0)))
    if not groups:
        return None
    words = ("active at any one time", "active at some time (mean ± std)")
    return _dumbbells(groups, starts, ends, words, "share of the weights of the sparse layers")


def sparse_density(row):
    """Return the density of the layers that are sparse, taken together; None if there is none.

    Args:
      row: a line of results.jsonl.
    """
    sparse = [(active, weights) for active, weights in (row.get("layers") or {}).values()]
    sparse = [(active, weights) for active, weights in sparse if active < weights]
    if not sparse:
        return None
    return sum(active for active, _ in sparse) / sum(weights for _, weights in sparse)


@_styled
def overlaps(entries):
    """Plot the overlap of masks between seeds beside what chance gives.

    Args:
      entries: list of (Group, overlap.Overlap).

    Returns:
      Figure, or None if the list is empty.
    """
    if not entries:
        return None
    words = ("expected by chance", "between seeds (mean and range over pairs)")
    return _dumbbells(
        [group for group, _ in entries],
        [found.chance for _, found in entries],
        [(found.mean, found.low, found.high) for _, found in entries],
        words,
        "overlap of masks: share of the active weights in common",
    )


def _dumbbells(groups, starts, ends, words, label):
    """Draw a line for each group from a tick to its mark with an error bar."""
    height = max(1.5 + 0.26 * len(groups), 2.2)
    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.subplots()
    for y, (group, start, (end, low, high)) in enumerate(zip(groups, starts, ends, strict=True)):
        colour, marker = _mark(group, groups)
        axes.plot([start, end], [y, y], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(start, y, color=_BLACK, marker="|", markersize=11, markeredgewidth=1.8)
        bar = [[max(end - low, 0)], [max(high - end, 0)]]
        axes.errorbar(end, y, xerr=bar, color=colour, marker=marker, markersize=6.5, capsize=2.5)
    axes.set_yticks(range(len(groups)), [describe(group, groups) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, max(1.0, 1.02 * max(high for _, _, high in ends)))
    axes.set(xlabel=label, ylabel="method and settings")
    axes.grid(alpha=0.25, axis="x")
    tick = {"color": _BLACK, "marker": "|", "markersize": 11, "markeredgewidth": 1.8}
    mark = {"color": "#777777", "marker": "o", "markersize": 6.5}
    handles = [
        Line2D([], [], linestyle="none", label=word, **style)
        for word, style in zip(words, (tick, mark), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
