"""Prune and regrow the published UNet's 274 M parameters: bisection against a plain sort.

    python benchmarks/topology.py [--repeats 3]

Both do the same RigL update layer by layer and must agree on every mask.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from sparsejax.models.unet import UNet
from sparsejax.sparsity import distributions, masks, topology


def sort_rewire(param, mask, score, fraction):
    """Drop and grow one layer by sorting, as it is commonly written."""
    active = mask.sum()
    keep = active - jnp.floor(fraction * active).astype(int)

    def top(scores, count):
        order = jnp.argsort(-scores.reshape(-1), stable=True)
        ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
        return (ranks < count).reshape(scores.shape)

    kept = top(jnp.where(mask, jnp.abs(param), -1.0), keep)
    return kept | top(jnp.where(kept, -1.0, score), active - keep)


def main():
    """Time both, interleaved, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()

    x, t = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"), jax.ShapeDtypeStruct((1,), "int32")
    shapes = jax.eval_shape(UNet().init, jax.random.key(0), x, t)["params"]
    sparsities = distributions.erdos_renyi_kernel(shapes, arguments.sparsity)
    mask_tree = masks.random_masks(jax.random.key(0), shapes, sparsities)
    normal = jax.jit(jax.random.normal, static_argnums=1)
    layers = [
        (
            path,
            normal(jax.random.fold_in(jax.random.key(1), i), leaf.shape) * mask,
            mask,
            jnp.abs(normal(jax.random.fold_in(jax.random.key(2), i), leaf.shape)),
        )
        for i, ((path, leaf), mask) in enumerate(
            zip(
                jax.tree_util.tree_flatten_with_path(shapes)[0],
                jax.tree.leaves(mask_tree),
                strict=True,
            )
        )
        if mask.ndim
    ]

    rewire = {"bisection": jax.jit(topology.rewire), "sort": jax.jit(sort_rewire)}
    for _, param, mask, score in layers:
        equal = (
            rewire["bisection"](param, mask, score, 0.3)
            == rewire["sort"](param, mask, score, jnp.float32(0.3))
        ).all()
        assert equal, "bisection and sort disagree"

    seconds = {name: [] for name in rewire}
    for _ in range(arguments.repeats):
        for name, function in rewire.items():
            began = time.perf_counter()
            for _, param, mask, score in layers:
                function(param, mask, score, jnp.float32(0.3)).block_until_ready()
            seconds[name].append(time.perf_counter() - began)

    weights = sum(mask.size for _, _, mask, _ in layers)
    table = Table(
        title=f"RigL update of {weights / 1e6:.0f} M weights in {len(layers)} layers, "
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, equal masks"
    )
    for heading in ("", "median s", "min s", "max s"):
        table.add_column(heading)
    for name, values in seconds.items():
        table.add_row(name, *(f"{f(values):.2f}" for f in (statistics.median, min, max)))
    ratios = [s / b for s, b in zip(seconds["sort"], seconds["bisection"], strict=True)]
    table.add_row("sort / bisection", *(f"{f(ratios):.1f}" for f in (statistics.median, min, max)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
