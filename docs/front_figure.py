"""Draw docs/front.png, the figure of the README, from committed results.

    python docs/front_figure.py

Left: Frechet distance on digits against active parameters (results/digits). Middle: held-out loss
on digits against seconds of training, for all structures at S = 0.75 (results/structures). Right:
characters that a dense and a sparse network draw from the same noise, cut out of kanji.png.
"""

import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from sparsejax.reports import style

HERE = pathlib.Path(__file__).resolve().parent
Rows = list[dict[str, Any]]
SIZE = ("active_parameters", "FD[classifier:digits]@1797")
TIME = ("training_seconds", "held_out_loss")
# Label and look of the lines of each panel.
METHODS = {
    "dense": ("dense", style.BLACK, "*"),
    "small_dense": ("small dense", style.SKY, "s"),
    "rigl": ("RigL-DM", style.VERMILION, "^"),
    "magran": ("MagRan-DM", style.GREEN, "v"),
}
STRUCTURES = {
    ("dense", "dense"): ("dense", style.BLACK, "*"),
    ("small_dense", "dense"): ("small dense", style.SKY, "s"),
    ("weights", "rigl"): ("RigL-DM, single weights", style.BLUE, "o"),
    ("rectangular", "rigl"): ("RigL-DM, blocks", style.VERMILION, "^"),
    ("channels", "magran"): ("MagRan-DM, channels", style.GREEN, "v"),
}
LEVEL = {"color": style.BLACK, "lw": 0.8, "ls": ":", "zorder": 0}
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.2), "ncols": 2}
# Panels of kanji.png: left and top edge, width of the 6 x 6 characters, in pixels.
DENSE_AT, SPARSE_AT, CHARACTER = (17, 97), (439, 97), 67.4


def read(*parts: str) -> Rows:
    """Return the rows of a results.jsonl below docs/results."""
    path = HERE.joinpath("results", *parts, "results.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(rows: Iterable[dict[str, Any]], x: str, y: str) -> np.ndarray:
    """Return [points, 3]: x, mean and standard deviation of y over seeds, by x."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault((row["sparsity"], row["steps"]), []).append(row)
    found = []
    for group in groups.values():
        values = [row["measures"][y] for row in group]
        values = [value["value"] if isinstance(value, dict) else value for value in values]
        where = statistics.mean(row[x] for row in group)
        found.append((where, statistics.mean(values), statistics.stdev(values)))
    return np.array(sorted(found))


def draw(axes: Axes, found: np.ndarray, look: tuple[str, str, str]) -> None:
    """Draw a line of means with bars of one standard deviation."""
    label, color, mark = look
    axes.errorbar(*found.T, color=color, marker=mark, label=label, capsize=2, lw=1.3, ms=6)


def draw_size(axes: Axes) -> None:
    """Draw quality against active parameters."""
    rows = [row for row in read("digits") if row["drop_fraction"] in (None, 0.5)]
    for method, look in METHODS.items():
        ours = [row for row in rows if row["method"] == method]
        draw(axes, points(ours, *SIZE) / (1e3, 1, 1), look)
    axes.set(xlabel="active parameters, thousands", ylabel="Frechet distance (lower is better)")
    axes.set(title="digits, 600 steps: quality and size", ylim=(0, None))
    axes.axhline(points([row for row in rows if row["method"] == "dense"], *SIZE)[0, 1], **LEVEL)
    axes.legend(**BELOW)


def draw_time(axes: Axes) -> None:
    """Draw quality against seconds of training."""
    rows = [row for row in read("structures", "digits") if row["sparsity"] in (0.0, 0.75)]
    for (structure, method), look in STRUCTURES.items():
        ours = [r for r in rows if (r["structure"], r["method"]) == (structure, method)]
        ours = [row for row in ours if row["steps"] >= (80 if structure == "dense" else 0)]
        draw(axes, points(ours, *TIME), look)
    axes.set(xlabel="seconds of training, one CPU thread", ylabel="held-out loss (lower is better)")
    axes.set_title("digits, S = 0.75: quality and time")
    axes.legend(**BELOW)


def draw_samples(axes: Axes, title: str, at: tuple[int, int], count: int = 4) -> None:
    """Show count x count characters of a panel of kanji.png."""
    side = round(count * CHARACTER)
    left, top = at
    axes.imshow(imread(HERE / "kanji.png")[top : top + side, left : left + side])
    axes.set_title(title)
    axes.set_axis_off()


@style.styled
def figure() -> Figure:
    """Return the figure."""
    made = Figure(figsize=(11, 3.9), layout="constrained")
    size, time, dense, sparse = made.subplots(1, 4, width_ratios=(1.25, 1.25, 1, 1))
    draw_size(size)
    draw_time(time)
    draw_samples(dense, "KanjiVG, dense: 417 k weights\n", DENSE_AT)
    draw_samples(sparse, "RigL-DM, S = 0.5: 210 k weights\nfrom the same noise", SPARSE_AT)
    return made


if __name__ == "__main__":
    figure().savefig(HERE / "front.png", dpi=130)
