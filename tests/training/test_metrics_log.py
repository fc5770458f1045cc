"""Metrics lines: none is repeated, damage costs only its own line, speeds are of steps alone."""

import json
import math

import jax
import pytest

from sparsejax.evaluation import closing
from sparsejax.reports import plots
from sparsejax.training import metrics_log
from sparsejax.training.metrics_log import WALL_CLOCK, MetricsLog, MetricsWriter, read_metrics
from sparsejax.training.plan import build_plan
from sparsejax.training.steps import STEP_METRICS

GOOD = [{"step": step, "loss": 1.0 / step} for step in (10, 20, 30, 40)]
DAMAGE = {
    "torn": b'{"step": 20, "lo',
    "a number": b"3.5",
    "a list": b"[20, 1.5]",
    "nothing": b"null",
    "no step": b'{"loss": 1.5}',
    "step a string": b'{"step": "20", "loss": 1.5}',
    "step a fraction": b'{"step": 20.5, "loss": 1.5}',
    "step true": b'{"step": true, "loss": 1.5}',
    "loss a string": b'{"step": 20, "loss": "1.5"}',
    "loss none": b'{"step": 20, "loss": null}',
    "zeros inside": b'{"step": 20, \0\0\0 "loss": 1.5}',
    "no UTF-8": b'{"step": 20, "lo\xffss": 1.5}',
    "deep": b"[" * 100_000,
    "digits": b'{"step": ' + b"1" * 10_000 + b"}",
    "a loss that overflows": b'{"step": 20, "loss": 1e999}',
    "a loss that is none": b'{"step": 20, "loss": NaN}',
    "too large": b'{"step": 20, "mine": ' + b"1" * 400 + b"}",
    "a key twice": b'{"step": 15, "step": 20, "loss": 1.5}',
    "two on a line": b'{"step": 15, "loss": 1.5}{"step": 20, "loss": 1.5}',
}


def open_log(workdir, start=0, pending=(), key=None):
    saved = {"pending": pending}
    return MetricsLog(workdir, start, saved, key, lambda step: 0.1, tensorboard=False)


def test_while_a_step_runs_no_more_than_one_is_queued(tmp_path):
    """Otherwise a run that is asked to stop would first finish dozens of steps."""

    @jax.jit
    def slow_step(x):
        x = jax.lax.fori_loop(0, 40, lambda _, x: jax.numpy.tanh(x @ x), x)
        return x, {"loss": x.sum(), "grad_norm": x.max()}

    state, _ = jax.block_until_ready(slow_step(jax.numpy.ones((400, 400))))
    log, taken, is_queued = open_log(tmp_path), [], False
    for step in range(1, 9):
        state, metrics = slow_step(state)
        log.add(step, metrics)
        taken.append(metrics["loss"])
        assert all(loss.is_ready() for loss in taken[:-1])
        is_queued |= not taken[-1].is_ready()
    assert is_queued, "too fast to tell"
    log.close()


