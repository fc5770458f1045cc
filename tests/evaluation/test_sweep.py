"""Sweeps: what is missing is run, what is there stays, whatever happened in between."""

import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from sparsejax import lease
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation import sweep as sweeping
from sparsejax.evaluation.grids import grid
from sparsejax.training.runs import save_config
from tests.training.tiny import OVERRIDES, small_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = {"count": 40, "metrics": ["fd"], "extractor": "pixels", "batch": 40}


def small_grid(**axes):
    return grid(small_config(**{"log.every": 5}), **axes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of a run whose workdir holds another, and of one that works after it."""
    folder = tmp_path_factory.mktemp("sweep")
    bad, good = small_grid(methods=["static", "rigl"], levels=[0.75])
    save_config(folder / "runs" / bad.name, resolve(small_config()))
    failed = sweeping.sweep([bad, good], folder / "out", folder / "runs", **OPTIONS)
    return folder, bad, good, failed


def test_one_failure_does_not_stop_the_rest(swept):
    folder, bad, good, failed = swept
    assert list(failed) == [bad.name]
    assert failed[bad.name].startswith("ConfigError: workdir ")
    assert "Traceback" in (folder / "runs" / bad.name / "error.txt").read_text()
    (row,) = map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines())
    assert row["run"] == good.name
    assert set(row["measures"]) == {"FD[pixels:8x8]@40"}


def test_a_row_carries_what_a_reviewer_asks_for(swept):
    folder, _, good, _ = swept
    (row,) = map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines())
    assert row["config"] == json.loads(json.dumps(resolve(good.config).to_dict()))
    assert row["reference"] == "digits train, 1,797 examples"
    assert row["device"].endswith("cpu")
    assert row["versions"]["jax"]
    assert row["commit"] is None or len(row["commit"]) >= 12
    assert row["active_parameters"] < 0.3 * row["parameters"]
    assert row["peak_memory_bytes"] > 1e8
    assert row["sampling_seconds"] > 0
    assert row["step_seconds"] > 0
    assert (row["structure"], row["block_size"]) == ("weight", None)
    density = 1 - row["sparsity"]
    active, weights = map(sum, zip(*row["layers"].values(), strict=True))
    assert active / weights == pytest.approx(density, abs=1e-3)
    assert density < row["ever_active"] < 1, "RigL has seen more weights than it holds"


def test_a_sweep_given_again_runs_nothing_that_is_done(swept, monkeypatch):
    folder, _, good, _ = swept
    before = (folder / "out" / "results.jsonl").read_text()

    def run(*_):
        raise AssertionError("it is done already")

    monkeypatch.setattr(sweeping, "run_in_own_process", run)
    assert sweeping.sweep([good], folder / "out", folder / "runs", **OPTIONS) == {}
    assert (folder / "out" / "results.jsonl").read_text() == before


def test_runs_of_another_number_of_steps_are_no_part_of_a_sweep(swept, tmp_path, monkeypatch):
    """Neither a result of theirs nor a workdir to resume: its schedules would change on the way."""
    folder, _, good, _ = swept
    shorter = good._replace(config=good.config.copy_and_resolve_references())
    shorter.config.steps = good.config.steps - 2
    with pytest.raises(ConfigError, match="steps: now 38, saved 40; accepted: the same config"):
        sweeping.sweep([shorter], folder / "out", folder / "runs", **OPTIONS)
    trained = []
    monkeypatch.setattr(sweeping, "run_in_own_process", lambda run, *_: trained.append(run) or "no")
    other = good._replace(name="other")
    message = f"steps is 38, but {folder / 'runs' / good.name} holds a run of 40 steps"
    with pytest.raises(ConfigError, match=re.escape(message)):
        sweeping.sweep([other, shorter], tmp_path, folder / "runs", **OPTIONS)
    assert trained == []
    assert sweeping.sweep([good], tmp_path, folder / "runs", **OPTIONS) == {good.name: "no"}


def test_results_from_before_a_config_key_was_added_are_done_too(swept, tmp_path):
    """The key has its default in the new run: single weights, as all runs were then."""
    folder, _, good, _ = swept
    (row,) = map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines())
    for key in ("structure", "block_size"):
        del row["config"]["sparsity"][key], row[key]
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert sweeping.sweep([good], tmp_path, folder / "runs", **OPTIONS) == {}
    blocks = good._replace(config=good.config.copy_and_resolve_references())
    blocks.config.sparsity.structure = "block"
    with pytest.raises(ConfigError, match="structure: now 'block', saved 'weight'"):
        sweeping.sweep([blocks], tmp_path, folder / "runs", **OPTIONS)


def test_results_of_all_metrics_are_those_of_none_that_are_named(swept, tmp_path):
    """Older ones name all of them; now all are meant that there are enough examples for."""
    folder, _, good, _ = swept
    (row,) = map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines())
    row["evaluation"]["metrics"] = ["fd", "kid", "is", "precision_recall"]
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    for metrics in (None, tuple(row["evaluation"]["metrics"])):
        assert sweeping.list_missing([good], tmp_path, **OPTIONS | {"metrics": metrics}) == []


def test_a_damaged_line_of_the_results_stops_no_sweep(swept, tmp_path, monkeypatch, caplog):
    """It is moved whole to another file, and its run has no result; reports name it otherwise."""
    folder, _, good, _ = swept
    line = (folder / "out" / "results.jsonl").read_bytes()
    trained = []

    def run_again(run, workdir, how, guard):
        trained.append(run.name)
        (workdir / "result.json").write_bytes(line)

    monkeypatch.setattr(sweeping, "run_in_own_process", run_again)
    path = tmp_path / "results.jsonl"
    damages = [line[: len(line) // 2], b"\xff\n[]", line.replace(b'"measures": {', b'"n": {')]
    damages += [line.replace(b'"config": {', b'"config": 0, "n": {')]
    for damage in damages:
        for content, again in ((line + damage, []), (damage, [good.name])):
            path.write_bytes(content)
            trained.clear()
            assert sweeping.list_missing([good], tmp_path, **OPTIONS) == ([good] if again else [])
            assert path.read_bytes() == content
            assert sweeping.sweep([good], tmp_path, folder / "runs", **OPTIONS) == {}
            assert trained == again
            assert path.read_bytes() == line
            kept = tmp_path / "results.damaged.jsonl"
            assert kept.read_bytes() == damage.rstrip(b"\n") + b"\n"
            kept.unlink()
            assert f"{path}: a line is damaged and does not count: " in caplog.text


def test_results_are_not_mixed(swept):
    """Another config under the same name, another sample count, another reference set."""
    folder, _, good, _ = swept
    out, runs = folder / "out", folder / "runs"
    other = good._replace(config=small_config())
    other.config.optimizer.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"(?s)a different config:.*optimizer.learning_rate"):
        sweeping.sweep([other], out, runs, **OPTIONS)
    with pytest.raises(ConfigError, match="was evaluated with .*'count': 40"):
        sweeping.sweep([good], out, runs, **OPTIONS | {"count": 50})
    (row,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    (folder / "old").mkdir()
    for pictures in ({}, {"pictures": "floats"}):
        older = {key: value for key, value in row.items() if key != "pictures"} | pictures
        (folder / "old" / "results.jsonl").write_text(json.dumps(older) + "\n")
        with pytest.raises(
            ConfigError, match="unrounded floats; accepted: another --output, for results of 8-bit"
        ):
            sweeping.sweep([good], folder / "old", runs, **OPTIONS)
    (third,) = grid(
        small_config(**{"task.reference_split": "train[:500]"}), methods=["dense"], levels=[0]
    )
    with pytest.raises(ConfigError, match="a different config.task"):
        sweeping.sweep([third], out, runs, **OPTIONS)


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(tmp_path):
    runs = small_grid(methods=["dense"], levels=[0])
    with pytest.raises(ConfigError, match="batch is 0; accepted: 1 or more"):
        sweeping.sweep(runs, tmp_path, tmp_path / "runs", **OPTIONS | {"batch": 0})
    with pytest.raises(ConfigError, match="'kid' of 40 samples"):
        sweeping.sweep(runs, tmp_path, tmp_path / "runs", **OPTIONS | {"metrics": ["kid"]})
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def stubbed(swept, monkeypatch):
    """Runs that only write a row, copied from the real one; yields the names of those begun."""
    folder, _, _, _ = swept
    (row,) = map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines())
    begun = []

    def run_one(run, workdir, how, guard):
        begun.append(run.name)
        time.sleep(0.02)
        ours = row | {"run": run.name, "config": resolve(run.config).to_dict()}
        (workdir / "result.json").write_text(json.dumps(ours))

    monkeypatch.setattr(sweeping, "run_in_own_process", run_one)
    return begun


def results_of(folder):
    rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return sorted(row["run"] for row in rows)


def test_sweeps_at_once_share_a_grid_and_do_each_run_once(stubbed, tmp_path):
    """Their lines are all there, none twice: each adds its own under a lease of the folder."""
    runs = small_grid(methods=["dense"], levels=[0], seeds=range(4))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        sweeps = [
            pool.submit(sweeping.sweep, runs, tmp_path, tmp_path / "runs", **OPTIONS)
            for _ in range(2)
        ]
    assert [sweep.result() for sweep in sweeps] == [{}] * 2
    names = sorted(run.name for run in runs)
    assert sorted(stubbed) == results_of(tmp_path) == names
    assert not list(tmp_path.glob("**/lease-*"))


def test_sweeps_that_end_runs_at_once_lose_no_row(stubbed, tmp_path, monkeypatch):
    """On a disk that takes its time: both have read the results before one of them has written.

    Both find a damaged line at their start, which is moved once.
    """
    (tmp_path / "results.jsonl").write_text("torn\n")
    stub, write_text = sweeping.run_in_own_process, sweeping.write_text
    barrier = threading.Barrier(2)

    def run_one(run, workdir, how, guard):
        stub(run, workdir, how, guard)
        barrier.wait(60)

    def write_slowly(path, text):
        time.sleep(0.3)
        write_text(path, text)

    monkeypatch.setattr(sweeping, "run_in_own_process", run_one)
    monkeypatch.setattr(sweeping, "write_text", write_slowly)
    runs = small_grid(methods=["dense"], levels=[0], seeds=range(2))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        sweeps = [
            pool.submit(sweeping.sweep, [run], tmp_path, tmp_path / "runs", **OPTIONS)
            for run in runs
        ]
    assert [sweep.result() for sweep in sweeps] == [{}] * 2
    assert results_of(tmp_path) == sorted(run.name for run in runs)
    assert (tmp_path / "results.damaged.jsonl").read_text() == "torn\n"


def test_runs_that_others_are_at_are_left_to_them_and_claims_of_the_dead_are_not(
    stubbed, tmp_path, capsys, monkeypatch
):
    """One holder lives; one died here; one died on another host, which its silence tells."""
    monkeypatch.setattr(lease, "PATIENCE", 0.3)
    living, here, elsewhere = small_grid(methods=["dense"], levels=[0], seeds=range(3))
    for run, changes in ((here, {"pid": 2**31 - 1}), (elsewhere, {"host": "elsewhere"})):
        folder = tmp_path / "runs" / run.name
        with lease.hold(folder):
            values = json.loads((folder / "lease-1.json").read_text())
            (folder / "lease-2.json").write_text(json.dumps(values | changes))
    with lease.hold(tmp_path / "runs" / living.name):
        runs = [living, elsewhere, here]
        assert sweeping.sweep(runs, tmp_path, tmp_path / "runs", **OPTIONS) == {}
    assert stubbed == [here.name, elsewhere.name], "those that may be at work come last"
    assert results_of(tmp_path) == sorted(stubbed)
    output = capsys.readouterr().out
    assert f"{living.name} is left to the process that is at it: " in output
    assert f"in use by process {os.getpid()} on " in output


def test_a_sweep_that_lost_its_claim_adds_no_row(stubbed, tmp_path, monkeypatch):
    (run,) = small_grid(methods=["dense"], levels=[0])
    stub = sweeping.run_in_own_process

    def lose(run, workdir, how, guard):
        stub(run, workdir, how, guard)
        (workdir / "lease-1.json").rename(workdir / "taken-over")

    monkeypatch.setattr(sweeping, "run_in_own_process", lose)
    assert sweeping.sweep([run], tmp_path, tmp_path / "runs", **OPTIONS) == {}
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_repeats_nothing(tmp_path):
    """SIGKILL four times at random moments; every run is there once, equal to undisturbed ones."""
    flags = [f"--config.{key}={value}" for key, value in (OVERRIDES | {"steps": 20}).items()]
    command = [sys.executable, "-m", "sparsejax", "sweep", "--config=configs/digits.py"]
    command += [*flags, "--methods=dense,static,rigl", "--levels=0.75", "--seeds=0,1"]
    command += ["--samples=40", "--metrics=fd", "--extractor=pixels"]

    def start(folder):
        arguments = [f"--output={folder}", f"--workdirs={folder / 'runs'}"]
        return subprocess.Popen([*command, *arguments], cwd=ROOT, env=os.environ)

    def results(folder):
        path = folder / "results.jsonl"
        return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    seen = []
    for _ in range(4):
        process = start(disturbed)
        time.sleep(random.uniform(10, 40))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)  # the run's own process notices
        names = [row["run"] for row in results(disturbed)]
        assert names[: len(seen)] == seen, "what was there is there"
        seen = names
    assert start(disturbed).wait() == 0
    assert start(calm).wait() == 0
    ours, theirs = results(disturbed), results(calm)
    assert [row["run"] for row in ours] == [row["run"] for row in theirs]
    assert len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one["measures"] == other["measures"]
    assert (disturbed / "report.html").exists()
