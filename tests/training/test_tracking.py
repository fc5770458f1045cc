"""Trackers show what metrics.jsonl holds, once each, and never end or delay a run."""

import collections
import io
import json
import logging
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from sparsejax.errors import ConfigError
from sparsejax.training import loop, tracking
from sparsejax.training.metrics_log import MetricsLog, read_metrics
from sparsejax.training.tracking import Trackers
from tests.training.tiny import small_config

STEPS = {"loss": 0.5, "grad_norm": 1.0}
PIXELS = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases without network, in no folder of the user's."""
    missing = "NOT TESTED: wandb is not installed; pip install -e '.[test]'"
    module = pytest.importorskip("wandb", reason=missing)
    for name in ("PROJECT", "NAME", "RUN_ID", "RESUME", "DIR", "FINISH_TIMEOUT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield module
    module.teardown()


def tensorboard_events(workdir):
    """Yield the events of TensorBoard's files: each an 8-byte length, a sum, data, a sum."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def tensorboard_content(workdir):
    """Return `{(tag, step): number or pixels}` of TensorBoard's files."""
    found = {}
    for event in tensorboard_events(workdir):
        for value in event.summary.value:
            picture = value.image.encoded_image_string
            shown = np.asarray(Image.open(io.BytesIO(picture))) if picture else value.simple_value
            found[value.tag, event.step] = shown
    return found


def wandb_records(file):
    """Yield the records of a run of Weights & Biases, a log in LevelDB's format.

    After seven bytes of its own come blocks of 32 KiB with parts of records: a sum, a length, and
    whether it is whole (1), the first part (2), one in between (3) or the last (4).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if -at % 2**15 < 7:
            at += -at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def wandb_runs(wandb, folder):
    """Return the id of each run of Weights & Biases in a folder, and the rows of all of them."""
    wandb.teardown()  # until then, what it writes may not be there
    ids, rows = [], []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        records = list(wandb_records(file))
        [identity] = {record.run.run_id for record in records if record.HasField("run")}
        ids.append(identity)
        rows += [
            {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
    return ids, rows


def test_tensorboard_shows_numbers_and_pictures(tmp_path):
    trackers = Trackers(tmp_path, 1, 0, tensorboard=True, wandb=False)
    trackers.scalars(10, {"loss": 0.5, "seconds": 3.0})
    trackers.picture(15, "samples", PIXELS)
    trackers.close(failed=False)
    shown = tensorboard_content(tmp_path)
    np.testing.assert_array_equal(shown.pop(("samples", 15)), PIXELS)
    assert shown == {("loss", 10): 0.5, ("seconds", 10): 3.0}


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path, caplog):
    """A picture that is none, and a file in the way."""
    trackers = Trackers(tmp_path, 1, 0, tensorboard=True, wandb=False)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            trackers.picture(step, "samples", PIXELS[0, 0])
            trackers.scalars(step, STEPS)
        trackers.close(failed=False)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("TensorBoard failed, the run goes on without it: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").write_text("in the way")
    log = MetricsLog(tmp_path / "other", 0, {}, None, lambda step: 0.1)
    log.add(1, STEPS)
    log.flush()
    log.picture(1, PIXELS)
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path / "other" / "metrics.jsonl")] == [0.5]
    assert len(caplog.records) == 2


def test_only_the_first_process_has_trackers(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = MetricsLog(tmp_path, 0, {}, None, lambda step: 0.1, tensorboard=True, wandb=True)
    log.add(1, STEPS)
    log.flush()
    log.picture(1, None)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_run_does_not_start(tmp_path, monkeypatch):
    """A folder of that name, as the package leaves behind, isn't the package."""
    message = r"config.log.wandb is True; accepted: False, or .* pip install 'sparsejax\[wandb\]'"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=message):
        loop.train(small_config(**{"log.wandb": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=message):
        tracking.require_wandb(True)
    tracking.require_wandb(False)


def take_steps(workdir, first, last, saved, save_at=None):
    """Log as the loop does: an update every 4 steps, a picture every 6, a line every 10."""
    log = MetricsLog(workdir, first - 1, saved, None, lambda step: 0.1, wandb=True)
    kept = None
    for step in range(first, last + 1):
        log.add(step, STEPS | ({"replaced": 0.1} if step % 4 == 0 else {}))
        if step % 10 == 0:
            log.flush()
        if step % 6 == 0:
            log.picture(step, PIXELS)
        if step == save_at:
            kept = json.loads(json.dumps(log.extra()))
    log.close(failed=last < 40)
    return kept


def test_a_resumed_run_goes_on_in_the_same_run_and_nothing_is_sent_twice(wandb, tmp_path):
    """However often it ended after the same checkpoint."""
    (tmp_path / "config.json").write_text('{"sparsity": {"level": 0.75}}')
    saved = take_steps(tmp_path, 1, 30, {}, save_at=13)
    take_steps(tmp_path, 14, 20, saved)
    take_steps(tmp_path, 14, 40, saved)
    ids, rows = wandb_runs(wandb, tmp_path)
    assert len(ids) == 3
    assert set(ids) == {json.loads((tmp_path / "wandb.json").read_text())["id"]}
    steps = {
        name: [row["step"] for row in rows if name in row]
        for name in ("loss", "replaced", "samples")
    }
    assert steps["loss"] == [10, 20, 30, 40]
    assert steps["replaced"] == list(range(4, 41, 4))
    assert steps["samples"] == [6, 12, 18, 24, 30, 36]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == steps["loss"]


def test_a_damaged_or_missing_file_begins_a_new_run(wandb, tmp_path, caplog):
    (tmp_path / "config.json").write_text("{}")
    for content in (None, b"\0" * 30, b'{"id": 7, "step": 1}', b'{"id": "a"}'):
        if content is not None:
            (tmp_path / "wandb.json").write_bytes(content)
        Trackers(tmp_path, 1, 50, tensorboard=False, wandb=True).close(failed=False)
    ids, _ = wandb_runs(wandb, tmp_path)
    assert len(set(ids)) == 4
    assert (tmp_path / "wandb.json.damaged-1").read_bytes() == b"\0" * 30
    assert "Weights & Biases gets a new run" in caplog.text


def test_its_own_environment_variables_count(wandb, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "first")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    wandb.teardown()  # a session reads the environment once
    Trackers(tmp_path, 1, 0, tensorboard=False, wandb=True).close(failed=False)
    wandb.teardown()
    assert not (tmp_path / "wandb").exists()
    [file] = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/*.wandb")
    runs = [record.run for record in wandb_records(file) if record.HasField("run")]
    assert (runs[0].project, runs[0].display_name) == ("mine", "first")


def test_a_server_that_cannot_be_reached_costs_a_warning(wandb, tmp_path, monkeypatch, caplog):
    """Port 1 of this machine; the key is of the right length, and of nobody."""
    for name, value in {
        "MODE": "online",
        "BASE_URL": "http://127.0.0.1:1",
        "API_KEY": "0" * 40,
        "INIT_TIMEOUT": "1",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    (tmp_path / "config.json").write_text("{}")
    log = MetricsLog(tmp_path, 0, {}, None, lambda step: 0.1, wandb=True)
    log.add(1, STEPS)
    log.flush()
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.5]
    assert tensorboard_content(tmp_path)["loss", 1] == 0.5
    lines = [record.getMessage() for record in caplog.records]
    assert sum("Weights & Biases failed, the run goes on without it" in line for line in lines) == 1


@pytest.mark.slow
def test_a_run_shows_the_same_in_all_places(wandb, tmp_path):
    """Numbers of metrics.jsonl, and the pictures of samples/; also of steps after it resumed."""
    config = {"log.wandb": True, "log.every": 2, "sample.every": 3, "checkpoint.every": 3}
    config |= {"sparsity.update_interval": 2}
    for steps in (4, 8):
        assert loop.train(small_config(**config, steps=steps), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    expected = {
        (name, line["step"]): np.float32(value)
        for line in lines
        for name, value in line.items()
        if name != "step"
    }
    shown = tensorboard_content(tmp_path)
    for step in (3, 6):
        pixels = np.asarray(Image.open(tmp_path / f"samples/{step:08d}.png"))
        np.testing.assert_array_equal(shown.pop(("samples", step)), pixels)
    assert shown == expected
    ids, rows = wandb_runs(wandb, tmp_path)
    assert len(ids) == 2
    assert len(set(ids)) == 1
    sent = collections.Counter(
        (name, row["step"]) for row in rows for name in row if name != "step" and name[0] != "_"
    )
    assert sent == collections.Counter([*expected, ("samples", 3), ("samples", 6)])
    for row in rows:
        for name, value in row.items():
            if (name, row["step"]) in expected:
                assert np.float32(value) == expected[name, row["step"]]
