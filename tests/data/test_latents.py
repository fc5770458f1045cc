"""The latent cache, with 4x4 mean pooling as the first stage."""

import concurrent.futures
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest

from sparsejax.data import latents as cache
from sparsejax.data import shards
from sparsejax.errors import ConfigError
from sparsejax.rendering.pixels import to_unit_range
from tests.data.counting import counting

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDENTITY = {"first_stage": "abc", "images": "noise 1.0.0 train", "flip": True}
SHAPE = (2, 2, 3)


def pool(images):
    return images.reshape(len(images), 2, 4, 2, 4, 3).mean(axis=(2, 4))


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def dataset(count=20):
    pixels = noise(count)
    return grain.MapDataset.source(range(count)).map(lambda i: {"image": pixels[i], "label": 0})


def write(folder, encode=pool, identity=IDENTITY, count=20, **options):
    options = {"flip": True, "batch_size": 3} | options
    cache.encode_dataset(folder, dataset(count), encode, SHAPE, identity, **options)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 8)


def contents(folder):
    latents, std = cache.open_latents(folder, IDENTITY)
    return np.stack([latents[i] for i in range(len(latents))]), std


def test_a_cache_holds_both_versions_of_every_image_in_order(tmp_path):
    write(tmp_path / "new")
    latents, std = contents(tmp_path / "new")
    plain = to_unit_range(noise(20))
    expected = np.stack([pool(plain), pool(plain[:, :, ::-1])], axis=1)
    np.testing.assert_array_equal(latents, expected.astype(np.float32))
    assert std == pytest.approx(expected.astype(np.float64).std())
    assert cache.read_std(tmp_path / "new", "abc") == std
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [f"latents-0000{i}-of-00003.array_record" for i in range(3)] + ["stamp.json"]


def test_without_a_flip_there_is_one_version(tmp_path):
    write(tmp_path, flip=False)
    latents, _ = contents(tmp_path)
    np.testing.assert_array_equal(latents[:, 0], pool(to_unit_range(noise(20))))
    assert latents.shape == (20, 1, *SHAPE)


def test_a_failed_run_is_not_used_and_resumes_where_it_stopped(tmp_path):
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 10:  # in the second shard: six calls encode the first
            raise RuntimeError("no power")
        return pool(images)

    with pytest.raises(RuntimeError, match="no power"):
        write(tmp_path / "cut", failing)
    with pytest.raises(ConfigError, match="not finished"):
        cache.open_latents(tmp_path / "cut", IDENTITY)
    resumed = []
    write(tmp_path / "cut", lambda images: resumed.append(1) or pool(images))
    assert len(resumed) == 6 + 4  # shards of 8 and 4 images, two versions, three at once
    write(tmp_path / "whole")
    for ours, expected in zip(
        contents(tmp_path / "cut"), contents(tmp_path / "whole"), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


def test_a_killed_run_resumes(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.data import test_latents as t
t.shards.SHARD = 8
t.write({str(tmp_path)!r}, lambda images: time.sleep(0.2) or t.pool(images))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    first = tmp_path / "latents-00000-of-00003.array_record"
    deadline = time.monotonic() + 300
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "latents-00002-of-00003.array_record").exists()
    (tmp_path / "partial-1-0123abcd-latents-00001-of-00003.array_record").touch()
    write(tmp_path)
    assert first.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("partial-*")) + list(tmp_path.glob("lease-*"))
    assert len(contents(tmp_path)[0]) == 20


@pytest.mark.parametrize(
    ("key", "value"), [("first_stage", "def"), ("images", "noise 1.0.1 train"), ("flip", False)]
)
def test_a_stale_cache_is_refused_and_left_as_it_is(key, value, tmp_path):
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = IDENTITY | {key: value}
    message = f"is stale:\n  {key}: cached {IDENTITY[key]!r}, asked for {value!r}\nDelete it"
    with pytest.raises(ConfigError) as refused:
        cache.open_latents(tmp_path, other)
    assert message in str(refused.value)
    with pytest.raises(ConfigError, match="is stale"):
        write(tmp_path, identity=other)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_images_of_the_same_content_may_have_another_name(tmp_path):
    content = {"files": 20, "sha256": "0"}
    write(tmp_path, content=content)
    renamed = IDENTITY | {"images": "crowd-7 1.0.0 train"}
    assert cache.open_latents(tmp_path, renamed, content)[1] == contents(tmp_path)[1]
    write(tmp_path, encode=None, identity=renamed, content=content)
    for identity, other in (
        (renamed, content | {"files": 21}),
        (renamed, None),
        (renamed | {"images": "crowd-7 1.0.0 test"}, content),
        (renamed | {"first_stage": "def"}, content),
    ):
        with pytest.raises(ConfigError, match="is stale"):
            cache.open_latents(tmp_path, identity, other)


