"""A config.json of diffusers is honoured, known to change nothing, or refused, key by key."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsejax.models import diffusers_config, diffusers_layout, first_stage, published
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.unet import UNet
from tests.models.test_convert import unet_shapes, waves

RECORDED = json.loads(pathlib.Path(__file__).with_name("diffusers_configs.json").read_text())
CLASSES = RECORDED["arguments"]
NETWORKS = RECORDED["networks"]

HONOURED = {
    "UNet2DModel": {
        "attention_head_dim",
        "attn_norm_num_groups",
        "block_out_channels",
        "down_block_types",
        "downsample_padding",
        "dropout",
        "flip_sin_to_cos",
        "freq_shift",
        "in_channels",
        "layers_per_block",
        "norm_eps",
        "norm_num_groups",
        "num_class_embeds",
        "out_channels",
        "time_embedding_dim",
        "up_block_types",
    },
}
AUTOENCODERS = {
    "block_out_channels",
    "down_block_types",
    "in_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "out_channels",
    "up_block_types",
}
HONOURED["VQModel"] = AUTOENCODERS | {"num_vq_embeddings", "vq_embed_dim"}
HONOURED["AutoencoderKL"] = AUTOENCODERS
CHANGES_NOTHING = {
    "UNet2DModel": {"sample_size", "num_train_timesteps"},
    "VQModel": {"sample_size", "scaling_factor", "force_upcast", "lookup_from_codebook"},
    "AutoencoderKL": {
        "sample_size",
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "force_upcast",
    },
}
REFUSED = {
    "UNet2DModel": {
        "act_fn",
        "add_attention",
        "center_input_sample",
        "class_embed_type",
        "downsample_type",
        "mid_block_scale_factor",
        "mid_block_type",
        "resnet_time_scale_shift",
        "time_embedding_type",
        "upsample_type",
    },
    "VQModel": {"act_fn", "mid_block_add_attention", "norm_type"},
    "AutoencoderKL": {
        "act_fn",
        "mid_block_add_attention",
        "use_post_quant_conv",
        "use_quant_conv",
    },
}
GROUPS = (HONOURED, CHANGES_NOTHING, REFUSED)
CASES = [
    pytest.param(name, key, value, difference, id=f"{name}-{key}-{value}")
    for name, recorded in CLASSES.items()
    for key, tried in recorded["changed"].items()
    for value, difference in tried
]


def arguments_of(config, name):
    if name == "UNet2DModel":
        arguments = diffusers_config.unet_arguments(config)
        return {key: value for key, value in arguments.items() if key != "dropout"}
    return diffusers_config.autoencoder_arguments(config | {"_class_name": name})


@pytest.mark.parametrize("name", CLASSES)
def test_every_constructor_argument_is_in_exactly_one_group(name):
    recorded = CLASSES[name]
    assert set(recorded["changed"]) == set(recorded["defaults"])
    for key in recorded["defaults"]:
        assert sum(key in group[name] for group in GROUPS) == 1, key
    assert set().union(*(group[name] for group in GROUPS)) == set(recorded["defaults"])


@pytest.mark.parametrize("name", CLASSES)
def test_absent_keys_have_diffusers_defaults(name):
    """The arguments are those of a config in which every default is written out."""
    assert arguments_of({}, name) == arguments_of(CLASSES[name]["defaults"], name)
    config = CLASSES[name]["config"]
    assert arguments_of(config, name) == arguments_of(CLASSES[name]["defaults"] | config, name)


@pytest.mark.parametrize(("name", "key", "value", "difference"), CASES)
def test_what_changes_diffusers_output_is_honoured_or_refused_by_name(name, key, value, difference):
    config = CLASSES[name]["config"]
    changed, refusal = try_arguments(config | {key: value}, name)
    if refusal:
        assert key not in CHANGES_NOTHING[name]
        # What must agree with another key may be refused by that key's name.
        partner = {"down_block_types": "up_block_types", "in_channels": "out_channels"}.get(key)
        assert refusal.startswith((f"{key} is ", f"{partner} is "))
        assert "; accepted: " in refusal
        assert "\n" not in refusal
    elif difference == 0:
        assert changed == arguments_of(config, name)
    else:
        assert key in HONOURED[name]
        assert changed != arguments_of(config, name)


def try_arguments(config, name):
    try:
        return arguments_of(config, name), None
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("name", CLASSES)
def test_unknown_keys_are_refused_by_name(name):
    config = CLASSES[name]["config"]
    for key in (*CLASSES[name]["older"], "quantization_config", "use_new_thing"):
        with pytest.raises(ValueError, match=rf"^{key} is None; accepted: keys of {name}: "):
            arguments_of(config | {key: None}, name)
    assert arguments_of(config | {"_diffusers_version": "9.9"}, name) == arguments_of(config, name)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("wrong", [[], "3", None, True, 0, -2, 2.5, {"a": 1}])
def test_values_of_another_kind_are_refused_by_name(name, wrong):
    config = CLASSES[name]["config"]
    keys = [k for k, default in config.items() if isinstance(default, int | list)]
    for key in set(keys) - ({"attention_head_dim"} if wrong is None else set()):
        with pytest.raises(ValueError, match=rf"^{key} is .*; accepted: "):
            arguments_of(config | {key: wrong}, name)


def test_other_classes_are_refused_by_name():
    for name in ("UNet2DConditionModel", "UNet1DModel", None, ["UNet2DModel"]):
        with pytest.raises(ValueError, match=r"^_class_name is .*; accepted: 'UNet2DModel'"):
            diffusers_config.unet_arguments({"_class_name": name})
        with pytest.raises(ValueError, match=r"^_class_name is .*; accepted: VQModel, Auto"):
            diffusers_config.autoencoder_arguments({"_class_name": name})
    for content in ([], "UNet2DModel", 3, None):
        with pytest.raises(ValueError, match=r"^it holds a \w+; accepted: a JSON object"):
            diffusers_config.unet_arguments(content)
        with pytest.raises(ValueError, match=r"^it holds a \w+; accepted: a JSON object"):
            diffusers_config.autoencoder_arguments(content)


def test_keys_that_diffusers_set_to_defaults_itself_count_as_absent():
    config = CLASSES["UNet2DModel"]["config"]
    marked = config | {"freq_shift": 5, "_use_default_values": ["freq_shift"]}
    assert arguments_of(marked, "UNet2DModel") == arguments_of(config, "UNet2DModel")


def test_one_head_of_all_channels_has_the_width_of_its_blocks():
    """google/ddpm-*: attention_head_dim is null; the middle always attends."""
    config = CLASSES["UNet2DModel"]["config"] | {"attention_head_dim": None}
    assert diffusers_config.unet_arguments(config)["num_head_channels"] == 16
    types = {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}
    types["up_block_types"] = ["UpBlock2D", "AttnUpBlock2D"]
    with pytest.raises(ValueError, match=r"attention_head_dim is None; accepted: .*\[8, 16\]"):
        diffusers_config.unet_arguments(config | types)


def recorded_weights(shapes):
    """See `how` in the recorded file."""
    weights = {}
    for i, name in enumerate(sorted(shapes)):
        is_scale = name.endswith("weight") and len(shapes[name]) == 1
        weights[name] = (waves(shapes[name], i) + is_scale).astype(np.float32)
    return weights


def zeros(shapes):
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)


def autoencoder_shapes(model):
    x = jax.ShapeDtypeStruct((1, 8, 8, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def recorded_tensors(config):
    """The recorded weights of the network of a config, under diffusers' names."""
    if config["_class_name"] == "UNet2DModel":
        model = UNet(**diffusers_config.unet_arguments(config))
        params = zeros(unet_shapes(model))
        named = diffusers_layout.unet_to_diffusers(params, model.num_head_channels)
    else:
        kind, arguments = diffusers_config.autoencoder_arguments(config)
        params = zeros(autoencoder_shapes(first_stage.KINDS[kind](**arguments)))
        named = diffusers_layout.autoencoder_to_diffusers(params)
    return recorded_weights({name: array.shape for name, array in named.items()})


