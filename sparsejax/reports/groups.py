"""Runs grouped by setting, with all that tables and figures take from them.

`compare` reads the rows once; what comes after works on groups of runs that differ in nothing but
the seed: their names, their numbers, the spreads of these.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from sparsejax.quantities import quantity
from sparsejax.reports.results import Row, Run, is_spread, measure_names, read_row
from sparsejax.reports.spreads import Spread, spreads_of

# Method, structure, sparsity, drop fraction, update interval, steps, parameters.
Setting: TypeAlias = tuple[str, str, float, float | None, int | None, int, int | None]

_DENSE = ("dense", "small_dense", "small_dense_flops")
_METHODS = (*_DENSE, "static", "rigl", "magran", "gradual", "one_shot")
_STRUCTURES = ("weight", "block", "channel")


class Group(NamedTuple):
    """Runs of one setting.

    Attributes:
      method: name of the method or of the small dense model.
      structure: what is pruned and regrown as one, such as `weight`, `block 64` (free) or
        `block 16x64 fan-in` (of constant fan-in).
      sparsity: of the whole model; of a small dense one, that of the model it is as small as.
      drop_fraction: None where there is none.
      update_interval: None where there is none.
      steps: optimizer steps.
      parameters: of the network; None if the rows don't say.
      runs: by seed.
      numbers: the finite numbers of the runs, by measure or key.
      by_seed: the same as `{seed: number}`.
      spreads: mean and standard deviation of these numbers.
      kind: place of the structure among those of the comparison; 0 if the group isn't sparse.
      labels: the cells that name the group in a table, by heading.
      series: its name among all groups, but for the sparsity: `rigl, p 0.05`.
      name: its name among all groups: `rigl, S 0.9, p 0.05`.
    """

    method: str
    structure: str
    sparsity: float
    drop_fraction: float | None
    update_interval: int | None
    steps: int
    parameters: int | None
    runs: list[Run]
    numbers: dict[str, list[float]]
    by_seed: dict[str, dict[int, float]]
    spreads: dict[str, Spread]
    kind: int
    labels: dict[str, str]
    series: str
    name: str

    @property
    def setting(self) -> tuple[object, ...]:
        """What all runs of the group have in common, networks of several sizes apart."""
        return self[:6]

    def without(self, name: str) -> tuple[object, ...]:
        """Return the setting but for one of its fields."""
        return tuple(getattr(self, field) for field in self._fields[:6] if field != name)

    @property
    def is_sparse(self) -> bool:
        """Whether the runs have masks: neither dense nor a small dense model."""
        return self.method not in _DENSE


class Comparison(NamedTuple):
    """Runs to compare.

    Attributes:
      runs: in the order of the results file.
      groups: the same by setting, in the order in which they are shown.
      names: of all measures of which there is a finite number, the most important first.
      structures: of the sparse groups, single weights first.
    """

    runs: list[Run]
    groups: list[Group]
    names: list[str]
    structures: list[str]

    @property
    def measures(self) -> list[str]:
        """The names but for spreads of other measures, such as `KID std[...]`."""
        return [name for name in self.names if not is_spread(name)]

    @property
    def is_plain(self) -> bool:
        """Whether there is no structure other than single weights."""
        return self.structures in ([], ["weight"])


def compare(rows: Sequence[Row]) -> Comparison:
    """Read the rows of a results file, and group the runs that differ in the seed only.

    Groups are the same setting and networks of one size. They are in the order of sparsity, then
    method and structure, then the largest drop fraction first.

    Args:
      rows: lines of results.jsonl.
    """
    runs, names = [read_row(row) for row in rows], measure_names(rows, spreads=True)
    gathered: dict[Setting, list[Run]] = {}
    for run in runs:
        gathered.setdefault(_setting(run.row), []).append(run)
    groups = [_group(setting, found) for setting, found in gathered.items()]
    groups = sorted(groups, key=_order)
    sparse = {group.structure for group in groups if group.is_sparse}
    structures = sorted(sparse, key=_structure_order)
    return Comparison(runs, _named(groups, structures), names, structures)


def _setting(row: Row) -> Setting:
    """Return the first fields of a Group; a row older than `structure` is of single weights."""
    structure = row.get("structure") or "weight"
    if row.get("block_size"):
        size = row["block_size"]  # a pair if it has a length
        structure += f" {'x'.join(map(str, size)) if isinstance(size, list | tuple) else size}"
    structure += " fan-in" if row.get("fan_in") else ""
    return (
        row["method"],
        structure,
        row["sparsity"],
        row.get("drop_fraction"),
        row.get("update_interval"),
        row["steps"],
        row.get("parameters"),
    )


def _group(setting: Setting, runs: Sequence[Run]) -> Group:
    runs = sorted(runs, key=lambda run: run.seed)
    numbers: dict[str, list[float]] = {}
    by_seed: dict[str, dict[int, float]] = {}
    for run in runs:
        for name, value in run.numbers.items():
            numbers.setdefault(name, []).append(value)
            by_seed.setdefault(name, {})[run.seed] = value
    return Group(*setting, runs, numbers, by_seed, spreads_of(numbers), 0, {}, "", "")


def _order(group: Group) -> tuple:
    rank = _METHODS.index(group.method) if group.method in _METHODS else len(_METHODS)
    fraction, interval = -(group.drop_fraction or 0), group.update_interval or 0
    setting = (_structure_order(group.structure), fraction, interval, group.steps or 0)
    return group.sparsity, rank, group.method, *setting


def _structure_order(name: str) -> tuple[int, str, list[int], str]:
    kind, _, size = name.partition(" ")
    rank = _STRUCTURES.index(kind) if kind in _STRUCTURES else len(_STRUCTURES)
    return rank, kind, [int(number) for number in re.findall(r"\d+", size)], name


def _named(groups: Sequence[Group], structures: Sequence[str]) -> list[Group]:
    """Return the groups with their names; what is the same for all groups is left out."""
    several = len(structures) > 1
    return [
        group._replace(
            kind=structures.index(group.structure) if group.is_sparse else 0,
            labels=_labels(group, groups, several),
            series=", ".join([group.method, *_parts(group, groups, several, level=False)]),
            name=", ".join([group.method, *_parts(group, groups, several, level=True)]),
        )
        for group in groups
    ]


def _labels(group: Group, groups: Sequence[Group], several: bool) -> dict[str, str]:
    labels = {"method": group.method}
    if several:
        labels["structure"] = group.structure if group.is_sparse else "–"
    labels["S"] = f"{group.sparsity:g}"
    labels["p"] = _or_dash(group.drop_fraction)
    labels["dT"] = _or_dash(group.update_interval)
    if len({other.steps for other in groups}) > 1:
        labels["steps"] = f"{group.steps:,}"
    return labels | {"seeds": str(len(group.runs))}


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _parts(group: Group, groups: Sequence[Group], several: bool, level: bool) -> list[str]:
    """Return the parts of a name that tell a group from the others."""
    parts = [group.structure] if group.is_sparse and several else []
    if level and group.sparsity:
        parts.append(f"S {group.sparsity:g}")
    for key, sign in (("drop_fraction", "p"), ("update_interval", "dT")):
        known = {getattr(other, key) for other in groups} - {None}
        if len(known) > 1 and getattr(group, key) is not None:
            parts.append(f"{sign} {getattr(group, key):g}")
    if len({other.steps for other in groups}) > 1:
        parts.append(f"{group.steps:,} steps")
    if sum(other.setting == group.setting for other in groups) > 1:
        parts.append(f"{quantity(group.parameters or 0)} parameters")
    return parts
