"""Small dense baselines: networks with the parameters, or FLOPs, of a sparse one."""

import jax
from ml_collections import ConfigDict

from sparsejax.errors import ConfigError
from sparsejax.families import Facts, build_data, build_model
from sparsejax.sparsity.costs import active_parameters, forward_flops
from sparsejax.training.plan import build_plan


def small_dense(config: ConfigDict, match: str = "parameters") -> ConfigDict:
    """Return the config of a dense model as small as a config's sparse one.

    The network is narrowed and keeps its depth: `model_channels` of a UNet, with the same number
    of attention heads and at least half of the GroupNorm groups, `hidden_size` of a DiT, `hidden`
    of a stroke denoiser. Of the possible widths, the one nearest to the target is chosen.

    Args:
      config: resolved ConfigDict of a sparse model.
      match: what should match: `parameters` (active ones) or `flops` of a forward pass.

    Returns:
      The config with a narrower `model` and the method dense.

    Raises:
      ConfigError: the model can't be narrowed.
    """
    facts = build_data(config).facts()
    target = planned_costs(config, facts)[match]
    full = build_model(config, facts)
    if not full.widths:
        name = config.task.name
        raise ConfigError(f"config.task.name is {name!r}, whose networks can't be narrowed")

    def narrowed(index: int) -> ConfigDict:
        ours = ConfigDict(config.to_dict())
        ours.sparsity.method = "dense"
        ours.model.update(full.narrow(full.widths[index]))
        return ours

    def distance(index: int) -> float:
        return planned_costs(narrowed(index), facts)[match] - target

    low, high = 0, len(full.widths) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if distance(middle) < 0 else (low, middle)
    return narrowed(min((low, high), key=lambda index: abs(distance(index))))


def planned_costs(config: ConfigDict, facts: Facts | None = None) -> dict[str, float]:
    """Count the active parameters and FLOPs that a config's model will have, by drawing its masks.

    Args:
      config: resolved ConfigDict.
      facts: what the Model needs to know about the data (default: `Data.facts()`).

    Returns:
      Active `parameters` and `flops` of a forward pass, by name.
    """
    model = build_model(config, build_data(config).facts() if facts is None else facts)
    params = jax.eval_shape(model.init, jax.random.key(0))
    plan = build_plan(config, model)
    masks = plan.method.init(jax.random.key(0), params, plan.sparsities)
    return {
        "parameters": active_parameters(params, masks),
        "flops": forward_flops(model.layer_flops(params), masks),
    }