def write_network(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    config = NETWORKS[name]["config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(recorded_tensors(config), folder / "diffusion_pytorch_model.safetensors")
    return folder


def nchw(shape):
    wave = jnp.asarray(10 * waves(shape, 0))
    return wave.transpose(0, 2, 3, 1)


def assert_recorded(output, name, key):
    flat = np.asarray(output).transpose(0, 3, 1, 2).ravel()[::7]
    assert output.dtype == jnp.float64
    np.testing.assert_allclose(flat, NETWORKS[name][key], rtol=0, atol=1e-11)


def test_a_unet_built_from_its_config_computes_what_diffusers_computes(tmp_path):
    name = "one head of all channels"
    write_network(tmp_path / "unet", name)
    model, params = published.unet_from_diffusers(tmp_path)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        x, t = nchw((1, model.in_channels, 8, 8)), jnp.array([801], jnp.float64)
        assert_recorded(jax.jit(model.apply)({"params": params}, x, t), name, "out")


# Of google/ddpm-*, with diffusers' defaults; the others are no arguments of ours.
HO_ET_AL = {
    "norm_eps": (1e-6, 1e-5),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "downsample_padding": (0, 1),
}


def assert_ho_et_al(folder, expected, **changes):
    model, params = published.unet_from_diffusers(write_network(folder, "of Ho et al."))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        x, t = nchw((1, model.in_channels, 8, 8)), jnp.array([801], jnp.float64)
        output = jax.jit(model.clone(**changes).apply)({"params": params}, x, t)
    flat = np.asarray(output).transpose(0, 3, 1, 2).ravel()[::7]
    np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-11)
    return model


def test_a_unet_of_ho_et_al_computes_what_diffusers_computes(tmp_path):
    """Each of its keys changes what diffusers computes: none is passed over."""
    recorded = NETWORKS["of Ho et al."]
    model = assert_ho_et_al(tmp_path, recorded["out"])
    assert model.num_head_channels == 16  # attention_head_dim is null
    for key, (theirs, default) in HO_ET_AL.items():
        assert recorded["config"][key] == getattr(model, key) == theirs
        assert getattr(UNet(), key) == default
        assert np.abs(np.subtract(recorded["without"][key], recorded["out"])).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("key", HO_ET_AL)
def test_one_key_at_its_default_computes_what_diffusers_then_computes(key, tmp_path):
    _, default = HO_ET_AL[key]
    assert_ho_et_al(tmp_path, NETWORKS["of Ho et al."]["without"][key], **{key: default})


@pytest.mark.parametrize(
    ("widths", "attends", "total"),
    [
        ([128, 256, 256, 256], 1, 35_746_307),  # google/ddpm-cifar10-32
        ([128, 128, 256, 256, 512, 512], 4, 113_673_219),  # google/ddpm-celebahq-256
    ],
)
def test_published_unets_of_ho_et_al_have_diffusers_number_of_parameters(widths, attends, total):
    down = ["AttnDownBlock2D" if i == attends else "DownBlock2D" for i in range(len(widths))]
    config = NETWORKS["of Ho et al."]["config"] | {
        "block_out_channels": widths,
        "down_block_types": down,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
    }
    model = UNet(**diffusers_config.unet_arguments(config))
    assert model.num_head_channels == widths[-1]
    assert sum(leaf.size for leaf in jax.tree.leaves(unet_shapes(model))) == total


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("norm_eps", [0, -1e-6, 10**400, float("nan"), float("inf"), True, None, "1e-6", [1e-6]]),
        ("freq_shift", [2, -1, 0.5, True, None, "1", [1]]),
        ("downsample_padding", [2, -1, 0.5, False, None, "0", [0]]),
        ("flip_sin_to_cos", [0, 1, None, "False", []]),
    ],
)
def test_other_values_of_ho_et_als_keys_are_refused_by_name(key, wrong):
    config = CLASSES["UNet2DModel"]["config"]
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{key} is [^\n]*; accepted: [^\n]*$"):
            diffusers_config.unet_arguments(config | {key: value})