def lines_of(values):
    return b"".join(json.dumps(line).encode() + b"\n" for line in values)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_line_costs_no_other(damage, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines_of(GOOD[:2]) + damage + b"\n" + lines_of(GOOD[2:]))
    assert read_metrics(path) == GOOD
    for _ in range(2):  # opened again, nothing is moved again
        MetricsWriter(tmp_path, 41).close()
        assert path.read_bytes() == lines_of(GOOD)
        assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damage + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        lines_of(GOOD).replace(b"\n", b"\r\n"),
        lines_of(GOOD)[:-1],
        lines_of(GOOD) + b'{"step": 50, "lo',
        lines_of(GOOD) + b"\0" * 512,
        lines_of(GOOD[:2]) + b"\0" * 512 + lines_of(GOOD[2:]),
        b"\n\n".join(lines_of([line]) for line in GOOD),
    ],
    ids=["CRLF", "no last newline", "torn at the end", "zeros at the end", "zeros", "empty lines"],
)
def test_what_a_crash_or_an_editor_leaves_is_no_damage(content, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert read_metrics(path) == GOOD
    writer = MetricsWriter(tmp_path, 31)
    writer.write(40, {"loss": 0.5})
    writer.close()
    assert read_metrics(path) == [*GOOD[:3], {"step": 40, "loss": 0.5}]
    assert not (tmp_path / "metrics.damaged.jsonl").exists()


def test_a_torn_line_that_is_not_written_again_is_kept_beside(tmp_path):
    """Of a step before the checkpoint that a run resumes from."""
    path = tmp_path / "metrics.jsonl"
    for first, kept in ((31, []), (41, [lines_of(GOOD)[-30:]])):
        path.write_bytes(lines_of(GOOD)[:-5])
        MetricsWriter(tmp_path, first).close()
        assert read_metrics(path) == GOOD[:-1]
        assert (tmp_path / "metrics.damaged.jsonl").exists() == bool(kept)
    torn = lines_of(GOOD[-1:])[:-5]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == torn + b"\n"


def logged(workdir, steps):
    """Lines of these steps and what a checkpoint saves of them then."""
    log = open_log(workdir)
    for step in steps:
        log.add(step, {"loss": 1.0 / step, "grad_norm": 1.0})
        log.flush()
    saved = json.loads(json.dumps(log.extra()))
    log.close()
    return saved


def resumed(workdir, saved, caplog):
    """Open the log as a run does that resumes after step 40; return the lines and warnings."""
    caplog.clear()
    MetricsLog(workdir, 40, saved, None, lambda step: 0.1, tensorboard=False).close()
    return len(read_metrics(workdir / "metrics.jsonl")), [r.getMessage() for r in caplog.records]


def test_lines_that_are_missing_or_changed_are_reported(tmp_path, caplog):
    """A checkpoint knows how many there were, and their sum."""
    path = tmp_path / "metrics.jsonl"
    saved = logged(tmp_path, (10, 20, 30, 40))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert resumed(tmp_path, saved, caplog) == (4, [])
    cases = {
        b"": (0, "4 of the 4 lines before step 41 are missing"),
        b"".join(lines[:2]): (2, "2 of the 4 lines before step 41 are missing"),
        content.replace(b"0.05", b"0.07"): (4, "lines before step 41 aren't as they were written"),
    }
    for damage, (count, expected) in cases.items():
        path.write_bytes(damage)
        kept, [warning] = resumed(tmp_path, saved, caplog)
        assert kept == count
        assert warning.startswith(f"{path}: ")
        assert warning.endswith(expected)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    _, [moved, missing] = resumed(tmp_path, saved, caplog)
    assert "1 damaged lines moved to" in moved
    assert "1 of the 4 lines before step 41 are missing" in missing
    path.unlink()
    assert "4 of the 4 lines" in resumed(tmp_path, saved, caplog)[1][0]
    path.write_bytes(b"")
    assert resumed(tmp_path, {}, caplog) == (0, []), "older checkpoints don't know"


def test_metrics_that_cant_be_read_are_set_aside_whole(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    writer = MetricsWriter(tmp_path, 1)
    writer.write(10, {"loss": 0.5})
    writer.close()
    assert (tmp_path / "metrics.jsonl.damaged-1").is_dir()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10, "loss": 0.5}]
    assert f"set aside as {tmp_path / 'metrics.jsonl.damaged-1'}" in caplog.text


def take_steps(log, first, last, save_at=None):
    """Log as the loop does: an update every 4 steps, a line every 10; return what was pending."""
    pending = None
    for step in range(first, last + 1):
        values = {"loss": 1.0 / step, "grad_norm": 1.0}
        if step % 4 == 0:
            values |= {"drop_fraction": 0.5, "replaced": 0.1, "ever_active": 0.5}
        log.add(step, values)
        if step % 10 == 0:
            log.flush()
        if step == save_at:
            pending = json.loads(json.dumps(log.pending()))
    log.close()
    return pending


@pytest.mark.parametrize("save_at", [3, 4, 5, 10, 12, 15, 19])
def test_a_resumed_run_repeats_no_line(save_at, tmp_path):
    """Whatever was written after the checkpoint, and whatever the checkpoint had pending."""
    pending = take_steps(open_log(tmp_path), 1, 20, save_at)
    whole = read_metrics(tmp_path / "metrics.jsonl")
    take_steps(open_log(tmp_path, save_at, pending), save_at + 1, 20)
    resumed = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in resumed if "replaced" in line] == [4, 8, 12, 16, 20]
    for line in (*whole, *resumed):
        for key in WALL_CLOCK:
            line.pop(key, None)
    assert resumed == whole


def test_what_the_steps_return_is_averaged_and_the_rest_stands_alone(tmp_path):
    """By no other name than those of the train step."""
    log = open_log(tmp_path)
    log.add(1, {"loss": 1.0, "grad_norm": 5.0})
    log.add(2, {"loss": 2.0, "grad_norm": 7.0, "mine": 0.25})
    log.flush()
    log.close()
    update, mean = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert update == {"step": 2, "mine": 0.25}
    assert list(mean)[:4] == ["step", "loss", "grad_norm", "learning_rate"]
    assert list(mean.values())[:3] == [2, 1.5, 6.0]


