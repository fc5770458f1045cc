"""The share of samples nearest to a training example, against a definition written naively."""

import numpy as np
import pytest

from sparsejax.metrics.copying import nearer_to_training


def _normal(count, seed, dim=3):
    return np.random.default_rng(seed).normal(size=(count, dim))


def _naive(samples, training, held_out):
    def nearest(rows):
        return [min(((x - row) ** 2).sum() for row in rows) for x in samples]

    pairs = zip(nearest(training), nearest(held_out), strict=True)
    return np.mean([1 if a < b else 0.5 if a == b else 0 for a, b in pairs])


def test_it_is_the_share_of_samples_whose_nearest_example_was_trained_on():
    samples, training, held_out = (_normal(count, seed) for seed, count in enumerate((50, 20, 20)))
    found = nearer_to_training(samples, training, held_out)
    assert found == pytest.approx(_naive(samples, training, held_out))
    assert nearer_to_training(samples, held_out, training) == pytest.approx(1 - found)


def test_copies_are_found_and_samples_of_neither_set_are_split_evenly():
    training, held_out = _normal(300, 1), _normal(300, 2)
    assert nearer_to_training(training[::3], training, held_out) == 1
    assert nearer_to_training(held_out[::3] + 1e-9, training, held_out) == 0
    assert nearer_to_training(_normal(50, 3), training, training) == 0.5
    fresh = nearer_to_training(_normal(2000, 3), training, held_out)
    assert abs(fresh - 0.5) < 0.06
    half = np.concatenate([training, _normal(300, 4)])
    assert abs(nearer_to_training(half, training, held_out) - 0.75) < 0.05


def test_sets_of_several_blocks_are_compared_whole():
    """2,048 rows are compared at once; one copied example lies in the first block, one beyond."""
    training, held_out = np.zeros((2500, 1)), np.full((2500, 1), 5.0)
    training[100], training[2400] = 9, 20
    samples = np.full((2500, 1), 4.9)
    samples[:50], samples[2200:2300] = 20, 9
    assert nearer_to_training(samples, training, held_out) == pytest.approx(150 / 2500)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": np.ones((3, 2))}, "4 training and 3 held-out examples; accepted: as many"),
        ({"features": np.ones((5, 3))}, "differ in dim"),
        ({"features": np.ones((0, 2))}, "too few rows"),
        ({"training": np.full((4, 2), np.nan)}, "training has 4 rows that aren't finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    sets = {"features": np.ones((5, 2)), "training": np.ones((4, 2)), "held_out": np.ones((4, 2))}
    with pytest.raises(ValueError, match=message):
        nearer_to_training(**sets | changes)
