import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import distributions, masks, structure
from tests.sparsity.strategies import TREE_SHAPES, random_tree, sparse_models


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TREE_SHAPES), st.sampled_from([0.1, 0.5, 0.9, 0.995]), st.integers(0, 99))
def test_every_layer_keeps_exactly_its_number_of_weights(shapes, level, seed):
    params = random_tree(shapes, 0)
    sparsities = distributions.uniform(params, level)
    drawn = masks.random_masks(jax.random.key(seed), params, sparsities)
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    for param, sparsity, mask in zip(
        *map(jax.tree.leaves, (params, sparsities, drawn)), strict=True
    ):
        assert mask.dtype == bool
        if sparsity == 0:
            assert mask.ndim == 0
            assert mask
        else:
            assert mask.shape == param.shape
            assert int(mask.sum()) == max(param.size - int(np.floor(sparsity * param.size)), 1)


def test_masks_depend_on_the_key_and_on_nothing_else():
    params = random_tree(TREE_SHAPES[0], 0)
    sparsities = distributions.uniform(params, 0.5)
    first, same, other = (
        masks.random_masks(jax.random.key(seed), random_tree(TREE_SHAPES[0], seed), sparsities)
        for seed in (0, 0, 1)
    )
    first, same, other = (m["conv"]["kernel"] for m in (first, same, other))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_layers_of_one_shape_get_masks_of_their_own():
    params = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 16))}
    drawn = masks.random_masks(jax.random.key(0), params, {"a": 0.5, "b": 0.5})
    assert 64 < (drawn["a"] != drawn["b"]).sum() < 192


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 2**31), st.one_of(st.just(1 - 2**-53), st.floats(0, 1, exclude_max=True)))
def test_a_layer_keeps_at_least_one_weight(size, sparsity):
    assert 1 <= masks.target_active(size, sparsity) <= size


def test_active_weights_of_dense_leaves_count_in_full():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    drawn = {"kernel": jnp.ones((2, 3), bool).at[0].set(False), "bias": jnp.asarray(True)}
    counts = jax.jit(masks.count_active)(params, drawn)
    assert jax.tree.map(int, counts) == {"kernel": 3, "bias": 3}


def test_every_weight_is_equally_likely():
    """Mean over 400 draws of a mask with density 0.25, within five standard errors."""
    keys = jax.random.split(jax.random.key(0), 400)
    params = {"kernel": jnp.zeros((6, 8))}
    draw = jax.vmap(lambda key: masks.random_masks(key, params, {"kernel": 0.75})["kernel"])
    share = np.asarray(draw(keys)).mean(axis=0)
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)


@settings(max_examples=20, deadline=None)
@given(sparse_models())
def test_applying_masks_zeroes_inactive_weights_even_if_nan(model):
    params, drawn = model
    poisoned = jax.tree.map(lambda p, m: jnp.where(m, p, jnp.nan) if m.ndim else p, params, drawn)
    for applied, param in zip(
        jax.tree.leaves(masks.apply_masks(poisoned, drawn)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(applied, param)
        assert applied.dtype == param.dtype


def test_summary_equals_the_reference(golden):
    vectors = golden("sparsity.json")["vectors"]
    case = next(v for v in vectors if v["name"] == "summarize_sparsity")
    params = {
        "a": jnp.asarray(case["inputs"]["a"]),
        "b": {"d": jnp.asarray(case["inputs"]["b_d"]), "e": jnp.asarray(case["inputs"]["b_e"])},
    }
    summary = masks.summarize(params, jax.tree.map(lambda x: x != 0, params))
    expected = case["expected"]
    for name in ("a", "b/d", "b/e"):
        assert 1 - summary.layers[name].density == pytest.approx(expected[name], abs=1e-6)
    assert 1 - summary.total.density == pytest.approx(expected["_total_sparsity"], abs=1e-6)
    assert summary.total.active == expected["_nparams_nnz"]
    assert summary.total.weights == expected["_nparams"]


def test_summary_counts_dense_leaves_in_full():
    params = {"kernel": jnp.ones((4, 4)), "skip": {"kernel": jnp.ones((2, 2))}, "bias": jnp.ones(3)}
    drawn = {
        "kernel": jnp.eye(4, dtype=bool),
        "skip": {"kernel": jnp.asarray(True)},
        "bias": jnp.asarray(True),
    }
    summary = masks.summarize(params, drawn)
    assert summary.layers["bias"] == (3, 3, 1.0)
    assert summary.sparsifiable == (20, 8, 0.4)
    assert summary.total == (23, 11, 11 / 23)


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "expected"),
    [
        ("conv/kernel", (3, 3, 4, 8), "float32", True),
        ("conv/kernel", (4, 8), "bfloat16", True),
        ("conv/bias", (4, 8), "float32", False),
        ("norm/scale", (4, 8), "float32", False),
        ("tokens/embedding", (4, 8), "float32", False),
        ("embedding/kernel", (4, 8), "float32", True),
        ("batch_norm/offset", (1, 1, 1, 8), "float32", False),
        ("norm/offset", (4, 8), "float32", False),
        ("embed/embeddings", (4, 8), "float32", False),
        ("norm/gain", (1, 1, 1, 8), "float32", False),
        ("norm/gain", (8, 1, 1), "float32", False),
        ("norm/gain", (1, 1, 1), "float32", False),
        ("conv/kernel", (1, 1, 4, 8), "float32", True),
        ("dense/kernel", (1, 8), "float32", True),
        ("conv/kernel", (8,), "float32", False),
        ("table/kernel", (4, 8), "int32", False),
    ],
)
def test_which_leaves_can_be_sparse(path, shape, dtype, expected):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    assert masks.is_sparsifiable(path, leaf) is expected
    tree = leaf
    for name in reversed(path.split("/")):
        tree = {name: tree}
    [(key_path, _)], _ = jax.tree_util.tree_flatten_with_path(tree)
    assert masks.is_sparsifiable(key_path, leaf) is expected


