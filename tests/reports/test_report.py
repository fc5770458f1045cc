"""The report of many runs: numbers recomputed, the page parsed."""

import base64
import html.parser
import io
import itertools
import json
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from sparsejax.reports import markdown, overlap, report
from sparsejax.reports.page import inline
from sparsejax.reports.results import read_results
from tests.reports.test_figures import FD, HELD_OUT, make_row, make_rows

_VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """What a page holds; fails where tags don't match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def make_runs(folder, rows):
    """Write masks and pictures of runs, drawn at random."""
    rng = np.random.default_rng(0)
    for row in rows:
        place = folder / row["run"] / "evaluation"
        place.mkdir(parents=True)
        masks = {}
        for name, (active, weights) in row["layers"].items():
            mask = np.zeros(weights, bool)
            mask[rng.permutation(weights)[:active]] = True
            masks |= {name: np.packbits(mask)} if active < weights else {}
        np.savez(place / "masks.npz", **masks)
        for name, side in (("samples", 40), ("real", 40)):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{name}.png")
    return folder


def write(folder, rows, **options):
    """Write a report; return its Markdown and its page."""
    markdown, page = report.write_report(folder, rows, **options)
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows():
    made = make_rows(levels=(0.5, 0.9), layers=10)
    for index, row in enumerate(made):
        row["measures"][HELD_OUT] = 0.12 + 1e-4 * (index * 7 % 13)
    return made


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    runs = make_runs(folder / "runs", rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "results.jsonl").write_text(lines)
    texts = write(folder, read_results(folder), runs=runs, note="DDIM, 50 steps")
    return folder, *texts


def markdown_tables(text):
    """Return the tables of a Markdown file: lists of lines, lists of cells."""
    tables = []
    for before, line in itertools.pairwise(["", *text.splitlines()]):
        if line.startswith("| "):
            if not before.startswith("| "):
                tables.append([])
            tables[-1].append(line.strip("| ").split(" | "))
    return [[lines[0], *lines[2:]] for lines in tables]


def columns_of(table):
    return {name: index for index, name in enumerate(table[0])}


def of_setting(rows, cells, columns):
    """Return the rows that a line of a table is about."""

    def same(value, cell):
        return cell == ("–" if value is None else f"{value:g}")

    return [
        row
        for row in rows
        if row["method"] == cells[columns["method"]]
        and same(row["sparsity"], cells[columns["S"]])
        and same(row["drop_fraction"], cells[columns["p"]])
        and same(row["update_interval"], cells[columns["dT"]])
    ]


def agrees(text, value):
    """Tell whether a written number is this value, rounded as far as it is written."""
    digits = len(text.partition(".")[2])
    return text == f"{value:.{digits}f}"


def test_cells_are_means_and_standard_deviations(rows, written):
    table = markdown_tables(written[1])[0]
    columns = columns_of(table)
    shown = [name for name in table[0] if name[-1] in "↑↓"]
    assert shown == [
        f"{FD} ↓",
        "precision[classifier:digits]@1797 ↑",
        "KID[classifier:digits]@1797 ↓",
        "recall[classifier:digits]@1797 ↑",
        f"{HELD_OUT} ↓",
    ]
    assert len(table) - 1 == 13
    for name, cells in itertools.product(shown, table[1:]):
        values = [row["measures"][name[:-2]] for row in of_setting(rows, cells, columns)]
        assert cells[columns["seeds"]] == str(len(values)) == "3"
        mean, spread = cells[columns[name]].strip("*").split(" ± ")
        assert agrees(mean, np.mean(values))
        assert agrees(spread, np.std(values, ddof=1))
        assert len(mean.replace(".", "").lstrip("0")) >= 2


def test_the_best_mean_of_a_column_is_bold(rows, written):
    table = markdown_tables(written[1])[0]
    columns = columns_of(table)
    for name in (FD, "recall[classifier:digits]@1797"):
        heading = next(heading for heading in columns if heading.startswith(name))
        means = {
            index: np.mean([r["measures"][name] for r in of_setting(rows, cells, columns)])
            for index, cells in enumerate(table[1:])
        }
        best = (min if name == FD else max)(means, key=means.get)
        bold = [i for i, cells in enumerate(table[1:]) if "**" in cells[columns[heading]]]
        assert bold == [best]


def test_differences_to_dense_are_paired_by_seed(rows, written):
    table = markdown_tables(written[1])[0]
    columns = columns_of(table)
    dense = {row["seed"]: row["measures"][FD] for row in rows if row["method"] == "dense"}
    clear = 0
    for cells in table[1:]:
        text = cells[columns["FD, difference to dense"]]
        if cells[0] == "dense":
            assert text == "–"
            continue
        ours = {row["seed"]: row["measures"][FD] for row in of_setting(rows, cells, columns)}
        values, baseline = zip(*((ours[seed], dense[seed]) for seed in ours), strict=True)
        test = scipy.stats.ttest_rel(values, baseline)
        interval = test.confidence_interval(0.95)
        mean, low, high = re.findall(r"[+-][0-9.]+", text)
        assert agrees(mean.lstrip("+"), np.mean(values) - np.mean(baseline))
        assert agrees(low.lstrip("+"), interval.low)
        assert agrees(high.lstrip("+"), interval.high)
        clear += test.pvalue < 0.05
    assert f"{clear} of 12 intervals exclude zero" in written[1]


def test_a_sparse_model_is_compared_with_the_dense_one_of_its_size(tmp_path):
    rows = [
        make_row(method, level, parameters=size, layers=2, run=str(value), measures={FD: value})
        for method, level, size, value in (
            ("dense", 0.0, 1000, 3.0),
            ("dense", 0.0, 9000, 1.0),
            ("static", 0.5, 1000, 7.5),
            ("static", 0.5, 9000, 1.25),
            ("small_dense", 0.5, 500, 8.0),
        )
    ]
    markdown, _ = write(tmp_path, rows)
    table = markdown_tables(markdown)[0]
    cell = columns_of(table)["FD, difference to dense"]
    found = {(line[0], line[cell - 1].strip("*")): line[cell] for line in table[1:]}
    assert found == {
        ("dense", "3.00"): "–",
        ("dense", "1.00"): "–",
        ("static", "7.50"): "+4.50",
        ("static", "1.25"): "+0.25",
        ("small_dense", "8.00"): "–",
    }


STRUCTURES = (("weight", None), ("block", 8), ("block", 16), ("channel", None))


def structured_rows():
    """Methods of four structures, whose FD is known, beside dense runs; single weights untold."""
    rows = [make_row("dense", 0.0, seed, layers=3, structure="weight") for seed in range(2)]
    for index, (structure, size) in enumerate(STRUCTURES):
        for method, p, seed in (("static", None, 0), ("rigl", 0.5, 0), ("rigl", 0.05, 0)):
            row = make_row(method, 0.5, seed, p=p, layers=3, measures={FD: 20.0 + index})
            row["run"] += f"-{structure}{size}"
            told = {} if structure == "weight" else {"structure": structure, "block_size": size}
            rows.append(row | told)
    return rows


def test_structures_are_settings_of_their_own(tmp_path):
    markdown, page = write(tmp_path, structured_rows())
    quality, measured = markdown_tables(markdown)[:2]
    for table in (quality, measured):
        assert table[0][:3] == ["method", "structure", "S"]
        assert [line[1] for line in table[1:]] == [
            "–",
            *("weight", "block 8", "block 16", "channel"),
            *np.repeat(["weight", "block 8", "block 16", "channel"], 2),
        ]
    cell = columns_of(quality)[f"{FD} ↓"]
    known = {"weight": 20, "block 8": 21, "block 16": 22, "channel": 23}
    for line in quality[2:]:
        assert float(line[cell].strip("*")) == known[line[1]]
    effect = next(t for t in markdown_tables(markdown) if "p = 0.05" in t[0])
    assert [line[:3] for line in effect[1:]] == [["rigl", kind, "0.5"] for kind in known]
    assert [float(line[columns_of(effect)["p = 0.5"]]) for line in effect[1:]] == [20, 21, 22, 23]
    for text in (markdown, Page(page).text):
        assert "structure: weight, block 8, block 16, channel" in text
        assert "blocks of N x N input and output channels" in text


def test_one_structure_is_no_column_and_is_told_unless_it_is_single_weights(tmp_path):
    rows = structured_rows()
    for name, chosen, told in (("weight", None, False), ("channel", "channel", True)):
        ours = [r for r in rows if r["method"] == "dense" or r.get("structure") == chosen]
        markdown, _ = write(tmp_path / name, ours)
        assert "structure" not in markdown_tables(markdown)[0][0]
        assert (f"structure: {name}" in markdown) == told


def test_costs_are_written_as_quantities(written):
    quality, measured = markdown_tables(written[1])[:2]
    dense = dict(zip(quality[0], quality[1], strict=True))
    assert dense["active parameters"] == "701 k"
    assert dense["FLOPs, forward"] == "32.4 M"
    assert dense["FLOPs, training (formula)"] == "3.73 T"
    assert dict(zip(measured[0], measured[1], strict=True))["peak memory"] == "900 MB"


def test_the_effect_of_the_drop_fraction_is_a_table_too(rows, written):
    table = next(t for t in markdown_tables(written[1]) if "p = 0.05" in t[0])
    columns = columns_of(table)
    assert [line[0] for line in table[1:]] == ["rigl", "magran"]
    for line in table[1:]:
        ours = [r for r in rows if r["method"] == line[0] and r["sparsity"] == 0.9]
        values = {
            p: [r["measures"][FD] for r in ours if r["drop_fraction"] == p] for p in (0.05, 0.5)
        }
        for p, found in values.items():
            assert agrees(line[columns[f"p = {p:g}"]].split(" ± ")[0], np.mean(found))
        change = np.mean(values[0.5]) - np.mean(values[0.05])
        assert agrees(line[-1].split(" ")[0].lstrip("+"), change)


def test_the_overlap_is_that_of_the_masks(rows, written):
    folder, markdown, _ = written
    table = next(t for t in markdown_tables(markdown) if "overlap, mean" in t[0])
    columns = columns_of(table)
    assert len(table) - 1 == 8
    for line in table[1:]:
        ours = of_setting(rows, line, columns)
        bits = []
        for row in ours:
            with np.load(folder / "runs" / row["run"] / "evaluation" / "masks.npz") as file:
                bits.append(
                    np.concatenate([np.unpackbits(file[k])[: row["layers"][k][1]] for k in file])
                )
        pairs = itertools.combinations(bits, 2)
        shares = [(one & other).sum() / one.sum() for one, other in pairs]
        assert agrees(line[columns["overlap, mean"]], np.mean(shares))
        assert agrees(line[columns["by chance"]], overlap.chance(ours[0]["layers"]))
        assert line[columns["pairs"]] == "3"
        assert float(line[columns["ratio"]]) == pytest.approx(1, abs=0.1)


def test_every_run_is_listed_with_its_numbers(rows, written):
    table = next(t for t in markdown_tables(written[1]) if t[0][0] == "run")
    columns = columns_of(table)
    assert sorted(line[0] for line in table[1:]) == sorted(f"`{row['run']}`" for row in rows)
    by_name = {f"`{row['run']}`": row for row in rows}
    for line in table[1:]:
        row = by_name[line[0]]
        assert line[columns["seed"]] == str(row["seed"])
        for name, value in row["measures"].items():
            assert agrees(line[columns[name]], value)


def test_the_page_needs_nothing_but_itself(written):
    page = Page(written[2])
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "base", "form"}
    for name, attrs in page.tags:
        for key, value in attrs.items():
            assert not key.startswith("on"), (name, key)
            if key in ("src", "href", "xlink:href", "srcset", "poster", "data"):
                assert value.startswith("data:image/png;base64,") or value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.strip("\"'")[1:] in ids
    assert "@import" not in written[2]
    assert "url(" not in written[2].split("</style>")[0]
    assert {"svg", "img", "figcaption", "details", "nav"} <= names


def test_the_page_holds_all_figures_and_pictures(rows, written):
    page = Page(written[2])
    images = [attrs for name, attrs in page.tags if name == "img"]
    assert len(images) == 13 + 1
    assert images[0]["alt"] == "real examples"
    assert all(attrs["class"] == "tiny" and attrs["alt"] for attrs in images)
    data = base64.b64decode(images[1]["src"].split(",")[1])
    first = written[0] / "runs" / rows[0]["run"] / "evaluation" / "samples.png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), Image.open(first))
    drawings = [attrs for name, attrs in page.tags if name == "svg"]
    assert len(drawings) == 8
    assert all(attrs["aria-label"] for attrs in drawings)
    captions = [name for name, _ in page.tags if name == "figcaption"]
    assert len(captions) == 8 + 1 + len(page.tables)
    assert len({cell for table in page.tables for line in table for cell in line}) > 100


def test_page_and_markdown_hold_the_same_tables(written):
    def plain(cell):
        return cell.replace("`", "").replace("**", "")

    ours = [[list(map(plain, line)) for line in t] for t in markdown_tables(written[1])]
    assert Page(written[2]).tables == ours


def test_figures_of_the_markdown_lie_beside_it(written):
    folder, markdown, _ = written
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(links) == 9
    for link in links:
        assert link.startswith("figures/")
        limit = 320_000 if "samples" in link else 150_000
        assert (folder / link).stat().st_size < limit
        assert min(Image.open(folder / link).size) > 100
    assert {f"figures/{path.name}" for path in (folder / "figures").iterdir()} == set(links)


def test_it_says_where_the_numbers_come_from(written):
    for text in (written[1], Page(written[2]).text):
        text = " ".join(text.replace("`", "").replace("**", "").split())
        for words in (
            "39 runs of 13 settings, 3 seeds (0, 1, 2); reference: digits train, 1,797 examples",
            "samples per run: 1,797",
            "device: 1 x cpu",
            "jax 0.10.2",
            "commit: abc123456789",
            "dates: 2026-03-01 to 2026-03-03",
            "wall time of all runs: 40 min",
            "DDIM, 50 steps",
            "not FID and compares only with itself",
            "as many parameters as the sparse one",
            "|A and B| / |A|",
            "lies beside this report",
        ):
            assert words in text, words
        assert "sparsity.level" in text
        assert "Not shown" not in text


def test_nothing_of_the_machine_is_in_it(written):
    for text in written[1:]:
        assert "/home/somebody" not in text
        assert str(written[0]) not in text
        assert "digits.npz" in text


def test_config_keys_that_differ_are_listed_without_folders(tmp_path):
    rows = [make_row("dense", 0.0, seed, layers=1) for seed in range(2)]
    rows[1]["config"]["task"]["source"] = "/home/somebody/data/others.npz"
    markdown, page = write(tmp_path, rows)
    table = next(t for t in markdown_tables(markdown) if t[0][0] == "key")
    assert dict(table[1:]) == {
        "`seed`": "0, 1",
        "`task.source`": '".../digits.npz", ".../others.npz"',
    }
    assert "/home" not in markdown + page


def test_the_same_results_give_the_same_files(tmp_path):
    rows = [make_row("rigl", 0.75, seed, layers=3) for seed in range(2)]
    assert write(tmp_path / "a", rows) == write(tmp_path / "b", rows)
    for path in (tmp_path / "a" / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "figures" / path.name).read_bytes()


def test_text_of_the_rows_is_escaped(tmp_path):
    evil = r"<script>alert('x')</script>|`<b>a\1b\g<x>{{x}}{x}&amp;&<!--" + '\x01\u2028"'
    row = make_row(evil, 0.5, layers=2, run=evil, reference=evil, device=evil, commit=evil)
    row["layers"] = {evil + name: [1, 9] for name in "ab"}
    row["config"] = {evil: evil}
    row["measures"] = {f"FD[{evil}]@9": 1.0}
    (tmp_path / "results.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    markdown, page = write(tmp_path, read_results(tmp_path), title=evil, note=evil)
    parsed = Page(page)
    assert not {"script", "x", "b>"} & {name for name, _ in parsed.tags}
    said = evil.replace("`", "")  # which marks code
    for text in (said, f"FD[{said}]", json.dumps(evil, ensure_ascii=False)):
        assert text in parsed.text
    labels = [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg"]
    assert any(said in label for label in labels)
    assert "<script" not in markdown.split("```json")[0]
    for lines in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.text(max_size=12) | st.text("<>&\"'`*{}\\[]:", max_size=8))
def test_any_text_is_text_in_a_page(text):
    """Its letters stay the same, but for `code` and **bold**, which are markup."""
    text = text.replace("\r", "")  # one line end is as good as the other
    marked = Page(f"<p>{inline(text)}</p>")
    assert {tag for tag, _ in marked.tags} <= {"p", "code", "strong"}
    assert "`" in text or "**" in text or marked.text == text
    coded = text.replace("`", "'")
    assert Page(f"<p>{inline(f'`{coded}`')}</p>").text == coded


def test_large_pictures_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "SHEET_BYTES", 30_000)
    row = make_row("static", 0.5, layers=1, measures={})
    place = make_runs(tmp_path / "runs", [row]) / row["run"] / "evaluation" / "samples.png"
    noise = np.random.default_rng(0).integers(0, 256, (900, 720, 3), np.uint8)
    Image.fromarray(noise).save(place, compress_level=1)
    _, page = write(tmp_path, [row], runs=tmp_path / "runs")
    image = [attrs for name, attrs in Page(page).tags if name == "img"][1]
    assert (image["width"], image["height"]) == ("420", "525")
    assert "class" not in image
    assert (tmp_path / "figures" / "samples.png").stat().st_size < 30_000
