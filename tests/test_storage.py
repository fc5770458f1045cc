"""Folders that can't be written to are refused by name, before anything is computed."""

import concurrent.futures
import errno
import os
import shutil
import subprocess
import sys

import jax
import pytest

from sparsejax.errors import ConfigError
from sparsejax.metrics.cache import load_or_compute
from sparsejax.reports.report import write_report
from sparsejax.storage import require_writable, storage_problem
from sparsejax.training import loop
from tests.training.test_loop import ROOT, assert_equal_runs
from tests.training.tiny import tiny_config, tiny_flags


@pytest.fixture
def below_a_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


@pytest.fixture
def compiled():
    """Names of the large functions that are compiled during the test: state and steps."""
    names = []

    def note(event, seconds, *, fun_name="", **_):
        if fun_name in ("jit(create)", "jit(_fun)"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_a_folder_that_works_is_left_as_it_was(tmp_path):
    require_writable(tmp_path / "a" / "b", "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    require_writable(tmp_path / "a", "--output")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_no_process_takes_a_folder_away_that_another_has_begun_to_use(tmp_path):
    """One asks again and again whether it could write there; the other one does."""
    count, now = 3000, 0

    def probe():
        while now < count:
            require_writable(tmp_path / str(now) / "digits" / "1.0.0", "TFDS_DATA_DIR")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        probing = pool.submit(probe)
        try:
            for now in range(count):  # noqa: B007
                (tmp_path / str(now) / "digits" / "incomplete").mkdir(parents=True)
        finally:
            now = count
        probing.result()
    assert all((tmp_path / str(i) / "digits/incomplete").is_dir() for i in range(count))


def test_what_is_in_the_way_is_named(tmp_path, below_a_file):
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "gone" / "folder")
    for folder in (below_a_file, below_a_file.parent, dangling, tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError) as caught:
            require_writable(folder, "--output")
        assert str(caught.value).startswith(f"--output is {str(folder)!r}, where nothing can be")
        assert "\n" not in str(caught.value)
    assert below_a_file.parent.read_text() == "in the way"


@pytest.mark.skipif(os.getuid() == 0, reason="rights don't bind root")
def test_missing_rights_are_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        require_writable(tmp_path / "a", "--output")


def test_a_disks_refusal_is_told_from_other_errors():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
    assert storage_problem(full) == "No space left on device: metrics.jsonl"
    native = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [OS error 28]")
    assert storage_problem(native) == "No space left on device"
    assert storage_problem(ValueError("shapes differ")) is None
    assert storage_problem(FloatingPointError("loss is nan")) is None


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [("checkpoints", False), ("samples", False), ("tensorboard", False), ("metrics.jsonl", True)]
    + [("samples.png", True), ("summary.json", True)],
)
def test_what_is_in_the_way_in_a_workdir_is_found_before_anything_compiles(
    name, is_folder, tmp_path, compiled
):
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_text("in the way")
    with pytest.raises(ConfigError, match=f"--workdir is .*{name}"):
        loop.train(tiny_config(), tmp_path)
    assert compiled == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_workdir_below_a_file_is_found_before_anything_compiles(below_a_file, compiled):
    with pytest.raises(ConfigError, match="--workdir is .*: Not a directory; accepted"):
        loop.train(tiny_config(), below_a_file)
    assert compiled == []


def test_outputs_and_caches_are_tried_first(below_a_file, monkeypatch):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(below_a_file))
    with pytest.raises(ConfigError, match="SPARSEJAX_CACHE is .*Not a directory"):
        load_or_compute("features", lambda: pytest.fail("computed in vain"), {})
    with pytest.raises(ConfigError, match="--output is .*Not a directory"):
        write_report(below_a_file, [{}])


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate.py", "--output={below}", "--workdirs={run}"],
        ["-m", "sparsejax", "export", "--output={below}", "--workdir={run}"],
        ["-m", "sparsejax", "sweep", "--output={below}", "--config=configs/digits.py"],
    ],
    ids=["evaluate", "export", "sweep"],
)
@pytest.mark.slow
def test_commands_name_their_flag(command, tiny_run, below_a_file):
    arguments = [part.format(below=below_a_file, run=tiny_run[0]) for part in command]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --output is {str(below_a_file)!r}")
    assert done.returncode == 2


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_disk_that_refuses_a_checkpoint_costs_nothing_that_was_saved(tiny_run, tmp_path):
    """No file may grow beyond 200 kB: the next checkpoint can't be written, the old one stays."""
    shutil.copytree(tiny_run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    flags = [f"--workdir={tmp_path / 'run'}", *tiny_flags()]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    *_, line = filter(None, done.stderr.splitlines())
    assert line.startswith("error: File too large")
    assert "step 30 is saved. The same command resumes the run in" in line
    assert loop.train(tiny_config(), tmp_path / "run")
    assert_equal_runs(tiny_run[0], tmp_path / "run")
