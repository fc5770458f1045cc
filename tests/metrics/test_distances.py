"""Distances against torch-fidelity's numbers, closed forms and naively written definitions."""

import functools
import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.metrics.distances import (
    frechet_distance,
    frechet_distance_of,
    inception_score,
    kernel_distance,
    precision_recall,
)
from sparsejax.metrics.moments import (
    Statistics,
    load_statistics,
    merge,
    save_statistics,
    statistics,
    update,
)


def _recipe(seed, count, dim):
    """The features of the reference numbers' cases, that are too large to be kept."""
    rng = np.random.RandomState(seed)
    mix = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    a, b = (
        np.maximum(rng.standard_normal((count, dim)) @ mix * scale + shift, 0).astype(np.float32)
        for scale, shift in ((1, 0), (1.1, 0.05))
    )
    return a, b


def _normal(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


def _from_centred_rows(a, b):
    """The Frechet distance without a covariance: the root's trace is a nuclear norm."""
    x, y = (
        np.linalg.qr((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1), mode="r")
        for rows in (a.astype(np.float64), b.astype(np.float64))
    )
    squared = ((a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)) ** 2).sum()
    return squared + (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc")


def _assert_equal(stats, features):
    features = np.asarray(features, np.float64)
    assert stats.count == len(features)
    assert stats.mean.dtype == stats.covariance.dtype == np.float64
    for ours, expected in (
        (stats.mean, features.mean(axis=0)),
        (stats.covariance, np.cov(features, rowvar=False).reshape(2 * features.shape[1:])),
    ):
        assert abs(ours - expected).max() <= 1e-9 * abs(expected).max()


def _peak(function, *args):
    tracemalloc.start()
    function(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("seed1_N500_D64", 1e-12),
        # Fewer rows than dims: the reference's eigenvalues are noise where ours are exact.
        ("seed2_N40_D64", 1e-7),
        ("seed3_N300_D2048", 1e-7),
        pytest.param("seed4_N2500_D2048", 1e-12, marks=pytest.mark.slow),
    ],
)
def test_frechet_distance_equals_the_reference(golden, case, tolerance):
    expected = golden("h_metrics.json")["fid"][case]
    a, b = _recipe(expected["seed"], expected["N"], expected["D"])
    ours = frechet_distance(a, b)
    assert ours == pytest.approx(expected["fid_float64_features"], rel=tolerance)
    # torch-fidelity averages in float32.
    assert ours == pytest.approx(expected["fid_torch_fidelity_0_4_0"], rel=1e-6)
    assert ours == pytest.approx(_from_centred_rows(a, b), rel=1e-12)


def test_the_recipe_gives_the_features_that_were_kept(golden):
    kept = golden("h_features_500x64.npz")
    a, b = _recipe(1, 500, 64)
    np.testing.assert_array_equal(a, kept["a"])
    np.testing.assert_array_equal(b, kept["b"])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("subsets10_size100", {"subsets": 10, "subset_size": 100}),
        ("subsets100_size200", {"subset_size": 200}),
        ("single_full_500", {"subsets": 1, "subset_size": 500}),
        ("rbf_sigma10_10x100", {"subsets": 10, "subset_size": 100, "kernel": "rbf"}),
        ("D2048_seed3_10x100", {"subsets": 10, "subset_size": 100}),
    ],
)
def test_kernel_distance_equals_the_reference(golden, case, options):
    """The reference sums in float32: up to 6e-6 of its value from its own sums in float64."""
    expected = golden("h_metrics.json")["kid"][case]
    a, b = _recipe(3, 300, 2048) if "D2048" in case else _recipe(1, 500, 64)
    mean, deviation = kernel_distance(a, b, **options)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=2e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("case", "options"),
    [("splits10_shuffle_seed2020", {}), ("splits1_noshuffle", {"splits": 1, "shuffle": False})],
)
def test_inception_score_equals_the_reference(golden, case, options):
    expected = golden("h_metrics.json")["isc"][case]
    mean, deviation = inception_score(golden("h_isc_logits_500x20.npz")["logits"], **options)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-12, abs=1e-12)


