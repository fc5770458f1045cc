"""The latent cache, with 4x4 mean pooling as the first stage."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from sparsejax.data import latents as cache
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
    monkeypatch.setattr(cache, "SHARD", 8)


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
    shards = [f"latents-0000{i}-of-00003.array_record" for i in range(3)]
    assert names == [*shards, "stamp.json"]


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
t.cache.SHARD = 8
t.write({str(tmp_path)!r}, lambda images: time.sleep(0.2) or t.pool(images))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    second = tmp_path / "partial-latents-00001-of-00003.array_record"
    first = tmp_path / "latents-00000-of-00003.array_record"
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "latents-00002-of-00003.array_record").exists()
    write(tmp_path)
    assert first.stat().st_mtime_ns == written
    assert not second.exists()
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


def test_a_cache_without_a_readable_stamp_is_refused(tmp_path):
    write(tmp_path)
    stamp = (tmp_path / "stamp.json").read_text()
    for torn in (stamp[: len(stamp) // 2], json.dumps({"identity": 3}), "{}"):
        (tmp_path / "stamp.json").write_text(torn)
        with pytest.raises(ConfigError, match="first_stage: cached None, asked for 'abc'"):
            cache.open_latents(tmp_path, IDENTITY)


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
