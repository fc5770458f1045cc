"""Published layouts and ours hold the same numbers: CompVis's, and those of diffusers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.models import convert, diffusers_layout, published
from sparsejax.models.autoencoder import VQModel
from sparsejax.models.unet import UNet

RECORDED = json.loads(pathlib.Path(__file__).with_name("diffusers_layout.json").read_text())

# Attention at the first and last of three resolutions: the upsampler stands at both its places.
MIXED = UNet(3, 3, 16, 1, (1, 4), (1, 2, 3), 8, norm_groups=8)
NO_ATTENTION = UNet(3, 3, 8, 3, (), (1, 2), 4, norm_groups=4)
ONE_RESOLUTION = UNet(3, 3, 8, 2, (1,), (1,), 4, norm_groups=4)


def waves(shape, i):
    return 0.1 * np.sin(0.7 * (i + 1) * np.arange(np.prod(shape))).reshape(shape)


def recorded_weights(kind):
    """The weights from which diffusers computed the recorded outputs; see `how` in the file."""
    weights = {}
    for i, (name, shape) in enumerate(RECORDED[kind]["shapes"].items()):
        is_scale = name.endswith("weight") and len(shape) == 1
        weights[name] = (waves(shape, i) + is_scale).astype(np.float32)
    return weights


def recorded_output(kind, name, size):
    flat = np.array(RECORDED[kind][name])
    return flat.reshape(1, 3, size, size).transpose(0, 2, 3, 1)


def recorded_input(size):
    x = 10 * waves((1, 3, size, size), 0).astype(np.float32)
    return x.transpose(0, 2, 3, 1)


def unet_shapes(model):
    x = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]


def numbered(shapes):
    """No two of the first 2**24 weights are equal."""
    leaves, treedef = jax.tree.flatten(shapes)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    arrays = [
        np.arange(start, start + leaf.size, dtype=np.float32).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, arrays)


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


def assert_same_trees(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("name", "there", "back"),
    [
        ("a_unet_tiny.npz", convert.unet_from_torch, convert.unet_to_torch),
        ("f_vq_tiny.npz", convert.autoencoder_from_torch, convert.autoencoder_to_torch),
    ],
)
def test_a_reference_state_dict_comes_back_bit_for_bit(golden, name, there, back):
    arrays = golden(name)
    named = {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}
    params = there(named)
    assert_same_bits(back(params), named)
    assert_same_trees(there(dict(reversed(named.items()))), params)


def test_full_size_unet_has_the_references_names_and_shapes(golden):
    entries = golden("layers/ldm_unet_vq4_state_dict_shapes.json")
    assert_names_and_shapes(convert.unet_to_torch, unet_shapes(UNet()), entries)


def test_full_size_autoencoder_has_the_references_names_and_shapes(golden):
    entries = golden("layers/ldm_vqf4_state_dict_shapes.json")
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(VQModel().init, jax.random.key(0), x)["params"]
    assert_names_and_shapes(convert.autoencoder_to_torch, shapes, entries)


def assert_names_and_shapes(to_torch, shapes, entries):
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    ours = {name: array.shape for name, array in to_torch(zeros).items()}
    assert ours == {entry["name"]: tuple(entry["shape"]) for entry in entries}


def test_codes_are_not_transposed():
    codes = np.arange(12, dtype=np.float32).reshape(4, 3)
    params = convert.autoencoder_from_torch({"quantize.embedding.weight": codes})
    np.testing.assert_array_equal(params["quantize"]["embedding"], codes)


def test_unet_computes_what_diffusers_computes(float64):
    params = diffusers_layout.unet_from_diffusers(recorded_weights("unet"), 8)
    published.check_params(params, unet_shapes(MIXED), "recorded")
    x, t = float64(recorded_input(8)), jnp.array([801], jnp.float64)
    out = jax.jit(MIXED.apply)({"params": float64(params)}, x, t)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, recorded_output("unet", "out", 8), rtol=0, atol=1e-11)


def test_autoencoder_computes_what_diffusers_computes(float64):
    model = VQModel(16, (1, 1, 2), 1, norm_groups=8, codes=16)
    params = diffusers_layout.autoencoder_from_diffusers(recorded_weights("autoencoder"))

    @jax.jit
    def run(params, x, z):
        def apply(*args, **kwargs):
            return model.apply({"params": params}, *args, **kwargs)

        plain = apply(z, quantize=False, method="decode")
        return apply(x, method="encode"), apply(z, method="decode"), plain

    outputs = run(*float64((params, recorded_input(8), recorded_input(2))))
    for name, size, out in zip(
        ("encode", "decode", "decode_plain"), (2, 8, 8), outputs, strict=True
    ):
        assert out.dtype == jnp.float64
        expected = recorded_output("autoencoder", name, size)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-11, err_msg=name)


def test_diffusers_weights_come_back_bit_for_bit():
    unet, autoencoder = recorded_weights("unet"), recorded_weights("autoencoder")
    params = diffusers_layout.unet_from_diffusers(unet, 8)
    assert_same_bits(diffusers_layout.unet_to_diffusers(params, 8), unet)
    params = diffusers_layout.autoencoder_from_diffusers(autoencoder)
    assert_same_bits(diffusers_layout.autoencoder_to_diffusers(params), autoencoder)


@pytest.mark.parametrize("model", [MIXED, MIXED.clone(classes=4), NO_ATTENTION, ONE_RESOLUTION])
def test_our_weights_come_back_from_diffusers(model):
    params = numbered(unet_shapes(model))
    named = diffusers_layout.unet_to_diffusers(params, model.num_head_channels)
    back = diffusers_layout.unet_from_diffusers(named, model.num_head_channels)
    assert_same_trees(back, params)
    assert sum(array.size for array in named.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


def test_older_files_of_diffusers_give_the_same_params():
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(weights):
        for new, name in old.items():
            weights = {k.replace(f".{new}.", f".{name}."): v for k, v in weights.items()}
        assert any("proj_attn" in name for name in weights)
        return weights

    for kind, convert_names, arguments in (
        ("unet", diffusers_layout.unet_from_diffusers, (8,)),
        ("autoencoder", diffusers_layout.autoencoder_from_diffusers, ()),
    ):
        weights = recorded_weights(kind)
        aged = convert_names(age(weights), *arguments)
        assert_same_trees(aged, convert_names(weights, *arguments))


def test_config_is_what_diffusers_builds_the_recorded_network_from():
    config = diffusers_layout.unet_diffusers_config(MIXED, sample_size=8)
    recorded = RECORDED["unet"]["config"]
    assert {key: config[key] for key in recorded} == recorded
    assert config["_class_name"] == "UNet2DModel"
    assert config["sample_size"] == 8
    diffusers_layout.check_diffusers_config(json.loads(json.dumps(config)))


def test_config_of_the_published_unet_attends_below_full_resolution():
    config = diffusers_layout.unet_diffusers_config(UNet())
    assert config["block_out_channels"] == [224, 448, 672, 896]
    assert config["down_block_types"] == ["DownBlock2D", *3 * ["AttnDownBlock2D"]]
    assert config["up_block_types"] == [*3 * ["AttnUpBlock2D"], "UpBlock2D"]


@pytest.mark.parametrize(
    ("key", "value"), [("freq_shift", 2), ("mid_block_scale_factor", 2), ("downsample_padding", 2)]
)
def test_config_of_another_network_is_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}; accepted: "):
        diffusers_layout.check_diffusers_config({"norm_eps": 1e-5, key: value})


def test_refusals_name_the_tensor():
    unet, autoencoder = recorded_weights("unet"), recorded_weights("autoencoder")
    q, k = (f"mid_block.attentions.0.to_{part}.weight" for part in "qk")
    extra = {"add_embedding.weight": np.zeros((10, 64))}
    cases = {
        "add_embedding.weight": unet | extra,
        q: {name: array for name, array in unet.items() if name != q},
        k: unet | {k: np.zeros((16, 48))},
    }
    for name, weights in cases.items():
        with pytest.raises(ValueError, match=name):
            diffusers_layout.unet_from_diffusers(weights, 8)
    with pytest.raises(ValueError, match=r"attentions.*multiples of 9"):
        diffusers_layout.unet_from_diffusers(unet, 9)
    with pytest.raises(ValueError, match="add_embedding"):
        diffusers_layout.autoencoder_from_diffusers(autoencoder | extra)
    with pytest.raises(ValueError, match="label_out"):
        diffusers_layout.unet_to_diffusers({"label_out": {"bias": np.zeros(3)}}, 8)
