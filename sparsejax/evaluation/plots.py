"""The pictures of a run: training curves, density of each layer."""

import numpy as np
from matplotlib.figure import Figure

# Distinct in colour and in grey, also to the colour-blind (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"


def save_curves(path, lines):
    """Plot the loss and the weights replaced so far.

    Args:
      path: PNG file to write.
      lines: metrics lines, as `training.metrics.read_metrics` returns them.
    """
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    updates = [(line["step"], line["replaced"]) for line in lines if "replaced" in line]
    figure = Figure(figsize=(8, 6 if updates else 3.5), layout="constrained")
    axes = figure.subplots(2 if updates else 1, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(*zip(*losses, strict=True), color=BLUE, linewidth=1.5)
    axes[0].set(ylabel="training loss (mean squared error of eps)", yscale="log")
    axes[0].grid(alpha=0.3, which="both")
    if updates:
        steps, replaced = np.array(updates).T
        axes[1].step(
            np.append(0, steps), np.append(0, np.cumsum(replaced)), where="post", color=ORANGE
        )
        axes[1].set_ylabel("weights replaced so far\n(multiples of the active weights)")
        axes[1].grid(alpha=0.3)
        axes[1].set_ylim(bottom=0)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].set_xlim(left=0)
    figure.savefig(path, dpi=120)


def save_layer_densities(path, summary, level):
    """Plot the density of each sparsifiable layer, as wide as the layer has weights.

    Args:
      path: PNG file to write.
      summary: `sparsity.masks.Summary`.
      level: the overall sparsity asked for; its density is drawn as a line.
    """
    layers = {
        name.removesuffix("/kernel"): layer
        for name, layer in summary.layers.items()
        if name.endswith("/kernel")
    }
    names, densities = list(layers), [layer.density for layer in layers.values()]
    figure = Figure(figsize=(8, 1.2 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, densities, color=BLUE, height=0.7)
    for y, layer in enumerate(layers.values()):
        axes.text(1.01, y, f"{layer.active:,} of {layer.weights:,}", va="center", fontsize=7)
    axes.axvline(1 - level, color=ORANGE, linestyle="--", label=f"whole network: {1 - level:.2f}")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.3), xlabel="density (share of active weights)")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=120)
