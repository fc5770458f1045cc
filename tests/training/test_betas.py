"""Default betas follow the number of diffusion steps; runs saved before that keep theirs."""

import json
import shutil

import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation import sweep
from sparsejax.evaluation.baselines import small_dense
from sparsejax.evaluation.grids import grid
from sparsejax.families import build_model
from sparsejax.sparse_files import load_sparse, save_sparse
from sparsejax.sparsity.masks import dense_masks, summarize
from sparsejax.training import init_from, load_run, runs
from sparsejax.training.announcement import announce
from sparsejax.training.plan import build_plan
from sparsejax.training.setup import Setup
from tests.training.tiny import forget_copies, tiny_config

FEW = {"diffusion.schedule": "linear", "diffusion.steps": 100}
OLD = {"schedule": "linear", "steps": 100, "start": 1e-4, "end": 2e-2}
# As every run did that was saved without these keys.
OLD |= {"predicts": "eps", "min_snr": None}
OLD |= {"process": "ddpm", "times": "logit_normal", "sigma_data": 0.5}


def diffusion_of(**changes):
    return resolve(tiny_config(**FEW | changes)).diffusion


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def old_run(tiny_run, tmp_path):
    """A finished run of 100 diffusion steps as it was saved before: start and end are null."""
    workdir = tmp_path / "old"
    shutil.copytree(tiny_run[0], workdir)
    forget_copies(workdir)
    saved = json.loads((workdir / "config.json").read_text())
    saved["diffusion"] = {"schedule": "linear", "steps": 100, "start": None, "end": None}
    (workdir / "config.json").write_text(json.dumps(saved))
    return workdir


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({}, (1e-3, 0.2)),
        ({"diffusion.steps": 1000}, (1e-4, 2e-2)),
        ({"diffusion.steps": 2}, (0.05, 0.999)),
        ({"diffusion.steps": 20}, (0.005, 0.999)),
        ({"diffusion.start": 0.01}, (0.01, 0.2)),
        ({"diffusion.end": 0.01}, (1e-3, 0.01)),
        ({"diffusion.start": 0.01, "diffusion.end": 0.01}, (0.01, 0.01)),
        ({"diffusion.schedule": "scaled_linear"}, (1.5e-2, 0.195)),
    ],
)
def test_the_resolved_config_holds_the_betas_in_use(changes, limits):
    diffusion = diffusion_of(**{"sample.steps": 2} | changes)
    assert (diffusion.start, diffusion.end) == pytest.approx(limits, rel=1e-12)


def test_a_cosine_has_no_first_and_last_beta():
    diffusion = diffusion_of(**{"diffusion.schedule": "cosine"})
    assert (diffusion.start, diffusion.end) == (None, None)


@pytest.mark.parametrize(
    ("key", "value", "others", "accepted"),
    [
        ("steps", 0, {}, "2 to 1000000"),
        ("steps", 1, {}, "2 to 1000000"),
        ("steps", -5, {}, "2 to 1000000"),
        ("start", 0.0, {}, r"None, or (a finite number, )?\(0, 1\)"),
        ("start", -1e-4, {}, r"None, or (a finite number, )?\(0, 1\)"),
        ("start", float("nan"), {}, r"None, or (a finite number, )?\(0, 1\)"),
        ("start", 0.5, {}, r"\(0, 0.2\], where diffusion.end is not given"),
        ("end", 1.0, {}, r"None, or (a finite number, )?\(0, 1\)"),
        ("end", 2.0, {}, r"None, or (a finite number, )?\(0, 1\)"),
        ("end", 1e-4, {}, r"\[0.001, 1\): diffusion.start or more"),
        ("end", 0.01, {"diffusion.start": 0.02}, r"\[0.02, 1\): diffusion.start or more"),
        ("start", 0.01, {"diffusion.schedule": "cosine"}, "None with the cosine schedule"),
        ("end", 0.01, {"diffusion.schedule": "cosine"}, "None with the cosine schedule"),
    ],
)
def test_betas_that_cannot_work_are_refused_by_their_own_key(key, value, others, accepted):
    """Not by another key's, such as sample.steps, for which nothing would be left."""
    with pytest.raises(ConfigError, match=rf"config.diffusion.{key} is .*; accepted: {accepted}"):
        build_model(resolve(tiny_config(**FEW | {f"diffusion.{key}": value} | others)))


@pytest.mark.slow
def test_a_run_saved_with_null_keeps_its_betas(old_run, caplog):
    """Resumed, loaded, as the origin of a small dense model; with one line, whoever asks."""
    resumed = runs.resolve_for(old_run, tiny_config(**FEW))
    assert resumed.diffusion.to_dict() == OLD
    assert runs.read_config(old_run).diffusion.to_dict() == OLD
    load_run(old_run)
    narrowed = small_dense(runs.read_config(old_run))
    assert resolve(narrowed).diffusion.to_dict() == OLD
    (line,) = [line for line in warnings_in(caplog) if "scaled" in line]
    assert str(old_run) in line
    assert "diffusion.start 0.0001 and diffusion.end 0.02 at 100 steps" in line


