import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import pytest

from sparsejax.models.flops import layer_flops
from sparsejax.models.unet import UNet

TINY = UNet(3, 3, 32, 1, (2,), (1, 2), 16)


def shapes(model, size):
    inputs = (
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"], inputs


def matmul_flops(jaxpr):
    """Count the products of a jaxpr, without a look at the modules."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += matmul_flops(inner)
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            depth = math.prod(lhs[i] for i in contracting)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "conv_general_dilated":
            *window, depth, _ = equation.invars[1].aval.shape
            total += 2 * math.prod(window) * depth * math.prod(equation.outvars[0].aval.shape)
    return total


def test_full_size_equals_the_reference_layer_by_layer():
    """101.2 G multiply-adds at 64 x 64, as counted on the reference implementation."""
    params, inputs = shapes(UNet(), 64)
    counted = layer_flops(UNet(), params, *inputs)
    assert sum(counted.values()) == 2 * 101_200_031_744
    attention = [v for k, v in counted.items() if k.endswith(("/scores", "/values"))]
    assert sum(attention) == 2 * 5_182_062_592
    assert len(counted) == 123 + len(attention)


def test_count_equals_a_walk_over_the_jaxpr():
    params, inputs = shapes(TINY, 8)
    jaxpr = jax.make_jaxpr(lambda p, *args: TINY.apply({"params": p}, *args))(params, *inputs)
    counted = layer_flops(TINY, params, *inputs)
    assert sum(counted.values()) == matmul_flops(jaxpr.jaxpr) > 0


def test_a_second_count_equals_the_first():
    params, inputs = shapes(TINY, 8)
    first = layer_flops(TINY, params, *inputs)
    assert layer_flops(TINY, params, *inputs) == first


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(5)
            return layer(layer(x))

    x = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    params = jax.eval_shape(Twice().init, jax.random.key(0), x)["params"]
    assert layer_flops(Twice(), params, x) == {"Dense_0/kernel": 2 * 2 * 3 * 5 * 5}


def test_a_layer_without_a_counter_is_refused():
    model = nn.ConvTranspose(4, (3, 3))
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match="no FLOPs are known for kernel"):
        layer_flops(model, params, x)


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_and_strided_convolutions(groups):
    model = nn.Conv(8, (3, 3), strides=2, feature_group_count=groups)
    x = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert layer_flops(model, params, x) == {"kernel": 2 * 2 * 8 * 8 * 8 * 9 * 4 // groups}