def test_precision_and_recall_equal_the_reference(golden):
    features = golden("h_features_500x64.npz")
    (expected,) = golden("h_metrics.json")["prc"].values()
    precision, recall = precision_recall(features["a"], features["b"])
    assert precision == pytest.approx(expected["precision"], abs=1e-7)
    assert recall == pytest.approx(expected["recall"], abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda s: sum(s) > 1),
    dim=st.integers(1, 6),
    offset=st.sampled_from([0.0, 3.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_batches_give_the_statistics_of_the_whole(sizes, dim, offset, seed):
    features = (_normal(sum(sizes), dim, seed) + offset).astype(np.float32)
    batches = np.split(features, np.cumsum(sizes)[:-1])
    _assert_equal(functools.reduce(update, batches, None), features)
    half = len(batches) // 2
    if half:
        parts = (functools.reduce(update, b, None) for b in (batches[:half], batches[half:]))
        _assert_equal(merge(*parts), features)


def test_a_mean_far_above_the_deviation_costs_no_digits():
    """A running sum of squares, 5e15, would drop what is left about the mean."""
    features = _normal(5000, 8) + 1e6
    stats = functools.reduce(update, np.array_split(features, 13), None)
    _assert_equal(stats, features)
    _assert_equal(statistics(features), features)
    assert frechet_distance(features, features + 1) == pytest.approx(8, rel=1e-9)


def test_whole_numbers_and_low_precision_are_taken():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8)
    _assert_equal(statistics(pixels), pixels)
    half = _normal(50, 3).astype(np.float16)
    _assert_equal(statistics(half), half)


def test_updates_leave_their_arguments_alone():
    features = _normal(20, 3)
    first = statistics(features[:9])
    kept, stats = features.copy(), Statistics(*map(np.copy, first))
    update(first, features[9:])
    np.testing.assert_array_equal(features, kept)
    for ours, expected in zip(first, stats, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_memory_doesnt_grow_with_the_count():
    features = np.zeros((20_000, 256), np.float32)
    few, many = (_peak(statistics, features[:count]) for count in (8_192, 20_000))
    assert many <= 1.05 * few
    assert many < 0.6 * features.nbytes


def test_precision_and_recall_keep_no_matrix_of_all_pairs(monkeypatch):
    monkeypatch.setattr("sparsejax.metrics.features.BLOCK", 64)
    features = _normal(2000, 4).astype(np.float32)
    assert _peak(precision_recall, features, features) < 0.02 * 8 * len(features) ** 2


@pytest.mark.slow
def test_fifty_thousand_inception_features_need_a_few_matrices():
    def stream():
        rng = np.random.default_rng(0)
        batches = (rng.standard_normal((1000, 2048), np.float32) + 1 for _ in range(50))
        stats = functools.reduce(update, batches, None)
        assert stats.count == 50_000
        assert stats.mean == pytest.approx(1, abs=0.03)
        assert np.diag(stats.covariance) == pytest.approx(1, abs=0.05)

    assert _peak(stream) < 6 * 8 * 2048**2


def test_frechet_distance_equals_the_definition_with_a_matrix_root():
    x, y = _normal(300, 5), _normal(200, 5, 1) @ _normal(5, 5, 2) + 1
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    unknown = (statistics(rows)._replace(count=None) for rows in (x, y))
    assert frechet_distance_of(*unknown) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_scaled_and_shifted_features():
    x = _normal(400, 4) @ _normal(4, 4, 1)
    x = (x - x.mean(axis=0)) @ np.linalg.inv(scipy.linalg.sqrtm(np.cov(x.T)))
    scales, shift = np.array([1.0, 3.0, 0.5, 0.0]), np.array([2.0, 0.0, -1.0, 0.0])
    expected = (shift**2).sum() + ((scales - 1) ** 2).sum()
    assert frechet_distance(x * scales + shift, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x * scales + shift) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_have_no_distance_even_with_constant_features():
    x = _normal(100, 6)
    x[:, 2] = 0.0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + [0, 0, 3, 0, 0, 0]) == pytest.approx(9, rel=1e-12)
    for seed in range(10):
        y = _normal(20, 5, seed)
        assert 0 <= frechet_distance(y, y[::-1]) < 1e-12
    constant = np.ones((3, 4))
    assert frechet_distance(constant, constant) == 0
    assert frechet_distance(constant, constant + 2) == 16


def test_covariances_that_are_nearly_singular_keep_their_digits():
    """Variances over sixteen orders of magnitude, as features of a deep net can have."""
    scales = np.logspace(0, -8, 60)
    x, y = (_normal(400, 60, seed) * scales @ _normal(60, 60, 2) for seed in (0, 1))
    assert frechet_distance(x, y) == pytest.approx(_from_centred_rows(x, y), rel=1e-9)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_kernel_distance_equals_a_double_loop(kernel):
    x, y = _normal(7, 3), _normal(7, 3, 1) + 0.5

    def evaluate(u, v):
        if kernel == "polynomial":
            return (0.7 * (u @ v) + 2.0) ** 2
        return np.exp(-((u - v) ** 2).sum() / (2 * 1.5**2))

    within = [evaluate(s[i], s[j]) for s in (x, y) for i, j in itertools.permutations(range(7), 2)]
    across = [evaluate(u, v) for u in x for v in y]
    expected = sum(within) / 42 - 2 * sum(across) / 49
    options = {"degree": 2, "gamma": 0.7, "coef0": 2.0, "sigma": 1.5, "kernel": kernel}
    mean, deviation = kernel_distance(x, y, subsets=4, subset_size=7, **options)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_unbiased():
    """Over many pairs of sets of one distribution the mean is 0; a biased one's would be 0.1."""
    rng = np.random.default_rng(0)
    found = [
        kernel_distance(*rng.normal(size=(2, 20, 4)), subsets=1, subset_size=20)[0]
        for _ in range(300)
    ]
    assert min(found) < 0
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(300)


def test_kernel_distance_draws_equal_subsets_with_equal_seeds():
    x, y = _normal(60, 3), _normal(80, 3, 1)
    first, again, other = (
        kernel_distance(x, y, subsets=5, subset_size=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[1] > 0


def test_inception_score_of_sure_and_of_unsure_logits(monkeypatch):
    monkeypatch.setattr("sparsejax.metrics.features.BLOCK", 7)
    sure = np.tile(np.eye(5) * 1e4, (20, 1))
    assert inception_score(sure, splits=1) == pytest.approx((5, 0))
    assert inception_score(sure, splits=4, shuffle=False) == pytest.approx((5, 0))
    # One class a split, and no chance at all of the others.
    ordered = np.repeat(np.eye(5) * 1e4, 20, axis=0)
    assert inception_score(ordered, splits=5, shuffle=False) == pytest.approx((1, 0))
    assert inception_score(ordered, splits=5)[0] > 3
    assert inception_score(np.ones((10, 5)), splits=3) == pytest.approx((1, 0))


def test_inception_score_is_a_mean_divergence(monkeypatch):
    monkeypatch.setattr("sparsejax.metrics.features.BLOCK", 4)
    logits = _normal(23, 6) * 3
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for low, high in ((0, 7), (7, 15), (15, 23)):
        part = chances[low:high]
        divergence = (part * np.log(part / part.mean(axis=0))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    expected = np.mean(scores), np.std(scores)
    assert inception_score(logits, splits=3, shuffle=False) == pytest.approx(expected, rel=1e-12)


def _naive_precision_recall(features, reference, neighbours):
    def far(x, y):
        return np.linalg.norm(x[:, None] - y, axis=-1)

    def covered(points, rows):
        radii = np.sort(far(rows, rows), axis=1)[:, neighbours]
        return (far(points, rows) <= radii).any(axis=1).mean()

    return covered(features, reference), covered(reference, features)


@pytest.mark.parametrize("block", [3, 16, 2048])
@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_equal_the_naive_ones(monkeypatch, block, neighbours):
    monkeypatch.setattr("sparsejax.metrics.features.BLOCK", block)
    x, y = 0.7 * _normal(53, 2) + [1, 1], _normal(40, 2, 1)
    expected = _naive_precision_recall(x, y, neighbours)
    assert precision_recall(x, y, neighbours=neighbours) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < min(expected) < max(expected) < 1
    assert expected[0] != expected[1]


def test_precision_and_recall_of_equal_and_of_distant_sets(monkeypatch):
    monkeypatch.setattr("sparsejax.metrics.features.BLOCK", 32)
    x = _normal(100, 8)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)
    # Rows that occur more often than there are neighbours have a radius of 0.
    often = np.repeat(_normal(20, 8) + 5, 6, axis=0)
    for block in (7, 32, 2048):
        monkeypatch.setattr("sparsejax.metrics.features.BLOCK", block)
        other = np.random.default_rng(0).permutation(often)
        assert precision_recall(other[:100], often) == (1.0, 1.0)
        assert precision_recall(often, other + 1e-4) == (0.0, 0.0)


def test_statistics_are_kept_in_a_file(tmp_path):
    path = tmp_path / "stats.npz"
    stats = statistics(_normal(30, 4))
    about = {"features": "inception", "path": "here", "size": [64, 64]}
    save_statistics(path, stats, **about)
    loaded, told = load_statistics(path)
    assert told == about
    assert loaded.count == 30
    for ours, expected in zip(loaded, stats, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["stats.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["about", "count", "mu", "sigma"]
        np.testing.assert_array_equal(arrays["sigma"], stats.covariance)
    save_statistics(path, stats._replace(count=None))
    assert load_statistics(path)[0].count is None
    assert load_statistics(path)[1] == {}


def test_files_of_others_hold_a_mean_and_a_covariance_only(tmp_path):
    path = tmp_path / "theirs.npz"
    x, y = _normal(50, 3), _normal(40, 3, 1)
    np.savez(path, mu=x.mean(axis=0).astype(np.float32), sigma=np.cov(x.T), arr_0=np.zeros(2))
    stats, about = load_statistics(path)
    assert stats.count is None
    assert about == {}
    assert stats.mean.dtype == np.float64
    ours = frechet_distance_of(statistics(y), stats)
    assert ours == pytest.approx(frechet_distance(y, x), rel=1e-6)
    with pytest.raises(ValueError, match="without a count can't be merged; accepted: both with"):
        merge(stats, statistics(y))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"mean": np.zeros(2), "sigma": np.eye(2)}, "no mu; its keys are mean, sigma"),
        ({"arr_0": np.zeros(2)}, "no mu and no sigma; its keys are arr_0"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"shape \(3,\) and .* of shape \(2, 2\)"),
        ({"mu": np.zeros(2), "sigma": np.zeros((2, 3))}, r"a covariance of shape \(2, 3\)"),
        ({"mu": np.zeros((2, 1)), "sigma": np.eye(2)}, r"a mean of shape \(2, 1\)"),
        ({"mu": np.zeros(0), "sigma": np.eye(0)}, r"a mean of shape \(0,\)"),
        ({"mu": [0, np.nan], "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.diag([1, np.inf])}, "not finite"),
        ({"mu": np.zeros(2), "sigma": [[1, 0.5], [0, 1]]}, "from its transpose by 0.5"),
        ({"mu": np.zeros(2), "sigma": np.diag([1, -2])}, "a variance of -2"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu of dtype <U1"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "mu holds Python objects"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": 1}, "too few rows, 1"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": 2.5}, "a count of 2.5"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": -3}, "a count of -3"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": "{"}, "its about is not a JSON object"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": "[]"}, "its about is not a JSON object"),
    ],
)
def test_wrong_files_are_refused(tmp_path, arrays, problem):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"wrong.npz: .*{problem}.*accepted: "):
        load_statistics(path)


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "wrong.npz"
    save_statistics(path, statistics(_normal(9, 4)))
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    contents = [b"", b"some text", whole[:300], (tmp_path / "array.npy").read_bytes()]
    # Flags of the first entry of the zip's directory: encrypted; then method and version unknown.
    entry = whole.index(b"PK\x01\x02")
    for place, value in ((8, 1), (10, 77), (6, 99)):
        flipped = bytearray(whole)
        flipped[entry + place] = value
        contents.append(bytes(flipped))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="wrong.npz: .*accepted: an npz with mu"):
            load_statistics(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_statistics(tmp_path / "nowhere.npz")


def test_statistics_of_one_row_arent_saved_or_compared(tmp_path):
    one, two = statistics(np.ones((1, 3))), statistics(_normal(2, 3))
    assert not one.covariance.any()
    with pytest.raises(ValueError, match="too few rows, 1; accepted: 2 or more"):
        save_statistics(tmp_path / "one.npz", one)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="statistics: too few rows, 1"):
        frechet_distance_of(one, two)
    with pytest.raises(ValueError, match="reference: too few rows, 1"):
        frechet_distance_of(two, one)


