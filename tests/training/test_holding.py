"""One trainer per workdir: a second one is refused; who lost its lease writes nothing more."""

import shutil
import time

import pytest

from sparsejax import lease
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.training import checkpoints, loop
from sparsejax.training.metrics_log import read_metrics
from tests.training.test_loop import assert_equal_runs, start
from tests.training.tiny import small_config, tiny_config

SHORT = {"checkpoint.every": 2, "log.every": 2}


def test_a_second_trainer_is_refused_before_it_reads_or_writes_anything(tmp_path):
    with lease.hold(tmp_path):
        with pytest.raises(ConfigError, match=r"^workdir .* is in use by .*another --workdir, or"):
            loop.train(tiny_config(), tmp_path)
        with pytest.raises(ConfigError, match=r"^workdir .* is in use by process \d+ on .*, since"):
            closing.close_run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lease-1.json"]


def test_a_finished_run_needs_no_lease(tiny_run, tmp_path):
    """Its disk may be read-only by now."""
    shutil.copytree(tiny_run[0], tmp_path / "run")
    with lease.hold(tmp_path / "run"):
        assert loop.train(tiny_config(), tmp_path / "run")


def losing_at(call, workdir, guard):
    """Return a guard of a lease that is lost just before its n-th call."""
    calls = []

    def checked():
        calls.append(1)
        if len(calls) == call:
            (workdir / "lease-1.json").rename(workdir / "lease-2.json.gone")
        guard()

    return checked


@pytest.mark.parametrize(("call", "lines", "steps"), [(2, [2], []), (3, [2], [2])])
def test_who_lost_its_lease_writes_no_further_line_and_no_checkpoint(tmp_path, call, lines, steps):
    with lease.hold(tmp_path) as guard, pytest.raises(lease.HeldError, match="lease of .* is gone"):
        loop.train(small_config(**SHORT), tmp_path, losing_at(call, tmp_path, guard))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == lines
    assert checkpoints.list_steps(tmp_path / "checkpoints") == steps


@pytest.mark.parametrize(("call", "has_pictures"), [(1, False), (2, True)])
def test_who_lost_its_lease_writes_no_summary(small_run, tmp_path, call, has_pictures):
    workdir = tmp_path / "run"
    shutil.copytree(small_run, workdir)
    with lease.hold(workdir) as guard, pytest.raises(lease.HeldError):
        closing.close_run(workdir, losing_at(call, workdir, guard))
    assert (workdir / "samples.png").exists() == has_pictures
    assert not (workdir / "summary.json").exists()


@pytest.mark.slow
def test_of_two_commands_in_one_workdir_the_second_ends_in_one_line(tiny_run, tmp_path):
    first = start(tmp_path / "run")
    while not list((tmp_path / "run").glob("lease-*")):
        time.sleep(0.01)
        assert first.poll() is None
    second = start(tmp_path / "run")
    output = second.communicate(timeout=300)[0].decode()
    assert second.returncode == 2
    (line,) = output.splitlines()
    assert line.startswith(f"error: workdir '{tmp_path / 'run'}' is in use by process {first.pid} ")
    output = first.communicate(timeout=300)[0].decode()
    assert first.returncode == 0, output
    assert_equal_runs(tiny_run[0], tmp_path / "run")
    assert not list((tmp_path / "run").glob("lease-*"))