@pytest.mark.parametrize("name", STEP_METRICS)
def test_metrics_of_steps_have_to_be_finite(name, tmp_path):
    log = open_log(tmp_path, key=jax.random.key(0))
    log.add(1, {"loss": 1.0, "grad_norm": 1.0, "mine": math.nan} | {name: math.inf})
    with pytest.raises(FloatingPointError, match=f"{name} is inf.* at step 1; "):
        log.flush()
    log.close()


def test_a_speed_is_of_steps_alone(tmp_path, monkeypatch):
    """A step of 1 s, compilations of 60 s and 30 s, pictures of 20 s, each in its interval."""
    now = 1000.0
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now)

    def pass_seconds(seconds):
        nonlocal now
        now += seconds

    def logged(log, step):
        log.add(step, {"loss": 1.0, "grad_norm": 1.0})
        return log.flush()[1] if step % 10 == 0 else None

    log = open_log(tmp_path, 5)
    train_step, update = log.without_first(pass_seconds, steps=1), log.without_first(pass_seconds)
    speeds = []
    for step in range(6, 41):
        train_step(60 if step == 6 else 1)
        if step in (12, 24):
            update(30 if step == 12 else 5)
        speeds.append(logged(log, step))
        if step == 33:
            with log.uncounted(()):
                pass_seconds(20)
    log.close()
    assert [x for x in speeds if x] == pytest.approx([1, 1, 10 / 15, 1])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["interval_seconds"] for line in lines] == [64, 40, 15, 30]
    summary = closing.measured(lines)
    assert summary["step_seconds"] == pytest.approx(1)
    assert summary["training_seconds"] == pytest.approx(149)


def test_seconds_are_those_of_training_whatever_interrupts_it(tmp_path, monkeypatch):
    """A step takes 1 s; what is done after a checkpoint is lost with its time, as its steps are."""
    now = 1000.0
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now)

    def take(log, first, last):
        nonlocal now
        for step in range(first, last + 1):
            now += 1
            log.add(step, {"loss": 1.0, "grad_norm": 1.0})
            if step % 10 == 0:
                log.flush()

    log = open_log(tmp_path)
    take(log, 1, 14)
    saved = json.loads(json.dumps(log.extra()))
    take(log, 15, 20)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [10, 20]
    assert [line["interval_seconds"] for line in lines] == [10, 10]
    now += 3600
    log = MetricsLog(tmp_path, 14, saved, None, lambda step: 0.1, tensorboard=False)
    take(log, 15, 30)
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [10, 20, 30]
    older = {key: value for key, value in saved.items() if key != "seconds"}
    log = MetricsLog(tmp_path, 14, older, None, lambda step: 0.1, tensorboard=False)
    take(log, 15, 20)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"] == 6
    log.close()


def test_where_only_the_first_step_was_taken_there_is_no_speed(tmp_path):
    log = open_log(tmp_path, 9)
    log.without_first(lambda state: state, steps=1)(())
    log.add(10, {"loss": 1.0, "grad_norm": 1.0})
    assert log.flush() == (1.0, None)
    log.close()
    summary = closing.measured(read_metrics(tmp_path / "metrics.jsonl"))
    assert summary["step_seconds"] is None
    assert summary["training_seconds"] > 0


def test_lines_of_older_runs_are_read():
    """Their speeds were those of whole intervals: the first one compiles."""
    lines = [
        {"step": 10, "loss": 2.0, "steps_per_second": 0.5, "peak_memory_bytes": 7},
        {"step": 12, "replaced": 0.1},
        {"step": 20, "loss": 1.0, "steps_per_second": 5.0, "peak_memory_bytes": 9},
    ]
    assert closing.measured(lines) == {
        "loss": 1.0,
        "step_seconds": pytest.approx(0.2),
        "training_seconds": pytest.approx(22),
        "peak_memory_bytes": 9,
    }


def test_a_run_without_metrics_is_closed_all_the_same(tiny_run, tmp_path, capsys):
    assert closing.measured([])["loss"] is None
    plots.save_curves(tmp_path / "curves.png", [])
    workdir, _ = tiny_run
    config = closing.runs.read_config(workdir)
    model, params, masks = closing.runs.load_run(workdir)
    summary = closing.run_costs(config, model, build_plan(config, model), params, masks)
    summary |= closing.measured([])
    closing.print_summary(summary | {"sampling_seconds": 0.5}, workdir)
    assert "not recorded" in capsys.readouterr().out
