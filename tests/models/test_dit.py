"""DiT is that of its authors and of diffusers: numbers, sizes, FLOPs, files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import imagenette_dit
from sparsejax.errors import ConfigError
from sparsejax.models import dit_layout, export, published_dit
from sparsejax.models.dit import SIZES, DiT, position_embedding
from sparsejax.models.flops import layer_flops
from sparsejax.models.units import dit_units
from sparsejax.sparsity.distributions import erdos_renyi_kernel
from tests.models.test_convert import assert_same_trees
from tests.models.test_unet import count, nhwc

TINY = DiT(hidden_size=32, depth=2, num_heads=2, classes=5, learn_sigma=True)
DIFFUSERS = TINY.clone(freq_shift=1, mlp_norm_eps=1e-5)
# GFLOPs of Peebles and Xie (2023), table 4, where a multiply-add counts as one. Of XL/2's 118.64 we
# count 118.62: what else its authors counted, they don't say.
GFLOPS = {("S", 2): 6.06, ("S", 8): 0.36, ("B", 4): 5.56, ("XL", 2): 118.64}
CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 3,
    "out_channels": 6,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}
# As diffusers wrote that of DiT-XL-2-256, before it had a class for DiTs.
PUBLISHED = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}


def state_dict(arrays, prefix="sd/"):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def shapes_of(model, size=8):
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]


def numbers(shapes):
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, drawn)


@pytest.fixture(scope="module")
def reference(golden):
    return golden("i_dit_reference.npz")


@pytest.fixture(scope="module")
def diffusers(golden):
    return golden("i_dit_diffusers.npz")


def test_output_loss_and_gradients_equal_the_reference(reference):
    params = dit_layout.dit_from_torch(state_dict(reference))

    def loss(params):
        x, t, y = nhwc(reference["x"]), reference["t"], reference["y"]
        out = TINY.apply({"params": params}, x, t, y)
        return jnp.mean((out - nhwc(reference["target_noise"])) ** 2), out

    (value, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(out, nhwc(reference["out"][:, :3]), atol=1e-5)
    np.testing.assert_allclose(value, reference["loss"], rtol=1e-5)
    ours, theirs = dit_layout.dit_to_torch(gradients), state_dict(reference, "grad/")
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, atol=1e-5, err_msg=name)


def test_what_is_zero_at_first_is_what_the_reference_has_zero(reference):
    x, t = jnp.ones((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    params = jax.jit(TINY.init)(jax.random.key(0), x, t)["params"]
    names = [name for name, a in dit_layout.dit_to_torch(params).items() if not a.any()]
    assert sorted(names) == sorted(reference["zero"])


def test_weights_are_drawn_as_in_the_reference():
    """Xavier's uniform numbers, patches as rows of a matrix; 0.02 times normal ones to embed."""
    model = DiT(hidden_size=128, depth=1, num_heads=2, classes=500, patch_size=4)
    x, t = jnp.ones((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), x, t)["params"]
    block = params["blocks_0"]
    matrices = {(128, 384): block["attn"]["qkv"], (128, 512): block["mlp"]["fc1"]}
    matrices[4 * 4 * 3, 128] = params["x_embedder"]["proj"]
    for (rows, columns), layer in matrices.items():
        limit = np.sqrt(6 / (rows + columns))
        kernel = layer["kernel"].reshape(rows, columns)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.03)
    table = params["y_embedder"]["embedding_table"]["embedding"]
    for embedding in (table, params["t_embedder"]["mlp_0"]["kernel"]):
        np.testing.assert_allclose(embedding.std(), 0.02, rtol=0.03)


def test_output_equals_diffusers(diffusers):
    params = dit_layout.dit_from_diffusers(state_dict(diffusers))
    out = DIFFUSERS.apply({"params": params}, nhwc(diffusers["x"]), diffusers["t"], diffusers["y"])
    np.testing.assert_allclose(out, nhwc(diffusers["out"][:, :3]), atol=1e-5)


def test_no_label_is_the_last_row_of_the_table(diffusers):
    params = dit_layout.dit_from_diffusers(state_dict(diffusers))
    x, t = nhwc(diffusers["x"]), diffusers["t"]
    none = DIFFUSERS.apply({"params": params}, x, t)
    np.testing.assert_array_equal(none, DIFFUSERS.apply({"params": params}, x, t, np.full(3, 5)))


def test_published_sizes_have_the_published_parameters_and_flops():
    for (size, patch), gflops in GFLOPS.items():
        model = DiT(4, patch, *SIZES[size], classes=1000, learn_sigma=True)
        x = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        params = shapes_of(model, 32)
        assert abs(sum(layer_flops(model, params, x, t).values()) / 2e9 - gflops) < 0.021
    # Of XL/2; its authors count the fixed position embedding of 256 patches.
    assert count(params) + 256 * 1152 == 675_129_632


