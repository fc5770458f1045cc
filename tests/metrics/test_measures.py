"""From samples to named numbers: which extractor, which metrics, what is refused."""

import numpy as np
import pytest

from sparsejax.data.images import load_images
from sparsejax.errors import ConfigError
from sparsejax.metrics import distances, moments
from sparsejax.metrics.copying import nearer_to_training
from sparsejax.metrics.extractors import build_extractor, reference_features
from sparsejax.metrics.measures import build_meter
from sparsejax.rendering.pixels import PICTURES, to_pixels, to_unit_range
from tests.training.tiny import tiny_config

rng = np.random.default_rng(0)
_CYCLE = np.arange(600) % 300


def meter_of(images, label="digits", **options):
    return build_meter(lambda: images, label, **options)


@pytest.fixture(scope="module")
def digits():
    return load_images(tiny_config().task, "train")


def halves(images, parts=3):
    return np.array_split(images[::2], parts), images[1::2]


def test_every_number_says_metric_extractor_and_count(digits):
    images, labels = digits
    batches, real = halves(images)
    labelled = real, labels[1::2]
    options = {"split": "train", "count": 899, "subset_size": 200}
    meter = meter_of(real, labelled=lambda: labelled, **options)
    measures = meter.measure(iter(batches))
    assert meter.reference == "digits train, 898 examples"
    names = ("FD", "KID", "KID std", "IS", "IS std", "precision", "recall")
    assert set(measures) == {f"{name}[classifier:digits]@899" for name in names}
    # Two halves of one set: near each other, and as good as real.
    blurred = [batch // 2 + np.roll(batch, 1, 2) // 2 for batch in batches]
    worse = meter.measure(iter(blurred))
    for name in ("FD", "KID"):
        ours, theirs = (found[f"{name}[classifier:digits]@899"] for found in (measures, worse))
        assert 5 * abs(ours) < theirs
    assert worse["precision[classifier:digits]@899"] < 0.5
    assert measures["precision[classifier:digits]@899"] > 0.8
    assert measures["recall[classifier:digits]@899"] > 0.8
    assert 8 < measures["IS[classifier:digits]@899"] <= 10


def test_accuracy_is_the_share_of_samples_that_show_their_label(digits):
    """Real digits do, as well as the classifier knows them; wrong labels and pixels don't."""
    images, labels = digits
    (batches, real), ours = halves(images), labels[::2]
    meter = meter_of(real, labelled=lambda: (real, labels[1::2]), count=899, metrics=["fd"])
    names = [f"{name}[classifier:digits]@899" for name in ("accuracy", "worst accuracy")]
    right, worst = (meter.measure(iter(batches), ours)[name] for name in names)
    assert right > 0.9
    assert right > worst > 0.7
    wrong = np.where(ours == 3, 4, ours)  # of one label in ten, all
    expected = right - np.mean(ours == 3) * 0.95
    assert meter.measure(iter(batches), wrong)[names[0]] == pytest.approx(expected, abs=0.02)
    assert not {*names} & meter.measure(iter(batches)).keys()
    pixels = meter_of(real, count=899, metrics=["fd"]).measure(iter(batches), ours)
    assert not any("accuracy" in name for name in pixels)


def test_samples_of_each_label_are_compared_with_real_pictures_of_that_label(digits):
    """Against the distance of the sets themselves; batches split them anywhere."""
    images, labels = digits
    samples, real = images[::2], images[1::2]
    ours, theirs = labels[::2], labels[1::2]
    options = {"labelled": lambda: (real, theirs), "count": 899, "metrics": ["fd"]}
    meter = meter_of(real, reference_labels=lambda: theirs, **options)
    found = meter.measure(np.array_split(samples, 7), ours)
    ending = "[classifier:digits]@899"
    for label in (0, 7):
        some = meter_of(real[theirs == label], **options | {"count": int((ours == label).sum())})
        (alone,) = some.measure([samples[ours == label]]).values()
        assert found[f"FD of label {label}{ending}"] == pytest.approx(alone, rel=1e-6)
    mean = np.mean([found[f"FD of label {label}{ending}"] for label in range(10)])
    assert found[f"intra FD{ending}"] == pytest.approx(mean)
    shares = [found[f"accuracy of label {label}{ending}"] for label in range(10)]
    assert found[f"worst accuracy{ending}"] == min(shares)
    assert "intra FD" not in str(meter.measure([samples]).keys())
    rare = np.where(np.arange(899) == 0, 10, ours)  # of a label that no picture has
    assert f"intra FD{ending}" not in meter.measure([samples], rare)


def test_numbers_are_those_of_the_distances_on_the_extractors_features(digits):
    images, _ = digits
    batches, real = halves(images, 4)
    extract = build_extractor("pixels", "digits", None, (8, 8, 1)).extract
    ours, theirs = extract(np.concatenate(batches))[0], extract(real)[0]
    np.testing.assert_allclose(ours, images[::2].reshape(-1, 64) / 255, atol=1e-6)
    measures = meter_of(real, count=899, subset_size=100).measure(iter(batches))
    expected = distances.frechet_distance(ours, theirs)
    assert measures["FD[pixels:8x8]@899"] == pytest.approx(expected, rel=1e-9)
    kernel = distances.kernel_distance(ours, theirs, subset_size=100)
    assert measures["KID[pixels:8x8]@899"] == pytest.approx(kernel[0], rel=1e-9)
    assert measures["KID std[pixels:8x8]@899"] == pytest.approx(kernel[1], rel=1e-9)
    assert not any(name.startswith("IS") for name in measures), "pixels are no classifier"


@pytest.mark.slow
def test_copying_is_measured_in_pixels_among_as_many_training_as_held_out_examples(digits):
    images, labels = digits
    real, asked = images[1200:], []

    def training(most):
        asked.append(most)
        return images[:300]

    options = {"metrics": ["fd", "nearest"], "count": 600, "training": training}
    meter = meter_of(real, labelled=lambda: digits, **options)
    fresh, copies = (meter.measure(np.array_split(images[s], 2)) for s in (np.s_[600:1200], _CYCLE))
    assert asked == [len(real)]
    assert set(fresh) == {"FD[classifier:digits]@600", "nearest[pixels:8x8]@600"}
    assert abs(fresh["nearest[pixels:8x8]@600"] - 0.5) < 0.1
    assert copies["nearest[pixels:8x8]@600"] == 1
    shown = real[np.linspace(0, len(real) - 1, 300).astype(int)].reshape(300, -1) / 255
    pixels = (images[s].reshape(len(images[s]), -1) / 255 for s in (np.s_[600:1200], np.s_[:300]))
    expected = nearer_to_training(*pixels, shown)
    assert fresh["nearest[pixels:8x8]@600"] == pytest.approx(expected, abs=1 / 600)


def test_pixels_average_larger_images():
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    extractor = build_extractor(None, "noise", None, images.shape[1:])
    assert extractor.name == "pixels:16x16"
    features, logits = extractor.extract(np.full_like(images, 51))
    assert features.shape == (3, extractor.dim) == (3, 768)
    assert logits is None
    np.testing.assert_allclose(features, 0.2, rtol=1e-5)


@pytest.mark.slow
def test_the_classifier_tells_digits_from_noise_and_from_each_other(digits):
    images, labels = digits
    extractor = build_extractor(None, "digits", lambda: (images, labels), (8, 8, 1))
    features, logits = extractor.extract(images)
    assert (logits.argmax(1) == labels).mean() > 0.99
    half = distances.frechet_distance(features[::2], features[1::2])
    assert features.shape[1] == extractor.dim
    noise = to_pixels(rng.normal(size=images.shape))
    assert distances.frechet_distance(extractor.extract(noise)[0], features) > 20 * half
    # Nearest class mean in feature space, on images that the mean was not made of.
    means = np.stack([features[::2][labels[::2] == digit].mean(0) for digit in range(10)])
    squared = ((features[1::2, None] - means) ** 2).sum(-1)
    assert (squared.argmin(1) == labels[1::2]).mean() > 0.95


def test_images_without_a_label_among_others_train_no_classifier():
    """A label that is missing is negative, which counts from the last class as an index."""
    images = rng.integers(0, 256, (6, 4, 4, 1), np.uint8)
    labels = np.array([0, 1, 2, 1, -1, 0])
    assert build_extractor(None, "some", lambda: (images, labels), (4, 4, 1)).name == "pixels:4x4"


def test_features_of_the_reference_are_computed_once(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path))
    images, _ = digits
    extractor, calls = build_extractor("pixels", "digits", None, (8, 8, 1)), []

    def extract(images):
        calls.append(len(images))
        return extractor.extract(images)

    counted = extractor._replace(extract=extract)
    first, again = (reference_features(counted, images) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert calls == [1, len(images), 1]
    other = reference_features(counted, images[::-1])
    np.testing.assert_array_equal(other, first[::-1])


def test_statistics_from_a_file_take_the_place_of_real_examples(digits, tmp_path):
    images, _ = digits
    batches, real = halves(images)
    features = real.reshape(-1, 64) / 255
    path = tmp_path / "real.npz"
    np.savez(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    options = {"metrics": ["fd"], "count": 899}
    named = meter_of(real[:50], statistics=path, **options).measure(iter(batches))
    whole = meter_of(real, **options).measure(iter(batches))
    (ours,), (expected,) = named.values(), whole.values()
    assert ours == pytest.approx(expected, rel=1e-5)
    saved = tmp_path / "saved.npz"
    meter_of(real, save_statistics=saved, **options)
    reused = meter_of(real[:50], statistics=saved, **options)
    assert reused.reference == f"{saved}, 898 examples"
    assert reused.measure(iter(batches)) == whole
    moments.save_statistics(path, moments.statistics(features), extractor="inception:2048")
    with pytest.raises(ConfigError, match="are of inception:2048; accepted: those of pixels:8x8"):
        meter_of(real[:50], statistics=path, **options)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("gone/x.npz", "there is no folder"), ("", "it is a folder"), ("file/x.npz", "no folder")]
    + [("x" * 300 + "/x.npz", "no folder")],
)
def test_statistics_that_could_not_be_saved_are_refused_first(digits, tmp_path, path, problem):
    (tmp_path / "file").write_text("in the way")
    images, _ = digits
    with pytest.raises(ConfigError, match=f"^--save-statistics is .*: .*{problem}"):
        meter_of(images, metrics=["fd"], save_statistics=tmp_path / path)
    with pytest.raises(ConfigError, match="^the folder of --save-statistics is '/proc'"):
        meter_of(images, metrics=["fd"], save_statistics="/proc/x.npz")


