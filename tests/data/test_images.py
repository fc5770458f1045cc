import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparsejax.data import images as data
from sparsejax.errors import ConfigError
from sparsejax.rendering.pixels import to_pixels
from tests.data.counting import counting
from tests.data.sets import pixels, task


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return task(tmp_path_factory.mktemp("datasets"), dataset="digits")


@pytest.fixture(scope="module")
def digits(settings):
    return data.load_images(settings, "train")


def numbered(count):
    """Images of one pixel that holds the image's number."""
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def lopsided(count):
    """Images that differ from their mirror image: number, then 255."""
    return np.stack([np.arange(count), np.full(count, 255)], 1).astype(np.uint8)[:, None, :, None]


def batches(dataset, batch_size, start, stop, seed=0, flip=False):
    found = data.image_batches(dataset, batch_size, seed, start, stop, flip=flip)
    return [to_pixels(batch["image"]) for batch in found]


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


def test_random_access_gives_what_is_loaded(settings, digits):
    dataset = data.open_images(settings, "train")
    images, labels = digits
    assert len(dataset) == len(images) == 1797
    for i in (0, 900, 1796):
        np.testing.assert_array_equal(dataset[i]["image"], images[i])
        assert dataset[i]["label"] == labels[i]


def test_slices_of_a_split_are_parts_of_it(settings, digits):
    first, labels = data.load_images(settings, "train[:100]")
    rest, _ = data.load_images(settings, "train[100:]")
    np.testing.assert_array_equal(np.concatenate([first, rest]), digits[0])
    np.testing.assert_array_equal(labels, digits[1][:100])


def test_images_are_loaded_once(settings, digits):
    assert data.load_images(settings, "train")[0] is digits[0]


def test_the_description_differs_when_the_pixels_do(settings, tmp_path):
    descriptions = {
        data.describe(settings, "train"),
        data.describe(settings, "train[:10]"),
        data.describe(task(tmp_path, dataset="digits", image_size=16), "train"),
        data.describe(task(tmp_path, dataset="celeb_a_hq"), "train"),
    }
    assert len(descriptions) == 4
    assert all("1.0.0" in text or "2.0.0" in text for text in descriptions)
    assert data.describe(settings, "train") == data.describe(settings, "train")


def test_an_image_size_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.task\.image_size is 0"):
        data.open_images(task(tmp_path, dataset="digits", image_size=0), "train")


def test_a_batch_is_a_function_of_its_step():
    whole = batches(lopsided(20), 8, 0, 10, flip=True)
    assert len(whole) == 10
    for start in (1, 4, 9):
        for ours, expected in zip(
            batches(lopsided(20), 8, start, 10, flip=True), whole[start:], strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(batches(lopsided(20), 8, 0, 1, seed=1)[0], whole[0])


@pytest.mark.parametrize("flip", [False, True])
def test_every_epoch_shows_every_image_once_in_a_new_order(flip):
    shown = np.concatenate(batches(numbered(20), 4, 0, 10, flip=flip)).reshape(2, 20)
    for epoch in shown:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(shown[0], shown[1])


def test_flips_mirror_half_of_the_images_anew_in_every_epoch():
    """Of 1,000 fair flips, 420 to 580 are heads but once in a million trials."""
    images = lopsided(250)
    shown = np.concatenate(batches(images, 50, 0, 20, flip=True)).reshape(4, 250, 2)
    flips = []
    for epoch in shown:
        flipped = epoch[:, 0] == 255
        number = np.where(flipped, epoch[:, 1], epoch[:, 0])
        np.testing.assert_array_equal(np.sort(number), np.arange(250))
        np.testing.assert_array_equal(np.where(flipped, epoch[:, 0], epoch[:, 1]), 255)
        flips.append(flipped[np.argsort(number)])
    assert 420 < np.sum(flips) < 580
    for i in range(4):
        for j in range(i):
            assert 75 < np.sum(flips[i] != flips[j]) < 175
    unflipped = np.concatenate(batches(images, 50, 0, 5))
    assert (unflipped[:, 0, 1] == 255).all()
    np.testing.assert_array_equal(
        np.where(shown[0] == 255, 0, shown[0]).sum(1), unflipped[:, 0, 0, 0]
    )


def test_flips_mirror_left_and_right():
    image = pixels(0, 4, 6)
    shown = np.concatenate(batches(image[None], 8, 0, 4, flip=True))
    kinds = {x.tobytes() for x in shown}
    assert kinds == {image.tobytes(), image[:, ::-1].tobytes()}


def test_opened_and_loaded_images_give_the_same_batches(settings, digits):
    opened = batches(data.open_images(settings, "train"), 16, 110, 115, flip=True)
    loaded = batches(digits[0], 16, 110, 115, flip=True)
    np.testing.assert_array_equal(opened, loaded)


def test_batches_are_float32_images_alone(digits):
    (batch,) = data.image_batches(digits[0], 4, 0, 0, 1)
    assert list(batch) == ["image"]
    assert (batch["image"].dtype, batch["image"].shape) == (np.float32, (4, 8, 8, 1))


def test_processes_share_out_the_global_batch(monkeypatch):
    """Two processes together see what one sees, and no image twice."""
    images = lopsided(64)

    def part(process, processes):
        monkeypatch.setattr(data.jax, "process_index", lambda: process)
        monkeypatch.setattr(data.jax, "process_count", lambda: processes)
        return batches(images, 16, 2, 4, flip=True)

    whole = part(0, 1)
    parts = zip(part(0, 2), part(1, 2), strict=True)
    for expected, pair in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(pair), expected)


def test_each_process_reads_its_share_alone(monkeypatch):
    """Of a set that isn't held in memory, nothing of the others' shares is read or decoded."""
    monkeypatch.setattr(data.jax, "process_count", lambda: 4)
    shares = []
    for process in range(4):
        monkeypatch.setattr(data.jax, "process_index", lambda process=process: process)
        images, read = counting([{"image": image} for image in numbered(96)])
        shown = batches(images, 16, 1, 6)
        assert sorted(read) == sorted(np.concatenate(shown).ravel())
        shares.append(read)
    assert [len(read) for read in shares] == [5 * 4] * 4
    assert len(set(sum(shares, []))) == 5 * 16


def test_padding_is_a_black_border_that_belongs_to_the_size(tmp_path):
    small = np.random.default_rng(0).integers(1, 256, size=(4, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=small)
    padded = {"source": str(tmp_path / "set.npz"), "image_size": 10, "padding": 2}
    ours = task(tmp_path / "datasets", **padded)
    images, _ = data.load_images(ours, "train")
    assert images.shape == (4, 10, 10, 1)
    inner = {image.tobytes() for image in images[:, 2:8, 2:8, 0]}
    assert inner == {image.tobytes() for image in small}
    assert images.sum() == small.sum()
    assert data.describe(ours, "train").endswith("to 6x6, padded to 10x10")
    whole = task(tmp_path / "datasets", **padded | {"padding": 5})
    with pytest.raises(ConfigError, match="padding is 5; accepted: less than half of task.image"):
        data.load_images(whole, "train")
