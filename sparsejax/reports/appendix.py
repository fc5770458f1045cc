"""The end of a report: every run's numbers, and what it takes to repeat them."""

import json
import pathlib
from collections.abc import Sequence

from sparsejax.quantities import counted
from sparsejax.reports.documents import Block, Code, Folded, Section, Table, Text
from sparsejax.reports.groups import Comparison
from sparsejax.reports.results import Run, varied_keys
from sparsejax.reports.spreads import decimals


def runs_section(comparison: Comparison) -> Section:
    """Write the section that lists every run."""
    runs, groups, names = comparison.runs, comparison.groups, comparison.names
    digits = (decimals([group.spreads.get(name) for group in groups]) for name in names)
    forms = [(name, f",.{count}f") for name, count in zip(names, digits, strict=True)]
    forms += [("loss", ".4g"), ("seconds", ".0f")]
    is_mixed = len({run.measured_on for run in runs}) > 1
    body: list[list[str]] = []
    breaks: list[int] = []
    for group in groups:
        breaks += [len(body)] if body else []
        for run in group.runs:
            found = run.numbers
            cells = [format(found[key], form) if key in found else "–" for key, form in forms]
            cells += [run.measured_on] if is_mixed else []
            body.append([f"`{_uncoded(run.name)}`", str(run.seed), *cells])
    header = ["run", "seed", *names, "training loss", "total seconds"]
    header += ["samples measured as"] if is_mixed else []
    caption = "Every run of the results file. Total seconds: training and measuring, by the clock."
    table = Table(caption, header, body, 1, tuple(breaks))
    return Section("Every run", [Folded(f"All {counted(len(runs), 'run')}", [table])])


def repeat_section(runs: Sequence[Run], output: pathlib.Path) -> Section:
    """Write the section that says how to repeat the runs.

    Args:
      runs: all of the report.
      output: folder of the report, where results.jsonl may lie too.
    """
    text = (
        "Each line of `results.jsonl` holds one run: costs, measures, the whole config, the "
        "commit and the versions. `python train.py` with that config repeats the training, "
        "`python evaluate.py --workdirs` the measures, and "
        "`python -m sparsejax report --results results.jsonl` writes this report. "
        "Folders in configs are shortened to their last part."
    )
    if (output / "results.jsonl").exists():
        text += " The file lies beside this report."
    blocks: list[Block] = [Text(text)]
    varied = []
    for name, values in varied_keys(runs).items():
        more = f", ... {len(values)} values" if len(values) > 8 else ""
        varied.append([f"`{_uncoded(name)}`", ", ".join(values[:8]) + more])
    if varied:
        caption = "Config keys that differ between runs; all others are equal in all runs."
        blocks.append(Table(caption, ["key", "values"], varied, 2))
    if config := runs[0].shown.get("config"):
        text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        folded = Folded(f"Config of `{_uncoded(runs[0].name)}`", [Code(text, "json")])
        blocks.append(folded)
    return Section("To repeat this", blocks)


def _uncoded(text: str) -> str:
    return str(text).replace("`", "'")
