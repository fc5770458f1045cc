import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.models import convert
from sparsejax.models.layers import QKVAttention
from sparsejax.models.unet import ResBlock, UNet, timestep_embedding

TINY = UNet(
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2),
    num_head_channels=16,
)

KEY = jax.random.key(0)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def reference_params(arrays, prefix="sd/"):
    named = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return convert.unet_from_torch(named)


@pytest.fixture(scope="module")
def tiny(golden):
    return golden("a_unet_tiny.npz")


@pytest.fixture(scope="module")
def outputs(tiny):
    """Output, loss, gradients and block outputs of the tiny UNet at the reference's weights."""
    params = reference_params(tiny)

    def loss(params):
        out, state = TINY.apply(
            {"params": params}, nhwc(tiny["x"]), tiny["t"], capture_intermediates=True
        )
        error = out - nhwc(tiny["target_noise"])
        return jnp.mean(error**2), (out, state["intermediates"])

    (value, (out, blocks)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return {"loss": value, "out": out, "blocks": blocks, "gradients": gradients}


@pytest.fixture(scope="module")
def initial():
    """Params of a new network."""
    x, t = jnp.ones((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    return jax.jit(TINY.init)(KEY, x, t)["params"]


def test_full_size_has_the_published_number_of_parameters():
    model = UNet()
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    assert count(params) == 274_056_163


def test_every_reference_parameter_has_its_place(tiny):
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    ours = jax.eval_shape(TINY.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))
    shapes = jax.tree.map(jnp.shape, reference_params(tiny), is_leaf=lambda v: hasattr(v, "shape"))
    assert jax.tree.map(jnp.shape, ours["params"]) == shapes
    assert count(ours) == 702_499


def test_output_equals_the_reference(tiny, outputs):
    np.testing.assert_allclose(outputs["out"], nhwc(tiny["out"]), atol=1e-5)
    np.testing.assert_allclose(outputs["loss"], tiny["loss"], atol=1e-5)


def test_block_outputs_equal_the_reference(tiny, outputs):
    blocks = outputs["blocks"]
    # The last module of each block of the reference's Sequential.
    last = {
        "time_embed": "time_embed_2",
        "input_blocks.0": "input_blocks_0_0",
        "input_blocks.1": "input_blocks_1_0",
        "input_blocks.2": "input_blocks_2_0",
        "input_blocks.3": "input_blocks_3_1",
        "middle_block": "middle_block_2",
        "output_blocks.0": "output_blocks_0_1",
        "output_blocks.1": "output_blocks_1_2",
        "output_blocks.2": "output_blocks_2_0",
        "output_blocks.3": "output_blocks_3_0",
    }
    assert {f"inter/{name}" for name in last} == {k for k in tiny if k.startswith("inter/")}
    for reference, module in last.items():
        expected = tiny[f"inter/{reference}"]
        expected = nhwc(expected) if expected.ndim == 4 else expected
        np.testing.assert_allclose(
            blocks[module]["__call__"][0], expected, atol=1e-5, err_msg=reference
        )


def test_gradients_equal_the_reference(tiny, outputs):
    expected = reference_params(tiny, "grad/")

    def check(path, ours, theirs):
        tolerance = max(1e-3 * np.abs(theirs).max(), 1e-6)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, outputs["gradients"], expected)


def test_a_new_network_is_zero_where_the_reference_is(golden, initial):
    expected = golden("a_unet_zero_init.json")["zero_initialised"]
    is_zero = jax.tree.map(lambda leaf: not np.any(leaf), jax.device_get(initial))
    ours = {
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, zero in jax.tree_util.tree_flatten_with_path(is_zero)[0]
        if zero
    }
    named = convert.unet_from_torch({name: np.zeros(1) for name in expected})
    theirs = {
        jax.tree_util.keystr(p, simple=True, separator="/").replace("/scale", "/kernel")
        for p, _ in jax.tree_util.tree_flatten_with_path(named)[0]
    }
    assert ours == theirs
    x, t = jnp.ones((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    assert (jax.jit(TINY.apply)({"params": initial}, x, t) == 0).all()


def test_a_new_network_has_pytorchs_initial_spread(initial):
    conv = initial["middle_block_0"]["in_layers_2"]
    limit = 1 / np.sqrt(64 * 9)
    for leaf in conv.values():
        assert abs(float(jnp.abs(leaf).max()) - limit) < 0.05 * limit
    assert float(conv["kernel"].std()) == pytest.approx(limit / np.sqrt(3), rel=0.02)


def test_timestep_embedding_equals_the_reference(golden):
    arrays = golden("e_timestep_embedding_ldm.npz")
    # float32 angles near 999 lie 6.1e-5 apart, so no float32 implementation comes nearer.
    tolerance = np.spacing(np.float32(999))
    for dim in (32, 33, 128, 224):
        ours = timestep_embedding(jnp.asarray(arrays["t"]), dim)
        np.testing.assert_allclose(ours, arrays[f"ldm_dim{dim}"], atol=tolerance)


def test_bfloat16_computes_near_float32_and_returns_float32(tiny, outputs):
    model = TINY.clone(dtype=jnp.bfloat16)
    out = jax.jit(model.apply)({"params": reference_params(tiny)}, nhwc(tiny["x"]), tiny["t"])
    assert out.dtype == jnp.float32
    error = jnp.abs(out - outputs["out"]).mean() / jnp.abs(outputs["out"]).mean()
    assert 0 < error < 0.03


def test_dropout_acts_in_training_only(tiny):
    model = TINY.clone(dropout=0.5)
    params = reference_params(tiny)
    call = jax.jit(model.apply, static_argnames="train")
    x, t = nhwc(tiny["x"]), tiny["t"]
    np.testing.assert_allclose(call({"params": params}, x, t), nhwc(tiny["out"]), atol=1e-5)
    dropped = call({"params": params}, x, t, train=True, rngs={"dropout": jax.random.key(0)})
    assert float(jnp.abs(dropped - nhwc(tiny["out"])).max()) > 0.1


def test_dropout_follows_from_each_examples_key_and_the_block():
    """Not from the batch, and not from remat; no two blocks or examples drop the same."""
    model = UNet(1, 1, 8, 1, (), (1,), 8, dropout=0.5, norm_groups=4)
    x, t = jnp.ones((2, 4, 4, 1)), jnp.zeros(2, jnp.int32)
    params = jax.eval_shape(model.init, KEY, x, t)["params"]
    params = jax.tree.map(lambda p: jnp.linspace(-0.3, 0.4, p.size).reshape(p.shape), params)
    masks = []

    def note(next_method, args, kwargs, context):
        out = next_method(*args, **kwargs)
        if type(context.module).__name__ == "Dropout":
            masks.append(out == 0)
        return out

    @jax.jit
    def run(keys):
        def call(part, model=model):
            return model.apply(
                {"params": params}, x[part], t[part], train=True, dropout_keys=keys[part]
            )

        with nn.intercept_methods(note):
            whole = call(slice(0, 2))
        others = call(slice(0, 1)), call(slice(1, 2)), call(slice(0, 2), model.clone(remat=True))
        return whole, *others, jnp.concatenate(masks)

    whole, first, second, remat, drawn = map(np.asarray, run(jax.random.split(KEY, 2)))
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(remat, whole, rtol=1e-4, atol=1e-5)
    assert len(drawn) == 2 * 5
    for i, mask in enumerate(drawn):
        assert all((mask == other).mean() < 0.8 for other in drawn[:i])


def test_dropout_acts_between_the_second_norm_and_the_last_convolution():
    order = []

    def note(next_method, args, kwargs, context):
        order.append(type(context.module).__name__)
        return next_method(*args, **kwargs)

    x, embedding = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 4, 4, 8), (1, 16)))
    with nn.intercept_methods(note):
        jax.eval_shape(ResBlock(8, 4, 0.5).init, jax.random.key(0), x, embedding)
    layers = [name for name in order if name in ("GroupNorm", "Conv", "Dropout")]
    assert layers == ["GroupNorm", "Conv", "GroupNorm", "Dropout", "Conv"]


