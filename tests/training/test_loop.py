"""The loop on real data: what a run writes, how it resumes, what it refuses."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.processes import together
from sparsejax.sparsity import masks
from sparsejax.training import checkpoints, load_run, loop, runs
from sparsejax.training.announcement import announce_other_steps
from sparsejax.training.metrics_log import WALL_CLOCK, read_metrics
from sparsejax.training.optimizers import update_schedule
from sparsejax.training.plan import build_plan
from tests.training.tiny import (
    SMALL,
    forget_copies,
    small_config,
    tiny_config,
    tiny_flags,
    with_devices,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = tiny_config().model.num_head_channels
SHORT = {"steps": 4, "checkpoint.every": 2, "log.every": 2}


def start(workdir, **changes):
    """Start train.py itself, as a user would."""
    command = [sys.executable, "train.py", f"--workdir={workdir}", *tiny_flags(**changes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def final_state(workdir):
    config = runs.read_config(workdir)
    _, state = runs.load_state(workdir)
    assert int(state.step) == config.steps
    return state


def assert_equal_runs(one, other):
    """Bit-identical params, masks, optimizer state, EMA; equal metrics but for the clock."""
    states = final_state(one), final_state(other)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = [
        [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in read_metrics(path)]
        for path in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]
    assert lines[0]


def test_a_run_leaves_config_metrics_and_checkpoints(tiny_run):
    workdir, _ = tiny_run
    assert json.loads((workdir / "config.json").read_text())["sparsity"]["end"] == 30
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    updates = [line for line in lines if "replaced" in line]
    assert [line["step"] for line in updates] == [5, 10, 15, 20, 25]
    assert all(0 < line["replaced"] <= line["drop_fraction"] for line in updates)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert checkpoints.list_steps(workdir / "checkpoints") == [30, 40]
    assert any((workdir / "tensorboard").iterdir())


def test_the_model_is_as_sparse_at_the_end_as_at_the_beginning(tiny_run):
    workdir, _ = tiny_run
    _, params, mask = load_run(workdir)
    counts = masks.summarize(params, mask)
    assert counts.sparsifiable.density == pytest.approx(0.25, abs=1e-3)
    nonzero = sum(int(np.count_nonzero(p)) for p in jax.tree.leaves(params))
    assert nonzero <= counts.total.active
    state = final_state(workdir)
    for tree in (params, state.params):
        for p, m in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
            assert (p[~np.broadcast_to(m, p.shape)] == 0).all()


def test_nothing_is_compiled_after_the_first_logged_steps(tiny_run):
    """Three functions are mapped over devices, once each; after step 10 nothing compiles."""
    _, compiled = tiny_run
    assert [name for name, _ in compiled].count("jit(_fun)") == 3
    lines_by_step_10 = 3  # two updates and the mean of ten steps
    assert [name for name, lines in compiled if lines >= lines_by_step_10] == []


def test_a_finished_run_is_not_trained_again(tiny_run):
    workdir, _ = tiny_run
    before = (workdir / "metrics.jsonl").read_text()
    assert loop.train(tiny_config(), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow  # tests/faults kills runs too
@pytest.mark.parametrize(
    ("family", "times", "pause"), [(SMALL, 1, 0.1), ({}, 4, 1)], ids=["small", "unet"]
)
def test_a_run_killed_at_a_random_step_ends_as_if_it_had_not_been(
    family, times, pause, request, tmp_path
):
    """SIGKILL at random moments; the next start finishes."""
    whole = request.getfixturevalue("small_run" if family else "tiny_run")
    whole = whole if family else whole[0]
    killed = tmp_path / "killed"
    for _ in range(times):
        process = start(killed, **family)
        target = random.choice([1, 2, 4, 6, 7])
        while len(read_metrics(killed / "metrics.jsonl")) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(pause * random.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert loop.train(tiny_config(**family), killed)
    assert_equal_runs(whole, killed)


def truncate(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bits(checkpoint):
    """In the middle of each file that holds arrays: how they are spread over files varies."""
    files = [*(checkpoint / "state" / "ocdbt.process_0" / "d").iterdir()]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def test_of_a_checkpoint_that_cannot_be_read_one_line_is_printed(
    small_run, tmp_path, monkeypatch, caplog
):
    """tensorstore describes what it opened, and its other reads call a loop that is closed."""
    others = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    damaged = shutil.copytree(small_run, tmp_path / "damaged")
    for file in (damaged / "checkpoints" / "40" / "state" / "d").iterdir():
        truncated = file.read_bytes()[: file.stat().st_size // 2]
        file.write_bytes(truncated)
    load_run(damaged)
    gc.collect()
    assert [str(other.exc_value) for other in others] == []
    # Whether reads end before that loop is closed depends on the machine.
    with contextlib.closing(asyncio.new_event_loop()) as asynchronous:
        other = asynchronous.create_future()
        other.set_exception(ValueError("Error reading [tensorstore_spec='{}']"))
        del other
        gc.collect()
    (line,) = caplog.messages
    assert line.startswith(
        f"checkpoint {damaged}/checkpoints/40 is damaged or of a different model"
    )
    assert "tensorstore_spec" not in line
    assert line.endswith("; trying the previous one")


def test_a_damaged_checkpoint_is_named_and_skipped(small_run, tmp_path, caplog):
    """The run resumes from the checkpoint before, and nothing is deleted, twice over."""
    workdir = small_run
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "-r", workdir, damaged], check=True)
    for i, damage in enumerate((truncate, flip_bits), 1):
        damage(damaged / "checkpoints" / "40")
        load_run(damaged)
        assert checkpoints.list_steps(damaged / "checkpoints") == [30, 40], "reading changed it"
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert loop.train(small_config(), damaged)
        assert "checkpoints/40 is damaged" in caplog.text
        assert (damaged / "checkpoints" / f"40.damaged-{i}").exists()
        assert_equal_runs(workdir, damaged)


def test_a_run_of_which_no_checkpoint_is_whole_is_left_as_it_is(tiny_run, tmp_path):
    """Better no run than one that begins again over the old one's metrics."""
    workdir, _ = tiny_run
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "-r", workdir, damaged], check=True)
    before = (damaged / "metrics.jsonl").read_text()
    for step in (30, 40):
        truncate(damaged / "checkpoints" / str(step))
    with pytest.raises(ValueError, match="(?s)no checkpoint can be restored.*/40 .*/30 "):
        loop.train(tiny_config(), damaged)
    assert (damaged / "metrics.jsonl").read_text() == before
    assert checkpoints.list_steps(damaged / "checkpoints") == [30, 40]