def test_a_time_embedding_of_one_frequency_has_no_shift():
    """(dim // 2 - freq_shift) divides: diffusers computes nan."""
    config = CLASSES["UNet2DModel"]["config"] | {"block_out_channels": [2, 4], "norm_num_groups": 2}
    config |= {"attention_head_dim": 2}
    diffusers_config.unet_arguments(config)
    with pytest.raises(ValueError, match=r"^freq_shift is 1; accepted: 0, where .* is 2"):
        diffusers_config.unet_arguments(config | {"freq_shift": 1})


@pytest.mark.parametrize(
    ("name", "kind", "methods"),
    [("vq", VQModel, ["encode"]), ("kl", KLModel, ["encode", "decode"])],
)
def test_a_first_stage_built_from_its_config_computes_what_diffusers_computes(
    name, kind, methods, tmp_path
):
    write_network(tmp_path / "vae", name)
    model, params = first_stage.first_stage_from_diffusers(tmp_path)
    assert isinstance(model, kind)
    inputs = {"encode": (1, model.in_channels, 8, 8), "decode": (1, 2, 4, 4)}
    with jax.enable_x64(True):
        variables = {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)}
        for method in methods:
            run = jax.jit(functools.partial(model.apply, method=method))
            assert_recorded(run(variables, nchw(inputs[method])), name, method)


