"""Hugging Face datasets: small ones on disk, read by the package itself; and what is refused."""

import os
import shutil
import sys

import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.data import images as data
from sparsejax.data.builders import full_name, open_builder, stamp
from sparsejax.data.hugging_face import find_columns
from sparsejax.data.items import SourceError
from sparsejax.errors import ConfigError
from sparsejax.training import runs
from tests.data.sets import encoded, pixels, task, write
from tests.training.tiny import tiny_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is asked of the hub; read at the import
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    missing = "NOT TESTED: datasets is not installed; pip install -e '.[hf]'"
    module = pytest.importorskip("datasets", reason=missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))
        yield module


def settings(folder, source, **changes):
    return task(folder / "sets", dataset="hf", source=source, **changes)


def content(settings, split="train"):
    images, labels = data.load_images(settings, split)
    return {(image.tobytes(), int(i)) for image, i in zip(images, labels, strict=True)}


def expected(numbers, classes=2):
    return {(pixels(i).tobytes(), i % classes) for i in numbers}


def make(datasets, numbers, **columns):
    """A Dataset of encoded images and labels, and of columns that nobody asked for."""
    features = {
        "id": datasets.Value("string"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["even", "odd"]),
    }
    rows = {
        "id": [str(i) for i in numbers],
        "picture": [{"bytes": encoded(pixels(i)), "path": None} for i in numbers],
        "kind": [i % 2 for i in numbers],
    }
    for name, (feature, values) in columns.items():
        features[name], rows[name] = feature, values
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_what_save_to_disk_wrote_is_read_with_its_splits_and_labels(datasets, tmp_path):
    parts = {"train": range(10), "valid": range(10, 13), "test": range(13, 15)}
    saved = datasets.DatasetDict({name: make(datasets, numbers) for name, numbers in parts.items()})
    saved.save_to_disk(tmp_path / "saved")
    ours = settings(tmp_path, tmp_path / "saved", held_out=0.5)
    assert content(ours) == expected(range(10))
    assert content(ours, "validation") == expected(range(10, 13))
    assert content(ours, "test") == expected(range(13, 15))
    (line,) = open_builder(ours).about()
    assert line.endswith("train 10, validation 3, test 2; 2 classes: even, odd")
    assert data.label(ours) == "saved"


def test_a_single_split_is_train_and_part_of_it_is_held_out(datasets, tmp_path):
    """By the same rule as files: the same images are held out wherever they are stored."""
    make(datasets, range(20)).save_to_disk(tmp_path / "saved")
    folder = write(tmp_path / "files", **{f"{i}.png": pixels(i) for i in range(20)})
    held_out = [
        {image for image, _ in content(which, "validation")}
        for which in (
            settings(tmp_path, tmp_path / "saved", held_out=0.25),
            task(tmp_path / "sets", source=folder, held_out=0.25),
        )
    ]
    assert held_out[0] == held_out[1]
    assert 2 <= len(held_out[0]) < 15


def test_a_folder_of_parquet_files_is_read(datasets, tmp_path):
    (tmp_path / "parquet").mkdir()
    for name, numbers in {"train": range(6), "test": range(6, 9)}.items():
        make(datasets, numbers).to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    ours = settings(tmp_path, tmp_path / "parquet")
    assert content(ours) == expected(range(6))
    assert content(ours, "test") == expected(range(6, 9))


def test_a_folder_of_images_is_read_with_its_classes(datasets, tmp_path):
    """`datasets` keeps their paths, not their bytes."""
    files = {f"train/{('even', 'odd')[i % 2]}/{i}.png": pixels(i) for i in range(6)}
    ours = settings(tmp_path, write(tmp_path / "folder", **files))
    assert content(ours) == expected(range(6))


def test_rows_that_are_chosen_and_shuffled_are_those_that_are_read(datasets, tmp_path):
    chosen = make(datasets, range(20)).shuffle(seed=0).select(range(5))
    numbers = [int(i) for i in chosen["id"]]
    chosen.save_to_disk(tmp_path / "saved")
    assert content(settings(tmp_path, tmp_path / "saved")) == expected(numbers)


def test_columns_are_chosen_where_several_could_be_meant(datasets, tmp_path):
    columns = {
        "thumb": (datasets.Image(), [{"bytes": encoded(pixels(9)), "path": None}] * 4),
        "fine": (datasets.ClassLabel(num_classes=9), [3, 4, 5, 6]),
        "number": (datasets.Value("int64"), [7, 8, None, 7]),
    }
    make(datasets, range(4), **columns).save_to_disk(tmp_path / "saved")
    message = (
        r"^config\.task\.columns is \(\); accepted: a column of images \(picture, thumb\), and one "
        r"of labels \(kind, fine, number\) or none, such as --config\.task\.columns=picture,kind$"
    )
    for wrong in ((), ("fine",), ("picture", "id"), ("picture", "kind", "fine"), ("nothing",)):
        with pytest.raises(ConfigError, match=r"^config\.task\.columns is \("):
            content(settings(tmp_path, tmp_path / "saved", columns=wrong))
    with pytest.raises(ConfigError, match=message):
        content(settings(tmp_path, tmp_path / "saved"))

    def labels(*columns):
        found = content(settings(tmp_path, tmp_path / "saved", columns=columns))
        return dict(found)[pixels(2).tobytes()], {image for image, _ in found}

    alone, images = labels("picture")
    assert (alone, images) == (0, {image for image, _ in expected(range(4))})
    assert labels("picture", "fine")[0] == 5
    assert labels("picture", "number")[0] == -1
    assert content(settings(tmp_path, tmp_path / "saved", columns=("thumb", "kind"))) == {
        (pixels(9).tobytes(), 0),
        (pixels(9).tobytes(), 1),
    }