def test_both_layouts_are_inverted_bit_for_bit(reference, diffusers):
    ours = dit_layout.dit_from_torch(state_dict(reference))
    back = dit_layout.dit_to_torch(ours, grid=4)
    assert back.keys() == state_dict(reference).keys()
    for name, array in state_dict(reference).items():
        if name == "pos_embed":
            np.testing.assert_allclose(back[name], array, atol=1e-6)
        else:
            np.testing.assert_array_equal(back[name], array, err_msg=name)
    back = dit_layout.dit_to_diffusers(dit_layout.dit_from_diffusers(state_dict(diffusers)))
    assert back.keys() == state_dict(diffusers).keys()
    for name, array in state_dict(diffusers).items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_tensors_that_no_dit_has_are_refused_by_name(reference, diffusers):
    theirs = state_dict(reference)
    right = theirs["pos_embed"]
    for wrong in (right + 0.01, right[0], right[:, :5], right[..., :30], right * np.nan):
        with pytest.raises(ValueError, match="'pos_embed' is not the fixed embedding"):
            dit_layout.dit_from_torch(theirs | {"pos_embed": wrong})
    theirs = state_dict(diffusers)
    embedder = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match=f"'{embedder}' differs from that of another block"):
        dit_layout.dit_from_diffusers(theirs | {embedder: theirs[embedder] + 1})
    with pytest.raises(ValueError, match=r"'transformer_blocks.0.attn2.to_q.bias' has no place"):
        dit_layout.dit_from_diffusers({"transformer_blocks.0.attn2.to_q.bias": np.ones(2)})
    missing = "transformer_blocks.0.attn1.to_v.weight"
    with pytest.raises(ValueError, match=f"'{missing}' is missing"):
        dit_layout.dit_from_diffusers({k: v for k, v in theirs.items() if k != missing})


def test_a_folder_of_diffusers_says_what_it_is(diffusers, tmp_path):
    file = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    save_file(state_dict(diffusers), file)
    (file.parent / "config.json").write_text(json.dumps(CONFIG))
    model, params = published_dit.dit_from_diffusers(tmp_path)
    assert model == DIFFUSERS
    assert_same_trees(params, dit_layout.dit_from_diffusers(state_dict(diffusers)))
    with pytest.raises(ValueError, match=r"freq_shift is 1; accepted: 0, as in the model"):
        published_dit.load_dit(tmp_path, model=TINY)
    (file.parent / "config.json").write_text(json.dumps(CONFIG | {"norm_type": "ada_norm"}))
    with pytest.raises(ValueError, match="norm_type is 'ada_norm'; accepted: 'ada_norm_zero'"):
        published_dit.dit_from_diffusers(tmp_path)
    (file.parent / "config.json").write_text(json.dumps(CONFIG | {"out_channels": 5}))
    with pytest.raises(ValueError, match=r"out_channels is 5; accepted: None, 3 .*, or 6"):
        published_dit.dit_from_diffusers(tmp_path)


def test_the_published_config_is_that_of_xl():
    """It names the class that diffusers' DiTs had before one of their own."""
    arguments = dit_layout.dit_arguments(PUBLISHED)
    published = DiT(**arguments)
    width, depth, heads = SIZES["XL"]
    xl = DiT(4, 2, width, depth, heads, classes=1000, learn_sigma=True)
    assert published == xl.clone(freq_shift=1, mlp_norm_eps=1e-5)
    text = {"cross_attention_dim": 768}
    with pytest.raises(ValueError, match="cross_attention_dim is 768; accepted: None"):
        dit_layout.dit_arguments(PUBLISHED | text)
    with pytest.raises(ValueError, match="_class_name is 'UNet2DModel'; accepted: 'DiT.* or 'Tr"):
        dit_layout.dit_arguments(PUBLISHED | {"_class_name": "UNet2DModel"})


@pytest.mark.parametrize("head", ["a", [72], 0, -72, True, None, 72.0])
def test_a_head_that_is_no_count_is_named(head):
    with pytest.raises(ValueError, match=r"attention_head_dim is .*; accepted: whole numbers"):
        dit_layout.dit_arguments(PUBLISHED | {"attention_head_dim": head})


@pytest.mark.parametrize("model", [DIFFUSERS, DIFFUSERS.clone(classes=0), TINY])
def test_an_export_read_back_is_the_network(model, tmp_path):
    params = numbers(shapes_of(model))
    masks = jax.tree.map(lambda p: p > 0 if p.ndim > 1 else np.array(True), params)
    written = export.export_dit(params, masks, tmp_path, model, sample_size=8)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    assert_same_trees(published_dit.load_dit(tmp_path / "dit.safetensors", model=model), params)
    ones = published_dit.load_dit(tmp_path / "masks.safetensors")
    assert_same_trees(ones, jax.tree.map(lambda p, m: np.broadcast_to(m, p.shape), params, masks))
    if model.freq_shift:
        read, tree = published_dit.dit_from_diffusers(tmp_path / "diffusers")
        assert read == model.clone(learn_sigma=True)
        assert_same_trees(tree, params)
        published_dit.load_dit(tmp_path / "diffusers", model=model)
    else:
        assert not (tmp_path / "diffusers").exists()


