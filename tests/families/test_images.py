import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.diffusion import noise_schedules
from sparsejax.errors import ConfigError
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.families import build_data, build_model
from sparsejax.rendering.images import image_grid
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def model():
    return build_model(resolve(tiny_config()))


def scaled_identity(params, x, t, *, train=False, rngs=None):
    return params * x


@pytest.mark.parametrize("predicts", ["eps", "v", "x_0"])
@pytest.mark.parametrize("min_snr", [None, 5.0])
def test_loss_is_that_of_what_is_predicted_at_each_examples_own_noise(predicts, min_snr):
    """With a denoiser that returns c x_t, the loss is known from t and noise alone."""
    changes = {"diffusion.predicts": predicts, "diffusion.min_snr": min_snr}
    model = build_model(resolve(tiny_config(**changes)))
    x_0 = jnp.asarray(build_data(resolve(tiny_config())).reference()[:6])
    keys = jax.random.split(jax.random.key(3), 6)
    ours = model.loss(scaled_identity, 0.5, {"image": x_0}, keys, train=True)

    alpha_bar = np.cumprod(1 - noise_schedules.cosine_betas(1000))
    errors = []
    for key, x in zip(keys, np.asarray(x_0), strict=True):
        t_key, noise_key = jax.random.split(key)
        t = int(jax.random.randint(t_key, (), 0, 1000))
        noise = np.asarray(jax.random.normal(noise_key, x.shape))
        x_t = np.sqrt(alpha_bar[t]) * x + np.sqrt(1 - alpha_bar[t]) * noise
        signal, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
        target = {"eps": noise, "x_0": x, "v": signal * noise - sigma * x}[predicts]
        snr = signal**2 / sigma**2
        # The table of Hang et al. (2023), section 3.4.
        weight = {"eps": min(1, 5 / snr), "x_0": min(snr, 5), "v": min(snr, 5) / (snr + 1)}[
            predicts
        ]
        errors.append((weight if min_snr else 1) * ((0.5 * x_t - target) ** 2).mean())
    np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-4)


def test_samples_do_not_depend_on_what_the_network_predicts():
    """The exact denoiser of data at one point, said in three ways, ends at that point."""
    point, ends = 0.25, {}
    alpha_bar = jnp.cumprod(1 - jnp.asarray(noise_schedules.cosine_betas(1000), jnp.float32))

    def exact(predicts, params, x, t):
        a = alpha_bar[t][:, None, None, None]
        eps = (x - jnp.sqrt(a) * point) / jnp.sqrt(1 - a)
        v = jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * point
        return {"eps": eps, "v": v, "x_0": jnp.full_like(x, point)}[predicts]

    for sampler, predicts in itertools.product(("ddim", "ddpm", "dpmpp_2m"), ("eps", "v", "x_0")):
        changes = {"diffusion.predicts": predicts, "sample.sampler": sampler}
        drawn = build_model(resolve(tiny_config(**changes)))
        apply = functools.partial(exact, predicts)
        ends[sampler, predicts] = drawn.sample(apply, None, (), jax.random.key(0), 4)
    for (sampler, _), end in ends.items():
        np.testing.assert_allclose(end, ends[sampler, "eps"], atol=2e-4)
        np.testing.assert_allclose(end, point, atol=0.2)


def test_samples_do_not_depend_on_how_they_are_batched(model):
    key = jax.random.key(0)
    whole = model.sample(scaled_identity, 0.1, (), key, 6)
    part = model.sample(scaled_identity, 0.1, (), key, 2, start=4)
    assert whole.shape == (6, 8, 8, 1)
    np.testing.assert_allclose(whole[4:], part, rtol=1e-6)
    # DDIM ends at alpha_bar_0, just below one, so a trace of the noise is left.
    assert float(jnp.abs(whole).max()) < 1.05


def test_the_held_out_loss_is_of_a_split_that_is_not_trained_on(tmp_path):
    """Every image of it once; where both splits name the same images there is none."""
    images = np.random.default_rng(0).integers(256, size=(500, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, split=(np.arange(500) >= 200).astype(int))
    source = {"task.dataset": "files", "task.source": str(tmp_path / "set.npz")}

    def data_of(**changes):
        return build_data(resolve(tiny_config(**source, **changes)))

    data = data_of(**{"task.reference_split": "validation"})
    batches = [batch["image"] for batch in data.held_out()]
    assert [len(batch) for batch in batches] == [250, 50]
    np.testing.assert_array_equal(np.concatenate(batches), data.reference())
    assert data_of().held_out is None
    assert data_of(**{"task.reference_split": "train[:9]+validation"}).held_out is None


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"eta": 1.0}])
def test_other_samplers_by_config(settings):
    changes = {f"sample.{key}": value for key, value in settings.items()}
    model = build_model(resolve(tiny_config(**changes, **{"diffusion.steps": 10})))
    samples = model.sample(scaled_identity, 0.1, (), jax.random.key(0), 3)
    assert np.isfinite(samples).all()
    assert not np.array_equal(samples[0], samples[1])


