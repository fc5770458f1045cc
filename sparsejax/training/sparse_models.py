"""Build the Model of a sparse file, which may come from anywhere: the file is data.

Nothing is written, imported, downloaded or prepared, whatever the config in the file says; sizes in
it are checked against the tensors in the file before anything is built.
"""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.configuration import structure_name
from sparsejax.errors import ConfigError, require
from sparsejax.families import Facts, Model, build_model, needs_facts, networks_of
from sparsejax.limits import VARIABLE, limits
from sparsejax.nested import flatten
from sparsejax.types import Params, PathLike, Value

# Arguments of networks that count layers or blocks; each has several tensors.
_DEPTHS = ("num_res_blocks", "layers", "depth")
# Those must fit channel_mult and diffusion.steps.
_PASSED_OVER = ("attention_resolutions", "steps")


def build_sparse_model(
    config: ConfigDict, facts: Facts | None, params: Params, path: PathLike
) -> Model:
    """Return the Model of a sparse file, checked against its weights.

    Args:
      config: config in the file, with every key.
      facts: what the file says about the data; None if it says nothing.
      params: weights in the file.
      path: of the file.

    Raises:
      ConfigError: the file says nothing about the data though its Model needs it, sizes in its
        config don't fit its weights, or no Model can be built like this; names the file.
    """
    try:
        _check_sizes(config, params)
        if facts is None and needs_facts(config):
            raise ConfigError(
                "the file was written by an older version, which didn't save what its model needs "
                "to know about the data; accepted: a file exported from its run again"
            )
        model = build_model(config, facts or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    expected = jax.eval_shape(model.init, jax.random.key(0))
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, expected):
        raise ConfigError(f"{path} holds weights that don't fit the network of its config")
    return model


def _check_sizes(config: ConfigDict, params: Params) -> None:
    """Check sizes in a config that determine what is built against the weights."""
    shapes = [np.shape(leaf) for leaf in flatten(params).values()]
    widest = max((size for shape in shapes for size in shape), default=0)
    for name, value in config.model.items():
        if _is_ours(config):
            _check_argument(name, value, widest, len(shapes))
    if structure_name(config.sparsity) == "block":
        size = config.sparsity.block_size
        fits = all(1 <= n <= widest for n in _numbers(size))
        require(fits, "sparsity.block_size", size, f"1 to {widest}, the largest width in the file")
    side, most = config.task.image_size, limits().image_pixels
    accepted = f"0 or more, of at most {most:,} pixels, which {VARIABLE}=image_pixels=N sets"
    require(side >= 0 and side**2 <= most, "task.image_size", side, accepted)


def _check_argument(name: str, value: Value, widest: int, tensors: int) -> None:
    numbers = _numbers(value)
    most, what = (tensors, "tensors") if name in _DEPTHS else (widest, "largest width")
    fits = name in _PASSED_OVER or all(number <= most for number in numbers)
    require(fits, f"model.{name}", value, f"{most} or less, the {what} in the file")
    accepted = f"{tensors} numbers or fewer, the tensors in the file"
    require(len(numbers) <= tensors, f"model.{name}", f"{len(numbers)} numbers", accepted)


def _numbers(value: Value) -> Sequence[int]:
    """Return the whole numbers in the value of an argument."""
    values = value if isinstance(value, tuple | list) else (value,)
    return [n for n in values if isinstance(n, int) and not isinstance(n, bool)]


def _is_ours(config: ConfigDict) -> bool:
    """Return whether a config's networks are this package's, whose arguments are known."""
    networks = networks_of(config).values()
    return bool(networks) and all(
        network.__module__.startswith("sparsejax.") for network in networks
    )
