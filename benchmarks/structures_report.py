"""Table and figure of what `benchmarks.structures` measured.

    python -m benchmarks.structures_report FOLDER

FOLDER holds a folder for each data set, with times.json and results.jsonl. Writes report.md and
quality.png to FOLDER.
"""

import itertools
import json
import pathlib

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.structures import STEPS, TIME, read_rows
from sparsejax import command_line
from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError
from sparsejax.quantities import quantity
from sparsejax.reports import style
from sparsejax.reports.spreads import (
    decimals,
    difference,
    spread,
    write_difference,
    write_spread,
)

LOOKS = {
    "dense": ("dense", style.BLACK, "*"),
    "small_dense": ("small dense", style.PURPLE, "s"),
    "weights": ("single weights", style.BLUE, "o"),
    "free": ("free blocks", style.SKY, "v"),
    "square": ("square blocks", style.ORANGE, "D"),
    "rectangular": ("rectangular blocks", style.VERMILION, "P"),
    "channels": ("channels", style.GREEN, "^"),
}
HELD_OUT = "held_out_loss"
NAMES = {HELD_OUT: "held-out loss"}
HEADER = ("network", "method", "S", "active parameters", "FLOPs, forward", "ms per step")
HEADER += ("times dense", "steps in dense's time")


def read(folder):
    """Return `{data set: (times, rows)}` of a folder, the largest network first.

    Raises:
      ConfigError: there are no results in it.
    """
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*/results.jsonl")):
        times = json.loads((path.parent / "times.json").read_text())
        found[path.parent.name] = (times, read_rows(path))
    if not found:
        raise ConfigError(f"{folder} has no */results.jsonl; accepted: the folder above --output")
    return found


def cells_of(rows):
    """Return `{(structure, method, S): rows}`: by S, dense first."""
    cells = {}
    for row in rows:
        cells.setdefault((row["structure"], row["method"], row["sparsity"]), []).append(row)
    order = list(LOOKS)
    return dict(sorted(cells.items(), key=lambda item: (item[0][2], order.index(item[0][0]))))


def by_seed(rows, budget, measure):
    """Return `{seed: value}` of a measure at a budget."""
    return {
        row["seed"]: row["measures"][measure]
        for row in rows
        if budget in row["budgets"] and measure in row["measures"]
    }


def measures_of(rows):
    """Return the names of the measures of quality: the held-out loss, then distances."""
    names = dict.fromkeys(itertools.chain.from_iterable(row["measures"] for row in rows))
    return [name for name in names if name != "training_loss"]


def title_of(measure):
    """Return the name of a measure in words."""
    return NAMES.get(measure, measure)


def costs(cell, rows, times):
    """Return the first cells of a line of the table: name, size and speed."""
    structure, method, level = cell
    (timed,) = (
        row for row in times["rows"] if (row["structure"], row["sparsity"]) == (structure, level)
    )
    counts = sorted({row["steps"] for row in rows if TIME in row["budgets"]})
    return [
        LOOKS[structure][0],
        "" if method == "dense" else method,
        f"{level:g}",
        quantity(rows[0]["active_parameters"]),
        quantity(rows[0]["forward_flops"]),
        f"{1e3 * rows[0]['step_seconds']:.0f}",
        f"{timed['times_dense']:.2f}",
        ", ".join(f"{count:,}" for count in counts),
    ]


