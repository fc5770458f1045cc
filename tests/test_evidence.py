"""The evidence study: its plan, what a call runs, and what is concluded from rows."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

from benchmarks import evidence, evidence_answers, evidence_plan, evidence_report
from benchmarks import evidence_statistics as statistics
from benchmarks.evidence_plan import DATA_SETS, LARGE, PLAN, Study, entries_of
from benchmarks.evidence_statistics import FD, Cell
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.reports.results import HELD_OUT
from sparsejax.reports.spreads import Difference
from tests.training.tiny import OVERRIDES, SMALL

PAGE = f"# Title\n\n{evidence_report.BEGIN}\nold\n{evidence_report.END}\n\nThe rest.\n"


def row_of(entry, fd, loss, **more):
    """A row as the study records it, with these measures."""
    study = entry.study
    config = {"batch_size": 32, "optimizer": {"learning_rate": 2e-3}}
    measures = {"FD[classifier:digits]@9": fd, HELD_OUT: loss, "nearest[pixels:8x8]@9": 0.5}
    row = {"run": entry.name, "study": study.name, "data": study.data, "question": study.question}
    row |= {"method": entry.method, "sparsity": entry.level, "seed": entry.seed, "steps": 60}
    row |= {"training_examples": 64, "wall_seconds": 120.0, "config": config}
    row |= {"active_parameters": int(1e6 * (1 - entry.level)), "training_flops_run": 1e12}
    row |= {"measures": measures, "commit": "abc", "device": "1 x cpu"}
    row |= {"machine": {"cpu": "a CPU", "cores": 2}}
    return row | more


def rows_of(study, value):
    """Rows of a study: `value(entry) -> (Frechet distance, held-out loss)`."""
    return [row_of(entry, *value(entry)) for entry in entries_of([study])]


def study_named(name):
    (study,) = (study for study in (*PLAN, *LARGE) if study.name == name)
    return study


def test_every_run_has_its_own_name_and_seeds_are_outermost():
    names = [entry.name for entry in entries_of([*PLAN, *LARGE])]
    assert len(set(names)) == len(names)
    digits = entries_of([study_named("digits")])
    assert len(digits) == 13 * 5
    assert [entry.seed for entry in digits] == sorted(entry.seed for entry in digits)
    assert [(e.method, e.level) for e in digits[:2]] == [("dense", 0), ("small_dense", 0.25)]
    order = [study.data for study in PLAN if study.question == "main"]
    assert order == ["digits", "fashion", "vmnist_like", "quickdraw", "kanji"]


def test_learning_rates_come_before_what_needs_them():
    tuned = set()
    for study in PLAN:
        if study.question == "rate":
            tuned.add(study.data)
        elif study.question != "real":
            assert (DATA_SETS[study.data].rates or study.data) in tuned


@pytest.mark.parametrize("study", [s for s in (*PLAN, *LARGE) if not DATA_SETS[s.data].source])
def test_the_config_of_every_study_is_valid_and_changes_what_it_says(study):
    rows = [
        row
        for rate, tried in zip(evidence_plan.RATES, evidence_plan.tuning(study.data), strict=True)
        for row in rows_of(tried, lambda entry, rate=rate: (1, abs(rate - 4e-3)))
    ]
    for row, rate in zip(rows, evidence_plan.RATES, strict=True):
        row["config"]["optimizer"]["learning_rate"] = rate
    config = resolve(evidence.config_of(study, rows, "nowhere"))
    for key, value in study.changes.items():
        section, name = key.split(".")
        assert config[section][name] == value
    if study.question not in ("rate", "real"):
        assert config.optimizer.learning_rate == 4e-3, "where the loss of dense is lowest"
    with pytest.raises(ConfigError, match="learning rates tried on .*: 0.001, 0.002; accepted"):
        evidence.chosen_rate(study.data, rows[:2])


def test_a_run_is_expected_to_take_longer_than_the_longest_like_it(tmp_path):
    first, second = entries_of([study_named("digits")])[:2]
    minutes = DATA_SETS["digits"].minutes
    assert evidence.expected_minutes(first, [], tmp_path) == minutes
    rows = [row_of(first, 1, 1, wall_seconds=seconds) for seconds in (100, 300, 200)]
    assert evidence.expected_minutes(second, rows, tmp_path) == pytest.approx(1.15 * 5)
    others = ("digits-real", "digits-samples", "digits-interval-25")
    real, sampled, interval = (entries_of([study_named(name)])[0] for name in others)
    assert evidence.expected_minutes(interval, rows, tmp_path) == pytest.approx(1.15 * 5)
    assert evidence.expected_minutes(real, rows, tmp_path) < minutes / 2
    # What is sampled again is trained again where its workdir is gone.
    assert evidence.expected_minutes(sampled, rows, tmp_path) == pytest.approx(1.15 * 5)
    (tmp_path / "digits-dense-0").mkdir()
    (tmp_path / "digits-dense-0" / "result.json").write_text("{}")
    assert evidence.expected_minutes(sampled, rows, tmp_path) < minutes / 2


def test_no_run_is_begun_that_would_not_end_in_time(tmp_path, capsys):
    evidence.main(["--minutes=3", f"--output={tmp_path}", f"--workdirs={tmp_path}"])
    assert capsys.readouterr().out == (
        "digits-rate-0.001-dense-100 takes about 3.5 minutes, 3.0 are left\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_list_names_what_is_missing(tmp_path, capsys):
    study = study_named("digits")
    rows = rows_of(study, lambda entry: (1, 1))
    lines = "".join(json.dumps(row) + "\n" for row in rows[:-2])
    (tmp_path / "results.jsonl").write_text(lines + json.dumps(rows[-1])[:40])
    evidence.main(["--list", "--studies=digits", f"--output={tmp_path}"])
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["digits-rigl-0.75-4", "2.3", "min"]
    assert second.split()[0] == "digits-magran-0.75-4"
    assert last == "2 of 65 runs are missing: about 0.1 hours"
    with pytest.raises(ConfigError, match="--studies dgits; accepted: digits-rate-0.001, "):
        evidence.main(["--list", "--studies=dgits"])


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_and_verdicts_are_those_of_a_paired_test(seeds):
    """Against scipy, for differences from far better to far worse than the margin."""
    rng, seen = np.random.default_rng(seeds), set()
    for shift, noise in itertools.product(np.linspace(-2, 2, 17), (0.02, 0.3, 1.5)):
        dense = 10 + rng.normal(size=seeds)
        ours = dense + shift + noise * rng.normal(size=seeds)
        study = Study("s", "digits", "main", (("dense", 0.0), ("rigl", 0.5)), tuple(range(seeds)))
        values = {"dense": dense, "rigl": ours}
        rows = rows_of(study, lambda e, values=values: (values[e.method][e.seed], 1))
        one = statistics.compare(rows, Cell("s", "rigl", 0.5), Cell("s", "dense", 0.0), FD)
        result = scipy.stats.ttest_rel(ours, dense)
        low, high = result.confidence_interval(0.95)
        np.testing.assert_allclose(one.difference, [(ours - dense).mean(), low, high])
        margin = 0.05 * dense.mean()
        assert (one.margin, one.count) == (pytest.approx(margin), seeds)
        if one.verdict == "beats":
            assert result.statistic < 0
            assert result.pvalue < 0.05
        elif one.verdict == "worse":
            assert result.statistic > 0
            assert result.pvalue < 0.05
            assert high >= margin
        elif one.verdict == "matches":  # two one-sided tests, at half the level
            for bound, side in ((margin, "less"), (-margin, "greater")):
                one_sided = scipy.stats.ttest_1samp(ours - dense, bound, alternative=side)
                assert one_sided.pvalue < 0.025
        elif one.verdict == "not worse":
            test = scipy.stats.ttest_1samp(ours - dense, margin, alternative="less")
            assert test.pvalue < 0.025
            assert low <= -margin
        else:
            assert low <= 0
            assert high >= margin
        seen.add(one.verdict)
    assert seen == set(statistics.VERDICTS)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-3.0, -0.1), "beats"),
        ((-0.2, -0.1), "beats"),
        ((-0.9, 0.9), "matches"),
        ((0.1, 0.9), "matches"),
        ((-1.0, 0.9), "not worse"),
        ((0.1, 1.0), "worse"),
        ((-0.1, 1.0), "undecided"),
        ((-3.0, 3.0), "undecided"),
        ((None, None), "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_margin(interval, expected):
    ends = [x for x in interval if x is not None]
    assert statistics.verdict(Difference(sum(ends) / 2, *interval), 1.0) == expected


def comparisons(*verdicts):
    return [
        statistics.Comparison(None, None, FD, None, None, 1.0, verdict, 3) for verdict in verdicts
    ]


@pytest.mark.parametrize(
    ("verdicts", "good", "expected"),
    [
        (["beats", "matches", "not worse"], statistics.GOOD, "holds"),
        (["beats", "worse"], statistics.GOOD, "holds in part"),
        (["matches", "undecided"], statistics.GOOD, "holds in part"),
        (["worse", "undecided"], statistics.GOOD, "doesn't hold"),
        (["undecided"], statistics.GOOD, "can't be decided here"),
        ([], statistics.GOOD, "can't be decided here"),
        (["beats", "beats"], ("beats",), "holds"),
        (["matches", "not worse"], ("beats",), "doesn't hold"),
        (["not worse", "undecided"], ("beats",), "can't be decided here"),
    ],
)
def test_a_claim_holds_as_the_protocol_says(verdicts, good, expected):
    assert statistics.finding(comparisons(*verdicts), good) == expected


def value(entry):
    """Dense 10; rigl 8, magran 10.1, static 12, small dense 9, each with a little noise."""
    base = {"dense": 10, "rigl": 8, "magran": 10.1, "static": 12, "small_dense": 9}[entry.method]
    wave = math.sin(7 * entry.seed + len(entry.method))
    few = 0.8 if entry.study.question == "fraction" and entry.method == "rigl" else 1
    return few * base + 0.1 * entry.seed + 0.02 * wave, few * (0.2 + 0.001 * base + 1e-5 * wave)


@pytest.fixture
def rows():
    """Two data sets, digits with 10 % of the images, a setting, learning rates and noise."""
    found = []
    names = ("digits", "kanji", "digits-10percent", "digits-drop-0.05", "digits-samples")
    for name in names:
        found += rows_of(study_named(name), value)
    for row in found:
        if row["study"] == "digits-10percent":
            row["training_examples"] = 6
    for study, loss in zip(evidence_plan.tuning("digits"), (0.3, 0.2, 0.25), strict=True):
        (row,) = rows_of(study, lambda entry, loss=loss: (1, loss))
        row["config"]["optimizer"]["learning_rate"] = study.changes["optimizer.learning_rate"]
        found.append(row)
    (real,) = entries_of([study_named("digits-real")])
    spreads = {"FD[classifier:digits]@9": 0.25, "nearest[pixels:8x8]@9": 0.01}
    return [*found, row_of(real, 2.0, 0.1, spreads=spreads, draws=10)]


def test_the_findings_are_counted_over_data_sets(rows):
    found = {claim: (verdict, tally) for claim, verdict, tally in evidence_answers.findings(rows)}
    assert list(found.values()) == [
        ("holds", "3 beats, 3 matches of 6"),
        ("doesn't hold", "4 worse of 4"),
        ("holds", "2 matches of 2"),
        ("holds", "8 beats of 8"),
        ("holds in part", "4 beats, 8 worse of 12"),
        ("holds", "4 beats of 4"),
    ]


def test_the_answers_name_their_figures(rows):
    first, second, third, fourth, fifth = evidence_answers.answers(rows)
    assert "The claim holds" in first
    assert "digits n = 5, kanji n = 3" in first
    runs = entries_of([study_named("kanji")])
    dense, ours = ([value(r)[0] for r in runs if r.method == name] for name in ("dense", "rigl"))
    gain = 1 - np.array(ours) / dense
    low, high = scipy.stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    figures = f"{100 * gain.mean():+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert f"gain at best {figures} (kanji, rigl, S = 0.5), at worst" in first
    assert "This holds: 8 beats of 8" in second
    assert "This holds in part" in third
    assert "digits-10percent, 320 epochs" in fourth
    assert "digits, 30 epochs" in fourth
    assert "Of 2 changes of one setting, 0 change the Frechet distance clearly" in fifth
    assert evidence_answers.answers([]) == []


def test_the_report_has_all_tables_and_the_page_the_answers(rows, tmp_path, capsys):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "results.jsonl").write_text(lines + '{"run": "torn')
    page = tmp_path / "evidence.md"
    page.write_text(PAGE)
    evidence_report.main([f"--output={tmp_path}", f"--page={page}"])
    assert f"In {tmp_path}: report.md, quality.png, epochs.png" in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    tables = text.split("### ")
    (digits,) = (part for part in tables if part.startswith("digits\n"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in digits.splitlines()[2:]]
    header, _, dense, *others = (line for line in cells if line)
    assert len(others) == 12
    assert dict(zip(header, dense, strict=True))["verdict, Frechet distance"] == "–"
    (ours,) = (line for line in others if line[:2] == ["rigl", "0.5"])
    ours = dict(zip(header, ours, strict=True))
    assert ours["verdict, Frechet distance"] == "beats"
    assert ours["n"] == "5"
    assert ours["difference to dense, Frechet distance"].startswith("-2.0")
    assert "### digits-10percent: 6 images, each seen 320 times" in text
    assert "| digits | Frechet distance | 2.0 ± 0.2 | 10.2 ± 0.2 |" in text
    assert "| digits | 0.3000 | 0.2000 | 0.2500 | 0.002 |" in text
    assert "`sparsity.drop_fraction` | 0.05 | rigl | 0.75" in text
    answers = evidence_answers.answers(rows)
    assert page.read_text() == evidence_report.page_with(PAGE, rows)
    assert all(one in page.read_text() for one in answers)
    planned = {entry.name for entry in evidence_plan.entries_of(evidence_plan.PLAN)}
    done = len(planned & {row["run"] for row in rows})
    assert f"**Provisional: {done} of {len(planned)} planned runs are in.**" in page.read_text()
    assert page.read_text().endswith(f"{evidence_report.END}\n\nThe rest.\n")
    for name in ("quality", "epochs"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_report_can_be_written_after_any_run(rows):
    """In the order of the rows, and with a method that failed everywhere."""
    for count in (1, 2, 3, 5, 14, len(rows) - 5):
        text = evidence_report.report(rows[:count])
        assert text.count("| dense | 0 |") >= 1
    without = [row for row in rows if row["method"] != "dense"]
    comparisons = evidence_report.report(without).split("## Comparisons")[1].split("\n## ")[0]
    assert "| magran | 0.5 |" in comparisons
    assert "beats" not in comparisons


def test_a_page_without_results_says_so(tmp_path):
    page = tmp_path / "evidence.md"
    page.write_text(PAGE)
    evidence_report.main([f"--output={tmp_path / 'none'}", f"--page={page}"])
    assert page.read_text() == PAGE.replace("old", "No results yet.")
    page.write_text("no marks")
    with pytest.raises(ConfigError, match="has no place for the answers"):
        evidence_report.main([f"--output={tmp_path / 'none'}", f"--page={page}"])


def test_the_committed_page_and_report_are_those_of_the_committed_results():
    rows, text = evidence.read_rows(evidence.OUTPUT), evidence_report.PAGE.read_text()
    assert evidence_report.page_with(text, rows) == text
    assert (evidence.OUTPUT / "report.md").read_text() == evidence_report.report(rows)


@pytest.mark.slow
def test_runs_are_trained_measured_recorded_and_not_repeated(tmp_path, monkeypatch, capsys):
    """Dense, RigL, another sampling, real examples, with a small network in place of the UNet."""
    changes = OVERRIDES | SMALL | {"steps": 10, "checkpoint.every": 5, "log.every": 5}
    changes.pop("name")
    small = DATA_SETS["digits"]._replace(samples=40, changes=changes, minutes=0.1)
    monkeypatch.setitem(DATA_SETS, "digits", small)
    monkeypatch.setattr(evidence, "METRICS", ("fd", "nearest"))
    dense, rigl = (("dense", 0.0),), (("rigl", 0.5),)
    studies = [
        Study("digits-rate-0.002", "digits", "rate", dense, (100,)),
        Study("digits", "digits", "main", dense + rigl, (0,)),
        Study("digits-samples", "digits", "samples", dense, (1,)),
        Study("digits-real", "digits", "real", (("real", 0.0),), (0,)),
    ]
    monkeypatch.setattr(evidence, "RATES", (2e-3,))
    monkeypatch.setattr(evidence, "PLAN", studies)
    flags = ["--minutes=10", f"--output={tmp_path / 'out'}", f"--workdirs={tmp_path / 'runs'}"]
    evidence.main(flags)
    rows = {row["run"]: row for row in evidence.read_rows(tmp_path / "out")}
    assert list(rows) == [entry.name for entry in entries_of(studies)]
    for row in rows.values():
        assert math.isfinite(statistics.by_metric(row, FD))
        assert 0 <= statistics.by_metric(row, "nearest") <= 1
        assert row["training_examples"] == 1200
        assert row["wall_seconds"] > 0
        assert row["machine"]["cores"] >= 1
        assert "commit" in row
    assert rows["digits-real-real-0"]["draws"] == 10
    main, sampled = rows["digits-dense-0"], rows["digits-samples-dense-1"]
    assert main["measures"][HELD_OUT] == sampled["measures"][HELD_OUT]
    assert main["measures"] != sampled["measures"]
    assert (sampled["evaluation"]["seed"], main["evaluation"]["seed"]) == (1, 0)
    pictures = sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert pictures == ["digits-dense-0.png", "digits-rate-0.002-dense-100.png"] + [
        "digits-rigl-0.5-0.png"
    ]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    evidence.main(flags)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before

    # Another seed of a study whose config has changed since is refused.
    studies[1] = studies[1]._replace(seeds=(0, 1))
    changes["steps"] = 11
    with pytest.raises(ConfigError, match=r"digits-dense-1 differs from digits-dense-0 \(.*steps"):
        evidence.main(flags)
