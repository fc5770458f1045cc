"""Figures and tables of many runs, on made-up rows whose answers are known."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib.collections import QuadMesh
from matplotlib.lines import Line2D

from sparsejax.rendering.pixels import PICTURES
from sparsejax.reports import plots, results, spreads
from sparsejax.reports.effects import SETTINGS, effect, effect_lines
from sparsejax.reports.exploration import ever_active, overlaps
from sparsejax.reports.groups import compare
from sparsejax.reports.layers import layer_densities
from sparsejax.reports.pareto import COSTS, pareto
from sparsejax.schema import STRUCTURES
from sparsejax.sparsity.masks import LayerSummary

FD, HELD_OUT = "FD[classifier:digits]@1797", "held-out loss"
_BASE = {"static": 10.8, "rigl": 10.1, "magran": 10.2, "dense": 8.3}


def make_layers(sparsity, count=60):
    """Layers of a UNet's kind: a dense one at each end, wide ones sparser."""
    layers = {}
    for index in range(count):
        weights = 300 + 977 * (index % 7) ** 2
        density = 1 - sparsity * min(1.0, 0.45 + 0.09 * (index % 7))
        active = weights if index in (0, count - 1) else math.ceil(density * weights)
        block = f"{'input' if index < count // 2 else 'output'}_blocks_{index // 4}"
        layers[f"{block}_{index % 4}/in_layers_2/kernel"] = [active, weights]
    return layers


def make_row(method="rigl", sparsity=0.75, seed=0, p=None, interval=None, layers=60, **others):
    """One line of results.jsonl."""
    is_sparse = method in ("static", "rigl", "magran")
    if method in ("rigl", "magran"):
        p, interval = p or 0.5, interval or 50
    keep = 1 - sparsity
    setting = f"{sparsity:g}" + (f"-p{p:g}-dT{interval}" if p else "")
    rng = np.random.default_rng([len(method), int(1e3 * sparsity), int(1e3 * (p or 0)), seed])
    quality = _BASE.get(method, 11.4) + 4 * sparsity**3 + (0.8 if p == 0.05 else 0)
    flops = 32.4e6 * (0.05 + 0.95 * keep**1.15 if is_sparse or sparsity else 1)
    counts = make_layers(sparsity if is_sparse else 0, layers)
    row = {
        "run": f"digits-sweep-{method}-{setting}-{seed}",
        "method": method,
        "sparsity": sparsity,
        "drop_fraction": p,
        "update_interval": interval,
        "seed": seed,
        "steps": 600,
        "parameters": 701_000,
        "active_parameters": round(
            701_000 * (keep if method != "small_dense_flops" else 0.8 * keep)
        ),
        "density": keep if is_sparse else 1.0,
        "forward_flops_dense": 32.4e6,
        "forward_flops": flops,
        "training_flops_dense": 3.73e12,
        "training_flops_formula": 3 * flops * 38_400,
        "training_flops_run": 3.01 * flops * 38_400,
        "passes_per_sample": 50,
        "sampling_flops": 50 * flops,
        "loss": 0.1 + 0.02 * sparsity + 0.001 * rng.normal(),
        "step_seconds": 0.084 + 0.002 * rng.random(),
        "sampling_seconds": 0.011 + 0.001 * rng.random(),
        "peak_memory_bytes": 900_000_000,
        "ever_active": 1.0,
        "layers": counts,
        "measures": {
            "precision[classifier:digits]@1797": 0.9 - 0.1 * sparsity + 0.01 * rng.normal(),
            FD: quality + 1.1 * rng.normal(),
            "KID[classifier:digits]@1797": 0.001 * quality + 2e-4 * rng.normal(),
            "KID std[classifier:digits]@1797": 1e-3 * rng.random(),
            "recall[classifier:digits]@1797": 0.8 - 0.2 * sparsity + 0.01 * rng.normal(),
        },
        "reference": "digits train, 1,797 examples",
        "pictures": "8-bit",
        "config": {
            "name": "digits_sweep",
            "seed": seed,
            "sparsity": {"method": method, "level": sparsity, "drop_fraction": p or 0.5},
            "task": {"dataset": "digits", "source": "/home/somebody/data/digits.npz"},
        },
        "commit": "abc123456789",
        "device": "1 x cpu",
        "versions": {"python": "3.12.3", "jax": "0.10.2", "flax": "0.12.1"},
        "date": f"2026-03-0{1 + seed}T10:00:00+00:00",
        "seconds": 61.5,
    }
    if is_sparse:
        row["ever_active"] = min(0.99, (results.sparse_density(counts) or 1) * (1 + 2 * (p or 0)))
    return row | others


