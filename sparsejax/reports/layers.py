"""The density of each layer, at each level of sparsity and for each structure."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from sparsejax.reports import style
from sparsejax.reports.documents import Part, Plot, Section
from sparsejax.reports.groups import Comparison
from sparsejax.reports.plots import layer_name
from sparsejax.reports.results import Layers

_LAYERS_IN_A_COLUMN = 40


def layers_section(comparison: Comparison) -> Part:
    """Write the section of a report."""
    figure = layer_densities(comparison)
    if not figure:
        return None, "the density of each layer (no sparse run lists its layers)"
    caption = (
        "Density of each layer (vertical, in the order of execution) at each sparsity "
        "(horizontal), mean over the runs of that sparsity; numbers in cells are the density "
        "without its leading zero. Yellow layers are dense."
    )
    return Section("Density of each layer", [Plot("layers", figure, caption)]), ""


@style.styled
def layer_densities(comparison: Comparison) -> Figure | None:
    """Draw the density of each layer at each level and structure, the mean over its runs.

    Args:
      comparison: the runs; those of dense models have nothing to show.

    Returns:
      Figure, or None if there is no sparse run.
    """
    names, levels, table = _densities(comparison)
    if not names:
        return None
    count = -(-len(names) // _LAYERS_IN_A_COLUMN) if len(names) <= 2 * _LAYERS_IN_A_COLUMN else 2
    height = -(-len(names) // count)
    width = (2.1 + 0.42 * len(levels)) * count
    size = max(width, 4.4), max(1.5 + 0.145 * height, 2.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for index, axes in enumerate(panels):
        part = slice(index * height, (index + 1) * height)
        mesh = _heat_map(axes, table[part], names[part], levels)
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


def _densities(comparison: Comparison) -> tuple[list[str], list[str], np.ndarray]:
    """Return names of layers, labels of levels, and the mean densities [layers, levels]."""
    several = len(comparison.structures) > 1
    levels: dict[str, list[Layers]] = {}
    for group in comparison.groups:
        if group.is_sparse and group.sparsity:
            level = f"{group.sparsity:g}" + (f"\n{group.structure}" if several else "")
            levels.setdefault(level, []).extend(run.layers for run in group.runs)
    names = list(dict.fromkeys(name for runs in levels.values() for run in runs for name in run))
    table = np.array([[_mean(runs, name) for runs in levels.values()] for name in names])
    return [layer_name(name) for name in names], list(levels), table


def _mean(runs: Sequence[Layers], name: str) -> float:
    found = [run[name] for run in runs if name in run]
    return float(np.mean([active / weights for active, weights in found])) if found else math.nan


def _heat_map(
    axes: Axes, table: np.ndarray, names: Sequence[str], levels: Sequence[str]
) -> QuadMesh:
    mesh = axes.pcolormesh(table, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value < 0.5 else "black"
            text = "1" if value == 1 else f"{value:.2f}".removeprefix("0") if value < 1 else ""
            look: style.Look = {
                "ha": "center",
                "va": "center_baseline",
                "fontsize": 6,
                "color": colour,
            }
            axes.text(x + 0.5, y + 0.5, text, **look)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6.5)
    axes.set_xticks(np.arange(len(levels)) + 0.5, levels)
    if any("\n" in level for level in levels):
        axes.tick_params("x", labelsize=6.5)
    axes.tick_params(length=0)
    axes.set_xlabel("sparsity S")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    return mesh