def test_a_resumed_run_refuses_other_betas_than_its_own(old_run):
    with pytest.raises(ConfigError, match="diffusion.end: now 0.2, saved 0.02"):
        runs.resolve_for(old_run, tiny_config(**FEW, **{"diffusion.end": 0.2}))
    with pytest.raises(ConfigError, match="diffusion.steps: now 50, saved 100"):
        runs.resolve_for(old_run, tiny_config(**FEW | {"diffusion.steps": 50}))


def test_a_run_of_thousand_steps_had_the_same_betas_and_needs_no_warning(old_run, caplog):
    path = old_run / "config.json"
    path.write_text(path.read_text().replace('"steps": 100,', '"steps": 1000,'))
    limits = runs.read_config(old_run).diffusion
    assert limits == diffusion_of(**{"diffusion.steps": 1000})
    assert warnings_in(caplog) == []


def test_a_sparse_file_keeps_the_betas_of_its_run(old_run, tmp_path, caplog):
    """Written now, with its start and end; or written before, with null."""
    runs.save_sparse_run(old_run, tmp_path / "now")
    params, masks, metadata = load_sparse(tmp_path / "now")
    assert json.loads(metadata["config"])["diffusion"] == OLD
    metadata["config"] = (old_run / "config.json").read_text()
    save_sparse(tmp_path / "before", params, masks, metadata)
    caplog.clear()
    for name in ("now", "before", "before"):
        assert runs.read_sparse_run(tmp_path / name)[0].diffusion.to_dict() == OLD
    (line,) = warnings_in(caplog)
    assert str(tmp_path / "before") in line


def test_weights_trained_on_other_noise_are_named_as_such(old_run, caplog):
    config = resolve(tiny_config(**FEW, **{"checkpoint.init_from": str(old_run)}))
    model = build_model(config)
    init_from.compare_diffusion(config, model, runs.read_config(old_run), old_run)
    (line,) = [line for line in warnings_in(caplog) if "were trained with" in line]
    assert "diffusion.end 0.02 (now 0.2), diffusion.start 0.0001 (now 0.001)" in line
    caplog.clear()
    init_from.compare_diffusion(config, model, config, old_run)
    assert warnings_in(caplog) == []


def test_a_sweep_keeps_the_results_of_runs_with_their_betas_and_mixes_none(old_run):
    config = tiny_config(**FEW)
    first, second = grid(config, methods=["rigl"], levels=[0.75], seeds=[0, 1])
    saved = json.loads((old_run / "config.json").read_text())
    how = {"count": 4}
    row = {"run": first.name, "evaluation": how, "config": saved, "pictures": sweep.PICTURES}
    assert sweep.missing_runs([first], [row], how) == []
    with pytest.raises(ConfigError, match=r"-1 has a different config.diffusion from .*'end': 0.2"):
        sweep.missing_runs([second], [row], how)
    shown = {"sample.every": 3, "sample.count": 5}
    (again,) = grid(tiny_config(**FEW | shown), methods=["rigl"], levels=[0.75], seeds=[0])
    assert sweep.missing_runs([again], [row], how) == []
    for key, value in (("steps", 3), ("guidance", 2.0), ("clip", 0.7)):
        others = grid(tiny_config(**FEW), methods=["rigl"], levels=[0.75], seeds=[0, 1])
        for run in others:
            run.config.sample[key] = value
        with pytest.raises(ConfigError, match=f"different config: sample.{key}: now {value}"):
            sweep.missing_runs(others[:1], [row], how)
    old = {"diffusion.start": 1e-4, "diffusion.end": 2e-2}
    runs_of_old = grid(tiny_config(**FEW | old), methods=["rigl"], levels=[0.75], seeds=[0, 1])
    assert sweep.missing_runs(runs_of_old, [row], how) == runs_of_old[1:]


@pytest.mark.parametrize(
    ("changes", "signal"),
    [
        ({}, None),
        ({"diffusion.schedule": "cosine"}, None),
        ({"diffusion.steps": 2, "sample.steps": 2}, None),
        ({"diffusion.end": 0.01}, 0.759),
        # Stable Diffusion's.
        (
            {
                "diffusion.schedule": "scaled_linear",
                "diffusion.steps": 1000,
                "diffusion.start": 0.00085,
                "diffusion.end": 0.012,
            },
            0.068,
        ),
    ],
)
def test_training_says_when_diffusion_does_not_end_in_noise(changes, signal, caplog):
    config = resolve(tiny_config(**FEW | changes))
    model = build_model(config)
    weights = {"kernel": np.ones((2, 2))}
    plan = build_plan(config, model)
    run = Setup(config, None, model, None, None, plan, None, None, None, None, {}, None)
    announce(run, summarize(weights, dense_masks(weights)))
    lines = [line for line in warnings_in(caplog) if "sqrt(alpha_bar)" in line]
    if signal is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"sqrt(alpha_bar) is {signal:.3f}, more than 0.05" in line
        assert "\n" not in line