def test_a_flax_nnx_state_is_read_by_its_parameters_names():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(8, 6, rngs=rngs)
            self.dense = nnx.Linear(6, 4, rngs=rngs)

    state = nnx.state(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), nnx.Param)
    sparsities = distributions.uniform(state, 0.5, custom=(("kernel$", 0.75),))
    drawn = masks.random_masks(jax.random.key(0), state, sparsities)
    summary = masks.summarize(state, drawn)
    assert {name: layer.density for name, layer in summary.layers.items()} == {
        "dense/bias": 1.0,
        "dense/kernel": 0.25,
        "embed/embedding": 1.0,
    }


def test_haikus_vectors_and_embeddings_stay_dense():
    haiku = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")

    def net(x):
        x = haiku.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, True)
        return haiku.Conv2D(4, 3)(x), haiku.Embed(5, 3)(jnp.array([1]))

    image = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    params, _ = jax.eval_shape(haiku.transform_with_state(net).init, jax.random.key(0), image)
    sparsities = distributions.uniform(params, 0.5)
    assert params["batch_norm"]["offset"].shape == (1, 1, 1, 3)
    assert sparsities == {
        "batch_norm": {"scale": 0.0, "offset": 0.0},
        "conv2_d": {"w": 0.5, "b": 0.0},
        "embed": {"embeddings": 0.0},
    }


def without_embeddings(path, leaf):
    return masks.is_sparsifiable(path, leaf) and "embed" not in masks.path_name(path)


def test_a_predicate_keeps_equinoxs_embedding_dense():
    equinox = pytest.importorskip("equinox", reason="equinox is not installed")
    model = {
        "embed": equinox.nn.Embedding(5, 3, key=jax.random.key(0)),
        "linear": equinox.nn.Linear(3, 4, key=jax.random.key(0)),
        "conv": equinox.nn.Conv2d(3, 4, 1, key=jax.random.key(0)),
    }
    for predicate, embedding in ((masks.is_sparsifiable, 0.5), (without_embeddings, 0.0)):
        sparsities = distributions.uniform(model, 0.5, is_sparsifiable=predicate)
        by_name = {
            masks.path_name(path): s for path, s in jax.tree_util.tree_leaves_with_path(sparsities)
        }
        assert {name for name, sparsity in by_name.items() if sparsity} == {
            "linear/weight",
            "conv/weight",
            *(["embed/weight"] if embedding else []),
        }


@pytest.mark.parametrize("name", sorted(distributions.DISTRIBUTIONS))
def test_every_distribution_asks_the_predicate_that_it_is_given(name):
    """It gets key path and leaf; its word is last, for embeddings as for vectors."""
    params = random_tree({"table": {"embedding": (16, 8)}, "kernel": (16, 8), "bias": (256,)}, 0)
    asked = {}

    def predicate(path, leaf):
        asked[masks.path_name(path)] = leaf.shape
        return masks.path_name(path) in ("table/embedding", "bias")

    share_out = distributions.get_distribution(name)
    sparsities = share_out(params, 0.5, is_sparsifiable=predicate)
    assert asked == {"table/embedding": (16, 8), "kernel": (16, 8), "bias": (256,)}
    assert sparsities["kernel"] == 0
    active = sum(
        masks.target_active(size, s)
        for size, s in ((128, sparsities["table"]["embedding"]), (256, sparsities["bias"]))
    )
    assert active == pytest.approx((128 + 256) / 2, abs=1)
    drawn = masks.random_masks(jax.random.key(0), params, sparsities)
    summary = masks.summarize(params, drawn, is_sparsifiable=predicate)
    assert summary.sparsifiable[:2] == (384, active)
    message = r"'kernel' matches no sparsifiable layer; layers: bias"
    if name == distributions.GLOBAL:
        message = r"accepted: \(\) with global_magnitude"
    with pytest.raises(ValueError, match=message):
        share_out(params, 0.5, custom=(("kernel", 0.5),), is_sparsifiable=predicate)


def test_the_structure_is_said_of_the_layers_that_the_predicate_names():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 4))}
    only = lambda path, leaf: masks.path_name(path) != "b"  # noqa: E731
    assert structure.log_exceptions("block", params, 2) == ["a", "b"]
    assert structure.log_exceptions("block", params, 2, is_sparsifiable=only) == ["a"]


def test_leaves_that_are_no_arrays_stay_dense():
    params = {"kernel": jnp.ones((2, 2)), "scale": 1.0}
    everything = lambda path, leaf: True  # noqa: E731
    for options in ({}, {"is_sparsifiable": everything}):
        sparsities = distributions.uniform(params, 0.5, **options)
        assert sparsities == {"kernel": 0.5, "scale": 0.0}
    drawn = masks.random_masks(jax.random.key(0), params, sparsities)
    assert masks.summarize(params, drawn).total == (5, 3, 0.6)


def test_random_masks_refuse_a_sparsity_of_one():
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="sparsity of a/kernel is 1.0"):
        masks.random_masks(jax.random.key(0), params, {"a": {"kernel": 1.0}})