def test_what_the_authors_code_does_not_compute_is_named():
    assert export.reference_differences(TINY) == ""
    found = export.reference_differences(DIFFUSERS.clone(classes=0, mlp_ratio=2.0))
    assert [part.split(" is ")[0] for part in found.split("; ")] == [
        "freq_shift",
        "mlp_norm_eps",
        "classes",
    ]


def test_a_file_of_another_kind_or_size_is_refused(tmp_path):
    save_file({"input_blocks.0.0.bias": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds no DiT; accepted: tensors blocks.\*"):
        published_dit.load_dit(tmp_path / "a.safetensors")
    params = numbers(shapes_of(TINY))
    save_file(dit_layout.dit_to_torch(params), tmp_path / "b.safetensors")
    wide = TINY.clone(hidden_size=64)
    read = published_dit.load_dit(tmp_path / "b.safetensors", model=wide)
    with pytest.raises(ValueError, match=r"blocks.0.adaLN_modulation.1.bias \(192,\) for \(384,\)"):
        published_dit.check_dit_params(read, wide, "b")


def test_heads_and_hidden_units_can_be_removed_without_changing_the_rest():
    """A network whose units have no way out is the network without them."""
    model = DiT(hidden_size=32, depth=2, num_heads=4)
    params = numbers(shapes_of(model))
    removed = {"heads": [0, 2], "hidden": list(range(5, 90))}
    for name, members in dit_units(params, 8).items():
        gone = removed[name.rpartition("/")[2]]
        for path, axis, units, incoming in members:
            *parents, leaf = path.split("/")
            layer = params
            for parent in parents:
                layer = layer[parent]
            index = (slice(None),) * axis + (np.isin(units, gone),)
            layer[leaf][index] = 7.0 if incoming else 0.0
    x, t = np.ones((1, 8, 8, 3), np.float32), np.array([3])
    one = model.apply({"params": params}, x, t)
    for block in ("blocks_0", "blocks_1"):
        head = params[block]["attn"]["qkv"]["kernel"].reshape(32, 3, 4, 8)
        head[:, :, removed["heads"]] *= -3
        params[block]["mlp"]["fc1"]["kernel"][:, removed["hidden"]] *= -3
    np.testing.assert_array_equal(one, model.apply({"params": params}, x, t))


def test_erdos_renyi_takes_attention_mlp_and_modulation_and_leaves_the_table_dense():
    sparsities = erdos_renyi_kernel(shapes_of(TINY), 0.8)
    block = sparsities["blocks_0"]
    assert 0 < block["attn"]["proj"]["kernel"] < block["mlp"]["fc1"]["kernel"]
    assert block["mlp"]["fc1"]["kernel"] < block["adaLN_modulation_1"]["kernel"]
    assert sparsities["y_embedder"]["embedding_table"]["embedding"] == 0


@pytest.mark.slow
def test_remat_changes_no_gradient_and_bfloat16_computes_in_half_precision(diffusers):
    params = dit_layout.dit_from_diffusers(state_dict(diffusers))
    x, t, y = nhwc(diffusers["x"]), diffusers["t"], diffusers["y"]

    def gradients(model):
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x, t, y) ** 2)))(
            params
        )

    one, other = gradients(DIFFUSERS), gradients(DIFFUSERS.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), one, other)
    out = DIFFUSERS.clone(dtype=jnp.bfloat16).apply({"params": params}, x, t, y)
    assert out.dtype == jnp.float32
    error = np.abs(out - nhwc(diffusers["out"][:, :3])).max()
    assert 1e-4 < error < 0.1


def test_positions_are_told_apart_by_row_and_column():
    table = np.asarray(position_embedding(4, 32)).reshape(4, 4, 32)
    np.testing.assert_array_equal(table[0, :, :16], table[3, :, :16])  # the column
    np.testing.assert_array_equal(table[:, 0, 16:], table[:, 3, 16:])  # the row
    assert len(np.unique(table.reshape(16, 32), axis=0)) == 16


def test_shapes_of_a_network_on_huge_images_need_no_memory():
    model = DiT(hidden_size=64, depth=1, num_heads=2, patch_size=1)
    x = jax.ShapeDtypeStruct((1, 60_000, 60_000, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1, jnp.int32))
    assert count(params) < 200_000


def test_the_config_of_published_sizes_has_their_network():
    """XL/2 has 675,129,632 parameters: 1,000 classes, variances too, and constant positions."""
    config = imagenette_dit.get_config("kl,XL,rigl,0.75")
    assert config.name == "imagenette_dit_kl_XL"
    assert (config.sparsity.level, config.task.latent_scale) == (0.75, 0.18215)
    network = DiT(**config.model.to_dict())
    labels, variances, positions = 990 * 1152, 2 * 2 * 4 * (1152 + 1), 256 * 1152
    expected = 675_129_632 - labels - variances - positions
    assert count(shapes_of(network, 32)) == expected
    small = imagenette_dit.get_config("S,dense").model
    assert (small.hidden_size, small.in_channels, small.patch_size) == (384, 3, 4)
    with pytest.raises(ConfigError, match="'S' and 'XL' both set the size; accepted: one of them"):
        imagenette_dit.get_config("S,XL")
