"""Prune and regrow the published UNet's 274 M parameters: bisection against a plain sort.

    python -m benchmarks.topology [--repeats 3] [--model-channels 224]

Both do the same RigL update layer by layer and must agree on every mask, but for weights whose
score ties with the last one taken: the sort takes them all.
"""

import os
import statistics
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count, level
from sparsejax import command_line
from sparsejax.models.unet import UNet
from sparsejax.sparsity import distributions, masks, topology


def sort_rewire(param, mask, score, fraction):
    """Drop and grow one layer by sorting: the k-th value of a full sort is the threshold.

    It is exact where no two scores are equal, as here; an exact count among ties would need
    an argsort, which is slower still.
    """
    active = mask.sum()
    keep = active - jnp.floor(fraction * active).astype(int)

    def top(scores, count):
        ordered = jnp.sort(scores.reshape(-1))
        return (scores >= ordered[ordered.size - count]) & (count > 0)

    kept = top(jnp.where(mask, jnp.abs(param), -1.0), keep)
    return kept | top(jnp.where(kept, -1.0, score), active - keep)


def main():
    """Time both, interleaved, and print a table."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.topology")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--model-channels", type=count, default=224, help="224: the published UNet")
    parser.add_argument("--sparsity", type=level, default=0.5)
    arguments = parser.parse_args()

    x, t = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"), jax.ShapeDtypeStruct((1,), "int32")
    unet = UNet(model_channels=arguments.model_channels)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, t)["params"]
    sparsities = distributions.erdos_renyi_kernel(shapes, arguments.sparsity)
    mask_tree = masks.random_masks(jax.random.key(0), shapes, sparsities)
    normal = jax.jit(jax.random.normal, static_argnums=1)
    layers = {}
    for i, mask in enumerate(jax.tree.leaves(mask_tree)):
        if mask.ndim:
            param_key, score_key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
            score = jnp.abs(normal(score_key, mask.shape))
            layers[i] = (normal(param_key, mask.shape) * mask, score, mask)

    rewire = {"bisection": jax.jit(topology.rewire), "sort": jax.jit(sort_rewire)}
    weights = sum(mask.size for _, _, mask in layers.values())
    differing = 0
    for param, score, mask in layers.values():
        masks_of = [f(param, mask, score, jnp.float32(0.3)) for f in rewire.values()]
        assert masks_of[0].sum() == mask.sum(), "bisection lost or gained weights"
        differing += int((masks_of[0] != masks_of[1]).sum())
    assert differing < 1e-5 * weights, f"{differing} weights differ"

    seconds = {name: [] for name in rewire}
    for _ in range(arguments.repeats):
        for name, function in rewire.items():
            began = time.perf_counter()
            for param, score, mask in layers.values():
                function(param, mask, score, jnp.float32(0.3)).block_until_ready()
            seconds[name].append(time.perf_counter() - began)

    table = Table(
        title=f"RigL update of {weights / 1e6:.0f} M weights in {len(layers)} layers, "
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}; {differing} ties"
    )
    for heading in ("", "median s", "min s", "max s"):
        table.add_column(heading)
    for name, values in seconds.items():
        table.add_row(name, *(f"{f(values):.2f}" for f in (statistics.median, min, max)))
    ratios = [s / b for s, b in zip(seconds["sort"], seconds["bisection"], strict=True)]
    table.add_row("sort / bisection", *(f"{f(ratios):.1f}" for f in (statistics.median, min, max)))
    Console(width=100).print(table)


if __name__ == "__main__":
    command_line.run(main)
