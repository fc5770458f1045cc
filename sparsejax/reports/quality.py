"""The two main tables, a line per setting: quality against cost, and what was measured of time."""

from collections.abc import Mapping, Sequence

from sparsejax.quantities import quantity
from sparsejax.reports.documents import Block, Part, Section, Table, Text
from sparsejax.reports.groups import Comparison, Group
from sparsejax.reports.results import headed, higher_is_better, metric_of
from sparsejax.reports.spreads import (
    Difference,
    decimals,
    difference,
    spread,
    write_difference,
    write_spread,
)

_COSTS = {
    "active parameters": "active_parameters",
    "FLOPs, forward": "forward_flops",
    "FLOPs, training (formula)": "training_flops_formula",
    "FLOPs, training (this run)": "training_flops_run",
}
_SECONDS = {"step_seconds": "ms per step", "sampling_seconds": "ms per sample"}


def quality_section(comparison: Comparison) -> Part:
    """Write the section of a report."""
    groups, measures = comparison.groups, comparison.measures
    differences = differences_to_dense(groups, measures[0]) if measures else []
    blocks: list[Block] = [
        _quality_table(groups, measures, differences),
        *map(Text, _reading(groups, measures, differences)),
        _measured_table(comparison),
    ]
    return Section("Quality and cost", blocks), ""


def _quality_table(
    groups: Sequence[Group], measures: Sequence[str], differences: Sequence[Difference | None]
) -> Table:
    columns = {heading: _quantities(groups, key) for heading, key in _COSTS.items()}
    for name in measures:
        columns[headed(name)] = _means(groups, name, best=True)
        if name == measures[0] and differences:
            digits = decimals([group.spreads.get(name) for group in groups])
            cells = [write_difference(one, digits) for one in differences]
            columns[f"{metric_of(name)}, difference to dense"] = cells
    caption = (
        "Mean ± standard deviation over seeds. ↓ lower is better, ↑ higher is better; bold: the "
        "best mean of a column, where every setting has several seeds. S: share of zeros among the "
        "weights that can be sparse; p: drop fraction; dT: steps between topology updates. FLOPs "
        "are counted on paper: two per multiply-add, times density; training FLOPs are for the "
        "whole run, by the paper's formula and by the updates that the run made."
    )
    return _table(caption, groups, columns)


def _measured_table(comparison: Comparison) -> Table:
    groups = comparison.groups
    columns = {"FLOPs, one sample": _quantities(groups, "sampling_flops")}
    for key, heading in _SECONDS.items():
        if any(key in group.numbers for group in groups):
            columns[heading] = _means(groups, key, scale=1e3)
    if any(any(group.numbers.get("peak_memory_bytes", [])) for group in groups):
        columns["peak memory"] = _quantities(groups, "peak_memory_bytes", "B")
    columns["training loss, at the end"] = _means(groups, "loss")
    layers = "Sparse layers" if comparison.is_plain else "Layers whose single weights are sparse"
    caption = (
        f"Measured, mean ± standard deviation over seeds. {layers} are computed as dense ones "
        "with zeros, so time and memory don't show what the FLOPs say. Times are by the clock: "
        "other work on the machine is in them. Peak memory is that of the process or device that "
        "trained."
    )
    return _table(caption, groups, columns)


def _table(caption: str, groups: Sequence[Group], columns: Mapping[str, list[str]]) -> Table:
    """Return the table of some columns, with those that name a group before them."""
    body = [
        [*group.labels.values(), *cells]
        for group, *cells in zip(groups, *columns.values(), strict=True)
    ]
    levels = [group.sparsity for group in groups]
    breaks = tuple(i for i in range(1, len(levels)) if levels[i] != levels[i - 1])
    return Table(caption, [*groups[0].labels, *columns], body, 1, breaks)


def _quantities(groups: Sequence[Group], key: str, unit: str = "") -> list[str]:
    """Return the cells of a column of counts: their means."""
    return [
        quantity(group.spreads[key].mean) + unit if any(group.numbers.get(key, [])) else "–"
        for group in groups
    ]


def _means(
    groups: Sequence[Group], name: str, *, scale: float = 1.0, best: bool = False
) -> list[str]:
    """Return the cells of a column of means and standard deviations, the best mean bold.

    Nothing is bold where a setting has a single seed, since that may be chance.
    """
    spreads = [spread([scale * v for v in group.numbers.get(name, [])]) for group in groups]
    digits = decimals(spreads)
    means = [one.mean for one in spreads if one]
    marks = best and len(means) > 1 and all(one.std is not None for one in spreads if one)
    pick = max if higher_is_better(name) else min
    cells = []
    for group, one in zip(groups, spreads, strict=True):
        text = write_spread(one, digits, len(group.runs))
        is_best = marks and one and one.mean == pick(means)
        cells.append(f"**{text}**" if is_best else text)
    return cells


def differences_to_dense(groups: Sequence[Group], measure: str) -> list[Difference | None]:
    """Compare each group with the dense one of as many steps.

    Where there are dense ones of several sizes, a sparse model is compared with its own, and a
    small dense one with none.

    Args:
      groups: the runs by setting.
      measure: name of a measure.

    Returns:
      A difference per group, None where there is none to tell; an empty list if no group can be
      compared.
    """
    found: list[Difference | None] = []
    compared = False
    for group in groups:
        dense = [g for g in groups if g.method == "dense" and g.steps == group.steps]
        same = [g for g in dense if g.parameters == group.parameters]
        baseline = same if len(dense) > 1 else dense
        if baseline and group.method != "dense":
            compared = True
            ours, theirs = (g.by_seed.get(measure, {}) for g in (group, baseline[0]))
            found.append(difference(ours, theirs))
        else:
            found.append(None)
    return found if compared else []


def _reading(
    groups: Sequence[Group], measures: Sequence[str], differences: Sequence[Difference | None]
) -> list[str]:
    """Say in words how far differences can be trusted, those to dense first of all."""
    known = [one for one in differences if one]
    tested = [one for one in known if one.low is not None]
    is_single = len(groups) > 1 and all(len(group.runs) == 1 for group in groups)
    if measures and (is_single or (known and not tested)):
        return [
            "**With one seed per setting, a difference can't be told from noise:** repeat the runs "
            "with other seeds (`--seeds 0,1,2`)."
        ]
    if not tested:
        return []
    clear = sum(one.excludes_zero for one in tested)
    text = (
        f"Difference to dense: of `{measures[0]}`, run by run of the same seed, its mean with "
        f"Student's 95 % interval in brackets. {clear} of {len(tested)} intervals exclude "
        "zero; each stands alone, none is corrected for multiple comparisons. An interval that "
        "contains zero shows no difference, and doesn't show that there is none."
    )
    if min(len(group.runs) for group in groups) < 5:
        text += " With so few seeds per setting, standard deviations are rough."
    return [text]