def test_fewer_steps_than_were_taken_are_refused(tiny_run):
    workdir, _ = tiny_run
    before = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match="config.steps is 10; accepted: 40 or more"):
        loop.train(tiny_config(steps=10), workdir)
    assert (workdir / "config.json").read_text() == before


def test_another_config_is_refused_with_the_differing_keys(tiny_run):
    workdir, _ = tiny_run
    before = (workdir / "config.json").read_text()
    changed = tiny_config(**{"sparsity.level": 0.5, "batch_size": 16})
    with pytest.raises(ValueError, match="(?s)batch_size: now 16, saved 8.*level: now 0.5"):
        loop.train(changed, workdir)
    assert (workdir / "config.json").read_text() == before


def test_more_steps_and_other_logging_resume_the_run(small_run, tmp_path, capsys):
    """The topology keeps its first schedule, the learning rate doesn't; both are reported."""
    longer = tmp_path / "longer"
    subprocess.run(["cp", "-r", small_run, longer], check=True)
    assert loop.train(small_config(**{"steps": 44, "log.every": 2}), longer)
    lines = read_metrics(longer / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line][-3:] == [40, 42, 44]
    assert [line["step"] for line in lines if "replaced" in line][-1] == 25
    assert json.loads((longer / "config.json").read_text())["sparsity"]["end"] == 30
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("config.steps was")]
    rate = 2e-3 * (1 + np.cos(np.pi * 35 / 39)) / 2  # after 5 steps of warm-up, 35 of now 39
    assert line == (
        "config.steps was 40, is now 44: the cosine learning-rate schedule ends at step 44, so "
        f"step 41 is taken at {rate:.3g} instead of 0; topology updates still end at step 30, as "
        "before"
    )
    written = {line["step"]: line for line in lines if "loss" in line}
    assert written[42]["learning_rate"] == pytest.approx(
        2e-3 * (1 + np.cos(np.pi * 36 / 39)) / 2, rel=1e-4
    )