def test_statistics_say_which_pictures_they_are_of(digits, tmp_path):
    """What a version wrote that measured unrounded floats isn't compared with 8-bit pictures."""
    images, _ = digits
    path, options = tmp_path / "saved.npz", {"metrics": ["fd"], "count": 899}
    meter_of(images, save_statistics=path, **options)
    stats, about = moments.load_statistics(path)
    assert about["pictures"] == PICTURES == "8-bit"
    moments.save_statistics(path, stats, extractor="pixels:8x8", reference="digits")
    with pytest.raises(ConfigError, match="unrounded floats; accepted: those of 8-bit pictures"):
        meter_of(images, statistics=path, **options)


def test_features_are_of_8_bit_pictures_alone(digits):
    """No extractor takes floats, so there is no second way from samples to numbers."""
    images, _ = digits
    extractor = build_extractor("pixels", "digits", None, (8, 8, 1))
    for other in (to_unit_range(images), images.astype(np.float64), images.astype(np.int32)):
        with pytest.raises(ValueError, match=f"pictures are {other.dtype}; accepted: uint8"):
            extractor.extract(other)


def test_a_few_wild_pixels_count_as_the_picture_that_shows_them(digits):
    """One image in 100 times 40: clipped, it is a picture in black and white, and no distance."""
    images, _ = digits
    options = {"metrics": ["fd"], "count": len(images)}
    samples = to_unit_range(images)
    samples[::100] *= 40
    (found,) = meter_of(images, **options).measure(iter([to_pixels(samples)])).values()
    by_hand = np.where(samples > 1, 1, np.where(samples < -1, -1, samples))
    by_hand = np.rint((by_hand + 1) * 127.5) / 255
    real = images.reshape(-1, 64) / 255
    expected = distances.frechet_distance(by_hand.reshape(-1, 64), real)
    assert found == pytest.approx(expected, rel=1e-3)
    wild = distances.frechet_distance(((samples + 1) / 2).reshape(-1, 64), real)
    assert found < 1e-3 * wild


