"""Arrays as a source of a run: what becomes of them, and what can't be meant."""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax.data
from sparsejax.configuration import resolve
from sparsejax.data import images as data
from sparsejax.errors import ConfigError
from sparsejax.families import build_data
from sparsejax.training import runs
from tests.data.sets import task
from tests.training.tiny import tiny_config

IMAGES = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)


def loaded(tmp_path, source, split="train", **changes):
    """The images of a split, in the order of their first pixels, and their labels."""
    images, labels = data.load_images(task(tmp_path, source=source, **changes), split)
    order = np.lexsort(images.reshape(len(images), -1).T[::-1])
    return images[order], labels[order]


def in_order(images):
    return images[np.lexsort(images.reshape(len(images), -1).T[::-1])]


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_arrays_become_the_images_that_are_trained_on(tmp_path, make):
    floats = IMAGES.astype(np.float32) / 127.5 - 1
    for images in (IMAGES, floats):
        source = sparsejax.data.from_arrays(make(images))
        np.testing.assert_array_equal(loaded(tmp_path, source)[0], in_order(IMAGES))


def test_labels_and_held_out_images_go_with_them(tmp_path):
    labels = IMAGES[:8, 0, 0, 0] % 5
    source = sparsejax.data.from_arrays(IMAGES[:8], labels, held_out=IMAGES[8:], name="mine")
    images, found = loaded(tmp_path, source, held_out=0.1)
    np.testing.assert_array_equal(images, in_order(IMAGES[:8]))
    np.testing.assert_array_equal(found, images[:, 0, 0, 0] % 5)
    held_out, _ = loaded(tmp_path, source, "validation", held_out=0.1)
    np.testing.assert_array_equal(held_out, in_order(IMAGES[8:]))
    assert data.label(task(tmp_path, source=source)).startswith("mine-")


def test_the_same_arrays_are_the_same_file_and_others_another():
    one = sparsejax.data.from_arrays(IMAGES)
    written = pathlib.Path(one).stat().st_mtime_ns
    assert sparsejax.data.from_arrays(IMAGES.copy()) == one
    assert pathlib.Path(one).stat().st_mtime_ns == written
    others = [
        sparsejax.data.from_arrays(IMAGES[::-1]),
        sparsejax.data.from_arrays(IMAGES, np.arange(12)),
        sparsejax.data.from_arrays(IMAGES[:8], held_out=IMAGES[8:]),
        sparsejax.data.from_arrays(IMAGES.reshape(12, 4, 16, 3)),
    ]
    assert len({one, *others}) == 5


def test_a_run_notices_other_arrays(tmp_path):
    """And goes on with the same ones, written anew by the same script."""
    config = tiny_config(**{"task.dataset": "files", "model.in_channels": 3})
    config.task.held_out, config.task.reference_split = 0.2, "validation"
    config.task.source = sparsejax.data.from_arrays(IMAGES)
    runs.save_config(tmp_path / "run", resolve(config))
    os.unlink(config.task.source)
    config.task.source = sparsejax.data.from_arrays(IMAGES)
    assert runs.resolve_for(tmp_path / "run", config)
    batch = next(build_data(resolve(config)).batches(0, 1))
    assert batch["image"].shape == (8, 8, 8, 3)
    config.task.source = sparsejax.data.from_arrays(IMAGES[::-1])
    with pytest.raises(ConfigError, match=r"^config\.task\.source is .* holds different data"):
        runs.resolve_for(tmp_path / "run", config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES[0, 0]}, r"images has the shape \[8, 3\]; accepted: \[count, height"),
        ({"images": IMAGES[..., :2]}, r"shape \[12, 8, 8, 2\]"),
        ({"images": IMAGES[:0]}, r"shape \[0, 8, 8, 3\]"),
        ({"images": IMAGES.astype(np.int64)}, r"is int64; accepted: uint8, or floats in \[-1, 1\]"),
        ({"images": IMAGES > 99}, "is bool; accepted"),
        ({"images": IMAGES.astype(float)}, "floats from 0 to 255; accepted: uint8, or floats"),
        ({"images": IMAGES / 255}, r"no float below 0; .* \(2 \* images - 1 maps \[0, 1\] to them"),
        ({"images": np.where(IMAGES, np.nan, -1)}, "floats from nan to nan"),
        ({"labels": np.arange(11)}, r"labels are int64 \[11\]; accepted: whole numbers \[12\]"),
        ({"labels": np.ones(12)}, r"labels are float64 \[12\]"),
        ({"held_out": IMAGES[:, :4]}, r"held_out has the shape .*; accepted: \[count, \*\[8, 8, 3"),
        ({"held_out": IMAGES[:0]}, r"held_out has the shape \[0, 8, 8, 3\]"),
        ({"name": "a/b"}, "name is 'a/b'; accepted: letters, digits"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        sparsejax.data.from_arrays(**{"images": IMAGES} | arguments)
    assert "\n" not in str(error.value)


def test_a_cache_folder_that_cannot_be_written_to_is_named(monkeypatch):
    monkeypatch.setenv("SPARSEJAX_CACHE", "/proc/nowhere")
    with pytest.raises(ConfigError, match="^SPARSEJAX_CACHE is '/proc/nowhere/arrays'"):
        sparsejax.data.from_arrays(IMAGES)


def test_importing_the_package_is_quick():
    code = "import sys, sparsejax.data; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