def table(times, rows):
    """Return the Markdown table of one data set."""
    cells, measures = cells_of(rows), measures_of(rows)
    dense = cells.get(("dense", "dense", 0.0), [])
    columns = []
    for measure, budget in itertools.product(measures, (STEPS, TIME)):
        values = {cell: by_seed(ours, budget, measure) for cell, ours in cells.items()}
        columns.append((measure, budget, values, by_seed(dense, TIME, measure)))
    header, body = list(HEADER), [costs(cell, ours, times) for cell, ours in cells.items()]
    for measure, budget, values, baseline in columns:
        spreads = {cell: spread(list(numbers.values())) for cell, numbers in values.items()}
        digits = decimals(list(spreads.values()))
        header.append(f"{title_of(measure)}, equal {budget}")
        for line, one in zip(body, spreads.values(), strict=True):
            line.append(write_spread(one, digits))
        if budget == TIME:
            header.append("difference to dense")
            for line, cell in zip(body, cells, strict=True):
                one = None if cell[0] == "dense" else difference(values[cell], baseline)
                line.append(write_difference(one, digits))
    header.append("n")
    for line, ours in zip(body, cells.values(), strict=True):
        line.append(str(len({row["seed"] for row in ours})))
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@style.styled
def figure_of(found):
    """Plot quality against seconds of training: a row per data set and measure, a column per S."""
    panels = [
        (name, measure, rows) for name, (_, rows) in found.items() for measure in measures_of(rows)
    ]
    levels = sorted({row["sparsity"] for _, rows in found.values() for row in rows} - {0.0})
    figure = Figure(figsize=(4.6 * len(levels), 0.6 + 3.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(levels), squeeze=False, sharey="row")
    for line, (name, measure, rows) in zip(axes, panels, strict=True):
        for panel, level in zip(line, levels, strict=True):
            for cell, ours in cells_of(rows).items():
                if cell[2] in (0.0, level):
                    draw(panel, cell, ours, measure)
            panel.set_title(f"{name}, S = {level:g}")
            panel.set_xlabel("seconds of training")
            panel.grid(alpha=0.25)
        line[0].set_ylabel(style.label(title_of(measure)))
    figure.legend(handles=legend(found), loc="outside lower center", ncols=3)
    return figure


def draw(axes, cell, rows, measure):
    """Draw a line through the measurements of a cell, that at equal time with a large mark."""
    structure, method, _ = cell
    _, colour, mark = LOOKS[structure]
    points, at_equal_time = {}, []
    for row in rows:
        if measure in row["measures"]:
            points.setdefault(row["training_seconds"], []).append(row["measures"][measure])
            at_equal_time += [row["training_seconds"]] if TIME in row["budgets"] else []
    if structure == "dense":  # its early measurements would stretch the axis
        points = dict(sorted(points.items())[1:])
    spreads = {seconds: spread(values) for seconds, values in sorted(points.items())}
    if not spreads:
        return
    hollow = method == "magran"
    look = {"color": colour, "linestyle": "--" if hollow else "-", "linewidth": 1}
    look |= {"marker": mark, "markerfacecolor": "white" if hollow else colour}
    means = [one.mean for one in spreads.values()]
    axes.plot(list(spreads), means, markersize=4, zorder=2, **look)
    bars = [one.std or 0 for one in spreads.values()]
    bar = {"fmt": "none", "ecolor": colour, "elinewidth": 0.8, "capsize": 2, "alpha": 0.6}
    axes.errorbar(list(spreads), means, yerr=bars, zorder=1, **bar)
    look |= {"linestyle": "none", "markersize": 10 if mark == "*" else 7}
    for seconds in set(at_equal_time) & spreads.keys():
        axes.plot([seconds], [spreads[seconds].mean], zorder=3, **look)


def legend(found):
    """Return a line of the legend for each structure, and one for each method."""
    used = {row["structure"] for _, rows in found.values() for row in rows}
    lines = [
        Line2D([], [], color=colour, marker=mark, linewidth=1, label=words)
        for name, (words, colour, mark) in LOOKS.items()
        if name in used
    ]
    for words, fill, dashes in (("RigL-DM", "#777777", "-"), ("MagRan-DM", "white", "--")):
        look = {"marker": "o", "markerfacecolor": fill, "linestyle": dashes, "linewidth": 1}
        lines.append(Line2D([], [], color="#777777", label=words, **look))
    return lines


def describe(times, rows):
    """Return the settings of a data set in a sentence or two."""
    config, dense = times["settings"]["config"], times["rows"][0]
    sizes = {"free": "square", "square": "square", "rectangular": "rectangular"}
    blocks = [f"{LOOKS[k][0]} {times['settings'][v]}" for k, v in sizes.items()]
    used = {row["structure"] for row in rows}
    words = f"; {', '.join(blocks)} (inputs x outputs)" if used & set(sizes) else ""
    releases = ", ".join(sorted({row["versions"]["jax"] for row in rows}))
    return (
        f"{config['steps']:,} steps of {config['batch_size']} for dense, "
        f"{config['steps'] * dense['seconds']['step']:.0f} s of training, one thread of "
        f"{times['machine']['cpu']}, jax {releases}; a topology update every "
        f"{config['sparsity']['update_interval']} steps until step "
        f"{int(0.75 * config['steps'])}, drop fraction {config['sparsity']['drop_fraction']:g}"
        f"{words}. Commits: {', '.join(sorted({str(row['commit']) for row in rows}))}."
    )


CAPTION = (
    "Mean ± standard deviation over n seeds; lower is better. Each run is measured after as many "
    "steps as dense takes (equal steps) and after as many as fit into dense's seconds (equal "
    "time); where both are within 1 %, they are one. Times are medians of a step on one thread, "
    "timed in turn; compilation isn't included. The difference to dense is at equal time, seed by "
    "seed, with Student's 95 % interval, not corrected for the number of comparisons. Single "
    "weights and free blocks train masked, the others without what is inactive."
)
FIGURE = (
    "Quality against seconds of training: each line leads from the measurement at equal steps to "
    "that at equal time (large mark), dense's from half of its run to the end. Bars: one standard "
    "deviation over seeds."
)


def main(argv=None):
    """Write report.md and quality.png."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.structures_report")
    parser.add_argument("folder", metavar="FOLDER", help="holds a folder for each data set")
    folder = pathlib.Path(parser.parse_args(argv).folder)
    found = read(folder)
    parts = ["# Structures at equal steps and at equal training time", CAPTION]
    for name, (times, rows) in found.items():
        parts += [f"## {name}", describe(times, rows), table(times, rows)]
    parts += [f"![{FIGURE}](quality.png)", FIGURE]
    figure_of(found).savefig(folder / "quality.png", dpi=110)
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    print(f"In {folder}: report.md, quality.png")


if __name__ == "__main__":
    command_line.run(main)