def test_of_schedules_that_stay_nothing_is_said(capsys):
    changes = {"optimizer.schedule": "constant", "steps": 80}
    rigl = resolve(tiny_config(**changes))
    announce_other_steps(rigl, build_plan(rigl, build_model(rigl)), 40, 40)
    assert capsys.readouterr().out == (
        "config.steps was 40, is now 80: topology updates still end at step 60, as before\n"
    )
    static = resolve(tiny_config(**changes, **{"sparsity.method": "static"}))
    announce_other_steps(static, build_plan(static, build_model(static)), 40, 40)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_run_can_start_from_another_runs_weights(tiny_run, tmp_path):
    workdir, _ = tiny_run
    fine_tuned = {"checkpoint.init_from": str(workdir), "optimizer.learning_rate": 1e-30}
    assert loop.train(tiny_config(**SHORT, **fine_tuned), tmp_path / "same")
    _, params, mask = load_run(workdir)
    _, new_params, new_mask = load_run(tmp_path / "same", ema=False)
    for a, b in zip(*map(jax.tree.leaves, (params, new_params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (mask, new_mask)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_packed_state_trains_as_masked_and_resumes(tiny_run, tmp_path):
    """Adam's moments and the EMA of active weights alone; resumed after half of the run."""
    config = tiny_config(**{"optimizer.packed": True, "checkpoint.keep": 3})
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert loop.train(config, whole)
    shutil.copytree(whole, resumed)
    for step in (30, 40):
        shutil.rmtree(resumed / "checkpoints" / str(step))
    assert loop.train(config, resumed)
    assert_equal_runs(whole, resumed)

    for ema in (True, False):
        ours, theirs = (load_run(path, ema=ema)[1:] for path in (whole, tiny_run[0]))
        for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    lines = [read_metrics(path / "metrics.jsonl") for path in (whole, tiny_run[0])]
    for ours, theirs in zip(*lines, strict=True):
        for key in ours.keys() - set(WALL_CLOCK):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-7)
    ours, theirs = (jax.tree.leaves(final_state(path)) for path in (whole, tiny_run[0]))
    assert sum(x.nbytes for x in ours) < 0.7 * sum(x.nbytes for x in theirs)


def test_loading_from_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run: there is no .*config.json"):
        load_run(tmp_path)


def train_on(devices, workdir, **changes):
    environment = os.environ | {
        "XLA_FLAGS": with_devices(devices),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    command = [sys.executable, "train.py", f"--workdir={workdir}", *tiny_flags(**changes)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)


def assert_equal_masks(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one.masks, other.masks)), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_training(one, other):
    """Of two runs on different devices; the batch is split, the noise is not."""
    states = final_state(one), final_state(other)
    assert_equal_masks(*states)
    for state in states:
        # No softmax depends on its key bias: the gradient is rounding noise, which Adam scales up.
        bias = state.params["middle_block_1"]["qkv"]["bias"].reshape(-1, 3, HEAD)
        state.params["middle_block_1"]["qkv"]["bias"] = bias[:, (0, 2)]
    for a, b in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    losses = [
        [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
        for workdir in (one, other)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow  # half a minute of compiling
def test_four_devices_train_as_one_does(tiny_run, tmp_path):
    train_on(4, tmp_path / "four")
    assert_same_training(tiny_run[0], tmp_path / "four")


@pytest.mark.slow
def test_four_devices_train_as_one_does_for_200_steps(tmp_path):
    flags = {"steps": 200, "checkpoint.every": 0, "log.every": 50, "sparsity.update_interval": 10}
    for devices in (1, 4):
        train_on(devices, tmp_path / str(devices), **flags)
    assert_same_training(tmp_path / "1", tmp_path / "4")


def test_an_error_is_told_to_other_processes_before_anything_waits_for_them(tmp_path, monkeypatch):
    """As closing the checkpoint manager does, while they wait for this process to take a step."""
    told, set_up, open_manager = [], loop.set_up, checkpoints.open_manager
    error = OSError(5, "Input/output error", "shard")

    def failing_batches(start, stop):
        yield from ()
        raise error

    def set_up_failing(*arguments):
        run = set_up(*arguments)
        return run._replace(data=run.data._replace(batches=failing_batches))

    @contextlib.contextmanager
    def open_noting(*arguments):
        with open_manager(*arguments) as manager:
            try:
                yield manager
            finally:
                told.append("closing")

    monkeypatch.setattr(loop, "set_up", set_up_failing)
    monkeypatch.setattr(checkpoints, "open_manager", open_noting)
    monkeypatch.setattr(together, "running", types.SimpleNamespace(fail=told.append))
    with pytest.raises(OSError, match="Input/output error"):
        loop.train(tiny_config(), tmp_path)
    assert told == [error, "closing"]


@pytest.mark.parametrize("damage", [b"", b'{"seed": 0', b"[]", b"null", b"\0" * 64, b"\xff"])
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(tiny_run, tmp_path, name, damage):
    for other in ("config.json", "data.json"):
        shutil.copy(tiny_run[0] / other, tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ConfigError) as caught:
        loop.train(tiny_config(), tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == damage


def test_a_run_that_is_older_than_a_config_key_has_its_default(tiny_run, tmp_path):
    older = tmp_path / "older"
    subprocess.run(["cp", "-r", tiny_run[0], older], check=True)
    forget_copies(older)
    config = json.loads((older / "config.json").read_text())
    del config["task"]["words"], config["sample"]["noise_weight"]
    (older / "config.json").write_text(json.dumps(config))
    assert runs.read_config(older) == runs.read_config(tiny_run[0])
    assert loop.train(tiny_config(), older)  # finished: nothing to do, and no key differs


def test_a_run_saved_before_the_end_was_left_out_keeps_its_update_there(tiny_run, tmp_path):
    """Of a config without `sparsity.includes_end`: its costs count the update at `end`."""
    older = tmp_path / "older"
    subprocess.run(["cp", "-r", tiny_run[0], older], check=True)
    forget_copies(older)
    config = json.loads((older / "config.json").read_text())
    assert config["sparsity"].pop("includes_end") is False
    (older / "config.json").write_text(json.dumps(config))
    for workdir, steps in ((tiny_run[0], [25]), (older, [25, 30])):
        resumed = runs.resolve_for(workdir, tiny_config())  # which no key refuses
        for saved in (resumed, runs.read_config(workdir)):
            schedule = update_schedule(saved.sparsity)
            assert [step for step in range(21, 41) if schedule.is_due(step)] == steps
    with pytest.raises(ValueError, match="includes_end: now False, saved True"):
        runs.resolve_for(older, tiny_config(**{"sparsity.includes_end": False}))


def test_a_run_saved_before_constant_fan_in_keeps_its_free_blocks(tiny_run, tmp_path):
    older = tmp_path / "older"
    subprocess.run(["cp", "-r", tiny_run[0], older], check=True)
    forget_copies(older)
    config = json.loads((older / "config.json").read_text())
    assert config["sparsity"].pop("fan_in") is True
    config["sparsity"]["compiled"] = config["sparsity"].pop("compact")
    config["sparsity"] |= {"structure": "block", "block_size": 16}
    (older / "config.json").write_text(json.dumps(config))
    changes = {"sparsity.structure": "block", "sparsity.block_size": 16}
    for saved in (runs.resolve_for(older, tiny_config(**changes)), runs.read_config(older)):
        assert saved.sparsity.fan_in is False
        assert saved.sparsity.compact is True
    with pytest.raises(ValueError, match="fan_in: now True, saved False"):
        runs.resolve_for(older, tiny_config(**changes | {"sparsity.fan_in": True}))