def test_a_folder_that_is_not_there_is_named_itself(tmp_path):
    """And not a config.json that would lie beside it."""
    for load in (published.unet_from_diffusers, first_stage.first_stage_from_diffusers):
        with pytest.raises(ValueError, match="^there is no file .*nowhere$"):
            load(tmp_path / "nowhere")


def test_weights_that_do_not_fit_their_config_are_refused_with_the_tensor(tmp_path):
    path = write_network(tmp_path, "heads of four") / "config.json"
    path.write_text(json.dumps(NETWORKS["heads of four"]["config"] | {"layers_per_block": 1}))
    with pytest.raises(ValueError, match="doesn't fit the model: .*not in the model"):
        published.unet_from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file .*config.json"),
        ("", "config.json is damaged or not JSON"),
        ("{", "config.json is damaged or not JSON"),
        ("[" * 100_000, "config.json is damaged or not JSON"),
        ("[1, 2]", "config.json: it holds a list; accepted: a JSON object"),
        (b"\xff\xfe\x00", "config.json is damaged or not JSON"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_in_one_line(text, message, tmp_path):
    for name, load in (
        ("heads of four", published.unet_from_diffusers),
        ("vq", first_stage.first_stage_from_diffusers),
    ):
        path = write_network(tmp_path / name, name) / "config.json"
        path.unlink()
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_config_of_another_network_than_the_runs_is_refused_by_key(tmp_path):
    write_network(tmp_path / "unet", "heads of four")
    model, params = published.unet_from_diffusers(tmp_path)
    published.load_unet(tmp_path, model=model.clone(dropout=0.1, dtype=jnp.bfloat16, remat=True))
    for changes, message in (
        ({"norm_groups": 4}, r"norm_groups is 8; accepted: 4, as in the model$"),
        *(
            ({key: theirs}, f"{key} is {default}; accepted: {theirs}, as in the model$")
            for key, (theirs, default) in HO_ET_AL.items()
        ),
        ({"num_head_channels": 8}, "num_head_channels is 4; accepted: 8, as in the model$"),
        ({"attention_resolutions": (1, 2)}, r"attention_resolutions is \(1,\); accepted: \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"config.json describes another network: {message}"):
            published.load_unet(tmp_path, model=model.clone(**changes))
    write_network(tmp_path / "vqvae", "vq")
    model, _ = first_stage.first_stage_from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="config.json describes another network: norm_groups is 2"):
        first_stage.load_first_stage(tmp_path, model.clone(norm_groups=4))


def test_the_config_written_is_the_config_read():
    for name in ("heads of four", "one head of all channels", "of Ho et al."):
        arguments = diffusers_config.unet_arguments(NETWORKS[name]["config"])
        written = diffusers_config.unet_diffusers_config(UNet(**arguments))
        assert diffusers_config.unet_arguments(json.loads(json.dumps(written))) == arguments
    for name in ("vq", "kl"):
        kind, arguments = diffusers_config.autoencoder_arguments(NETWORKS[name]["config"])
        model = first_stage.KINDS[kind](**arguments)
        written = diffusers_config.autoencoder_diffusers_config(model, kind, 0.5)
        assert diffusers_config.autoencoder_arguments(written) == (kind, arguments)
        assert written["scaling_factor"] == 0.5
        with pytest.raises(ValueError, match=r"channel_mult is \(2, 4\); accepted by diffusers"):
            diffusers_config.autoencoder_diffusers_config(
                model.clone(channel_mult=(2, 4)), kind, 1.0
            )
    with pytest.raises(ValueError, match=r"channel_mult is \(2, 4\); accepted by diffusers"):
        diffusers_config.unet_diffusers_config(UNet(channel_mult=(2, 4)))
