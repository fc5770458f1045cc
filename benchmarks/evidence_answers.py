"""The answers of docs/evidence.md: five sentences, and a verdict for each claim, from the rows."""

from benchmarks.evidence_plan import DATA_SETS, PLAN
from benchmarks.evidence_statistics import (
    BEATS,
    FD,
    GOOD,
    Cell,
    compare,
    counts,
    epochs,
    finding,
    spread_of,
    with_dense,
    with_method,
)
from sparsejax.reports.results import HELD_OUT

DYNAMIC, SPARSE = ("rigl", "magran"), ("static", "rigl", "magran")
MODERATE = (0.25, 0.5)
FACTORS = ("interval", "drop", "batches", "distribution")  # settings of the dynamic methods


def findings(rows):
    """Return triples of a claim, what the rows say of it, and the comparisons counted.

    The first three claims are the paper's, the others its reviewers' questions.
    """
    claims = [
        ("RigL-DM and MagRan-DM at S = 0.25 and 0.5 match or beat dense", moderate(rows), GOOD),
        ("Static-DM matches or beats dense", static_with_dense(rows), GOOD),
        ("at S = 0.75 a drop fraction of 0.05 is no worse than 0.5", safe_drop(rows), GOOD),
        ("dynamic methods beat Static-DM of the same S", against(rows, "static"), (BEATS,)),
        ("sparse beats small dense of equal size", against(rows, "small_dense"), (BEATS,)),
        ("RigL-DM beats growth at random (MagRan-DM)", methods_apart(rows), (BEATS,)),
    ]
    return [(claim, finding(ours, good), tally(ours)) for claim, ours, good in claims]


def main_data(rows):
    """Return the data sets with a comparison, in the order of the plan; the large ones last."""
    present = {row["data"] for row in rows if row["question"] == "main"}
    return [data for data in DATA_SETS if data in present]


def moderate(rows):
    """Compare the dynamic methods at S = 0.25 and 0.5 with dense, on every data set."""
    return sum((with_dense(rows, d, FD, DYNAMIC, MODERATE) for d in main_data(rows)), [])


def static_with_dense(rows):
    """Compare Static-DM with dense, on every data set and at every S."""
    return sum((with_dense(rows, d, FD, ("static",)) for d in main_data(rows)), [])


def against(rows, baseline):
    """Compare methods with a baseline of the same S: static, or small dense networks."""
    methods = DYNAMIC if baseline == "static" else SPARSE
    return sum((with_method(rows, d, FD, methods, baseline) for d in main_data(rows)), [])


def methods_apart(rows):
    """Compare RigL-DM with MagRan-DM at the same S."""
    return sum((with_method(rows, d, FD, ("rigl",), "magran") for d in main_data(rows)), [])


def safe_drop(rows):
    """Compare a drop fraction of 0.05 with that of 0.5."""
    return settings(rows, "drop", 0.05)


def settings(rows, question, value=None):
    """Compare the runs with another setting of the dynamic methods with the default."""
    studies = [
        study
        for study in PLAN
        if study.question == question and value in (None, *study.changes.values())
    ]
    pairs = [
        (Cell(study.name, *cell), Cell(study.data, *cell))
        for study in studies
        for cell in study.cells
    ]
    found = [compare(rows, ours, default, FD) for ours, default in pairs]
    return [one for one in found if one]


def tally(comparisons):
    """Write how many comparisons had which verdict."""
    if not comparisons:
        return "none yet"
    parts = [f"{number} {name}" for name, number in counts(comparisons).items()]
    return f"{', '.join(parts)} of {len(comparisons)}"


def percent(one):
    """Write a gain in per cent with its interval."""
    mean, *ends = (None if x is None else f"{100 * x:+.1f}" for x in one)
    return f"{mean} %" if None in ends else f"{mean} % [{', '.join(ends)}]"


def answers(rows):
    """Return the five sentences; none without a comparison."""
    if not moderate(rows):
        return []
    data = main_data(rows)
    seeds = [f"{name} n = {max(c.count for c in with_dense(rows, name, FD))}" for name in data]
    return [
        f"Do sparse models match dense ones? The claim {finding(moderate(rows))}: by the Frechet "
        f"distance, RigL-DM and MagRan-DM at S = 0.25 and 0.5 compared with dense: "
        f"{tally(moderate(rows))} ({', '.join(seeds)}); {extremes(moderate(rows))}.",
        f"Do dynamic topologies beat a static one? {sentence(against(rows, 'static'))}; RigL-DM "
        f"compared with MagRan-DM, which grows at random: {tally(methods_apart(rows))}.",
        "Does a sparse model beat a small dense one of equal parameters? "
        f"{sentence(against(rows, 'small_dense'))}.",
        few_images(rows),
        what_matters(rows),
    ]


def sentence(comparisons):
    """Write whether comparisons beat their baseline, and how much the difference is."""
    verdict = finding(comparisons, (BEATS,))
    return f"This {verdict}: {tally(comparisons)}; {extremes(comparisons)}"


def extremes(comparisons):
    """Write the best and the worst gain."""
    if not comparisons:
        return "no comparison yet"
    ordered = sorted(comparisons, key=lambda one: one.gain.mean)
    parts = [
        f"{name} {percent(one.gain)} ({one.cell.study}, {one.cell.method}, S = {one.cell.level:g})"
        for name, one in (("best", ordered[-1]), ("worst", ordered[0]))
    ]
    return "gain at " + ", at ".join(parts)


def few_images(rows):
    """Write the gain over dense at S = 0.5 with the fewest and with all training images."""
    parts = []
    for data in main_data(rows):
        studies = {s.name for s in PLAN if s.data == data and s.question in ("fraction", "main")}
        seen = {row["study"]: epochs(row) for row in rows if row["study"] in studies}
        if len(seen) > 1:
            order = sorted(seen, key=seen.get, reverse=True)
            parts += [gain_of(rows, study, seen[study]) for study in (order[0], order[-1])]
    question = "Does sparsity win where images are few and seen often? "
    return question + (f"{'; '.join(parts)}." if parts else "Not measured yet.")


def gain_of(rows, study, seen, level=0.5):
    """Write a study's gains over dense in held-out loss, and how near samples come to training."""
    dense, parts = Cell(study, "dense", 0.0), []
    for method in DYNAMIC:
        cell = Cell(study, method, level)
        one, share = compare(rows, cell, dense, HELD_OUT), spread_of(rows, cell, "nearest")
        if one and share:
            gain = percent(one.gain)
            parts.append(f"{method} {gain}, nearest {share.mean:.2f}")
    share = spread_of(rows, dense, "nearest")
    parts += [f"dense nearest {share.mean:.2f}"] if share else []
    return f"{study}, {seen:.0f} epochs, gain in held-out loss at S = {level:g}: {', '.join(parts)}"


def what_matters(rows):
    """Write which settings of the dynamic methods change the Frechet distance."""
    found = sum((settings(rows, question) for question in FACTORS), [])
    decided = [one for one in found if one.difference.excludes_zero]
    parts = [
        f"{one.cell.study.removeprefix(f'{one.baseline.study}-')} with {one.cell.method} "
        f"{percent(one.gain)}"
        for one in decided
    ]
    question = "Which settings matter for dynamic methods? "
    if not found:
        return question + "Not measured yet."
    listed = f": {', '.join(parts)}" if parts else ""
    return (
        f"{question}Of {len(found)} changes of one setting, {len(decided)} change the Frechet "
        f"distance clearly, where {0.05 * len(found):.1f} would by chance{listed}."
    )
