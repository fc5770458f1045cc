import functools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.diffusion import noise_schedules, process, samplers
from sparsejax.models import chirodiff
from sparsejax.models.chirodiff import BiGRUDenoiser, TransformerDenoiser
from sparsejax.models.convert import chirodiff_from_torch
from sparsejax.models.flops import layer_flops
from sparsejax.sparsity.masks import is_sparsifiable, path_name

SIZE = {"steps": 35, "layers": 2, "hidden": 16, "pe_dim": 8, "time_embedding": "randomfourier"}
CASES = {
    "birnn_abs": BiGRUDenoiser(**SIZE, representation="threeseqabs"),
    "birnn_del": BiGRUDenoiser(**SIZE, representation="threeseqdel"),
    "transformer_del": TransformerDenoiser(**SIZE, representation="threeseqdel"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, golden):
    """A model, its reference numbers, and its variables from the reference's weights."""
    numbers = golden(f"d_chirodiff_{request.param}.npz")
    weights = {k.removeprefix("sd/"): v for k, v in numbers.items() if k.startswith("sd/")}
    fixed = {k: v for k, v in numbers.items() if k.endswith("proj_W")}
    return CASES[request.param], numbers, chirodiff_from_torch(weights | fixed)


def test_forward_pass_equals_the_reference(case):
    model, numbers, variables = case
    eps = jax.jit(model.apply)(variables, numbers["noisy"], numbers["t_index"], numbers["lens"])
    np.testing.assert_allclose(eps, numbers["out"], atol=1e-5)


def test_loss_and_gradients_equal_the_reference(case):
    model, numbers, variables = case
    t, lengths = numbers["t_index"], numbers["lens"]
    schedule = noise_schedules.chirodiff_schedule("linear", 35)
    noisy = process.q_sample(schedule, numbers["points"], t, numbers["noise"])
    np.testing.assert_allclose(noisy, numbers["noisy"], atol=1e-6)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        eps = model.apply(variables | {"params": params}, noisy, t, lengths)
        return jnp.mean(process.sequence_eps_loss(eps, numbers["noise"], lengths))

    value, gradients = loss(variables["params"])
    np.testing.assert_allclose(value, numbers["loss"], rtol=1e-6)
    named = {k.removeprefix("grad/"): v for k, v in numbers.items() if k.startswith("grad/")}
    expected = chirodiff_from_torch(named)["params"]
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        limit = max(1e-3 * np.abs(theirs).max(), 1e-6)
        np.testing.assert_allclose(ours, theirs, atol=limit)


@pytest.mark.parametrize("sampler", ["ddpm_w1", "ddpm_w0.75", "ddim_w0", "ddim_w0.75"])
def test_trajectories_equal_the_reference(case, sampler):
    model, numbers, variables = case
    schedule = noise_schedules.chirodiff_schedule("linear", 35)
    name, weight = sampler.split("_w")
    noises = jnp.asarray(numbers[f"{sampler}/noise"])
    sample = {
        "ddpm": functools.partial(samplers.ddpm_sample, noise_weight=float(weight)),
        "ddim": functools.partial(
            samplers.ddim_sample, steps=35, eta=float(weight), last_alpha=1.0
        ),
    }[name]
    lengths = numbers["lens"]

    @jax.jit
    def run(start):
        denoise = lambda x, t: model.apply(variables, x, t, lengths)  # noqa: E731
        return sample(denoise, schedule, start, lambda i: noises[i])

    end = numbers[f"{sampler}/traj"][-1]
    np.testing.assert_allclose(
        run(numbers[f"{sampler}/x_T"]), end, atol=1e-4 * np.abs(end).max(), rtol=0
    )


def test_time_embeddings_equal_the_reference(golden):
    numbers = golden("e_timestep_embedding_chirodiff.npz")
    fourier = chirodiff.fourier_features(numbers["rff/W"], numbers["rff/t_over_T"])
    np.testing.assert_allclose(fourier, numbers["rff/emb"], atol=1e-5)
    for steps, features in ((35, 8), (1000, 2)):
        ours = chirodiff.sinusoidal_features(features, steps, jnp.arange(steps))
        np.testing.assert_allclose(ours, numbers[f"sin/T{steps}_d{features}"], atol=1e-4)


def shapes(model, length=4):
    noisy = jax.ShapeDtypeStruct((1, length, 3), jnp.float32)
    scalar = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), noisy, scalar, scalar), (
        noisy,
        scalar,
        scalar,
    )


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("birnn_L3_H96_pe8_configyml", BiGRUDenoiser()),
        ("birnn_L2_H48_pe8", BiGRUDenoiser(layers=2, hidden=48)),
        ("birnn_L3_H128_pe8", BiGRUDenoiser(hidden=128)),
        ("transformer_L3_D96_pe8", TransformerDenoiser()),
        ("transformer_L4_D64_pe2_codedefault", TransformerDenoiser(layers=4, hidden=64, pe_dim=2)),
    ],
)
def test_layers_are_those_of_the_reference(golden, name, model):
    """Every tensor of the reference, converted, has its place here, and nothing else has one."""
    spec = golden(f"layers/chirodiff_{name}_layers.json")
    tensors = {entry["name"]: np.zeros(entry["shape"], np.int8) for entry in spec["params"]}
    converted = jax.tree.map(np.shape, chirodiff_from_torch(tensors)["params"])
    variables, _ = shapes(model)
    assert jax.tree.map(np.shape, variables["params"]) == converted
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == spec["total"]


