"""What a report leaves out or warns of: few seeds or samples, what is damaged or not there."""

import json
import math
import pathlib

import pytest
from PIL import Image

from sparsejax.errors import ConfigError
from sparsejax.reports import report
from sparsejax.reports.results import read_results
from tests.reports.test_figures import FD, HELD_OUT, make_row
from tests.reports.test_report import Page, agrees, columns_of, make_runs, markdown_tables, write


def test_what_is_not_recorded_may_be_none(tmp_path):
    row = make_row(layers=2) | dict.fromkeys(("block_size", "commit", "layers", "versions"))
    (tmp_path / "results.jsonl").write_text(json.dumps(row))
    assert read_results(tmp_path) == [row]
    assert write(tmp_path, [row])


def test_one_run_gives_a_report(tmp_path):
    row = make_row(layers=4)
    _, page = write(tmp_path, [row], runs=tmp_path / "nowhere")
    text = Page(page).text
    assert "1 run of 1 setting, 1 seed (0)" in text
    assert "Not shown" in text
    for words in ("drop fraction", "overlap of masks", "pictures of samples"):
        assert words in text.split("Not shown")[1].split(".\n")[0]
    assert "difference to dense" not in text
    assert "±" not in "".join(
        cell for table in Page(page).tables for line in table for cell in line
    )


def test_runs_without_any_measure_give_a_report(tmp_path):
    rows = [make_row("dense", 0.0, seed, measures={}) for seed in range(2)]
    for key in ("layers", "ever_active", "seconds", "date", "versions", "device", "config", "loss"):
        for row in rows:
            del row[key]
    _, page = write(tmp_path, rows)
    text = Page(page).text
    assert "no run has a finite measure of quality" in text
    assert "not recorded" in text
    assert not [name for name, _ in Page(page).tags if name == "svg"]


def test_a_value_that_is_no_number_is_left_out_and_said_so(tmp_path):
    rows = [make_row("static", 0.5, seed, layers=2) for seed in range(3)]
    for row, value in zip(rows, (1.0, 3.0, math.nan), strict=True):
        row["measures"] = {HELD_OUT: value}
    markdown, _ = write(tmp_path, rows)
    table = markdown_tables(markdown)[0]
    cells = dict(zip(table[0], table[1], strict=True))
    assert cells[f"{HELD_OUT} ↓"] == "2.00 ± 1.41 (n = 2)"
    assert "of 1 run that aren't finite numbers are left out of means" in markdown


def test_one_seed_has_no_interval_and_it_says_why(tmp_path):
    rows = [make_row("dense", 0.0, layers=2), make_row("static", 0.5, layers=2)]
    markdown, _ = write(tmp_path, rows)
    table = markdown_tables(markdown)[0]
    cells = dict(zip(table[0], table[2], strict=True))
    change = rows[1]["measures"][FD] - rows[0]["measures"][FD]
    assert agrees(cells["FD, difference to dense"].lstrip("+"), change)
    assert "With one seed per setting, a difference can't be told" in markdown


def test_nothing_is_bold_and_it_says_why_where_a_setting_has_one_seed(tmp_path):
    rows = [make_row("magran", level, layers=2) for level in (0.5, 0.75)]
    markdown, _ = write(tmp_path, rows)
    assert not [cell for line in markdown_tables(markdown)[0] for cell in line if "**" in cell]
    assert "With one seed per setting, a difference can't be told from noise" in markdown
    both = [make_row("magran", level, seed, layers=2) for level in (0.5, 0.75) for seed in (0, 1)]
    markdown, _ = write(tmp_path, both)
    assert [cell for line in markdown_tables(markdown)[0] for cell in line if "**" in cell]
    assert "With one seed per setting" not in markdown


def test_measures_of_few_samples_come_last_and_are_warned_of(tmp_path):
    few, many = (f"FD[pixels:16x16]@{count}" for count in (199, 200))
    for name, is_few in ((few, True), (many, False)):
        rows = [make_row("static", 0.5, measures={name: 57.2, HELD_OUT: 0.109}, layers=2)]
        text, _ = write(tmp_path, rows)
        shown = [cell for cell in markdown_tables(text)[0][0] if cell[-1] in "↑↓"]
        order = (HELD_OUT, few) if is_few else (many, HELD_OUT)
        assert shown == [f"{measure} ↓" for measure in order]
        words = "**Of 199 samples, distances, precision and recall say little:**"
        assert (words in text) == is_few
        assert ("the held-out loss needs fewer" in text) == is_few


