"""From floats to 8-bit pictures and back."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsejax.rendering.pixels import are_finite, to_pixels, to_unit_range


def test_pixels_survive_the_unit_range():
    values = np.arange(256, dtype=np.uint8)
    unit = to_unit_range(values)
    assert (unit.min(), unit.max()) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(unit), values)
    np.testing.assert_array_equal(to_pixels(np.array([-9.0, 9.0])), [0, 255])


@given(st.lists(st.floats(-3, 3, width=32), min_size=1))
def test_pictures_are_clipped_and_rounded_to_nearest(values):
    """By fractions: the nearest of 256 levels, a half to the even one; float32 may miss by 1e-4."""
    found = to_pixels(np.array(values, np.float32))
    for value, level in zip(values, found.tolist(), strict=True):
        exact = (min(max(Fraction(value), Fraction(-1)), Fraction(1)) + 1) * 255 / 2
        assert abs(level - exact) <= Fraction(1, 2) + Fraction(1, 10_000)
        assert level == round(exact) or abs(exact % 1 - Fraction(1, 2)) < Fraction(1, 10_000)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_other_floats_make_the_same_pictures(dtype):
    x = jnp.linspace(-1.5, 1.5, 301).astype(dtype)
    expected = to_pixels(np.asarray(x.astype(np.float32)))
    np.testing.assert_array_equal(to_pixels(x), expected)
    assert to_pixels(np.asarray(x)).dtype == np.uint8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_no_picture_can_show_is_refused(value):
    images = np.zeros((3, 2, 2, 1), np.float32)
    images[1, 0, 1] = value
    with pytest.raises(ValueError, match="aren't finite; accepted: floats in"):
        to_pixels(images)
    assert are_finite(images).tolist() == [True, False, True]


def test_pictures_are_made_once():
    with pytest.raises(ValueError, match=r"images are uint8; accepted: floats in \[-1, 1\]"):
        to_pixels(np.zeros((1, 2, 2, 1), np.uint8))
