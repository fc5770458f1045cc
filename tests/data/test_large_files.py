"""Whole data sets, of which the other tests read excerpts: files in the folder `SPARSEJAX_DATA`."""

import os
import pathlib

import numpy as np
import pytest

from tests.data.sets import task
from tests.data.test_drawings import assert_read_whole
from tests.data.test_files import content, save_ragged, with_pillow
from tests.data.test_stroke_statistics import assert_splits_are_near


@pytest.fixture
def folder():
    """The folder that `SPARSEJAX_DATA` names; skips the test without it."""
    if "SPARSEJAX_DATA" not in os.environ:
        pytest.skip(
            "SPARSEJAX_DATA isn't set: a folder with kanjivg_abs.npz, vmnist_like.npz and "
            "imagenette64_jpeg.npz; other tests read excerpts of them"
        )
    return pathlib.Path(os.environ["SPARSEJAX_DATA"])


def test_all_of_kanjivg_is_read(folder):
    assert_read_whole(folder / "kanjivg_abs.npz")


def test_splits_of_traced_digits_are_near_and_noise_is_far(folder):
    assert_splits_are_near(folder / "vmnist_like.npz", {"train": 0, "test": 1})


def test_photos_are_read_as_they_are(folder, tmp_path):
    """The first photos of each split, against Pillow on the bytes in the npz."""
    with np.load(folder / "imagenette64_jpeg.npz", allow_pickle=False) as arrays:
        jpeg, offsets, split, label = (arrays[k] for k in ("jpeg", "offsets", "split", "label"))
    chosen = [*np.flatnonzero(split == 0)[:40], *np.flatnonzero(split == 1)[:10]]
    files = [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in chosen]
    save_ragged(tmp_path / "photos.npz", files, label=label[chosen], split=split[chosen])
    settings = task(tmp_path, source=tmp_path / "photos.npz", image_size=64)
    for name, part in (("train", slice(0, 40)), ("validation", slice(40, 50))):
        pairs = zip(files[part], label[chosen[part]], strict=True)
        assert content(settings, name) == {(with_pillow(file), int(i)) for file, i in pairs}