def damaged_stamps(text):
    """What may become of a stamp, but for its standard deviation."""
    stamp = json.loads(text)
    wrong = [{"identity": 3}, {"record": "2"}, {"record": [2, 2, -2, 3]}, {"shards": 1.5}]
    wrong += [{"shards": 10**400}]
    changes = [change | {"checksum": None} for change in wrong]  # as if of an older version
    changes += [{"shards": 2}, {"record": [1, 2, 2, 6]}, {"std": 1.25}, {"checksum": 0}]
    return [
        *(text[: len(text) // 2], "", "[]", "null", "1e999", "{}", "[" * 100_000),
        text.replace("{", '{"shards": 3, ', 1),
        *(json.dumps(stamp | change) for change in changes),
    ]


def test_all_is_encoded_again_where_a_stamp_is_damaged_or_missing(tmp_path, caplog):
    """Whose shards they are, nothing else says: those of another first stage are in their place."""
    write(tmp_path / "whole", count=8)
    text = (tmp_path / "whole" / "stamp.json").read_text()
    latents, std = contents(tmp_path / "whole")
    for damage in [None, *damaged_stamps(text)]:
        folder = tmp_path / "damaged"
        write(folder, encode=lambda images: 2 * pool(images), count=8)
        path = folder / "stamp.json"
        path.unlink()
        if damage is not None:
            path.write_text(damage)
            with pytest.raises(ConfigError, match="is damaged: stamp.json "):
                cache.open_latents(folder, IDENTITY)
            assert path.read_text() == damage, "reading changed it"
        caplog.clear()
        write(folder, count=8)
        [record] = caplog.records
        assert "all images are encoded again" in record.getMessage()
        ours, again = contents(folder)
        np.testing.assert_array_equal(ours, latents)
        assert again == std
        kept = list(folder.glob("stamp.json.damaged-*"))
        assert [other.read_text() for other in kept] == ([] if damage is None else [damage])
        shutil.rmtree(folder)


@pytest.mark.parametrize("std", [math.nan, math.inf, 0, 0.0, -1.5, "0.5", None, True, [1], 1e-200])
def test_a_standard_deviation_that_is_none_is_refused_by_name(std, tmp_path):
    write(tmp_path)
    stamp = json.loads((tmp_path / "stamp.json").read_text())
    del stamp["checksum"]  # as an older version wrote it
    (tmp_path / "stamp.json").write_text(json.dumps(stamp | {"std": std}))
    for use in (
        lambda: cache.open_latents(tmp_path, IDENTITY),
        lambda: cache.read_std(tmp_path, "abc"),
        lambda: write(tmp_path),
    ):
        with pytest.raises(ConfigError) as refused:
            use()
        message = str(refused.value)
        assert message.startswith(f"{tmp_path / 'stamp.json'}: the standard deviation (std) is ")
        assert "\n" not in message
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    assert cache.open_latents(tmp_path, IDENTITY)[1] == stamp["std"]


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_latents_without_a_standard_deviation_are_never_finished(value, tmp_path):
    with pytest.raises(ConfigError, match=r"the standard deviation \(std\) is (0.0|nan)"):
        write(tmp_path, encode=lambda images: np.full((len(images), *SHAPE), value))
    assert "std" not in json.loads((tmp_path / "stamp.json").read_text())


def damaged_shards(content):
    half, noise_ = len(content) // 2, np.random.default_rng(0).bytes(len(content))
    return {"cut": content[:half], "empty": b"", "random": noise_, "tail": content[:-5]}


@pytest.mark.parametrize("damage", ["cut", "empty", "random", "tail", "missing", "folder", "other"])
def test_a_damaged_shard_is_encoded_again_alone(damage, tmp_path, caplog):
    """The scale stays what it was."""
    write(tmp_path)
    latents, std = contents(tmp_path)
    path = tmp_path / "latents-00001-of-00003.array_record"
    content = path.read_bytes()
    if damage == "other":  # a shard of fewer images
        shutil.copy(tmp_path / "latents-00002-of-00003.array_record", path)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes(damaged_shards(content)[damage])
    calls = []
    write(tmp_path, encode=lambda images: calls.append(1) or pool(images))
    assert len(calls) == 6  # 8 images, two versions, three at once
    ours, again = contents(tmp_path)
    np.testing.assert_array_equal(ours, latents)
    assert again == std
    assert ("1 damaged shards of latents are encoded again" in caplog.text) == (damage != "missing")
    write(tmp_path, encode=None)


def test_a_shard_that_turns_out_damaged_when_read_is_named_and_encoded_again(tmp_path):
    """Its number of images is right, and a bit has flipped in one of them."""
    write(tmp_path)
    latents, _ = contents(tmp_path)
    path = tmp_path / "latents-00001-of-00003.array_record"
    content = bytearray(path.read_bytes())
    content[content.index(latents[11].tobytes()[:8])] ^= 1
    path.write_bytes(content)
    write(tmp_path, encode=None)  # which reads no latents
    opened, _ = cache.open_latents(tmp_path, IDENTITY)
    np.testing.assert_array_equal(opened[10], latents[10])
    with pytest.raises(ConfigError, match=f"{path} is damaged at image 3: .* set aside as"):
        opened[11]
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == content
    with pytest.raises(ConfigError, match="can't be opened"):
        cache.open_latents(tmp_path, IDENTITY)
    write(tmp_path)
    np.testing.assert_array_equal(contents(tmp_path)[0], latents)


def test_a_storage_that_fails_for_a_moment_damages_nothing(tmp_path):
    """Files that are open fail, as those of a server that began anew; opened again, they work."""
    write(tmp_path)
    latents, _ = contents(tmp_path)
    opened = shards.Latents(sorted(tmp_path.glob(shards.PATTERN)), (2, *SHAPE))
    before = sorted(tmp_path.iterdir())
    opened._source = {}
    np.testing.assert_array_equal(opened[11], latents[11])
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_shard_that_cannot_be_renamed_is_named(tmp_path, monkeypatch):
    """As on a disk that is read-only."""
    write(tmp_path)
    paths = sorted(tmp_path.glob(shards.PATTERN))
    opened = shards.Latents(paths, (2, *SHAPE))
    opened._source = {}
    paths[1].write_bytes(b"")

    def refuse(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shards, "set_aside", refuse)
    with pytest.raises(ConfigError, match=f"{paths[1]} is damaged at image 3: .*; delete it, and"):
        opened[11]


def test_of_two_encoders_of_one_cache_one_waits_and_encodes_nothing(tmp_path):
    begun, calls = threading.Event(), {"first": 0, "second": 0}

    def encode(name):
        def call(images):
            calls[name] += 1
            begun.set()
            time.sleep(0.02)
            return pool(images)

        return call

    with concurrent.futures.ThreadPoolExecutor() as pool_:
        first = pool_.submit(write, tmp_path, encode("first"))
        begun.wait(60)
        pool_.submit(write, tmp_path, encode("second")).result(60)
        first.result(60)
    assert calls == {"first": 6 + 6 + 4, "second": 0}
    assert len(contents(tmp_path)[0]) == 20


def test_a_finished_cache_is_not_encoded_again(tmp_path):
    write(tmp_path)
    write(tmp_path, encode=None)


def test_the_scale_of_another_first_stage_is_not_used(tmp_path):
    write(tmp_path)
    for folder, first_stage in ((tmp_path, "def"), (tmp_path / "absent", "abc")):
        with pytest.raises(ConfigError, match="config.task.latent_scale"):
            cache.read_std(folder, first_stage)


def test_a_batch_is_a_function_of_its_step_and_draws_one_version_of_each_image(tmp_path):
    write(tmp_path)
    latents, _ = cache.open_latents(tmp_path, IDENTITY)

    def batches(start, stop):
        return [b["latent"] for b in cache.latent_batches(latents, 2.0, 10, 7, start, stop)]

    whole = batches(0, 8)
    for ours, expected in zip(batches(3, 8), whole[3:], strict=True):
        np.testing.assert_array_equal(ours, expected)
    versions = 2 * contents(tmp_path)[0]
    drawn = []
    for epoch in np.concatenate(whole).reshape(4, 20, *SHAPE):
        same = (epoch[:, None, None] == versions[None]).all(axis=(3, 4, 5))
        image, version = np.nonzero(same.any(axis=0))
        np.testing.assert_array_equal(image, np.arange(20))
        drawn.append(version)
    assert not np.array_equal(drawn[0], drawn[1])
    assert 20 < np.sum(drawn) < 60


def test_each_process_reads_its_share_alone(monkeypatch):
    versions = np.arange(24, dtype=np.float32).reshape(24, 1, 1, 1, 1)
    monkeypatch.setattr(cache.jax, "process_count", lambda: 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr(cache.jax, "process_index", lambda process=process: process)
        latents, read = counting(versions)
        shown = [b["latent"] for b in cache.latent_batches(latents, 1.0, 8, 7, 0, 3)]
        assert sorted(read) == sorted(np.concatenate(shown).ravel())
        shares.append(read)
    assert [len(read) for read in shares] == [12, 12]
    assert sorted(sum(shares, [])) == list(range(24))
