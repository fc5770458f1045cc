"""Tables, figures and answers of docs/evidence.md, from results.jsonl alone.

    python -m benchmarks.evidence_report

Reads docs/results/evidence/results.jsonl. Writes report.md and quality.png beside it, epochs.png
once there are runs with fewer images, and the answers into docs/evidence.md, between its marks.
"""

import pathlib

from benchmarks.evidence import OUTPUT, read_rows
from benchmarks.evidence_answers import FACTORS, answers, findings
from benchmarks.evidence_figures import against_epochs, against_parameters
from benchmarks.evidence_plan import LARGE, PLAN, RATES, entries_of
from benchmarks.evidence_statistics import (
    FD,
    Cell,
    by_metric,
    by_seed,
    cell_of,
    cells_of,
    compare,
    epochs,
    noise,
    spread_of,
)
from sparsejax import command_line
from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError
from sparsejax.quantities import quantity
from sparsejax.reports.results import HELD_OUT
from sparsejax.reports.spreads import decimals, write_difference, write_spread

PAGE = pathlib.Path("docs/evidence.md")
BEGIN, END = "<!-- answers -->", "<!-- end of the answers -->"
NAMES = {FD: "Frechet distance", HELD_OUT: "held-out loss"}
OTHERS = ("precision", "recall", "nearest")
CAPTION = (
    "Mean ± standard deviation over n seeds; lower is better. Differences are between runs with "
    "the same seed, with Student's 95 % interval, not corrected for the number of comparisons. "
    "The verdicts are defined in [evidence.md](../../evidence.md#what-counts)."
)


def table(header, body):
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spreads(rows, cells, metric):
    """Return the cells of a column: mean and standard deviation of each cell of runs."""
    found = [spread_of(rows, cell, metric) for cell in cells]
    return [write_spread(one, decimals(found)) for one in found]


def compared(rows, cells, baselines, metric):
    """Return two columns: difference to a baseline, and verdict."""
    digits = decimals([spread_of(rows, cell, metric) for cell in cells])
    found = [
        None if cell == baseline else compare(rows, cell, baseline, metric)
        for cell, baseline in zip(cells, baselines, strict=True)
    ]
    differences = [write_difference(one and one.difference, digits) for one in found]
    return differences, [one.verdict if one else "–" for one in found]


def table_of(rows, study):
    """Return the table of a study's runs, each compared with dense."""
    cells = cells_of(rows, study)
    ours = [next(row for row in rows if cell_of(row) == cell) for cell in cells]
    columns = {
        "method": [cell.method for cell in cells],
        "S": [f"{cell.level:g}" for cell in cells],
        "active parameters": [quantity(row["active_parameters"]) for row in ours],
        "FLOPs, training": [quantity(row["training_flops_run"]) for row in ours],
    }
    dense = [cell._replace(method="dense", level=0.0) for cell in cells]
    for metric, name in NAMES.items():
        differences, verdicts = compared(rows, cells, dense, metric)
        columns[name] = spreads(rows, cells, metric)
        columns[f"difference to dense, {name}"] = differences
        columns[f"verdict, {name}"] = verdicts
    columns |= {name: spreads(rows, cells, name) for name in OTHERS}
    columns["n"] = [str(len(by_seed(rows, cell, FD))) for cell in cells]
    return table(list(columns), zip(*columns.values(), strict=True))


def noise_table(rows, data_sets):
    """Return the table of the noise of the measures."""
    body = []
    for data in data_sets:
        for metric, name in {FD: NAMES[FD], "nearest": "nearest"}.items():
            real, sampled = noise(rows, data, metric)
            dense = spread_of(rows, Cell(data, "dense", 0.0), metric)
            all_three = (real, sampled, dense)
            body.append(
                [data, name, *(write_spread(one, decimals(all_three)) for one in all_three)]
            )
    header = ["data set", "measure", "real examples", "one dense model, 5 samplings"]
    return table([*header, "dense, all seeds"], body)


def factor_table(rows, metric=FD):
    """Return the table of the settings of dynamic methods: each against the default."""
    studies = [study for study in PLAN if study.question in FACTORS]
    body = []
    for study in studies:
        cells = cells_of(rows, study.name)
        baselines = [cell._replace(study=study.data) for cell in cells]
        differences, verdicts = compared(rows, cells, baselines, metric)
        ((key, value),) = study.changes.items()
        for cell, values, *others in zip(
            cells, spreads(rows, cells, metric), differences, verdicts, strict=True
        ):
            setting = [f"`{key}`", f"{value}", cell.method, f"{cell.level:g}"]
            body.append([*setting, values, *others, str(len(by_seed(rows, cell, metric)))])
    header = ["setting", "value", "method", "S", NAMES[metric]]
    return table([*header, "difference to the default", "verdict", "n"], body)


