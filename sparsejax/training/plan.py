"""What `config.sparsity` asks for: the structure, the method, how sparse each layer is."""

import logging

import jax

from sparsejax.errors import ConfigError, require
from sparsejax.sparsity import structure as structures
from sparsejax.sparsity.distributions import get_distribution
from sparsejax.sparsity.methods import get_method

logger = logging.getLogger(__name__)


def build_method(sparsity, model):
    """Return the method of `config.sparsity`, moving what its structure names.

    Args:
      sparsity: `config.sparsity`, resolved.
      model: Model.

    Returns:
      `sparsity.methods.Method`.

    Raises:
      ConfigError: the network has no such structure.
    """
    structure = build_structure(sparsity, model)
    try:
        return get_method(sparsity.method, structure)
    except ValueError as error:
        raise ConfigError(f"config.sparsity.structure is {structure.name!r}: {error}") from error


def build_structure(sparsity, model):
    """Return the `sparsity.structure.Structure` of `config.sparsity`; see `build_method`."""
    if sparsity.method == "dense" or sparsity.structure == "weight":
        return structures.WEIGHT
    if sparsity.structure == "block":
        _check_blocks(sparsity, model)
        return structures.block(sparsity.block_size)
    return structures.channel(channel_groups(model), model.init)


def channel_groups(model):
    """Return the groups of channels of a network, `{name: [Member, ...]}`.

    Raises:
      ConfigError: it has none.
    """
    groups = model.units(_abstract_params(model))
    accepted = "weight, block: channels of this network can't be left out by themselves"
    require(groups, "sparsity.structure", "channel", accepted)
    return {
        name: [structures.Member(*member) for member in members] for name, members in groups.items()
    }


def _abstract_params(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def _check_blocks(sparsity, model):
    size = sparsity.block_size
    shapes = [leaf.shape for leaf in jax.tree.leaves(_abstract_params(model))]
    fits = any(structures.fits_blocks(shape, size) for shape in shapes)
    accepted = "a size that divides the input and output channels of some layer"
    require(fits, "sparsity.block_size", size, accepted)


def layer_sparsities(sparsity, model):
    """Return the sparsity of each layer, or of each group of channels, that the config asks for.

    Args:
      sparsity: `config.sparsity`, resolved.
      model: Model.

    Returns:
      Pytree of Python floats with the structure of params, or `{group: float}`.

    Raises:
      ConfigError: a pattern in `sparsity.custom` is faulty or matches no layer, or the
        structure doesn't suit the network.
    """
    params, custom = _abstract_params(model), sparsity.custom
    if sparsity.structure == "channel" and sparsity.method != "dense":
        accepted = "() with channels: the same share is left out of every group"
        require(not custom, "sparsity.custom", custom, accepted)
        return structures.channel_sparsities(channel_groups(model), params, sparsity.level)
    try:
        return get_distribution(sparsity.distribution)(params, sparsity.level, custom=custom)
    except ValueError as error:
        require(False, "sparsity.custom", custom, f"pairs (pattern, sparsity) [{error}]")


def log_structure(sparsity, model):
    """Log what the structure leaves out, and which keys it ignores.

    Args:
      sparsity: `config.sparsity`, resolved.
      model: Model.
    """
    if sparsity.method == "dense" or sparsity.structure == "weight":
        return
    groups = channel_groups(model) if sparsity.structure == "channel" else ()
    size, params = sparsity.block_size, _abstract_params(model)
    structures.log_exceptions(sparsity.structure, params, size, groups)
    if groups:
        logger.info("structure channel ignores sparsity.distribution = %s", sparsity.distribution)


def trains_compiled(sparsity):
    """Tell whether a run of `config.sparsity` trains through the compiled network.

    Only where masks never change, since they are constants of that program.
    """
    is_structured = sparsity.method != "dense" and sparsity.structure != "weight"
    return sparsity.compiled and is_structured and not get_method(sparsity.method).is_dynamic
