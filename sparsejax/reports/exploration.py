"""Which weights training has tried: those that were ever active, those that seeds share."""

import pathlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from sparsejax.quantities import counted
from sparsejax.reports import overlap, style
from sparsejax.reports.documents import Part, Plot, Section, Table, Text
from sparsejax.reports.groups import Group
from sparsejax.reports.overlap import Overlap, PackedMasks
from sparsejax.reports.results import Run

Entry: TypeAlias = tuple[Group, Overlap]


def ever_active_section(groups: Sequence[Group]) -> Part:
    """Write the section about weights that were ever active."""
    figure = ever_active(groups)
    if not figure:
        return None, "weights that were ever active (no sparse run records them)"
    text = (
        "In-time over-parameterisation: which weights training has tried, whether they are active "
        "at the end or not. Both shares are of the layers that are sparse."
    )
    caption = (
        "Share of weights (horizontal) that are active at any one time, and that were active at "
        "some time, by method and settings (vertical); bars are one standard deviation over seeds."
    )
    plot = Plot("ever-active", figure, caption)
    return Section("Weights that were ever active", [Text(text), plot]), ""


@style.styled
def ever_active(groups: Sequence[Group]) -> Figure | None:
    """Plot the share of weights that were active at some time beside those active at any one time.

    Args:
      groups: the runs by setting; those of dense models have nothing to show.

    Returns:
      Figure, or None if there is nothing to show.
    """
    shown, starts, ends = [], [], []
    for group in groups:
        densities = [run.sparse_density for run in group.runs if run.sparse_density]
        one = group.spreads.get("ever_active")
        if group.is_sparse and densities and one:
            shown.append(group)
            starts.append(float(np.mean(densities)))
            ends.append((one.mean, one.low, one.high))
    if not shown:
        return None
    words = ("active at any one time", "active at some time (mean ± std)")
    return _dumbbells(shown, starts, ends, words, "share of the weights of the sparse layers")


def overlap_section(groups: Sequence[Group], folder: pathlib.Path | None) -> Part:
    """Write the section about the overlap of masks between seeds.

    Args:
      groups: the runs by setting.
      folder: of the runs' workdirs, where masks are read.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    missing = 0
    for group in groups:
        sparse = [run for run in group.runs if group.is_sparse and run.sparse_density]
        masks = [_masks(folder, run, problems) for run in sparse]
        missing += masks.count(None)
        read = [(run, one) for run, one in zip(sparse, masks, strict=True) if one]
        if len(read) > 1:
            first = read[0][0]
            try:
                found = overlap.overlap_of_runs([one for _, one in read], first.layers)
                entries.append((group, found))
            except ValueError as error:
                problems.append(f"{first.name}: {error}")
    figure = overlaps(entries)
    if not figure:
        why = "no setting has the masks of two seeds"
        return None, f"overlap of masks between seeds ({_because(why, problems)})"
    text = (
        "The overlap of two runs A and B is |A and B| / |A|: of the active weights of all sparse "
        "layers, the share that is active in both. Masks that are drawn independently, with a of "
        "the n weights of a layer active, share sum(a² / n) / sum(a) on average. Static masks "
        "of different seeds are drawn so: their ratio to chance is a check."
    )
    caption = (
        "Overlap of masks (horizontal) between the seeds of a setting (vertical): mean and range "
        "over pairs of seeds; the tick is what chance gives."
    )
    plot, table = Plot("overlap", figure, caption), _overlap_table(entries)
    said = f"masks of {counted(missing, 'sparse run')} ({_because('not there', problems)})"
    return Section(
        "Overlap of masks between seeds", [Text(text), plot, table]
    ), said if missing else ""


def _masks(folder: pathlib.Path | None, run: Run, problems: list[str]) -> PackedMasks | None:
    """Return the masks of a run, or None; what is wrong with them is appended to `problems`."""
    try:
        path = folder and folder / run.name / "evaluation" / "masks.npz"
        return overlap.read_masks(path, run.layers) if path else None
    except OSError:
        return None
    except ValueError as error:
        problems.append(f"{run.name}: {error}")
        return None


def _because(text: str, problems: Sequence[str]) -> str:
    return f"{text}; {problems[0]}" if problems else text


def _overlap_table(entries: Sequence[Entry]) -> Table:
    named = [key for key in entries[0][0].labels if key != "seeds"]
    body = [
        [group.labels[key] for key in named]
        + [str(found.masks), str(found.pairs), f"{found.mean:.4f}"]
        + [f"{found.low:.4f} to {found.high:.4f}", f"{found.chance:.4f}"]
        + [f"{found.mean / found.chance:.2f}"]
        for group, found in entries
    ]
    header = [*named, "seeds", "pairs", "overlap, mean", "range over pairs", "by chance", "ratio"]
    caption = "Overlap of the masks of different seeds, at the end of training."
    return Table(caption, header, body)


@style.styled
def overlaps(entries: Sequence[Entry]) -> Figure | None:
    """Plot the overlap of masks between seeds beside what chance gives.

    Args:
      entries: groups of runs with the overlap of their masks.

    Returns:
      Figure, or None if there is no entry.
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


def _dumbbells(
    groups: Sequence[Group],
    starts: Sequence[float],
    ends: Sequence[tuple[float, float, float]],
    words: tuple[str, str],
    label: str,
) -> Figure:
    """Draw a line for each group from a tick to its mark with an error bar."""
    height = max(1.5 + 0.26 * len(groups), 2.2)
    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.subplots()
    for y, (group, start, (end, low, high)) in enumerate(zip(groups, starts, ends, strict=True)):
        colour, marker = style.mark(group)
        axes.plot([start, end], [y, y], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(start, y, color=style.BLACK, marker="|", markersize=11, markeredgewidth=1.8)
        bar = [[max(end - low, 0)], [max(high - end, 0)]]
        axes.errorbar(end, y, xerr=bar, color=colour, marker=marker, markersize=6.5, capsize=2.5)
    axes.set_yticks(range(len(groups)), [group.name for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, max(1.0, 1.02 * max(high for _, _, high in ends)))
    axes.set(xlabel=label, ylabel="method and settings")
    axes.grid(alpha=0.25, axis="x")
    tick: style.Look = {
        "color": style.BLACK,
        "marker": "|",
        "markersize": 11,
        "markeredgewidth": 1.8,
    }
    ticks = Line2D([], [], linestyle="none", **tick)
    used = dict.fromkeys(style.mark(group) for group in groups)
    marks = tuple(
        Line2D([], [], linestyle="none", color=colour, marker=marker, markersize=6.5)
        for colour, marker in used
    )
    figure.legend(
        handles=[ticks, marks],
        labels=words,
        handler_map={tuple: HandlerTuple(ndivide=None)},  # marks side by side
        loc="outside lower center",
        ncols=2,
    )
    return figure
