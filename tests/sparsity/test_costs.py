import jax
import jax.numpy as jnp
import pytest

from sparsejax.sparsity import costs, masks


def test_forward_flops_scale_with_density_and_attention_counts_in_full():
    mask = {
        "conv": {"kernel": jnp.arange(8).reshape(2, 4) < 2, "bias": jnp.asarray(True)},
        "out": {"kernel": jnp.asarray(True)},
    }
    flops = {"conv/kernel": 1000.0, "out/kernel": 10.0, "attention/scores": 1.0}
    assert costs.forward_flops(flops, mask) == 250 + 10 + 1


def test_training_cost_of_each_method_is_the_papers():
    f_s, f_d = 2.0, 10.0
    assert costs.training_flops("dense", f_s, f_d, 100) == 30
    assert costs.training_flops("static", f_s, f_d, 100) == 6
    assert costs.training_flops("magran", f_s, f_d, 100) == 6
    rigl = (3 * f_s * 100 + 2 * f_s + f_d) / 101
    assert costs.training_flops("rigl", f_s, f_d, 100) == pytest.approx(rigl)
    with pytest.raises(ValueError, match="snip"):
        costs.training_flops("snip", f_s, f_d, 100)


def test_cost_of_a_run_counts_its_real_updates():
    """RigL's formula, over dT steps and one update: the update comes on top of a full step here."""
    assert costs.run_flops("rigl", 2.0, 10.0, steps=300, updates=3) == 3 * 2 * 300 + 3 * (4 + 10)
    assert costs.run_flops("magran", 2.0, 10.0, steps=300, updates=3) == 3 * 2 * 300
    assert costs.run_flops("static", 2.0, 10.0, steps=300, updates=0) == 3 * 2 * 300
    assert costs.run_flops("dense", 2.0, 10.0, steps=300, updates=0) == 3 * 10 * 300


def test_active_parameters_include_dense_leaves():
    params = {"kernel": jax.ShapeDtypeStruct((2, 4), "float32"), "bias": jnp.ones(4)}
    mask = masks.random_masks(jax.random.key(0), params, {"kernel": 0.5, "bias": 0.0})
    assert costs.active_parameters(params, mask) == 8
