import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.models import convert
from sparsejax.models.autoencoder import KLModel, VQModel
from tests.models.test_unet import count, nhwc

TINY = VQModel(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, codes=64)


@pytest.fixture(scope="module")
def tiny(golden):
    arrays = golden("f_vq_tiny.npz")
    state_dict = {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}
    return arrays, convert.autoencoder_from_torch(state_dict)


def call(method, **options):
    return jax.jit(lambda params, x: TINY.apply({"params": params}, x, method=method, **options))


def shapes_of(model, size):
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def test_full_size_has_the_published_number_of_parameters():
    assert count(shapes_of(VQModel(), 256)) == 55_322_782


def test_every_reference_parameter_has_its_place(tiny):
    expected = jax.tree.map(np.shape, tiny[1])
    assert jax.tree.map(lambda x: x.shape, shapes_of(TINY, 32)) == expected


def test_encoding_equals_the_reference(tiny, float64):
    arrays, params = tiny
    z = call("encode")(*float64((params, nhwc(arrays["img"]))))
    np.testing.assert_allclose(z, nhwc(arrays["prequant"]), atol=1e-5)


def test_quantisation_equals_the_reference(tiny):
    arrays, params = tiny
    for latents, codes, indices in (
        ("prequant", "quant", "indices"),
        ("z", "z_quant", "z_indices"),
    ):
        ours, ours_indices = call("quantize")(params, nhwc(arrays[latents]))
        np.testing.assert_array_equal(ours_indices.reshape(-1), arrays[indices])
        np.testing.assert_allclose(ours, nhwc(arrays[codes]), atol=1e-6)


def test_decoding_equals_the_reference(tiny, float64):
    arrays, params = tiny
    params, z = float64((params, nhwc(arrays["z"])))
    np.testing.assert_allclose(
        call("decode")(params, z), nhwc(arrays["decode_quantized"]), atol=1e-5
    )
    as_it_is = call("decode", quantize=False)(params, z)
    np.testing.assert_allclose(as_it_is, nhwc(arrays["decode_no_quant"]), atol=1e-5)


def test_the_quantisation_loss_equals_the_reference(tiny):
    arrays, params = tiny
    _, loss = call(None)(params, nhwc(arrays["img"]))
    np.testing.assert_allclose(loss, arrays["vq_loss_legacy"], rtol=1e-4)


@pytest.mark.slow
def test_gradients_pass_straight_through_the_quantisation(tiny):
    """What reaches the latents is what reaches the codes, as if rounding weren't there.

    The bias of the last layer before the codes gets the sum of it.
    """
    arrays, params = tiny

    def reconstruction(params):
        return jnp.sum(TINY.apply({"params": params}, nhwc(arrays["img"]))[0])

    def at_codes(codes):
        return jnp.sum(TINY.apply({"params": params}, codes, quantize=False, method="decode"))

    gradients = jax.jit(jax.grad(reconstruction))(params)
    reached = jax.jit(jax.grad(at_codes))(nhwc(arrays["quant"])).sum((0, 1, 2))
    assert np.abs(reached).min() > 0.1
    np.testing.assert_allclose(gradients["quant_conv"]["bias"], reached, rtol=1e-3)
    assert np.abs(gradients["encoder"]["conv_in"]["kernel"]).max() > 0
    assert not np.any(gradients["quantize"]["embedding"])


@pytest.fixture(scope="module")
def gaussian():
    """A small KL model: `call(method, *inputs)`, and images."""
    model = KLModel(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=4)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    apply = jax.jit(model.apply, static_argnames="method")
    return lambda method, *inputs: apply({"params": params}, *inputs, method=method), x


@pytest.mark.slow
def test_drawn_latents_spread_as_their_variance_says(gaussian):
    call, x = gaussian
    mean, log_variance = call("moments", x)
    assert mean.shape == log_variance.shape == (2, 4, 4, 4)
    np.testing.assert_array_equal(call("encode", x), mean)
    noise = jax.random.normal(jax.random.key(2), mean.shape)
    drawn, _ = call("__call__", x, noise)
    expected = call("decode", mean + np.exp(log_variance / 2) * noise)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    np.testing.assert_allclose(call("__call__", x)[0], call("decode", mean), atol=1e-5)


def test_the_divergence_is_that_of_gaussians(gaussian):
    """Against its definition, the mean of log q - log p over draws from q."""
    call, x = gaussian
    _, ours = call("__call__", x)
    mean, log_variance = (np.asarray(v, np.float64) for v in call("moments", x))
    noise = np.random.default_rng(0).normal(size=(4000, *mean.shape))
    z = mean + np.exp(log_variance / 2) * noise
    ratio = 0.5 * (z**2 - noise**2 - log_variance).mean(axis=0)
    np.testing.assert_allclose(ours, ratio.sum() / x.size, rtol=0.05)


@pytest.mark.slow
def test_new_codes_are_uniform_within_their_limit():
    for limit, expected in ((None, 1 / 64), (1.0, 1.0)):
        model = VQModel(
            channels=32, channel_mult=(1,), num_res_blocks=1, codes=64, code_limit=limit
        )
        x = jnp.zeros((1, 4, 4, 3))
        codes = jax.jit(model.init)(jax.random.key(0), x)["params"]["quantize"]["embedding"]
        assert 0.9 * expected < np.abs(codes).max() <= expected
        assert np.std(codes) == pytest.approx(expected / np.sqrt(3), rel=0.1)