def test_runs_that_hardly_compare_are_named(tmp_path):
    rows = [make_row("dense", 0.0, seed, layers=2) for seed in range(2)]
    rows[1] |= {"commit": "def-dirty", "device": "8 x H100", "reference": "kanjivg test"}
    markdown, _ = write(tmp_path, rows)
    for words in ("different reference sets", "different devices", "different commits", "-dirty"):
        assert words in markdown


def test_runs_that_differ_in_more_than_their_settings_are_named(tmp_path):
    """Such as one that was begun with more steps, and so updates its topology for longer."""

    def rows(first, second, steps=(400, 400)):
        made = [make_row("magran", level, layers=2) for level in (0.5, 0.75)]
        for row, keys, count in zip(made, (first, second), steps, strict=True):
            row["steps"] = row["config"]["steps"] = count
            row["config"]["sparsity"] |= keys
        return made

    words = "differ in more than their settings"
    markdown, _ = write(tmp_path, rows({"end": 750}, {"end": 300}))
    assert f"The runs {words}:** `sparsity.end` (750, 300)." in markdown
    assert words not in write(tmp_path, rows({"end": 300}, {"end": 300}))[0]
    assert words not in write(tmp_path, rows({"end": 300}, {}))[0], "older rows lack the key"
    assert words not in write(tmp_path, rows({"end": 750}, {"end": 300}, (1000, 400)))[0]


def test_it_says_what_was_measured_before_pictures_were_rounded(tmp_path):
    rows = [make_row("dense", 0.0, seed, layers=2) for seed in range(3)]
    words = "Measured before samples were clipped and rounded to 8-bit pictures"
    assert words not in write(tmp_path, rows)[0]
    del rows[1]["pictures"]
    for text in write(tmp_path, rows):
        assert f"{words}, as they are now, 1 of the 3 runs:" in text
    tables = markdown_tables((tmp_path / "report.md").read_text())
    (table,) = (table for table in tables if table[0][0] == "run")
    assert [line[-1] for line in table] == ["samples measured as", "8-bit", "floats", "8-bit"]
    for row in rows:
        row["pictures"] = "floats"
    for text in write(tmp_path, rows):
        assert f"{words}, as they are now:" in text
    # Losses and Inception's features were never of floats.
    for row in rows:
        row["measures"] = {HELD_OUT: 0.1, "FID[inception:2048]@50000": 9.0}
        del row["pictures"]
    assert words not in write(tmp_path, rows)[0]


def test_the_committed_results_say_what_was_measured():
    """Of floats where samples are pixels; rasters of drawings have always been 8-bit."""
    results = pathlib.Path(__file__).resolve().parents[2] / "docs" / "results"
    found = {}
    for path in {*results.glob("*/results.jsonl")} - {results / "evidence" / "results.jsonl"}:
        rows = read_results(path)
        (found[path.parent.name],) = {row["pictures"] for row in rows}
        text = (path.parent / "report.md").read_text(encoding="utf-8")
        is_old = found[path.parent.name] == "floats"
        assert ("Measured before samples were clipped and rounded" in text) == is_old
    assert found.pop("digits") == found.pop("structure_digits") == "floats"
    assert set(found.values()) == {"8-bit"}


def test_damaged_masks_and_pictures_are_left_out(tmp_path):
    rows = [make_row("static", 0.5, seed, layers=3) for seed in range(3)]
    runs = make_runs(tmp_path / "runs", rows)
    (runs / rows[0]["run"] / "evaluation" / "masks.npz").write_bytes(b"torn")
    (runs / rows[0]["run"] / "evaluation" / "samples.png").write_bytes(b"\x89PNG torn")
    markdown, page = write(tmp_path, rows, runs=runs)
    table = next(t for t in markdown_tables(markdown) if "overlap, mean" in t[0])
    assert table[1][columns_of(table)["pairs"]] == "1"
    told = f"(not there; {rows[0]['run']}: its masks can't be read: it isn't an npz"
    assert f"masks of 1 sparse run {told}" in markdown
    assert [attrs["alt"] for name, attrs in Page(page).tags if name == "img"][1].count("seed 1")


def test_a_picture_beyond_the_limit_is_left_out(tmp_path, monkeypatch):
    rows = [make_row("static", 0.5, seed, layers=1, measures={}) for seed in range(2)]
    runs = make_runs(tmp_path / "runs", rows)
    place = runs / rows[0]["run"] / "evaluation" / "samples.png"
    Image.new("L", (1000, 1001)).save(place)
    monkeypatch.setenv("SPARSEJAX_LIMITS", "image_pixels=1000000")
    _, page = write(tmp_path, rows, runs=runs)
    assert [attrs["alt"] for name, attrs in Page(page).tags if name == "img"][1].count("seed 1")


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no runs"):
        report.write_report(tmp_path / "report", [])
    assert not (tmp_path / "report").exists()
