"""Provisional trees, until the structures have their own."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.blocks import block_of
from sparsejax.sparsity.channels import members_by_path, number_of_units, spread, unit_masks
from sparsejax.sparsity.masks import path_name
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.sparsity.masks import target_active


def _mapn(f, tree, *rest):
    return jax.tree_util.tree_map_with_path(lambda p, *xs: f(path_name(p), *xs), tree, *rest)


def channel_trees(groups, params, sparsities):
    keep = {n: target_active(number_of_units(g), sparsities[n]) for n, g in groups.items()}
    members = members_by_path(groups)
    shapes = {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def indices(masks):
        return {
            n: jnp.nonzero(u, size=keep[n])[0].astype(jnp.int32)
            for n, u in unit_masks(groups, masks).items()
        }

    def axes(name, ind):
        """axis -> indices of the axis that stay."""
        found = {}
        for axis in {m.axis for _, m in members[name]}:
            mine = [(n, m) for n, m in members[name] if m.axis == axis]
            here, size = jnp.ones(shapes[name][axis], bool), 0
            for n, m in mine:
                active = (
                    jnp.zeros(number_of_units(groups[n]) + 1, bool)
                    .at[ind[n]]
                    .set(True)
                    .at[-1]
                    .set(True)
                )
                here &= active[m.units]
                size += int(np.sum(m.units >= 0)) // number_of_units(groups[n]) * keep[n]
            found[axis] = jnp.nonzero(here, size=size)[0]
        return found

    def shrink(tree, ind):
        def f(name, x):
            if name in members:
                for axis, i in axes(name, ind).items():
                    x = jnp.take(x, i, axis=axis)
            return x

        return _mapn(f, tree)

    def expand(compact, ind):
        def f(name, x):
            if name in members:
                for axis, i in axes(name, ind).items():
                    shape = list(x.shape)
                    shape[axis] = shapes[name][axis]
                    x = jnp.zeros(shape, x.dtype).at[(slice(None),) * axis + (i,)].set(x)
            return x

        return _mapn(f, compact)

    return CompactTrees(
        indices, None, shrink, expand, None, lambda m: jax.tree.map(lambda _: jnp.asarray(True), m)
    )