def test_costs_are_the_references_for_each_point(golden):
    """Two FLOPs for each weight of a matrix and valid point: 413,304 multiply-adds."""
    spec = golden("layers/chirodiff_birnn_L3_H96_pe8_configyml_layers.json")
    for length in (1, 50):
        variables, inputs = shapes(BiGRUDenoiser(), length)
        constants = {"constants": variables["constants"]}
        counted = layer_flops(BiGRUDenoiser(), variables["params"], *inputs, **constants)
        per_point = sum(counted.values()) / length
        assert per_point == 2 * spec["macs_per_timestep"]["per_point"] == 2 * 413_304


def test_every_matrix_and_nothing_else_is_sparsifiable():
    for model in (BiGRUDenoiser(), TransformerDenoiser()):
        variables, _ = shapes(model)
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
            assert is_sparsifiable(path, leaf) == path_name(path).endswith("kernel")
    gru = shapes(BiGRUDenoiser())[0]["params"]
    kernels = [k for k, _ in jax.tree_util.tree_flatten_with_path(gru)[0] if "kernel" in str(k)]
    assert len(kernels) == 3 * 2 * 2 + 2


@pytest.fixture(scope="module")
def recurrence():
    """The recurrence as PyTorch's manual writes it, one sequence and direction, in float64."""

    def one(inputs, kernel, bias):
        state, states = np.zeros(kernel.shape[0]), []
        for now in inputs:
            i_r, i_z, i_n = np.split(now, 3)
            h_r, h_z, h_n = np.split(state @ kernel, 3)
            r, z = 1 / (1 + np.exp(-i_r - h_r)), 1 / (1 + np.exp(-i_z - h_z))
            state = (1 - z) * np.tanh(i_n + r * (h_n + bias)) + z * state
            states.append(state)
        return np.array(states)

    return one


def test_recurrence_and_its_derivative(recurrence):
    """Against a loop in numpy, and central differences of that loop."""
    rng = np.random.default_rng(0)
    length, hidden, lengths = 5, 3, [5, 3]
    inputs = rng.normal(size=(length, 2, 2, 3 * hidden))
    kernel, bias = rng.normal(size=(2, hidden, 3 * hidden)), rng.normal(size=(2, 1, hidden))
    forward = np.arange(length)[:, None] < lengths
    valid = np.stack([forward, forward[::-1]], 1)[..., None]
    weights = rng.normal(size=(length, 2, 2, hidden)) * valid

    def expected(inputs, kernel, bias):
        states = np.zeros((length, 2, 2, hidden))
        for direction in range(2):
            for i in range(2):
                where = np.flatnonzero(valid[:, direction, i, 0])
                states[where, direction, i] = recurrence(
                    inputs[where, direction, i], kernel[direction], bias[direction, 0]
                )
        return states

    states = chirodiff.recur(*(jnp.float32(x) for x in (inputs, kernel, bias)), valid)
    np.testing.assert_allclose(states, expected(inputs, kernel, bias), atol=1e-6)

    def loss(*arguments):
        return jnp.sum(chirodiff.recur(*arguments, valid) * weights)

    arguments = [inputs, kernel, bias]
    gradients = jax.grad(loss, (0, 1, 2))(*(jnp.float32(x) for x in arguments))
    for index, gradient in enumerate(gradients):
        for _ in range(12):
            place = tuple(rng.integers(n) for n in gradient.shape)
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in arguments]
                moved[index][place] += sign * 1e-5
                ends.append(np.sum(expected(*moved) * weights))
            np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def jitted():
    models = {
        "birnn": BiGRUDenoiser(steps=10, layers=2, hidden=8, representation="threeseqabs"),
        "transformer": TransformerDenoiser(steps=10, layers=2, hidden=8),
    }
    start = jnp.zeros((1, 6, 3)), jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32)
    key = jax.random.key(1)
    variables = {name: jax.jit(model.init)(key, *start) for name, model in models.items()}
    return {
        name: jax.jit(functools.partial(model.apply, variables[name]))
        for name, model in models.items()
    }


@pytest.mark.parametrize("name", ["birnn", "transformer"])
@hypothesis.given(length=st.integers(1, 6), fill=st.sampled_from([0.0, 1e4]))
@hypothesis.settings(max_examples=8, deadline=None)
def test_what_lies_behind_the_end_changes_nothing(jitted, name, length, fill):
    rng = np.random.default_rng(length)
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    t, lengths, times = np.array([3, 9]), np.array([length, 6]), np.tile(np.arange(6) / 6, (2, 1))
    other = x.copy()
    other[0, length:] = fill
    eps, same = (jitted[name](y, t, lengths, times) for y in (x, other))
    np.testing.assert_array_equal(eps[0, :length], same[0, :length])
    np.testing.assert_array_equal(eps[1], same[1])


def test_both_directions_reach_every_point(jitted):
    x = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
    t, lengths = np.array([3]), np.array([6])
    for moved in (0, 5):
        other = x.copy()
        other[0, moved] += 1
        eps, changed = (jitted["birnn"](y, t, lengths) for y in (x, other))
        assert (np.abs(eps - changed).max(-1) > 1e-7).all()


def test_the_fourier_matrix_is_no_parameter():
    variables, _ = shapes(TransformerDenoiser())
    assert set(variables["constants"]) == {"pe_proj_W", "seq_proj_W"}
    assert "proj_W" not in json.dumps(jax.tree.map(str, variables["params"]))
    assert "constants" not in shapes(BiGRUDenoiser(time_embedding="sinusoidal"))[0]
