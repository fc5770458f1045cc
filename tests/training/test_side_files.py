"""config.json, data.json and facts.json: what a checkpoint holds copies of is never lost."""

import json
import logging
import shutil

import numpy as np
import pytest

from sparsejax.configuration import resolve, to_json
from sparsejax.errors import ConfigError
from sparsejax.families import stamp_data
from sparsejax.training import checkpoints, loop, runs, side_files
from tests.training.test_resume import config_of, photos  # noqa: F401  a fixture
from tests.training.tiny import forget_copies, tiny_config, write_run

NAMES = ("config.json", "data.json", "facts.json")
DAMAGE = {
    "empty": b"",
    "half": None,
    "random": np.random.default_rng(0).bytes(500),
    "zeros": bytes(500),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999",
    "no UTF-8": b'{"seed": "\xff"}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "deep, but JSON": b'{"a": ' * 900 + b"1" + b"}" * 900,
    "unknown keys": b'{"sede": 0, "1": {"": null}}',
    "digits": b'{"seed": ' + b"1" * 10_000 + b"}",
}


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run[0], tmp_path / "run")


def contents(workdir):
    return {name: (workdir / name).read_bytes() for name in NAMES}


def lines_about(caplog, name):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and f"/{name}" in record.getMessage()
    ]


def test_every_checkpoint_holds_copies(tiny_run):
    workdir, _ = tiny_run
    for step in (30, 40):
        copies = checkpoints.read_copies(workdir / "checkpoints", step)
        assert copies == {name: json.loads((workdir / name).read_text()) for name in NAMES}


