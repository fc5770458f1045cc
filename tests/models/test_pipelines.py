"""An exported pipeline of diffusers samples and decodes as the run does."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.diffusion import noise_schedules, process, samplers
from sparsejax.models import first_stage, pipelines
from sparsejax.models.arguments import network_arguments
from sparsejax.models.autoencoder import KLModel, VQModel
from tests.models.test_convert import assert_same_trees, numbered
from tests.models.test_diffusers_config import autoencoder_shapes

RECORDED = json.loads(pathlib.Path(__file__).with_name("diffusers_schedulers.json").read_text())
SCHEDULERS = RECORDED["schedulers"]


def recorded_schedules(recorded):
    total, steps = recorded["steps"], recorded["sampling_steps"]
    schedule = noise_schedules.noise_schedule(np.linspace(0.1 / total, min(20 / total, 0.9), total))
    last_alpha = 1.0 if recorded["set_alpha_to_one"] else schedule.alphas_cumprod[0]
    chosen = 0, last_alpha, recorded.get("spacing", "leading")
    return schedule, last_alpha, noise_schedules.ddim_schedule(schedule, steps, *chosen)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_written_is_the_recorded_one(name):
    recorded = SCHEDULERS[name]
    schedule, _, ddim = recorded_schedules(recorded)
    keys = ("sampler", "clip", "set_alpha_to_one")
    chosen = {key: recorded[key] for key in keys}
    chosen |= {key: recorded[key] for key in ("predicts", "spacing") if key in recorded}
    written = pipelines.scheduler_config(schedule.betas, ddim.timesteps, **chosen)
    assert json.loads(json.dumps(written)) == recorded["config"]
    assert ddim.timesteps.tolist() == recorded["timesteps"][::-1]
    assert pipelines.has_same_steps(ddim.timesteps, recorded["steps"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_our_samplers_end_where_diffusers_scheduler_ended(name):
    recorded = SCHEDULERS[name]
    schedule, last_alpha, _ = recorded_schedules(recorded)
    waves = jnp.arange(12.0)

    def image(values):
        return jnp.reshape(values, (1, 3, 2, 2)).transpose(0, 2, 3, 1)

    def denoise(x, t):
        output = jnp.tanh(x) * (0.5 + t[:, None, None, None] / recorded["steps"])
        return process.eps_of(schedule, recorded.get("predicts", "eps"), x, output, t)

    start = image(1.5 * jnp.sin(0.7 * waves))

    def noise(i):
        return image(jnp.cos(1.3 * waves + i))

    if recorded["sampler"] == "ddpm":
        out = samplers.ddpm_sample(denoise, schedule, start, noise, clip=recorded["clip"])
    else:
        out = samplers.ddim_sample(
            denoise,
            schedule,
            start,
            noise,
            steps=recorded["sampling_steps"],
            eta=recorded["eta"],
            clip=recorded["clip"],
            last_alpha=last_alpha,
            spacing=recorded.get("spacing", "leading"),
        )
    flat, expected = out.transpose(0, 3, 1, 2).ravel(), np.array(recorded["out"])
    np.testing.assert_allclose(flat, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("total", "steps", "same"),
    [(1000, 50, True), (1000, 3, True), (20, 20, True), (1000, 7, False), (20, 15, False)],
)
def test_steps_that_diffusers_spaces_otherwise_are_told(total, steps, same):
    """diffusers' `leading` spacing, in numpy, with an offset of 1 where t = 0 is not taken."""
    schedule = noise_schedules.noise_schedule(np.full(total, 0.01))
    ours = noise_schedules.ddim_schedule(schedule, steps, 0).timesteps
    theirs = (np.arange(steps) * (total // steps)).round() + (1 if steps < total else 0)
    assert np.array_equal(ours, theirs) == same
    assert pipelines.has_same_steps(ours, total) == same


def test_a_spacing_that_diffusers_ddim_does_not_have_is_written_as_one_that_it_has():
    schedule = noise_schedules.noise_schedule(np.full(1000, 0.01))
    steps = noise_schedules.ddim_schedule(schedule, 20, 0, spacing="karras").timesteps
    written = pipelines.scheduler_config(schedule.betas, steps, spacing="karras")
    assert written["timestep_spacing"] == "leading"
    assert not pipelines.has_same_steps(steps, 1000)


@pytest.mark.parametrize(
    ("kind", "name", "model"),
    [
        ("vq", "VQModel", VQModel(8, (1, 2), 1, norm_groups=4, codes=16)),
        ("kl", "AutoencoderKL", KLModel(8, (1, 2), 1, norm_groups=4)),
    ],
)
def test_the_first_stage_of_a_pipeline_reads_back(kind, name, model, tmp_path):
    params = numbered(autoencoder_shapes(model))
    scheduler = pipelines.scheduler_config(np.full(10, 0.01), np.array([1, 6]))
    stage = pipelines.FirstStage(model, params, 0.25, 16)
    written = pipelines.export_pipeline(tmp_path, scheduler, stage)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {
        "_class_name": "LDMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": ["diffusers", name],
    }
    read, loaded = first_stage.first_stage_from_diffusers(tmp_path)
    assert network_arguments(read) == network_arguments(model)
    assert_same_trees(loaded, params)
    config = json.loads((tmp_path / "vqvae" / "config.json").read_text())
    assert (config["scaling_factor"], config["sample_size"]) == (0.25, 16)
    assert first_stage.read_description(tmp_path)[0] == kind


def test_a_first_stage_that_diffusers_does_not_have_leaves_nothing(tmp_path):
    model = VQModel(8, (2, 2), 1, norm_groups=4, codes=16)
    stage = pipelines.FirstStage(model, {}, 1.0, 16)
    scheduler = pipelines.scheduler_config(np.full(10, 0.01), np.array([1, 6]))
    with pytest.raises(ValueError, match=r"channel_mult is \(2, 2\); accepted by diffusers"):
        pipelines.export_pipeline(tmp_path, scheduler, stage)
    assert not list(tmp_path.iterdir())
