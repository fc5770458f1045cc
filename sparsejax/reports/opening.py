"""The opening of a report: where its numbers come from, what they mean, what doesn't compare."""

import re
from collections.abc import Iterable, Sequence

from sparsejax.quantities import counted
from sparsejax.reports.documents import Block, Items, Text
from sparsejax.reports.groups import Comparison
from sparsejax.reports.results import (
    HELD_OUT,
    PICTURES,
    Run,
    is_of_few,
    metric_of,
    sample_count,
    varied_keys,
)

_BASELINES = {
    "small_dense": "a dense model, narrowed to as many parameters as the sparse one of that S has "
    "active",
    "small_dense_flops": "a dense model, narrowed to the FLOPs of the sparse one of that S",
}
_STRUCTURES = (
    "**structure**: what is pruned and regrown as a unit: `weight`, single weights; `block N`, "
    "blocks of N x N input and output channels; `channel`, whole channels."
)
_METRICS = {
    "FD": "the Frechet distance between Gaussians fitted to the features of samples and of real "
    "examples",
    "FID": "the Frechet Inception distance",
    "KID": "an unbiased estimate of the squared kernel distance between both sets of features, "
    "which can be negative",
    "precision": "the share of samples that lie among the real examples in feature space",
    "recall": "the share of real examples that lie among the samples in feature space",
    "accuracy": "the share of samples in which a classifier of real examples sees the label that "
    "they were made for",
    "worst accuracy": "the same share of the label that has the smallest",
    "intra FD": "the mean of the Frechet distances between samples and real examples of each label",
    "IS": "the Inception Score's formula on the extractor's classes",
    HELD_OUT: "the mean loss over examples kept from training, with diffusion times and noise "
    "that are the same for every run",
    "W1": "the Wasserstein distance between samples and real examples of the one quantity in "
    "brackets",
}
_EXTRACTORS = {
    "classifier": "in the features of a small classifier that this project trains on the data's "
    "own labels. This is not FID and compares only with itself",
    "pixels": "of raw pixels, without any network. This is not FID either",
    "inception": "in the features of the network of the published FID",
}
# Config keys that make a setting, follow from it, or don't affect training and measures.
_SETTINGS = (
    *("name", "seed", "steps", "model.", "imports", "log.", "checkpoint."),
    *("task.source", "task.data_dir", "task.url", "sample.every", "sample.count"),
    *("sparsity.method", "sparsity.level", "sparsity.structure", "sparsity.block_size"),
    *("sparsity.fan_in", "sparsity.drop_fraction", "sparsity.update_interval", "sparsity.begin"),
)


def opening(comparison: Comparison, note: str, left_out: Sequence[str]) -> list[Block]:
    """Write the first blocks of a report.

    Args:
      comparison: the runs.
      note: free text.
      left_out: what the report lacks, and why.
    """
    blocks: list[Block] = [Text("; ".join(_facts(comparison)) + ".")]
    if note:
        blocks.append(Text(" ".join(note.split())))
    blocks += [Text(text) for text in _warnings(comparison)]
    meanings = _meanings(comparison)
    blocks += [Items(meanings)] if meanings else []
    if left_out:
        blocks.append(Text(f"Not shown, for lack of data: {'; '.join(left_out)}."))
    return blocks


def _facts(comparison: Comparison) -> Iterable[str]:
    runs, groups = comparison.runs, comparison.groups
    seeds = sorted({run.seed for run in runs})
    counts = sorted(set(filter(None, map(sample_count, comparison.measures))))
    seconds = [run.numbers["seconds"] for run in runs if "seconds" in run.numbers]
    facts = [
        f"**{counted(len(runs), 'run')}** of {counted(len(groups), 'setting')}, "
        f"{counted(len(seeds), 'seed')} ({_join(seeds)})",
        f"reference: {_known(runs, 'reference')}",
        "" if comparison.is_plain else f"structure: {_join(comparison.structures)}",
        f"samples per run: {_join(f'{count:,}' for count in counts)}" if counts else "",
        f"device: {_known(runs, 'device')}",
        f"versions: {_versions(runs)}",
        f"commit: {_commits(runs)}",
        f"dates: {_dates(runs)}",
        f"wall time of all runs: {_duration(sum(seconds))}" if seconds else "",
    ]
    return filter(None, facts)


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _known(runs: Sequence[Run], key: str) -> str:
    values = dict.fromkeys(run.shown[key] for run in runs if run.row.get(key))
    return " / ".join(map(str, values)) or "not recorded"


