"""FLOPs per layer of a network, found by tracing it with shapes only.

A multiply-add counts as two FLOPs; biases, normalizations and activations are not counted. XLA's
own cost analysis is unsuitable: it drops padded borders, adds elementwise work and counts the body
of a scan once.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from sparsejax.models.chirodiff import BiGRULayer
from sparsejax.models.layers import QKVAttention
from sparsejax.types import Array, Input, LayerFlops, Params, PyTree


def _conv_flops(module: nn.Conv, inputs: Input, output: Array) -> LayerFlops:
    size = module.kernel_size
    window = math.prod((size,) if isinstance(size, int) else size)
    per_output = window * inputs[0].shape[-1] // module.feature_group_count
    return {"kernel": 2 * math.prod(output.shape) * per_output}


def _dense_flops(module: nn.Dense, inputs: Input, output: Array) -> LayerFlops:
    del module
    return {"kernel": 2 * math.prod(output.shape) * inputs[0].shape[-1]}


def _attention_flops(module: QKVAttention, inputs: Input, output: Array) -> LayerFlops:
    del module
    length = inputs[0].shape[1]
    products = 2 * math.prod(output.shape) * length
    return {"scores": products, "values": products}


def _gru_flops(module: BiGRULayer, inputs: Input, output: Array) -> LayerFlops:
    points = math.prod(output.shape[:-1])
    widths = {"ih": inputs[0].shape[-1], "hh": module.hidden}
    return {
        f"{direction}_{what}/kernel": 2 * points * width * 3 * module.hidden
        for direction in ("forward", "backward")
        for what, width in widths.items()
    }


_COUNTERS: dict[type[nn.Module], Callable[[Any, Any, Array], LayerFlops]] = {
    nn.Conv: _conv_flops,
    nn.Dense: _dense_flops,
    QKVAttention: _attention_flops,
    BiGRULayer: _gru_flops,
}


def layer_flops(
    model: nn.Module, params: Params, *inputs: Input, **collections: PyTree
) -> LayerFlops:
    """Count the FLOPs of one forward pass, by parameter.

    Args:
      model: Flax module; its convolution, dense and attention layers are counted.
      params: its parameters, arrays or `jax.ShapeDtypeStruct`.
      *inputs: its inputs, arrays or `jax.ShapeDtypeStruct`; a batch of one gives the cost of
        one example.
      **collections: what the model has besides params.

    Returns:
      `{path of the kernel: FLOPs}`; attention products under `path/scores` and
      `path/values`, which no mask touches.

    Raises:
      ValueError: a kernel belongs to a kind of layer that isn't counted.

    Examples:
      >>> model, x = nn.Dense(3), jax.ShapeDtypeStruct((1, 5), "float32")
      >>> params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
      >>> layer_flops(model, params, x)
      {'kernel': 30}
    """
    counted: LayerFlops = {}

    def record(
        next_method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        output = next_method(*args, **kwargs)
        counter = _COUNTERS.get(type(context.module))
        if counter is not None and context.method_name == "__call__":
            for name, flops in counter(context.module, args, output).items():
                path = "/".join((*context.module.path, name))
                counted[path] = counted.get(path, 0) + flops
        return output

    def forward(variables: PyTree, *inputs: Input) -> PyTree:
        with nn.intercept_methods(record):
            return model.apply(variables, *inputs)

    jax.eval_shape(forward, {"params": params} | collections, *inputs)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    unseen = [name for name in names if name.endswith("kernel") and name not in counted]
    if unseen:
        raise ValueError(f"no FLOPs are known for {', '.join(unseen)}: a layer without a counter")
    return counted
