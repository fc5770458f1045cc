"""The pictures of a run: training curves, density of each layer."""

import os
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from sparsejax.atomic import replacing
from sparsejax.reports.sheets import Picture, sheet

PathLike: TypeAlias = str | os.PathLike[str]


class LayerCounts(Protocol):
    """Counts of a layer, as `sparsity.masks.LayerSummary` has them."""

    @property
    def weights(self) -> int:
        """Number of weights."""

    @property
    def active(self) -> int:
        """Number of active weights."""

    @property
    def density(self) -> float:
        """Share of active weights."""


# Distinct in colour and in grey, also to the colour-blind (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
_WIDEST = 840  # pixels of a picture


def save_samples(path: PathLike, samples: np.ndarray, real: np.ndarray) -> None:
    """Show a picture of samples beside one of real examples.

    Args:
      path: PNG file to write.
      samples: [height, width, 3] uint8.
      real: [height, width, 3] uint8.
    """
    pictures = [Picture("samples", samples), Picture("real", real)]
    with replacing(path) as partial:
        Image.fromarray(sheet(pictures, widest=_WIDEST)).save(partial)


def save_curves(path: PathLike, lines: Sequence[Mapping[str, float]]) -> None:
    """Write the picture of `curves(lines)` to the PNG file `path`."""
    with replacing(path) as partial:
        curves(lines).savefig(partial, dpi=120)


def curves(lines: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the loss and the weights replaced so far.

    Args:
      lines: metrics lines, as `training.metrics_log.read_metrics` returns them.

    Returns:
      Figure.
    """
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    updates = [(line["step"], line["replaced"]) for line in lines if "replaced" in line]
    figure = Figure(figsize=(8, 6 if updates else 3.5), layout="constrained")
    axes = figure.subplots(2 if updates else 1, 1, sharex=True, squeeze=False)[:, 0]
    steps, values = zip(*losses, strict=True) if losses else ((), ())
    axes[0].plot(steps, values, color=BLUE, linewidth=1.5)
    axes[0].set_ylabel("training loss")
    if values and 0 < 3 * min(values) < max(values):
        axes[0].set_yscale("log")
        subs = (1, 2, 5) if max(values) < 1000 * min(values) else (1,)
        axes[0].yaxis.set_major_locator(LogLocator(subs=subs))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    # As numbers are written elsewhere, never as what is to be added to another number.
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes[0].grid(alpha=0.3)
    if updates:
        steps, replaced = np.array(updates).T
        so_far = np.append(0, np.cumsum(replaced))
        ends = [0, *steps, max(line["step"] for line in lines)]  # flat after the last update
        axes[1].step(ends, np.append(so_far, so_far[-1]), where="post", color=ORANGE)
        axes[1].set_ylabel("weights replaced so far\n(multiples of the active weights)")
        axes[1].grid(alpha=0.3)
        axes[1].set_ylim(bottom=0)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].set_xlim(left=0)
    return figure


def save_layers(
    path: PathLike, layers: Mapping[str, LayerCounts], level: float, masks: Mapping[str, np.ndarray]
) -> None:
    """Write the picture of `layers_and_masks(layers, level, masks)` to the PNG file `path`."""
    with replacing(path) as partial:
        layers_and_masks(layers, level, masks).savefig(partial, dpi=120)


def layers_and_masks(
    layers: Mapping[str, LayerCounts], level: float, masks: Mapping[str, np.ndarray]
) -> Figure:
    """Plot the density of each layer, with its number of weights and its mask.

    Args:
      layers: `{path: sparsity.masks.LayerSummary}` in the order to show them.
      level: the overall sparsity asked for; its density is drawn as a line.
      masks: bool arrays [..., outputs] by path; those of dense layers may be missing.

    Returns:
      Figure.
    """
    figure = Figure(figsize=(12, 1.2 + 0.2 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    _draw_densities(left, layers, level)
    limits = left.get_ylim()
    for y, name in enumerate(layers):
        cells = mask_cells(masks[name]) if name in masks else np.ones((1, 1))
        extent = (0, 1, y + 0.4, y - 0.4)
        options = {"aspect": "auto", "interpolation": "nearest", "vmin": 0, "vmax": cells.max()}
        right.imshow(cells, "Blues", extent=extent, **options)
    right.set(xlim=(0, 1), xticks=(), ylim=limits)
    right.set_xlabel("masks: outputs across, inputs down")
    right.tick_params(axis="y", length=0)
    return figure


def mask_cells(mask: np.ndarray, rows: int = 12, columns: int = 240) -> np.ndarray:
    """Return the share of active weights in the cells of a grid laid over a mask.

    Args:
      mask: bool array [..., outputs].
      rows: most cells along all axes but the last.
      columns: most cells along the last axis.

    Returns:
      [rows, columns] float, of less cells where the mask is smaller.

    Examples:
      >>> mask_cells(np.eye(4, dtype=bool), 2, 4).tolist()
      [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    cells: np.ndarray = mask.reshape(-1, mask.shape[-1]).astype(np.float32)
    for axis, most in enumerate((rows, columns)):
        size = cells.shape[axis]
        starts = np.arange(min(most, size)) * size // min(most, size)
        sizes = np.diff(np.append(starts, size)).reshape((-1, 1) if axis == 0 else (1, -1))
        cells = np.add.reduceat(cells, starts, axis=axis) / sizes
    return cells


def _draw_densities(axes: Axes, layers: Mapping[str, LayerCounts], level: float) -> None:
    densities = [layer.density for layer in layers.values()]
    axes.barh(range(len(layers)), densities, color=BLUE, height=0.7)
    axes.set_yticks(range(len(layers)), [layer_name(name) for name in layers])
    for y, layer in enumerate(layers.values()):
        axes.text(1.01, y, f"{layer.active:,} of {layer.weights:,}", va="center", fontsize=7)
    axes.axvline(1 - level, color=ORANGE, linestyle="--", label=f"whole network: {1 - level:.2f}")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.3), xlabel="density (share of active weights)")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)


def layer_name(path: str) -> str:
    """Return the path of a layer's kernel as figures show it: of 40 characters at most.

    Examples:
      >>> layer_name("middle_block_1/qkv/kernel")
      'middle_block_1/qkv'
    """
    name = path.removesuffix("/kernel")
    return name if len(name) <= 40 else f"{name[:18]}...{name[-19:]}"