def _versions(runs: Sequence[Run]) -> str:
    versions: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in (run.row.get("versions") or {}).items():
            versions.setdefault(name, {})[version] = None
    return _join(f"{name} {' and '.join(map(str, v))}" for name, v in versions.items()) or (
        "not recorded"
    )


def _commits(runs: Sequence[Run]) -> str:
    values = dict.fromkeys(run.row.get("commit") for run in runs)
    return _join(f"`{value}`" if value else "not recorded" for value in values)


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({str(run.row["date"])[:10] for run in runs if run.row.get("date")})
    if not days:
        return "not recorded"
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _warnings(comparison: Comparison) -> list[str]:
    """Say what makes runs of one file hard to compare."""
    runs, measures = comparison.runs, comparison.measures
    rows, found = [run.row for run in runs], []
    few = [name for name in measures if is_of_few(name)]
    if few:
        better = "; the held-out loss needs fewer" if HELD_OUT in measures else ""
        counts = sorted(set(filter(None, map(sample_count, few))))
        found.append(
            f"**Of {_join(f'{count:,}' for count in counts)} samples, distances, precision and "
            "recall say little:** noise and bias outweigh most differences between settings. They "
            f"take a thousand samples and real examples{better}."
        )
    others = _other_differences(runs)
    if others:
        found.append(f"**The runs differ in more than their settings:** {', '.join(others)}.")
    floats = [run for run in runs if run.measured_on != PICTURES]
    if floats:
        some = "" if len(floats) == len(runs) else f", {len(floats)} of the {len(runs)} runs"
        found.append(
            f"**Measured before samples were clipped and rounded to {PICTURES} pictures, as they "
            f"are now{some}:** distances in features are of floats and don't compare exactly with "
            "newer ones."
        )
    if len({str(row.get("reference")) for row in rows}) > 1:
        found.append("**The runs were measured against different reference sets.**")
    if len({row.get("device") for row in rows}) > 1:
        found.append("The runs were made on different devices: their times don't compare.")
    if len({row.get("commit") for row in rows}) > 1:
        found.append("The runs were made at different commits.")
    if any(str(row.get("commit")).endswith("-dirty") for row in rows):
        found.append("`-dirty` marks runs of a checkout with uncommitted changes.")
    bad = [run for run in runs if run.has_gaps]
    if bad:
        found.append(
            f"Measures of {counted(len(bad), 'run')} that aren't finite numbers are left out of "
            "means; the number of values then stands beside the mean."
        )
    return [" ".join(found)] if found else []


def _other_differences(runs: Sequence[Run]) -> list[str]:
    """Say which config keys differ that neither name a setting nor leave a run as it is.

    One is `sparsity.end` of a run that was begun with another number of steps, and resumed.
    """
    several = len({run.row["steps"] for run in runs}) > 1
    expected = (*_SETTINGS, *(("sparsity.end",) if several else ()))
    return [
        f"`{key}` ({', '.join(values[:4])}{', ...' if len(values) > 4 else ''})"
        for key, values in varied_keys(runs, shared=True).items()
        if not key.startswith(expected)
    ]


def _meanings(comparison: Comparison) -> list[str]:
    """Say what the names in the tables mean."""
    measures = comparison.measures
    metrics = dict.fromkeys(map(metric_of, measures))
    texts = [f"**{name}**: {_METRICS[name]}." for name in metrics if name in _METRICS]
    inside = dict.fromkeys(
        match[1] for name in measures if (match := re.search(r"\[([^\]:]+)(:[^\]]*)?\]", name))
    )
    names = [name for name in inside if name in _EXTRACTORS]
    if names:
        texts += [f"`[{name}]`: {_EXTRACTORS[name]}." for name in names]
        texts.append(
            "After @ stands the sample count: distances depend on it. Where the reference is the "
            "training data, they don't distinguish a model that generalises from one that "
            "memorises."
        )
    texts += [] if comparison.is_plain else [_STRUCTURES]
    methods = {group.method for group in comparison.groups}
    texts += [f"`{name}`: {meaning}." for name, meaning in _BASELINES.items() if name in methods]
    return texts
