import numpy as np
import pytest
import scipy.linalg

from sparsejax.evaluation.distances import frechet_distance


def test_equals_the_reference(golden):
    """FID of torch-fidelity on given features."""
    features = golden("h_features_500x64.npz")
    expected = golden("h_metrics.json")["fid"]["seed1_N500_D64"]
    ours = frechet_distance(features["a"], features["b"])
    assert ours == pytest.approx(expected["fid_float64_features"], rel=1e-8)
    # torch-fidelity averages in float32.
    assert ours == pytest.approx(expected["fid_torch_fidelity_0_4_0"], rel=1e-6)


def test_equals_the_definition_with_a_matrix_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 5)), rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 1
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_have_no_distance_even_with_constant_features():
    x = np.random.default_rng(0).normal(size=(100, 6))
    x[:, 2] = 0.0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + [0, 0, 3, 0, 0, 0]) == pytest.approx(9, abs=1e-6)
