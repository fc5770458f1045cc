import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import distributions, masks
from tests.sparsity.strategies import TREE_SHAPES, random_tree


def shapes_to_params(shapes):
    return {name: jax.ShapeDtypeStruct(tuple(shape), "float32") for name, shape in shapes.items()}


def erk_vectors(golden):
    vectors = [v for v in golden("sparsity.json")["vectors"] if v["name"].startswith("erk_")]
    return [v for v in vectors if v["inputs"].get("power_scale", 1.0) == 1.0]


def test_erdos_renyi_equals_the_reference(golden):
    vectors = erk_vectors(golden)
    assert len(vectors) == 5
    for vector in vectors:
        inputs = vector["inputs"]
        with_kernel = inputs.get("include_kernel", True)
        solve = distributions.erdos_renyi_kernel if with_kernel else distributions.erdos_renyi
        custom = tuple((f"^{name}$", s) for name, s in inputs.get("custom", {}).items())
        ours = solve(shapes_to_params(inputs["shapes"]), inputs["sparsity"], custom=custom)
        expected = vector["expected"]
        assert ours == pytest.approx(expected, abs=1e-6), vector["name"]
        dense = {name for name, s in expected.items() if s == 0}
        assert {name for name, s in ours.items() if s == 0} == dense


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(distributions.DISTRIBUTIONS)),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    st.floats(0, 0.999),
)
def test_sparsities_meet_the_budget(name, shapes, level):
    """Active weights add up to sum(n - floor(S n)), before each layer is rounded."""
    params = {f"layer{i}": {"kernel": np.zeros(shape)} for i, shape in enumerate(shapes)}
    ours = distributions.get_distribution(name)(params, level)
    sizes = np.array([np.prod(shape) for shape in shapes])
    sparsities = np.array([ours[f"layer{i}"]["kernel"] for i in range(len(shapes))])
    assert (sparsities >= 0).all()
    assert (sparsities < 1).all()
    budget = sum(n - int(level * n) for n in sizes)
    density_budget = ((1 - sparsities) * sizes).sum()
    if name in ("uniform", "global_magnitude"):
        assert density_budget == pytest.approx((1 - level) * sizes.sum())
    else:
        assert density_budget == pytest.approx(budget)


def test_uniform_gives_every_sparsifiable_layer_the_level():
    params = random_tree(TREE_SHAPES[0], 0)
    ours = distributions.uniform(params, 0.3)
    assert ours == {"conv": {"kernel": 0.3, "bias": 0.0}, "out": {"kernel": 0.3}}


def test_first_matching_custom_pattern_wins():
    params = random_tree(TREE_SHAPES[0], 0)
    ours = distributions.uniform(params, 0.3, custom=(("conv/", 0.0), ("kernel", 0.9)))
    assert ours["conv"]["kernel"] == 0.0
    assert ours["out"]["kernel"] == 0.9


def test_custom_layers_leave_the_budget_of_the_others():
    params = {"a": np.zeros((64, 64)), "b": np.zeros((64, 64)), "c": np.zeros((64, 64))}
    ours = distributions.erdos_renyi_kernel(params, 0.5, custom=(("a", 0.9),))
    assert ours == pytest.approx({"a": 0.9, "b": 0.5, "c": 0.5})


def test_the_budget_is_that_of_the_layers_no_pattern_takes():
    """2,048 weights at S = 0.9 keep 205, whatever the layer beside them takes."""
    params = {"small": np.zeros((2, 4)), "large": np.zeros((32, 64))}
    ours = distributions.erdos_renyi_kernel(params, 0.9, custom=(("small", 0.5),))
    assert ours == {"small": 0.5, "large": pytest.approx(1 - 205 / 2048)}


@pytest.mark.parametrize("level", [1.0, -0.1, 1.5])
def test_sparsity_outside_the_range_is_refused(level):
    with pytest.raises(ValueError, match=r"accepted: \[0, 1\)"):
        distributions.uniform({"kernel": np.zeros((2, 2))}, level)


def test_pattern_without_a_match_is_refused_by_name():
    params = {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}
    with pytest.raises(ValueError, match="'bias' matches no sparsifiable layer; layers: kernel"):
        distributions.uniform(params, 0.5, custom=(("bias", 0.5),))
    with pytest.raises(ValueError, match="is not a regular expression"):
        distributions.uniform(params, 0.5, custom=(("(", 0.5),))


def test_custom_that_is_no_list_of_pairs_is_refused():
    params = {"kernel": np.zeros((2, 2))}
    for custom in ({"kernel": 0.5}, ("kernel", 0.5), (("kernel",),)):
        with pytest.raises(ValueError, match="accepted: pairs"):
            distributions.uniform(params, 0.5, custom=custom)


@pytest.mark.parametrize("name", sorted(distributions.DISTRIBUTIONS))
def test_a_level_of_zero_leaves_every_layer_dense(name):
    """Exactly 0.0: rounding must not leave a layer a full-shape mask."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        params = {str(i): np.zeros(rng.integers(1, 40, size=2)) for i in range(4)}
        ours = distributions.get_distribution(name)(params, 0.0)
        assert set(ours.values()) == {0.0}


def test_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="accepted: uniform, erdos_renyi, erdos_renyi_kernel"):
        distributions.get_distribution("gaussian")


def test_shapes_alone_suffice():
    params = jax.eval_shape(lambda: random_tree(TREE_SHAPES[1], 0))
    ours = distributions.erdos_renyi_kernel(params, 0.9)
    assert jax.tree.structure(ours) == jax.tree.structure(params)
    assert all(isinstance(s, float) for s in jax.tree.leaves(ours))
    masks.random_masks(jax.random.key(0), params, ours)
