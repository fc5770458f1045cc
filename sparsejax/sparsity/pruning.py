"""Dense-to-sparse baselines: networks that begin dense and lose weights while they train.

`gradual` prunes a little at every topology update (Zhu and Gupta 2017), `one_shot` all at once,
after which the rest of the run fine-tunes. Their steps cost what the density of the moment costs,
so that training sparse from the start can be judged against them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.sparsity import masks as masks_lib
from sparsejax.sparsity.method import Init, Method
from sparsejax.sparsity.structure import Structure
from sparsejax.types import (
    Array,
    ArrayLike,
    Gradients,
    Masks,
    Params,
    PRNGKey,
    Sparsities,
)

_ROUNDING = 1e-6  # of a sparsity that was subtracted from 1 twice


def gradual(structure: Structure) -> Method:
    """Return gradual magnitude pruning: Zhu and Gupta (2017), equation 1, from sparsity 0.

    The sparsity of a layer at an update is `s (1 - (1 - progress)^3)`: fast at first, slow as fewer
    weights are left, and `s` at the last update.
    """
    return _pruning("gradual", structure, lambda progress: 1 - (1 - progress) ** 3)


def one_shot(structure: Structure) -> Method:
    """Return magnitude pruning in one update, the first: what follows is fine-tuning."""
    return _pruning("one_shot", structure, jnp.ones_like)


def _pruning(name: str, structure: Structure, share: Callable[[Array], Array]) -> Method:
    """Return a Method that removes the units of smallest magnitude, up to a share of them all."""

    def update(
        key: PRNGKey,
        params: Params,
        masks: Masks,
        gradients: Gradients,
        fraction: ArrayLike,
        *,
        density: Sparsities | None = None,
        progress: ArrayLike | None = None,
    ) -> tuple[Params, Masks]:
        del gradients, fraction
        if density is None:
            raise ValueError(f"density of {name} is None; accepted: floats, those of the end")
        part = share(jnp.float32(1 if progress is None else progress))
        keep = functools.partial(_counts, part)
        scores, units = structure.pool(params), structure.unit_masks(masks)
        counts = jax.tree.map(keep, scores, density)
        after = structure.spread(structure.keep(scores, units, counts), params)
        return structure.revive(key, params, masks, after), after

    return Method(name, update, _dense_masks(structure), uses_fraction=False, changes_density=True)


def _counts(part: Array, score: Array, density: float) -> Array:
    """Return how many units of a layer stay, when `part` of those that go in the end are gone."""
    sparsity = min(1 - density + _ROUNDING / max(score.size, 1), 1.0)
    gone = score.size - masks_lib.target_active(score.size, sparsity)
    return score.size - jnp.floor(part * gone).astype(jnp.int32)


def _dense_masks(structure: Structure) -> Init:
    """Return an `init` whose masks are True everywhere, of full shape where weights may go."""

    def init(key: PRNGKey, params: Params, sparsities: Sparsities) -> Masks:
        del key
        scores = jax.eval_shape(structure.pool, params)
        units = jax.tree.map(
            lambda score, s: jnp.ones(score.shape, bool) if s else jnp.asarray(True),
            scores,
            sparsities,
        )
        return masks_lib.place_like(structure.spread(units, params), params)

    return init