def test_a_dataset_without_images_is_named_with_its_columns(datasets):
    features = datasets.Features({"text": datasets.Value("string")})
    with pytest.raises(SourceError, match=r"no column of type Image; its columns are text \(Value"):
        find_columns(features)


def test_broken_images_are_named_by_their_row(datasets, tmp_path):
    rows = [encoded(pixels(0)), b"no image", None]
    values = [row and {"bytes": row, "path": None} for row in rows]
    features = datasets.Features({"image": datasets.Image()})
    whole = datasets.Dataset.from_dict({"image": values}, features=features)
    whole.save_to_disk(tmp_path / "saved")
    message = "2 of 3 images can't be read: row 1 of train: it isn't an image .*; row 2 of train: "
    with pytest.raises(ConfigError, match=rf"^config\.task\.source is .*{message}it is empty"):
        content(settings(tmp_path, tmp_path / "saved"))


def test_a_run_goes_on_with_the_same_data_and_notices_others(datasets, tmp_path):
    """Written again elsewhere, with other times and another fingerprint, it is the same."""
    config = tiny_config(**{"task.dataset": "hf", "model.in_channels": 3, "batch_size": 4})
    config.task.source = str(tmp_path / "one")
    make(datasets, range(8)).save_to_disk(tmp_path / "one")
    runs.save_config(tmp_path / "run", resolve(config))
    make(datasets, range(8)).map(lambda row: row).save_to_disk(tmp_path / "two")
    make(datasets, [*range(7), 9]).save_to_disk(tmp_path / "three")
    config.task.source = str(tmp_path / "two")
    assert runs.resolve_for(tmp_path / "run", config)
    config.task.source = str(tmp_path / "three")
    message = r"^config\.task\.source is .* different data \(train 8\) from .* \(train 8\)"
    with pytest.raises(ConfigError, match=message):
        runs.resolve_for(tmp_path / "run", config)
    relabelled = make(datasets, range(8)).map(lambda row: {"kind": 0})
    shutil.rmtree(tmp_path / "three")
    relabelled.save_to_disk(tmp_path / "three")
    assert stamp(config.task) != stamp(settings(tmp_path, tmp_path / "two"))


def test_a_dataset_that_changed_in_place_is_not_served_stale(datasets, tmp_path):
    ours, names = settings(tmp_path, tmp_path / "saved"), set()
    for numbers in (range(4), range(2, 6)):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        make(datasets, numbers).save_to_disk(tmp_path / "saved")
        assert content(ours) == expected(numbers)
        names.add(full_name(ours))
    assert len(names) == 2


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("OWNER/a-name-that-nobody-has", "datasets can't load it: "),
        ("empty", "datasets can't load it: "),
        ("split", r"config\.task\.split is 'nowhere': .*accepted: train \(3\)"),
    ],
)
def test_what_datasets_cannot_load_is_one_line(datasets, tmp_path, monkeypatch, source, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make(datasets, range(3)).save_to_disk(tmp_path / "split")
    with pytest.raises(ConfigError, match=problem) as error:
        data.open_images(settings(tmp_path, source, split="nowhere"), "nowhere")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "accepted: OWNER/NAME, or OWNER/NAME:CONFIG, of a dataset on the Hugging Face hub"),
        ("photos", "it doesn't exist; accepted: OWNER/NAME"),
        ("/nowhere/photos", "it doesn't exist"),
        ("a/b/c", "it doesn't exist"),
        ("./b", "it doesn't exist"),
        ("OWNER/NAME:", "it doesn't exist"),
        (__file__, "it isn't a folder"),
    ],
)
def test_a_source_that_is_none_is_refused_without_the_package(
    tmp_path, monkeypatch, source, problem
):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=rf"^config\.task\.source is .*{problem}") as error:
        data.open_images(settings(tmp_path, source), "train")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    np.save(write(tmp_path / "folder", **{"a.png": pixels(0)}) / "x.npy", 0)
    for source in ("OWNER/NAME", tmp_path / "folder"):
        with pytest.raises(ConfigError, match=r"datasets can't be .* install 'sparsejax\[hf\]'"):
            data.open_images(settings(tmp_path, source), "train")
