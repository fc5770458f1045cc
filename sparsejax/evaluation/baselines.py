"""Small dense models: what as many weights, or as many FLOPs, do without any sparsity."""

import math

import jax
import ml_collections

from sparsejax.errors import ConfigError
from sparsejax.families import build_task
from sparsejax.sparsity.costs import active_parameters, forward_flops
from sparsejax.training.plan import build_method, layer_sparsities

MATCHES = ("parameters", "flops")


def small_dense(config, match="parameters"):
    """Return the config of a dense model as small as the sparse one that a config describes.

    The network is narrowed, its depth kept: `model_channels` of a UNet, with as many attention
    heads and at least half as many channels a GroupNorm group, or `hidden` of a denoiser of
    strokes. Of the widths that are possible the one nearest to the target is taken.

    Args:
      config: resolved ConfigDict of a sparse model.
      match: `parameters`, the active ones, or `flops` of a forward pass.

    Returns:
      ConfigDict: another model, method dense, everything else the same.

    Raises:
      ConfigError: the task has no width that can be narrowed.
    """
    target = planned_costs(config)[match]
    widths = _widths(config)

    def distance(index):
        return _dense_costs(_with_width(config, widths[index]))[match] - target

    low, high = 0, len(widths) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if distance(middle) < 0 else (low, middle)
    best = min((low, high), key=lambda index: abs(distance(index)))
    return _with_width(config, widths[best])


def planned_costs(config):
    """Count what the model of a config will have; its masks are drawn for that.

    Args:
      config: resolved ConfigDict.

    Returns:
      Dictionary: active `parameters`, and `flops` of a forward pass.
    """
    if config.sparsity.method == "dense":
        return _dense_costs(config)
    task, params = _abstract(config)
    sparsities = layer_sparsities(config.sparsity, task)
    masks = build_method(config.sparsity, task).init(jax.random.key(0), params, sparsities)
    return {
        "parameters": active_parameters(params, masks),
        "flops": forward_flops(task.layer_flops(params), masks),
    }


def _dense_costs(config):
    task, params = _abstract(config)
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "flops": sum(task.layer_flops(params).values()),
    }


def _abstract(config):
    task = build_task(config)
    return task, jax.eval_shape(task.init, jax.random.key(0))


def _widths(config):
    model = config.model
    if config.task.name in ("images", "latents"):
        full, head = model.model_channels, model.get("num_head_channels", 32)
        widths = range(4 if model.get("freq_shift", 0) else 2, full + 1, 2)
        return [w for w in widths if _norm_groups(model, w) and not head * w % full]
    if config.task.name == "strokes":
        heads = model.get("heads", 1) if config.task.kind == "transformer" else 1
        return list(range(heads, model.get("hidden", 96) + 1, heads))
    raise ConfigError(f"config.task.name is {config.task.name!r}; it has no width to be narrowed")


def _norm_groups(model, width):
    """Return the number of groups for a width: at most the full model's, at least half of it."""
    full = model.get("norm_groups", 32)
    divisors = [groups for groups in range(-(-full // 2), full + 1) if width % groups == 0]
    return max(divisors, default=0)


def _with_width(config, width):
    config = ml_collections.ConfigDict(config.to_dict())
    config.sparsity.method = "dense"
    model = config.model
    if config.task.name == "strokes":
        model.hidden = width
        return config
    head = model.get("num_head_channels", 32)
    model.num_head_channels = head * width // model.model_channels
    model.norm_groups = _norm_groups(model, width)
    model.model_channels = width
    return config