def test_every_norm_has_the_epsilon_asked_for():
    model = TINY.clone(norm_eps=1e-6)
    epsilons = []

    def note(next_method, args, kwargs, context):
        epsilons.append(getattr(context.module, "epsilon", None))
        return next_method(*args, **kwargs)

    x, t = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), x, t)
    assert set(epsilons) == {None, 1e-6}


def test_every_norm_has_the_groups_asked_for():
    """24 channels: no multiple of 32, so one norm left at 32 groups would fail."""
    model = UNet(3, 3, 24, 1, (1, 2), (1, 2), 24, norm_groups=8)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    out = jax.eval_shape(model.apply, {"params": params}, x, t)
    assert out.shape == x.shape


def test_softmax_is_float32_in_bfloat16_too():
    qkv = jax.ShapeDtypeStruct((1, 16, 2, 3, 8), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda x: QKVAttention().apply({}, x))(qkv)
    exponentials = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "exp"]
    assert [e.outvars[0].aval.dtype for e in exponentials] == [jnp.float32]


def test_converter_refuses_what_is_no_weight():
    with pytest.raises(ValueError, match="running_mean"):
        convert.unet_from_torch({"norm.running_mean": np.zeros(3)})


def test_reference_file_describes_this_model(golden):
    described = golden("a_unet_tiny.json")
    assert described["cfg"]["model_channels"] == TINY.model_channels
    assert json.dumps(described["cfg"]["channel_mult"]) == json.dumps(list(TINY.channel_mult))
