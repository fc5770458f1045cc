"""Sparsity of each layer, given an overall sparsity."""

import logging
import math
import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import jax
import numpy as np

from sparsejax.sparsity.masks import is_sparsifiable, path_name, target_active
from sparsejax.types import IsSparsifiable, Params, Shape, Sparsities

logger = logging.getLogger(__name__)

Custom: TypeAlias = Sequence[tuple[str, float]]  # ordered pairs (pattern, sparsity)
Distribution: TypeAlias = Callable[..., Sparsities]


def uniform(
    params: Params,
    sparsity: float,
    *,
    custom: Custom = (),
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> Sparsities:
    """Give every sparsifiable layer the same sparsity.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsity: fraction of zeros in [0, 1).
      custom: ordered pairs `(pattern, sparsity)`; a layer whose path (`a/b/kernel`) contains
        the regular expression gets that sparsity and no longer counts towards the overall one;
        the first match wins.
      is_sparsifiable: predicate of key path and leaf that selects the leaves to sparsify;
        `masks.path_name` converts a key path to a string. Other leaves stay dense.

    Returns:
      Pytree of Python floats with the structure of `params`; 0.0 = dense.

    Raises:
      ValueError: a sparsity outside [0, 1), a pattern that is not a regular expression, or a
        pattern that matches no sparsifiable layer.

    Examples:
      >>> params = {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}
      >>> uniform(params, 0.5)
      {'bias': 0.0, 'kernel': 0.5}
    """
    solve = lambda shapes: [sparsity] * len(shapes)  # noqa: E731
    return _distribute(params, sparsity, custom, is_sparsifiable, solve)


def erdos_renyi(
    params: Params,
    sparsity: float,
    *,
    custom: Custom = (),
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> Sparsities:
    """Distribute the active weights with density proportional to (n_in + n_out)/(n_in n_out).

    All dimensions before the last two are treated as one, so each layer is a matrix of its last
    two dimensions (ER; Mocanu et al. 2018). Kernels are expected to be channels last, with the
    window first, as in Flax.

    Args:
      params: as for `uniform`.
      sparsity: as for `uniform`.
      custom: as for `uniform`.
      is_sparsifiable: as for `uniform`.

    Returns:
      Pytree of Python floats with the structure of `params`; 0.0 = dense.

    Raises:
      ValueError: as `uniform`.
    """
    solve = lambda shapes: _share_out(shapes, sparsity, _er_weight)  # noqa: E731
    return _distribute(params, sparsity, custom, is_sparsifiable, solve)


def erdos_renyi_kernel(
    params: Params,
    sparsity: float,
    *,
    custom: Custom = (),
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> Sparsities:
    """Distribute the active weights with density proportional to sum(dims)/prod(dims).

    ERK (Evci et al. 2020, section 3): layers with few weights for their fan stay denser. A
    layer whose density would exceed one is made dense, largest factor first, and the remaining
    budget is distributed again.

    Args:
      params: as for `uniform`.
      sparsity: as for `uniform`.
      custom: as for `uniform`.
      is_sparsifiable: as for `uniform`.

    Returns:
      Pytree of Python floats with the structure of `params`; 0.0 = dense.

    Raises:
      ValueError: as `uniform`.

    Examples:
      >>> params = {"small": np.zeros((2, 4)), "large": np.zeros((32, 64))}
      >>> {name: round(s, 3) for name, s in erdos_renyi_kernel(params, 0.9).items()}
      {'large': 0.903, 'small': 0.0}
    """
    solve = lambda shapes: _share_out(shapes, sparsity, _erk_weight)  # noqa: E731
    return _distribute(params, sparsity, custom, is_sparsifiable, solve)


def global_magnitude(
    params: Params,
    sparsity: float,
    *,
    custom: Custom = (),
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> Sparsities:
    """Return the sparsities of `uniform`, for pruning that ranks weights of all layers together.

    Only the total is kept to: how sparse a layer becomes follows from the magnitudes
    (`topology.keep_overall`; "global magnitude pruning" in Blalock et al. 2020). So it is for
    methods that prune a trained network.

    Args:
      params: as for `uniform`.
      sparsity: as for `uniform`.
      custom: empty.
      is_sparsifiable: as for `uniform`.

    Returns:
      Pytree of Python floats with the structure of `params`; 0.0 = dense.

    Raises:
      ValueError: as `uniform`, or `custom` isn't empty.
    """
    if custom:
        raise ValueError(f"custom is {custom!r}; accepted: () with global_magnitude")
    return uniform(params, sparsity, is_sparsifiable=is_sparsifiable)


GLOBAL = "global_magnitude"  # the one that has no sparsity for each layer
DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform": uniform,
    "erdos_renyi": erdos_renyi,
    "erdos_renyi_kernel": erdos_renyi_kernel,
    GLOBAL: global_magnitude,
}


def get_distribution(name: str) -> Distribution:
    """Return the distribution function of this name.

    Raises:
      ValueError: no distribution has this name.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {name!r}; accepted: {', '.join(DISTRIBUTIONS)}")
    return DISTRIBUTIONS[name]


def _er_weight(shape: Shape) -> float:
    return sum(shape[-2:]) / math.prod(shape[-2:])


def _erk_weight(shape: Shape) -> float:
    return sum(shape) / math.prod(shape)


def _distribute(
    params: Params,
    sparsity: float,
    custom: Custom,
    is_sparsifiable: IsSparsifiable,
    solve: Callable[[list[Shape]], list[float]],
) -> Sparsities:
    """Solve for the layers that no custom pair takes; 0.0 for leaves that stay dense."""
    _check_sparsity(sparsity, "sparsity")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [path_name(path) for path, _ in paths_and_leaves]
    # A 0-d mask means dense, so a scalar can't be sparse, whatever the predicate returns.
    shapes = {
        name: np.shape(leaf)
        for name, (path, leaf) in zip(names, paths_and_leaves, strict=True)
        if is_sparsifiable(path, leaf) and np.ndim(leaf) and math.prod(np.shape(leaf))
    }
    taken = _match_custom(shapes, custom)
    free = [name for name in shapes if name not in taken]
    solved = dict(zip(free, solve([shapes[name] for name in free]), strict=True))
    result = dict.fromkeys(names, 0.0) | taken | solved
    return jax.tree.unflatten(treedef, [float(result[name]) for name in names])


def _match_custom(names: Iterable[str], custom: Custom) -> dict[str, float]:
    taken: dict[str, float] = {}
    for pair in custom:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if isinstance(custom, dict) or not is_pair:
            raise ValueError(f"custom is {custom!r}; accepted: pairs (pattern, sparsity)")
        pattern, sparsity = pair
        what = f"custom pattern {pattern!r}"
        _check_sparsity(sparsity, f"sparsity of {what}")
        try:
            matches = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"{what} is not a regular expression: {error}") from error
        if not matches:
            raise ValueError(f"{what} matches no sparsifiable layer; layers: {', '.join(names)}")
        for name in matches:
            if name not in taken:
                taken[name] = sparsity
                logger.info("custom sparsity: %s takes %s from %r", name, sparsity, pattern)
    return taken


def _check_sparsity(sparsity: float, what: str) -> None:
    if not (isinstance(sparsity, numbers.Real) and 0.0 <= sparsity < 1.0):
        raise ValueError(f"{what} is {sparsity!r}; accepted: [0, 1)")


def _share_out(
    shapes: Sequence[Shape], sparsity: float, weight: Callable[[Shape], float]
) -> list[float]:
    """Return sparsities `1 - epsilon * weight(shape)` that meet the total budget."""
    sizes = np.array([math.prod(shape) for shape in shapes], float)
    weights = np.array([weight(shape) for shape in shapes], float)
    budget = sum(target_active(int(size), sparsity) for size in sizes)
    dense = np.zeros(len(shapes), bool)
    while not dense.all():
        remaining = budget - sizes[dense].sum()
        epsilon = remaining / (weights * sizes)[~dense].sum()
        over = ~dense & (epsilon * weights > 1.0 - 1e-12)
        if not over.any():
            return np.where(dense, 0.0, 1.0 - epsilon * weights).tolist()
        dense |= ~dense & (weights == weights[~dense].max())
    return [0.0] * len(shapes)