def rate_table(rows):
    """Return the table of the learning rates that were tried with dense."""
    tried = {}
    for row in rows:
        if row["question"] == "rate":
            rate = row["config"]["optimizer"]["learning_rate"]
            tried.setdefault(row["data"], {})[rate] = by_metric(row, HELD_OUT)
    body = [
        [data, *(f"{losses[rate]:.4f}" if rate in losses else "–" for rate in RATES)]
        + [f"{min(losses, key=losses.get):g}" if len(losses) == len(RATES) else "–"]
        for data, losses in tried.items()
    ]
    return table(["data set", *(f"{rate:g}" for rate in RATES), "chosen"], body)


def state(rows):
    """Return how many of the planned runs are there, in words."""
    done = {row["run"] for row in rows}
    planned = [entry.name for entry in entries_of(PLAN)]
    return f"{sum(name in done for name in planned)} of {len(planned)} planned runs"


def progress(rows):
    """Return a sentence: how many of the planned runs are there, where they were made."""
    done = {row["run"] for row in rows}
    large = [entry.name for entry in entries_of(LARGE)]
    hours = sum(row["wall_seconds"] for row in rows) / 3600
    machines = sorted({f"{row['machine']['cpu']} ({row['device']})" for row in rows})
    commits = sorted({str(row["commit"]) for row in rows})
    extra = sum(name in done for name in large)
    return (
        f"{state(rows)}"
        f"{f' and {extra} of {len(large)} larger ones' if extra else ''}, {hours:.1f} hours on "
        f"{', '.join(machines)}. Commits: {', '.join(commits)}."
    )


def report(rows):
    """Return report.md."""
    studies = [study for study in (*PLAN, *LARGE) if any(r["study"] == study.name for r in rows)]
    mains = [study for study in studies if study.question == "main"]
    parts = [
        "# Evidence",
        progress(rows),
        *(f"{i}. {one}" for i, one in enumerate(answers(rows), 1)),
    ]
    parts += ["## The paper's findings", findings_table(rows), "## Comparisons", CAPTION]
    parts += ["![Quality against active parameters](quality.png)"]
    for study in mains:
        parts += [f"### {study.name}", table_of(rows, study.name)]
    if any(study.question == "fraction" for study in studies):
        parts += ["## Fewer training images", "![Gain over dense against epochs](epochs.png)"]
    for study in studies:
        if study.question == "fraction":
            row = next(row for row in rows if row["study"] == study.name)
            seen = f"{row['training_examples']:,} images, each seen {epochs(row):.0f} times"
            parts += [f"### {study.name}: {seen}", table_of(rows, study.name)]
    if any(study.question in FACTORS for study in studies):
        parts += ["## Settings of the dynamic methods", factor_table(rows)]
        parts += [factor_table(rows, HELD_OUT)]
    parts += ["## Noise of the measures", noise_table(rows, [study.data for study in mains])]
    parts += ["## Learning rates", "Held-out loss of dense, one seed.", rate_table(rows)]
    return "\n\n".join(parts) + "\n"


def findings_table(rows):
    """Return the table of claims and what the rows say of them."""
    return table(["claim", "verdict", "comparisons"], [list(one) for one in findings(rows)])


def page_with(text, rows):
    """Return the text of docs/evidence.md with the answers of these rows.

    Raises:
      ConfigError: it has no marks for them.
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ConfigError(f"{PAGE} has no place for the answers; accepted: {BEGIN} ... {END}")
    lines = [f"{i}. {one}" for i, one in enumerate(answers(rows), 1)] or ["No results yet."]
    is_complete = {entry.name for entry in entries_of(PLAN)} <= {row["run"] for row in rows}
    if rows and not is_complete:
        lines[:0] = [f"**Provisional: {state(rows)} are in.**", ""]
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


def main(argv=None):
    """Write the report, the figures and the answers."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.evidence_report")
    add = parser.add_argument
    add("--output", type=pathlib.Path, default=OUTPUT, help="Folder of results.jsonl.")
    add("--page", type=pathlib.Path, default=PAGE, help="Page to write the answers into.")
    flags = parser.parse_args(argv)
    rows = read_rows(flags.output)
    write_text(flags.page, page_with(flags.page.read_text(), rows))
    if not any(row["question"] == "main" for row in rows):
        print("No results yet")
        return
    against_parameters(rows).savefig(flags.output / "quality.png", dpi=110)
    names = ["report.md", "quality.png"]
    if any(row["question"] == "fraction" for row in rows):
        against_epochs(rows).savefig(flags.output / "epochs.png", dpi=110)
        names.append("epochs.png")
    write_text(flags.output / "report.md", report(rows))
    print(f"In {flags.output}: {', '.join(names)}")


if __name__ == "__main__":
    command_line.run(main)