def make_rows(seeds=3, levels=(0.5, 0.75, 0.9), layers=60):
    """A grid like the paper's: dense, small dense and sparse ones, p = 0.05 at the top level."""
    rows = []
    for seed in range(seeds):
        rows.append(make_row("dense", 0.0, seed, layers=layers))
        for level in levels:
            for method in ("small_dense", "small_dense_flops", "static", "rigl", "magran"):
                rows.append(make_row(method, level, seed, layers=layers))
        for method in ("rigl", "magran"):
            rows.append(make_row(method, levels[-1], seed, p=0.05, layers=layers))
    return rows


@pytest.fixture(scope="module")
def rows():
    return make_rows()


def grouped(rows):
    return compare(rows).groups


def draw_effect(rows, measure, setting):
    groups = grouped(rows)
    lines = effect_lines(groups, measure, setting)
    return effect(groups, lines, measure, setting) if lines else None


def drawn(rows):
    """Draw all figures but the pictures."""
    yield from (
        pareto(grouped(rows), measure, cost)
        for measure, cost in itertools.product(results.measure_names(rows)[:1], COSTS)
    )
    measure = results.measure_names(rows)[0]
    yield from (draw_effect(rows, measure, setting) for setting in SETTINGS)
    yield layer_densities(compare(rows))
    yield ever_active(grouped(rows))


def test_every_axis_says_what_it_shows(rows):
    more = [make_row("rigl", 0.9, seed, interval=200) for seed in range(3)]
    made = list(drawn([*rows, *more]))
    assert None not in made
    for figure in made:
        for axes in figure.axes:
            if axes.get_label() == "<colorbar>":
                assert axes.get_xlabel() or axes.get_ylabel()
                continue
            assert axes.get_xlabel(), figure
            assert axes.get_ylabel() or axes.get_subplotspec().colspan.start > 0, figure
            assert axes.has_data()


def test_nothing_is_cut_off(rows):
    short = [row for row in rows if row["sparsity"] in (0.0, 0.9)]
    for some in (short, [make_row(layers=3)]):
        for figure in filter(None, drawn(some)):
            figure.draw_without_rendering()
            box = figure.get_tightbbox()
            width, height = figure.get_size_inches()
            assert -0.03 < box.x0 < box.x1 < width + 0.03
            assert -0.03 < box.y0 < box.y1 < height + 0.03


def test_a_mark_of_the_pareto_plot_is_a_mean_with_its_standard_deviation(rows):
    axes = pareto(grouped(rows), FD, "forward_flops").axes[0]
    found = {}
    for container in axes.containers:
        mark, _, (bar,) = container
        (low, high) = bar.get_segments()[0][:, 1]
        found[round(mark.get_ydata()[0], 9)] = ((high - low) / 2, mark.get_xdata()[0])
    expected = {}
    for row in rows:
        key = row["method"], row["sparsity"], row["drop_fraction"]
        expected.setdefault(key, []).append(row)
    assert len(found) == len(expected) == 18
    for members in expected.values():
        values = [row["measures"][FD] for row in members]
        half, x = found[round(np.mean(values), 9)]
        assert half == pytest.approx(np.std(values, ddof=1))
        # Side by side means next to the cost, not far from it.
        assert abs(math.log10(x / members[0]["forward_flops"])) < 0.12
    assert "FD" in axes.get_ylabel()
    assert "lower is better" in axes.get_ylabel()
    assert "FLOPs" in axes.get_xlabel()


def test_marks_of_one_cost_stand_apart_and_methods_differ_in_shape_and_colour(rows):
    axes = pareto(grouped(rows), FD, "active_parameters").axes[0]
    marks = [container[0] for container in axes.containers]
    xs = sorted(axes.transData.transform((mark.get_xdata()[0], 1))[0] for mark in marks)
    assert min(np.diff(xs)) > 3
    looks = {(mark.get_marker(), mark.get_markerfacecolor(), mark.get_color()) for mark in marks}
    shapes = {mark.get_marker() for mark in marks}
    assert len(shapes) == 6
    assert len(looks) == 8  # six methods, two of them with a second drop fraction


def structured_rows(levels=(0.5, 0.9)):
    """The sparse rows of three structures, which differ in their layers, and the dense ones."""
    rows = make_rows(seeds=2, levels=levels, layers=8)
    for index, (structure, size) in enumerate((("block", 16), ("channel", None))):
        for row in make_rows(seeds=2, levels=levels, layers=8):
            if row["method"] in ("static", "rigl", "magran"):
                layers = {name: [a - index, n] for name, (a, n) in row["layers"].items()}
                told = {"structure": structure, "block_size": size, "layers": layers}
                rows.append(row | told | {"run": row["run"] + structure})
    return rows