def test_a_damaged_cache_is_computed_anew(digits, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path))
    images, _ = digits
    extractor = build_extractor("pixels", "digits", None, (8, 8, 1))
    features = reference_features(extractor, images)
    (path,) = tmp_path.iterdir()
    whole, others = path.read_bytes(), {}
    for name, arrays in {
        "of fewer images": {"features": features[1:]},
        "not finite": {"features": np.where(features == features.max(), np.nan, features)},
        "text": {"features": features.astype(str)},
        "another name": {"feature": features},
        "none": {},
    }.items():
        np.savez(tmp_path / "other.npz", **arrays)
        others[name] = (tmp_path / "other.npz").read_bytes()
        (tmp_path / "other.npz").unlink()
    damages = [b"torn", whole[:-500], whole[: len(whole) // 2], b"", b"[]", *others.values()]
    for damaged in damages:
        path.write_bytes(damaged)
        np.testing.assert_array_equal(reference_features(extractor, images), features)
        assert path.read_bytes() == whole
    assert caplog.text.count("is damaged and computed again") == len(damages)
    path.unlink()
    path.mkdir()
    np.testing.assert_array_equal(reference_features(extractor, images), features)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [path.name, f"{path.name}.damaged-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fid"]}, "metrics 'fid'; accepted: fd, kid, is, precision_recall"),
        ({"metrics": []}, "accepted: fd"),
        ({"count": 1, "metrics": ["fd"]}, "'fd' of 1 samples .* accepted: 2 or more"),
        (
            {"count": 999, "metrics": ["fd", "kid"]},
            "'kid' of 999 samples and 100 real examples; accepted: 1000 or more",
        ),
        ({"count": 1}, "metric 'fd' of 1 samples"),
        ({"count": 9, "metrics": ["is"]}, "'is' of 9 samples .* 10 or more"),
        ({"count": 3, "metrics": ["precision_recall"]}, "of 3 samples .* 4 or more"),
        ({"metrics": ["is"]}, "'is' of pixels:4x4; accepted: a classifier or inception"),
        ({"extractor": "vgg"}, "extractor 'vgg'; accepted: classifier, pixels, inception"),
        ({"extractor": "classifier"}, "noise has no labels .* accepted: pixels, inception"),
        ({"statistics": "x.npz", "metrics": ["kid"]}, "accepted: fd, since such a file"),
        ({"statistics": "x.npz", "metrics": ["fd"]}, "statistics 'x.npz'"),
        ({"save_statistics": "/no/where.npz", "metrics": ["fd"]}, "is '/no/where.npz'"),
        (
            {"metrics": ["nearest"]},
            "of noise, whose reference examples are trained on; accepted: a",
        ),
        ({"count": 0, "metrics": ["fd"]}, "'fd' of 0 samples .* accepted: 2 or more"),
        ({"count": -3, "metrics": ["is"]}, "'is' of -3 samples .* accepted: 10 or more"),
        ({"subset_size": 1, "metrics": ["kid"]}, "KID subset size 1; accepted: 2 or more"),
        ({"subset_size": 0, "metrics": ["kid"]}, "KID subset size 0; accepted: 2 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    images = rng.integers(0, 256, (100, 4, 4, 1), np.uint8)
    defaults = {"count": 100, "subset_size": 50} if "kid" not in message else {}
    with pytest.raises(ConfigError, match=message):
        meter_of(images, "noise", **defaults | options)


def test_metrics_that_nobody_named_are_left_out_where_examples_are_too_few(caplog):
    """Each at its own least number; a line says which, and how many it takes."""
    images = rng.integers(0, 256, (20, 4, 4, 1), np.uint8)
    caplog.set_level("INFO", logger="sparsejax")
    found = {}
    for count in (2, 4, 20):
        names = meter_of(images, "noise", count=count).measure([images[:count]])
        found[count] = {name.partition("[")[0] for name in names}
    assert found == {2: {"FD"}, 4: {"FD", "precision", "recall"}, 20: found[4]}
    said = [r.getMessage() for r in caplog.records if "isn't measured" in r.getMessage()]
    kid = (
        "metric 'kid' isn't measured: it needs 1,000 samples and real examples; here are 20 and 20"
    )
    assert said.count(kid) == 1
    assert "metric 'is' isn't measured: it needs 10 samples; here are 4 and 20" in said
    smaller = meter_of(images, "noise", subset_size=10).measure([images])
    assert "KID[pixels:4x4]@20" in smaller


def test_statistics_of_another_extractor_are_refused(tmp_path):
    images = rng.integers(0, 256, (100, 4, 4, 1), np.uint8)
    path = tmp_path / "inception.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ConfigError, match="of 2048 features; accepted: 16, as pixels:4x4 has"):
        meter_of(images, "noise", metrics=["fd"], statistics=path)
