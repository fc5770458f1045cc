"""What closing needs is found before training; what it left and lost is made again."""

import json
import subprocess

import pytest

from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.training import loop
from sparsejax.training.runs import read_config
from tests.families.first_stage import first_stage_config, write_blobs
from tests.families.test_strokes import tiny, write_scribbles
from tests.training.tiny import tiny_config


def images(tmp_path):
    return tiny_config()


def files(tmp_path):
    write_blobs(tmp_path / "blobs.npz")
    changes = {"task.dataset": "files", "task.source": str(tmp_path / "blobs.npz")}
    sizes = {"task.image_size": 16, "model.in_channels": 3, "model.out_channels": 3}
    return tiny_config(**changes, **sizes)


def autoencoder(tmp_path):
    write_blobs(tmp_path / "blobs.npz")
    return first_stage_config(tmp_path / "blobs.npz")


def strokes(tmp_path):
    write_scribbles(tmp_path / "scribbles.npz")
    return tiny(tmp_path / "scribbles.npz")


def assert_refused(config, split, workdir):
    config.task.reference_split = split
    with pytest.raises(ConfigError) as caught:
        loop.train(config, workdir)
    message = str(caught.value)
    assert message.startswith(f"config.task.reference_split is {split!r}")
    assert "accepted: train (" in message
    assert not workdir.exists()


@pytest.mark.parametrize("split", ["tset", "tarin", "train[:0]", "validaton[:5]", ""])
@pytest.mark.parametrize("make", [images, files, autoencoder, strokes])
def test_a_reference_split_that_is_not_there_is_refused_before_training(make, split, tmp_path):
    assert_refused(make(tmp_path), split, tmp_path / "run")


def test_a_finished_run_takes_no_reference_split_that_is_not_there(tiny_run, tmp_path):
    """It is closed again by the mended command, and evaluated later: config.json stays as it is."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", tiny_run[0], workdir], check=True)
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"^config.task.reference_split is 'trian'"):
        loop.train(tiny_config(**{"task.reference_split": "trian"}), workdir)
    assert (workdir / "config.json").read_text() == before
    assert loop.train(tiny_config(**{"task.reference_split": "train[:50]"}), workdir)
    assert read_config(workdir).task.reference_split == "train[:50]"


def test_a_file_in_the_way_of_closing_is_named_before_anything_is_drawn(tiny_run, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", tiny_run[0], workdir], check=True)
    (workdir / "summary.json").mkdir()
    with pytest.raises(ConfigError, match=r"^--workdir is .* where summary.json is a folder"):
        closing.close_run(workdir)


def test_what_closing_left_and_lost_is_made_again(small_run, tmp_path, capsys, monkeypatch, caplog):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", small_run, workdir], check=True)
    made = []
    save = closing.plots.save_samples
    monkeypatch.setattr(closing.plots, "save_samples", lambda *a: made.append(1) or save(*a))
    closing.close_run(workdir)
    names = json.loads((workdir / "summary.json").read_text())["files"]
    assert all((workdir / name).is_file() for name in names)
    closing.close_run(workdir)
    assert len(made) == 1
    assert capsys.readouterr().out.count("rigl, S = 0.75, 40 steps") == 2

    (workdir / names[1]).unlink()
    closing.close_run(workdir)
    assert (workdir / names[1]).is_file()
    whole = json.loads((workdir / "summary.json").read_text())
    texts = ["", "[]", "1e999", 40_000 * "[", '{"steps": 40}', '{"steps": 4', '{"a": 1, "a": 2}']
    wrong = [("method", 3), ("loss", "low"), ("sparsity", None), ("parameters", 0)]
    wrong += [("forward_flops_dense", float("nan")), ("steps", 10**400), ("density", [])]
    wrong += [("files", {}), ("files", [3]), ("step_seconds", "fast")]
    texts += [json.dumps(whole | {key: value}) for key, value in wrong]
    for damaged in texts:
        caplog.clear()
        (workdir / "summary.json").write_text(damaged)
        assert closing.read_summary(workdir) is None, damaged
        [record] = caplog.records
        assert record.getMessage().startswith(str(workdir / "summary.json"))
        assert record.getMessage().endswith("; it is computed again")
    (workdir / "summary.json").write_text(json.dumps(whole | {"step_seconds": None}))
    assert closing.read_summary(workdir)["step_seconds"] is None
    (workdir / "summary.json").write_text("torn")
    closing.close_run(workdir)
    assert closing.read_summary(workdir) is not None
    assert len(made) == 3
    assert capsys.readouterr().out.count("rigl, S = 0.75, 40 steps") == 2
