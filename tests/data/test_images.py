import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparsejax.data import images as data


@pytest.fixture(scope="module")
def digits():
    return data.load_images("digits")


def test_digits_are_scikit_learns(digits):
    """As a set: tensorflow-datasets stores the examples in an order of its own."""
    images, labels = digits
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    source = load_digits()
    expected = np.round(source.images * 255 / 16).astype(np.uint8)

    def as_set(images, labels):
        return sorted(
            (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    assert as_set(images, labels) == as_set(expected, source.target)


def test_pixels_survive_the_unit_range():
    pixels = np.arange(256, dtype=np.uint8)
    unit = data.to_unit_range(pixels)
    assert (unit.min(), unit.max()) == (-1, 1)
    np.testing.assert_array_equal(data.to_pixels(unit), pixels)
    np.testing.assert_array_equal(data.to_pixels(np.array([-9.0, 9.0])), [0, 255])


def test_a_batch_is_a_function_of_its_step():
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)

    def batches(start, stop, seed=0):
        return [b["image"].ravel() for b in data.image_batches(images, 8, seed, start, stop)]

    whole = batches(0, 10)
    assert len(whole) == 10
    for ours, expected in zip(batches(4, 10), whole[4:], strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(batches(0, 1, seed=1)[0], whole[0])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    shown = np.concatenate(
        [b["image"].ravel() for b in data.image_batches(images, 4, 0, 0, 10)]
    ).reshape(2, 20)
    for epoch in shown:
        np.testing.assert_array_equal(np.sort(epoch), data.to_unit_range(images).ravel())
    assert not np.array_equal(shown[0], shown[1])


def test_processes_share_out_the_global_batch(monkeypatch):
    """Two processes together see what one sees, and no image twice."""
    images = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1)

    def batches(process, processes):
        monkeypatch.setattr(data.jax, "process_index", lambda: process)
        monkeypatch.setattr(data.jax, "process_count", lambda: processes)
        return [b["image"].ravel() for b in data.image_batches(images, 16, 0, 2, 4)]

    whole = batches(0, 1)
    parts = zip(batches(0, 2), batches(1, 2), strict=True)
    for expected, part in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), expected)