def test_structures_differ_in_shape_and_are_named():
    rows = structured_rows()
    figure = pareto(grouped(rows), FD, "forward_flops")
    marks = [container[0] for container in figure.axes[0].containers]
    looks = {(mark.get_marker(), mark.get_markerfacecolor(), mark.get_color()) for mark in marks}
    assert len(looks) == 3 + 3 * 5  # dense ones; of each structure, three and two p = 0.05
    assert len({mark.get_marker() for mark in marks}) == 3 + 3 * 3
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(names)) == len(names)
    assert {"static, block 16", "rigl, channel, p 0.05", "magran, weight, p 0.5"} <= set(names)
    assert "small_dense" in names
    figure = draw_effect(rows, FD, "drop_fraction")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name.split(",")[0] for name in names] == ["weight", "block 16", "channel"]
    looks = {(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()}
    assert len(looks) == 3


def test_the_legend_of_ever_active_weights_has_the_marks_that_are_drawn(rows):
    figure = ever_active(compare(rows).groups)
    (legend,) = figure.legends
    tick, *shown = legend.findobj(Line2D)
    assert [text.get_text() for text in legend.get_texts()][0] == "active at any one time"
    assert tick.get_marker() == "|"
    drawn = {(c[0].get_color(), c[0].get_marker()) for c in figure.axes[0].containers}
    assert {(mark.get_color(), mark.get_marker()) for mark in shown} == drawn
    assert len(shown) == len(drawn) == 3


def test_layers_of_different_structures_are_not_averaged():
    rows = structured_rows()
    figure = layer_densities(compare(rows))
    (mesh,) = (a for a in figure.axes[0].collections if isinstance(a, QuadMesh))
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == [
        f"{level}\n{structure}"
        for level in (0.5, 0.9)
        for structure in ("weight", "block 16", "channel")
    ]
    for column, label in enumerate(labels):
        level, kind = label.split("\n")
        row = next(
            row
            for row in rows
            if f"{row['sparsity']:g}" == level
            and row["method"] == "static"
            and (row.get("structure") or "weight") == kind.split()[0]
        )
        expected = [active / weights for active, weights in row["layers"].values()]
        np.testing.assert_allclose(np.asarray(mesh.get_array())[:, column], expected)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def check_written_levels(figure):
    """Written levels lie inside, on no mark, no bar and no other text; return the texts."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for container in axes.containers:
        ends = container[2][0].get_segments()[0] if container[2] else container[0].get_xydata()
        (x, low), (_, high) = axes.transData.transform(ends)[[0, -1]]
        for box in boxes:
            assert axes.bbox.contains(box.x0, box.y0)
            assert not (box.x0 - 3 < x < box.x1 + 3 and box.y0 - 3 < high and low < box.y1 + 3)
    return [text.get_text() for text in axes.texts]


def test_written_levels_overlap_nothing(rows):
    for cost in COSTS:
        written = check_written_levels(pareto(grouped(rows), FD, cost))
        assert set(written) == {"S 0.5", "S 0.75", "S 0.9"}


def test_a_level_without_room_is_not_written():
    crowded = [
        make_row("static", level, forward_flops=1e6 * (1 + level), measures={FD: 5 + 4 * level})
        for level in np.linspace(0.5, 0.6, 11)
    ]
    crowded.append(make_row("dense", 0.0, forward_flops=1e7, measures={FD: 5.0}))
    written = check_written_levels(pareto(grouped(crowded), FD, "forward_flops"))
    assert 0 < len(written) < 11


def test_the_effect_of_the_drop_fraction_is_shown_where_there_are_two(rows):
    figure = draw_effect(rows, FD, "drop_fraction")
    assert [axes.get_title() for axes in figure.axes] == ["rigl", "magran"]
    (line,) = [
        line
        for line in effect_lines(grouped(rows), FD, "drop_fraction")
        if line[0].method == "magran"
    ]
    assert [(group.sparsity, group.drop_fraction) for group in line] == [(0.9, 0.05), (0.9, 0.5)]
    assert draw_effect(rows, FD, "update_interval") is None
    fixed = [row for row in rows if row["drop_fraction"] != 0.05]
    assert draw_effect(fixed, FD, "drop_fraction") is None


@pytest.mark.parametrize("count", [1, 14, 60, 150])
def test_the_heat_map_holds_the_mean_density_of_every_layer(count):
    rows = make_rows(seeds=2, layers=count) if count > 1 else [make_row(layers=1)]
    rows[-1]["layers"] = {name: [1, n] for name, (_, n) in rows[-1]["layers"].items()}
    figure = layer_densities(compare(rows))
    meshes = [
        np.ma.getdata(artist.get_array())
        for axes in figure.axes
        if axes.get_label() != "<colorbar>"
        for artist in axes.collections
        if isinstance(artist, QuadMesh)
    ]
    table = np.concatenate(meshes)
    levels = sorted({row["sparsity"] for row in rows if row["method"] == "rigl"})
    assert table.shape == (count, len(levels))
    names = list(rows[-1]["layers"])
    for (y, x), value in np.ndenumerate(table):
        counts = [
            row["layers"][names[y]]
            for row in rows
            if row["sparsity"] == levels[x] and row["method"] in ("static", "rigl", "magran")
        ]
        assert value == pytest.approx(np.mean([a / n for a, n in counts]))
    figure.draw_without_rendering()
    for axes in figure.axes[: len(meshes)]:
        labels = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))


def test_nothing_to_show_is_no_figure():
    dense = [make_row("dense", 0.0, seed) for seed in range(2)]
    assert layer_densities(compare(dense)) is None
    assert ever_active(grouped(dense)) is None
    assert overlaps([]) is None
    assert pareto(grouped(dense), "no such measure", "forward_flops") is None
    assert pareto(grouped([make_row(measures={FD: None})]), FD, "forward_flops") is None


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 7e6])
def test_any_finite_value_can_be_drawn(value):
    rows = [make_row(seed=seed, measures={FD: value + seed}) for seed in range(2)]
    rows.append(make_row("$me$thod_$", 0.5, measures={FD: 1.0}, forward_flops=0.0))
    pareto(grouped(rows), FD, "forward_flops").draw_without_rendering()


def test_groups_differ_in_more_than_the_seed(rows):
    groups = grouped(list(reversed(rows)))
    assert len(groups) == 18
    assert sum(len(group.runs) for group in groups) == len(rows)
    assert all([run.seed for run in group.runs] == [0, 1, 2] for group in groups)
    assert [group.name for group in groups][:3] == [
        "dense",
        "small_dense, S 0.5",
        "small_dense_flops, S 0.5",
    ]
    assert groups[-1].name == "magran, S 0.9, p 0.05"
    longer = grouped([*rows, make_row("dense", 0.0, steps=900)])
    assert len(longer) == 19
    assert "dense, 900 steps" in [group.name for group in longer]
    larger = grouped([*rows, make_row("dense", 0.0, parameters=9e6)])
    names = [group.name for group in larger]
    assert names[:2] == ["dense, 701 k parameters", "dense, 9.00 M parameters"]
    assert len(set(names)) == len(names)


def test_the_difference_is_paired_by_seed():
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 9):
        ours, theirs = rng.normal(3, 2, seeds), rng.normal(size=seeds)
        # The baseline has a seed more, and another order.
        found = spreads.difference(
            dict(enumerate(ours)), {99: 7.0} | dict(reversed(list(enumerate(theirs))))
        )
        test = scipy.stats.ttest_rel(ours, theirs)
        interval = test.confidence_interval(0.95)
        assert found.mean == pytest.approx((ours - theirs).mean())
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.excludes_zero == (test.pvalue < 0.05)


def test_one_seed_has_no_interval():
    assert spreads.difference({0: 3.0}, {0: 1.0, 1: 2.0}) == (2.0, None, None)
    assert spreads.difference({0: 3.0}, {1: 1.0}) is None
    assert spreads.difference({}, {0: 1.0}) is None
    assert spreads.difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == (1.0, 1.0, 1.0)
    assert not spreads.difference({0: 3.0}, {0: 1.0}).excludes_zero


def test_values_that_are_no_numbers_have_no_seed():
    rows = [
        make_row("static", 0.5, seed, measures={"loss": v})
        for seed, v in enumerate((1.0, float("nan"), 3.0))
    ]
    (group,) = grouped(rows)
    assert group.by_seed["loss"] == {0: 1.0, 2: 3.0}
    assert group.numbers["loss"] == [1.0, 3.0]


def test_a_number_is_written_with_the_digits_that_its_spread_needs():
    def written(*values):
        one = spreads.spread(list(values))
        return spreads.write_spread(one, spreads.decimals([one, None]))

    assert written(8.1, 8.5) == "8.30 ± 0.28"
    assert written(0.12011, 0.12063) == "0.1204 ± 0.0004"
    assert written(0.903, 0.913) == "0.908 ± 0.007"
    assert written(1234.0) == "1,234"
    assert written(0.0, 0.0) == "0 ± 0"
    assert spreads.write_spread(None, 2) == "–"
    assert spreads.write_spread(spreads.Spread(1.0, None, 1), 1, count=3) == "1.0 (n = 1)"


def test_directions_and_order_of_measures(rows):
    names = results.measure_names(rows)
    assert names[0] == FD
    assert not any(" std" in name for name in names)
    up = [name.split("[")[0] for name in [*names, "IS[a:b]@10"] if results.higher_is_better(name)]
    assert up == ["precision", "recall", "IS"]
    empty = [make_row(measures={"a": math.nan, "b": None, "c": json.loads("Infinity")})]
    assert results.measure_names(empty) == []


def assert_texts_are_whole(figure):
    """All texts lie on the figure, and no tick label on its neighbour."""
    figure.draw_without_rendering()
    canvas = figure.bbox
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
            low, high = sorted(axis.get_view_interval())
            seen = [
                t
                for t in labels
                if t.get_text() and low <= t.get_position()[axis is axes.yaxis] <= high
            ]
            boxes = sorted((t.get_window_extent() for t in seen), key=lambda b: (b.x0, b.y0))
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            assert not axis.get_offset_text().get_text(), "numbers are written whole"
        texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for text in filter(lambda text: text.get_text(), texts):
            box = text.get_window_extent()
            assert canvas.x0 - 1 <= box.x0 <= box.x1 <= canvas.x1 + 1, text
            assert canvas.y0 - 1 <= box.y0 <= box.y1 <= canvas.y1 + 1, text


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (1.0, 0.5),
        (1.0, 0.11),
        (1.0, 5e-4),
        (0.7, 1e-7),
        (0.11001, 0.11002),
        (3e5, 2.0),
        (1.0, -2.0),
    ],
)
@pytest.mark.parametrize("updates", [0, 12])
def test_the_curves_of_any_loss_can_be_read(first, last, updates):
    """Tick labels are numbers of the loss itself, at their places, apart from each other."""
    lines = [{"step": 10 * s, "loss": first + (last - first) * s / 50} for s in range(51)]
    lines += [{"step": 30 * s, "replaced": 0.3} for s in range(1, updates + 1)]
    figure = plots.curves(lines)
    assert_texts_are_whole(figure)
    for axes in figure.axes:  # no update any more is a flat line, to the end
        assert max(axes.lines[0].get_xdata()) == 500
    axis = figure.axes[0].yaxis
    inside = [
        t
        for t in axis.get_ticklabels()
        if min(first, last) <= t.get_position()[1] <= max(first, last)
    ]
    assert len(inside) >= 2
    assert len({t.get_text() for t in inside}) == len(inside)
    for label in inside:
        place = label.get_position()[1]
        shown = float(label.get_text().replace("\N{MINUS SIGN}", "-"))
        assert shown == pytest.approx(place, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("count", [1, 5, 60, 164])
@pytest.mark.parametrize(
    "name", ["input_blocks_{}/in_layers_2/kernel", "a_long_name_of_a_module/" * 5 + "{}"]
)
def test_every_layer_of_a_run_is_named(count, name):
    layers = {name.format(i): LayerSummary(17_694_720, 8_847_360 - i, 0.5) for i in range(count)}
    rng = np.random.default_rng(0)
    masks = {path: rng.random((3, 3, 8, 300)) < 0.1 for path in list(layers)[::2]}
    figure = plots.layers_and_masks(layers, 0.5, masks)
    assert_texts_are_whole(figure)
    axes, beside = figure.axes
    assert axes.get_ylim() == beside.get_ylim()
    shares = [image.get_array().mean() for image in beside.images]
    assert shares == pytest.approx([0.1, 1] * (count // 2) + [0.1] * (count % 2), abs=0.02)
    assert len(axes.patches) == len(axes.get_yticklabels()) == len(axes.texts) == count
    assert axes.texts[-1].get_text() == f"{8_847_360 - count + 1:,} of 17,694,720"
    assert axes.get_position().width > 0.4


def test_the_words_of_rows_are_those_that_evaluation_writes():
    rows = [
        make_row(structure=structure, block_size=8 if structure == "block" else None)
        for structure in reversed(STRUCTURES)
    ]
    kinds = [structure.split()[0] for structure in compare(rows).structures]
    assert kinds == list(STRUCTURES)
    assert results.PICTURES == PICTURES