def test_ddim_ends_where_the_config_says():
    """At alpha_bar_0, as published, or at 1: the last step with eps = c x, in closed form."""
    c, ends = 0.1, []
    changes = {"diffusion.schedule": "linear", "diffusion.steps": 10, "sample.clip": None}
    for to_one in (None, False, True):
        model = build_model(resolve(tiny_config(**changes, **{"sample.set_alpha_to_one": to_one})))
        ends.append(model.sample(scaled_identity, c, (), jax.random.key(0), 2))
    np.testing.assert_array_equal(ends[0], ends[1])
    last, a = np.cumprod(1 - noise_schedules.linear_betas(10))[:2]  # of 5 steps, the last is t = 1
    predicted = (1 - np.sqrt(1 - a) * c) / np.sqrt(a)
    ratio = predicted / (np.sqrt(last) * predicted + np.sqrt(1 - last) * c)
    assert abs(ratio - 1) > 1e-3
    np.testing.assert_allclose(ends[2], ratio * ends[0], rtol=1e-5)


def test_ddpm_ignores_the_number_of_ddim_steps():
    few = {"diffusion.steps": 4, "sample.steps": 50}
    assert build_model(resolve(tiny_config(**few, **{"sample.sampler": "ddpm"})))
    with pytest.raises(ConfigError, match=r"sample.steps is 50; accepted: 1 to 4 \(diffusion"):
        build_model(resolve(tiny_config(**few)))


def test_flops_are_of_one_example(model):
    params = jax.eval_shape(model.init, jax.random.key(0))
    flops = model.layer_flops(params)
    assert flops["input_blocks_0_0/kernel"] == 2 * 64 * 9 * 32
    assert set(flops) > {"middle_block_1/attention/scores", "out_2/kernel"}


def held_out_config(**changes):
    splits = {"task.split": "train[:1200]", "task.reference_split": "train[1200:]"}
    return resolve(tiny_config(**splits | changes))


def test_images_kept_from_training_are_read_once_in_their_order():
    """The held-out loss pairs them with noise by their place, whatever the batches are."""
    data = build_data(held_out_config())
    batches = [batch["image"] for batch in data.held_out()]
    assert max(map(len, batches)) < 597
    np.testing.assert_array_equal(np.concatenate(batches), data.reference())
    assert data.training(2000).shape == (1200, 8, 8, 1)
    every = data.training(2000)
    np.testing.assert_array_equal(data.training(3), every[[0, 599, 1199]])
    overlapping = build_data(held_out_config(**{"task.reference_split": "train[1199:]"}))
    assert overlapping.held_out is overlapping.training is None


def test_the_classifier_may_see_more_labels_than_are_trained_on():
    config = held_out_config(**{"task.split": "train[:120]", "task.labelled_split": "train"})
    images, labels = build_data(config).labelled()
    assert len(images) == len(labels) == 1797
    assert len(build_data(held_out_config()).labelled()[0]) == 1200
    wrong = held_out_config(**{"task.labelled_split": "trian"})
    with pytest.raises(ConfigError, match=r"^config.task.labelled_split is 'trian': .*accepted: t"):
        build_data(wrong).prepare()


def test_a_loss_on_held_out_images_is_that_of_all_of_them_with_their_own_noise(model):
    """With a denoiser that returns c x_t, as above; two batches give the mean over both."""
    data = build_data(held_out_config(**{"task.reference_split": "train[1500:]"}))
    batches, scaled = list(data.held_out()), model._replace(apply=scaled_identity)
    assert [len(batch["image"]) for batch in batches] == [250, 47]
    whole = {"image": np.concatenate([batch["image"] for batch in batches])}
    ours = held_out_loss(scaled, iter(batches), 0.5, draws=2)
    assert ours == pytest.approx(held_out_loss(scaled, iter([whole]), 0.5, draws=2), rel=1e-5)
    assert ours != pytest.approx(held_out_loss(scaled, iter(batches[:1]), 0.5, draws=2), rel=1e-5)


def test_grid_enlarges_and_separates():
    grid = image_grid(np.full((5, 8, 8, 1), -1.0))
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 52 + 4, 3 * 52 + 4, 3)
    assert (grid[4:52, 4:52] == 0).all()
    assert (grid[:, :4] == 255).all()
    assert (grid[4:52, 52:56] == 255).all()
    assert (grid[56:104, 108:156] == 255).all()


def test_the_grid_shows_the_pictures_that_are_measured(model):
    """Enlarged pixel by pixel, clipped and rounded as what the extractors see."""
    images = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 8, 8, 1))
    grid, pictures = image_grid(images), model.to_images(images)
    assert pictures.dtype == np.uint8
    for index, (top, left) in enumerate([(4, 4), (4, 56), (56, 4)]):
        cell = grid[top : top + 48, left : left + 48].reshape(8, 6, 8, 6, 3)
        np.testing.assert_array_equal(
            cell, np.broadcast_to(pictures[index][:, None, :, None], cell.shape)
        )


def test_what_is_not_finite_stays_white_and_is_told(caplog):
    images = np.full((4, 8, 8, 1), -1.0)
    images[2, 3, 3] = np.nan
    images[3, 0, 0] = np.inf
    grid = image_grid(images)
    assert (grid[4:52, 4:52] == 0).all()
    assert (grid[56:104] == 255).all()
    assert "2 of 4 images hold values that aren't finite" in caplog.text


def test_large_colour_images_keep_their_size():
    assert image_grid(np.zeros((4, 64, 64, 3))).shape == (2 * 68 + 4, 2 * 68 + 4, 3)