def resume(workdir, config=None):
    """What `loop.train` does with side files at its start; no network is built."""
    resolved = runs.resolve_for(workdir, config or tiny_config())
    side_files.restore(workdir)
    runs.save_config(workdir, resolved, side_files.read_side_file(workdir, "facts.json"))


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_side_file_is_read_from_a_checkpoint_and_written_again(name, damage, run, caplog):
    """With one warning; the damaged file is kept. Reading the run changes nothing."""
    before = contents(run)
    torn = before[name][: len(before[name]) // 2] if damage == "half" else DAMAGE[damage]
    (run / name).write_bytes(torn)
    assert side_files.read_side_file(run, name) == json.loads(before[name])
    assert to_json(runs.read_config(run)) == before["config.json"].decode()
    assert (run / name).read_bytes() == torn
    resume(run)
    [line] = lines_about(caplog, name)
    assert "; the copy in the checkpoint of step 40 counts instead" in line
    assert "\n" not in line
    for other, content in before.items():
        assert json.loads((run / other).read_bytes()) == json.loads(content)
    assert (run / f"{name}.damaged-1").read_bytes() == torn
    assert (run / "config.json").read_bytes() == before["config.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_side_file_is_written_again(name, run, caplog):
    before = contents(run)
    (run / name).unlink()
    assert side_files.read_side_file(run, name) == json.loads(before[name])
    assert not (run / name).exists(), "reading wrote it"
    resume(run)
    assert json.loads((run / name).read_bytes()) == json.loads(before[name])
    [line] = lines_about(caplog, name)
    assert f"{name}: is missing; the copy" in line


@pytest.mark.parametrize("name", NAMES)
def test_of_a_side_file_that_is_gone_the_copy_is_known(name, run):
    (run / name).unlink()
    assert side_files.has_side_file(run, name)
    (run / name).symlink_to("nowhere")
    assert side_files.has_side_file(run, name)
    resume(run)
    assert (run / f"{name}.damaged-1").is_symlink()
    assert not (run / name).is_symlink()
    (run / name).unlink()
    forget_copies(run)
    assert not side_files.has_side_file(run, name)


def test_a_run_whose_side_files_are_all_gone_or_damaged_ends_as_ever(run, caplog):
    before = contents(run)
    (run / "config.json").write_bytes(b"")
    (run / "data.json").unlink()
    (run / "facts.json").write_bytes(b"{}}")
    assert loop.train(tiny_config(), run)
    assert {name: json.loads(text) for name, text in contents(run).items()} == {
        name: json.loads(text) for name, text in before.items()
    }
    assert [len(lines_about(caplog, name)) for name in NAMES] == [1, 1, 1]
    assert "data.json: is missing; the copy in the checkpoint of step 40" in caplog.text
    names = sorted(path.name for path in run.glob("*damaged*"))
    assert names == ["config.json.damaged-1", "facts.json.damaged-1"]


def test_a_config_that_says_something_else_does_not_change_the_run(run, caplog):
    """Neither for the command that began the run nor for one that fits the changed file."""
    path = run / "config.json"
    before = path.read_text()
    changed = before.replace('"learning_rate": 0.002', '"learning_rate": 0.003')
    assert changed != before
    path.write_text(changed)
    other = tiny_config(**{"optimizer.learning_rate": 0.003})
    with pytest.raises(ConfigError, match=r"learning_rate: now 0.003, saved 0.002"):
        loop.train(other, run)
    assert path.read_text() == changed
    resume(run)
    [line] = lines_about(caplog, "config.json")
    assert "config.optimizer.learning_rate isn't what it was: now 0.003, saved 0.002" in line
    assert path.read_text() == before
    assert (run / "config.json.damaged-1").read_text() == changed


def test_what_may_change_on_resume_may_differ_from_the_copy(run, caplog):
    """It is newer: config.json is written at the start, checkpoints come later."""
    changes = {"steps": 50, "log.every": 5, "sample.count": 9, "task.data_dir": "elsewhere"}
    text = to_json(resolve(tiny_config(**changes), runs.saved_config(run)))
    (run / "config.json").write_text(text)
    assert to_json(runs.read_config(run)) == text
    assert lines_about(caplog, "config.json") == []


@pytest.mark.slow
def test_other_data_are_refused_whatever_became_of_the_stamp(tmp_path, photos):  # noqa: F811
    """Of a missing stamp, and of one that was changed to fit the other data."""
    workdir, config = tmp_path / "run", config_of(photos)
    write_run(workdir, config)
    other = tmp_path / "other"
    with checkpoints.open_manager(workdir / "checkpoints") as manager:
        state = runs.load_state(workdir)[1]
        copies = side_files.copies(workdir)
        checkpoints.save(manager, state._replace(step=np.int32(1)), {"copies": copies})
    shutil.copytree(photos, other)
    (other / "1/1.png").unlink()
    runs.resolve_for(workdir, config_of(shutil.copytree(photos, tmp_path / "moved")))
    for content in (None, json.dumps(stamp_data(resolve(config_of(other)))), "[]"):
        (workdir / "data.json").unlink(missing_ok=True)
        if content:
            (workdir / "data.json").write_text(content)
        with pytest.raises(ConfigError, match="which holds different data"):
            runs.resolve_for(workdir, config_of(other))


def test_a_damaged_copy_does_not_count_and_neither_does_its_checkpoint(run, caplog):
    """A bit flips in the copy of the newest checkpoint: the one before is as good."""
    path = run / "checkpoints/40/extra/metadata"
    content = path.read_text()
    flipped = content.replace('"learning_rate": 0.002', '"learning_rate": 0.012')
    assert flipped != content
    path.write_text(flipped)
    (run / "config.json").unlink()
    assert runs.read_config(run).optimizer.learning_rate == 0.002
    [line] = lines_about(caplog, "config.json")
    assert "the checkpoint of step 30" in line
    assert int(runs.load_state(run)[1].step) == 30
    assert "what was saved beside its arrays does not match" in caplog.text


def test_what_was_read_from_a_checkpoint_can_be_saved_with_another(run):
    folder, state = run / "checkpoints", runs.load_state(run)[1]
    with checkpoints.open_manager(folder) as manager:
        extra = checkpoints.read_extra(folder, 40)
        checkpoints.save(manager, state._replace(step=np.int32(41)), extra)
    assert checkpoints.read_copies(folder, 41) == checkpoints.read_copies(folder, 40) != {}


def test_a_copy_that_this_version_cannot_read_does_not_count(run, caplog):
    """A newer version went on with the run for a step; its config has a key unknown here."""
    path = shutil.copytree(run / "checkpoints/40", run / "checkpoints/41") / "extra/metadata"
    extra = json.loads(path.read_text())
    extra["copies"]["config.json"]["newer"] = {"key": 1}
    del extra["checksum"]
    path.write_text(json.dumps(extra))
    before = (run / "config.json").read_bytes()
    (run / "config.json").write_bytes(b"")
    assert to_json(runs.read_config(run)) == before.decode()
    [line] = lines_about(caplog, "config.json")
    assert "; the copy in the checkpoint of step 40 counts instead" in line


@pytest.mark.parametrize("name", NAMES)
def test_of_older_runs_a_damaged_side_file_is_named_in_one_line(name, run):
    forget_copies(run)
    (run / name).write_text('{"seed": 0, "seed": 1}')
    side_files.restore(run)  # from nothing
    assert (run / name).read_text() == '{"seed": 0, "seed": 1}'
    with pytest.raises(ConfigError, match=rf"^{run / name} can't be read: a key occurs twice"):
        side_files.read_side_file(run, name)
    (run / name).unlink()
    assert side_files.read_side_file(run, name) is None


def test_an_older_run_without_its_config_says_that_it_cant_be_compared(run, caplog):
    forget_copies(run)
    (run / "config.json").unlink()
    resume(run)
    [line] = lines_about(caplog, "config.json")
    assert "whether the checkpoint of step 40 was trained with this config can't be told" in line


def test_runs_of_older_versions_are_read_as_before(run, caplog):
    """And what an older version changed in config.json stays changed, as there is no copy."""
    forget_copies(run)
    config = json.loads((run / "config.json").read_text())
    assert config["sparsity"].pop("includes_end") is False
    (run / "config.json").write_text(json.dumps(config))
    assert runs.read_config(run).sparsity.includes_end
    assert caplog.text == ""
