"""Figures of docs/evidence.md: quality against active parameters, gain against epochs."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.evidence_plan import DATA_SETS
from benchmarks.evidence_statistics import (
    FD,
    cell_of,
    cells_of,
    compare,
    epochs,
    spread_of,
)
from sparsejax.quantities import quantity
from sparsejax.reports import style
from sparsejax.reports.results import HELD_OUT

METRICS = {FD: "Frechet distance", HELD_OUT: "held-out loss"}
METHODS = ("small_dense", "static", "rigl", "magran")
IMAGES = {"digits": "-", "fashion": "--"}  # data sets of images, and their lines
SHIFT = {"small_dense": 0.94, "static": 0.98, "rigl": 1.02, "magran": 1.06}


@style.styled
def against_parameters(rows):
    """Plot both measures against active parameters, a row of panels for each data set."""
    data_sets = [data for data in DATA_SETS if cells_of(rows, data)]
    figure = Figure(figsize=(8.4, 0.6 + 2.8 * len(data_sets)), layout="constrained")
    panels = figure.subplots(len(data_sets), len(METRICS), squeeze=False)
    for line, data in zip(panels, data_sets, strict=True):
        for axes, (metric, name) in zip(line, METRICS.items(), strict=True):
            draw_quality(axes, rows, data, metric)
            axes.set_title(data)
            axes.set_ylabel(style.label(name))
            axes.set_xlabel("active parameters")
    figure.legend(handles=legend(("dense", *METHODS)), loc="outside lower center", ncols=5)
    return figure


def draw_quality(axes, rows, data, metric):
    """Draw mean and standard deviation of every cell of a data set's comparison."""
    for method in ("dense", *METHODS):
        points = [
            (active_of(rows, cell), spread_of(rows, cell, metric))
            for cell in cells_of(rows, data, [method])
        ]
        points = sorted((x, one) for x, one in points if one)
        if not points:
            continue
        colour, shape = style.MARKS[method]
        axes.errorbar(
            [x for x, _ in points],
            [one.mean for _, one in points],
            yerr=[one.std or 0 for _, one in points],
            color=colour,
            marker=shape,
            linewidth=1,
            capsize=2,
            elinewidth=0.8,
        )
        if method == "dense":
            axes.axhline(points[0][1].mean, color=colour, linewidth=0.6, linestyle=":")
    shown = [cell for cell in cells_of(rows, data) if cell.method in ("dense", "static")]
    number_ticks(axes, {active_of(rows, cell) for cell in shown}, quantity)
    axes.grid(alpha=0.25)


def number_ticks(axes, values, write):
    """Make the horizontal axis logarithmic, with ticks at these values and no others."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sorted(values), labels=[write(value) for value in sorted(values)])


def active_of(rows, cell):
    """Return the active parameters of a cell's runs."""
    return next(row["active_parameters"] for row in rows if cell_of(row) == cell)


@style.styled
def against_epochs(rows):
    """Plot the gain over dense at S = 0.5 against how often each training image was seen."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, (metric, name) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        axes.axhline(0, color=style.BLACK, linewidth=0.8)
        for method in METHODS:
            draw_gain(axes, rows, method, metric)
        shown = {epochs(row) for row in rows if any(is_of_images(row, data) for data in IMAGES)}
        number_ticks(axes, shown, lambda count: f"{count:.2g}" if count < 10 else f"{count:.0f}")
        axes.set_xlabel("epochs over the training images")
        axes.set_ylabel(f"gain over dense, {name} (%)")
        axes.grid(alpha=0.25)
    figure.legend(handles=legend(METHODS), loc="outside lower center", ncols=4)
    return figure


def draw_gain(axes, rows, method, metric, level=0.5):
    """Draw a method's gain with its 95 % interval, a line for each data set of images."""
    colour, shape = style.MARKS[method]
    for data, dashes in IMAGES.items():
        points = []
        for study in dict.fromkeys(row["study"] for row in rows if is_of_images(row, data)):
            cells = {
                cell.method: cell for cell in cells_of(rows, study) if cell.level in (0, level)
            }
            if not {"dense", method} <= cells.keys():
                continue
            one = compare(rows, cells[method], cells["dense"], metric)
            row = next(row for row in rows if row["study"] == study)
            points += [(epochs(row) * SHIFT[method], one.gain)] if one else []
        points.sort(key=lambda point: point[0])
        means = [100 * gain.mean for _, gain in points]
        ends = [
            [0 if gain.low is None else 100 * (gain.mean - gain.low) for _, gain in points],
            [0 if gain.high is None else 100 * (gain.high - gain.mean) for _, gain in points],
        ]
        look = {"color": colour, "marker": shape, "linestyle": dashes, "linewidth": 1}
        if points:
            axes.errorbar([x for x, _ in points], means, yerr=ends, capsize=2, **look)


def is_of_images(row, data):
    """Return whether a row belongs to a data set's comparison, or to one with fewer images."""
    return row["data"] == data and row["question"] in ("main", "fraction")


def legend(methods):
    """Return a line of the legend for each method."""
    looks = {method: style.MARKS[method] for method in methods}
    return [
        Line2D([], [], color=colour, marker=shape, linewidth=1, label=method.replace("_", " "))
        for method, (colour, shape) in looks.items()
    ]