_KERNEL = functools.partial(kernel_distance, subset_size=4)


@pytest.mark.parametrize("distance", [frechet_distance, _KERNEL, precision_recall])
def test_wrong_features_are_refused(distance):
    x = _normal(8, 3)
    wrong = x.copy()
    wrong[[2, 5], 1] = np.nan, np.inf
    for pair, problem in (
        ((x[0], x), r"features of shape \(3,\); accepted: \[count, dim\]"),
        ((x, x[:, :, None]), r"reference of shape \(8, 3, 1\); accepted: \[count, dim\]"),
        ((x[:, :0], x), r"features of shape \(8, 0\)"),
        ((x, x[:, :2]), r"\[8, 3\] and reference \[8, 2\] differ in dim; accepted: equal dims"),
        ((x, wrong), "reference has 2 rows that aren't finite; accepted: finite numbers"),
        ((wrong, x), "features has 2 rows that aren't finite"),
        ((x * 1j, x), "features of dtype complex128; accepted: real numbers"),
        ((x[:1], x), r"too few rows, features \[1, 3\] and reference \[8, 3\]; accepted: "),
        ((x, x[:1]), r"too few rows, features \[8, 3\] and reference \[1, 3\]; accepted: "),
    ):
        with pytest.raises(ValueError, match=problem):
            distance(*pair)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x: statistics(x[:0]), r"features \[0, 3\]; accepted: 1 or more rows"),
        (lambda x: update(None, x[0]), r"features of shape \(3,\)"),
        (lambda x: frechet_distance(x[:1], x), "2 or more rows in each, for a covariance"),
        (lambda x: kernel_distance(x, x), r"\[8, 3\]; accepted: 1000 .* subset_size of 1000"),
        (lambda x: kernel_distance(x, x[:6], subset_size=7), r"reference \[6, 3\]; accepted: 7 or"),
        (lambda x: kernel_distance(x[:6], x, subset_size=7), r"features \[6, 3\] and .* 7 or more"),
        (lambda x: kernel_distance(x, x, subset_size=1), "subset_size 1; accepted: an int, 2 or"),
        (lambda x: kernel_distance(x, x, subsets=0), "subsets 0; accepted: an int, 1 or more"),
        (lambda x: kernel_distance(x, x, degree=1.5), "degree 1.5; accepted: an int"),
        (lambda x: kernel_distance(x, x, kernel="poly"), "'poly'; accepted: 'polynomial' or 'rbf'"),
        (lambda x: kernel_distance(x, x, sigma=0), "sigma 0; accepted: above 0"),
        (
            lambda x: inception_score(x),
            r"logits \[8, 3\]; accepted: 10 or more rows, for 10 splits",
        ),
        (lambda x: inception_score(x, splits=0), "splits 0; accepted: an int, 1 or more"),
        (lambda x: inception_score(x[0]), r"logits of shape \(3,\)"),
        (lambda x: inception_score(x * np.inf, splits=2), "logits has 8 rows that aren't finite"),
        (lambda x: precision_recall(x, x[:3]), "4 or more rows in each, for 3 neighbours"),
        (lambda x: precision_recall(x[:3], x), "4 or more rows in each, for 3 neighbours"),
        (lambda x: precision_recall(x, x, neighbours=0), "neighbours 0; accepted: an int, 1 or"),
        (lambda x: merge(statistics(x), statistics(x[:, :2])), "dims 3 and 2; accepted: equal"),
        (
            lambda x: frechet_distance_of(statistics(x), statistics(x[:, :2])),
            "dims 3 and 2; accepted: equal",
        ),
    ],
)
def test_what_cant_be_computed_is_refused(call, problem):
    with pytest.raises(ValueError, match=problem):
        call(_normal(8, 3))


def test_the_least_that_is_accepted():
    x = _normal(8, 3)
    assert frechet_distance(x[:2], x[:2]) == pytest.approx(0, abs=1e-12)
    assert inception_score(x, splits=8)[0] == pytest.approx(1)
    assert precision_recall(x[:4], x[:4]) == (1.0, 1.0)
    assert kernel_distance(x, x, subset_size=8, subsets=1)[1] == 0
