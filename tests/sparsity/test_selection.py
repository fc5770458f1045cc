"""Exact selection, against a stable sort in numpy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity.selection import select_top, select_top_overall

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, 6e-8, 1e30, -1e30, 1.0, -1.0]

select_jitted = jax.jit(select_top)
select_among_jitted = jax.jit(lambda scores, count, c: select_top(scores, count, candidates=c))
select_overall_jitted = jax.jit(
    lambda scores, count, c: select_top_overall(scores, count, candidates=c)
)


def stable_sort_mask(scores, count, candidates=None):
    """Largest first, ties to the lowest index, NaN last, non-candidates never."""
    wide = scores.astype(np.float64)
    usable = np.ones(len(wide), bool) if candidates is None else candidates
    rank = np.where(np.isnan(wide), -np.inf, wide)
    order = np.lexsort((np.arange(len(wide)), -rank, np.isnan(wide), ~usable))
    mask = np.zeros(len(wide), bool)
    mask[order[: min(max(count, 0), int(usable.sum()))]] = True
    return mask


@st.composite
def scores_and_count(draw):
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    pool = np.array([*SPECIAL, *rng.normal(size=draw(st.integers(1, 20)))])
    with np.errstate(over="ignore"):
        scores = rng.choice(pool, size=64).astype(dtype)
    return scores, draw(st.integers(-1, 66)), rng.random(64) < draw(st.sampled_from([0.1, 0.9]))


@settings(max_examples=150, deadline=None)
@given(scores_and_count())
def test_selection_equals_a_stable_sort(case):
    scores, count, _ = case
    ours = np.asarray(select_jitted(jnp.asarray(scores), count))
    np.testing.assert_array_equal(ours, stable_sort_mask(scores, count))


@settings(max_examples=150, deadline=None)
@given(scores_and_count())
def test_selection_among_candidates_equals_a_stable_sort(case):
    scores, count, candidates = case
    ours = np.asarray(select_among_jitted(jnp.asarray(scores), count, jnp.asarray(candidates)))
    np.testing.assert_array_equal(ours, stable_sort_mask(scores, count, candidates))


@settings(max_examples=150, deadline=None)
@given(scores_and_count())
def test_selection_of_several_arrays_equals_a_stable_sort_of_all(case):
    scores, count, candidates = case
    parts, among = np.split(scores, [20, 21]), np.split(candidates, [20, 21])
    ours = select_overall_jitted([*map(jnp.asarray, parts)], count, [*map(jnp.asarray, among)])
    expected = stable_sort_mask(scores, count, candidates)
    np.testing.assert_array_equal(np.concatenate(ours), expected)


def test_denormals_keep_their_order():
    scores = np.array([1, 3, 2, 0], np.uint32).view(np.float32)
    assert (scores[:3] > 0).all()
    assert select_top(jnp.asarray(scores), 2).tolist() == [False, True, True, False]


def test_selection_keeps_the_shape_and_counts_flat_indices_in_row_major_order():
    chosen = select_top(jnp.ones((2, 3)), 4)
    assert chosen.tolist() == [[True, True, True], [True, False, False]]


def test_large_arrays_with_many_ties_are_exact():
    scores = np.random.default_rng(0).integers(0, 7, 1_000_003).astype(np.float32)
    ours = np.asarray(select_top(jnp.asarray(scores), 400_001))
    np.testing.assert_array_equal(ours, stable_sort_mask(scores, 400_001))


@pytest.mark.parametrize("vector", ["topk_ties"])
def test_ties_equal_the_reference(golden, vector):
    case = next(v for v in golden("sparsity.json")["vectors"] if v["name"] == vector)
    scores = jnp.asarray(case["inputs"]["scores"])
    count = len(scores) - int(case["inputs"]["sparsity"] * len(scores))
    assert select_top(scores, count).astype(int).tolist() == case["expected"]


def test_integer_scores_compare_as_numbers():
    assert select_top(jnp.array([-5, 2, 0]), 1).tolist() == [False, True, False]
