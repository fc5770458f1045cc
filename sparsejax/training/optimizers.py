"""Optimizers, learning-rate and drop-fraction schedules from the config: optax, by name."""

import optax

from sparsejax.errors import require
from sparsejax.sparsity.methods import get_method
from sparsejax.sparsity.schedules import UpdateSchedule
from sparsejax.sparsity.transforms import packed, sparse_updates
from sparsejax.training.plan import trains_compiled
from sparsejax.training.state import active_counts
from sparsejax.training.steps import ema_decay


def learning_rate_schedule(config):
    """Return the optax schedule of `config.optimizer`: linear warm-up, then as named.

    Args:
      config: resolved ConfigDict.
    """
    o = config.optimizer
    decay_steps = max(config.steps - o.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(o.learning_rate),
        "cosine": optax.cosine_decay_schedule(o.learning_rate, decay_steps),
        "linear": optax.linear_schedule(o.learning_rate, 0.0, decay_steps),
    }[o.schedule]
    if not o.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, o.learning_rate, o.warmup_steps)
    return optax.join_schedules([warmup, after], [o.warmup_steps])


def build_optimizer(config, model=None):
    """Return the optimizer of `config.optimizer`, wrapped so that inactive weights stay zero.

    Args:
      config: resolved ConfigDict.
      model: Model; needed if `optimizer.packed`, which wants to know the layers' sizes.

    Returns:
      `optax.GradientTransformationExtraArgs`; its init and its update take `masks=` by keyword.

    Raises:
      ConfigError: `optimizer.packed` with a method that changes density.
    """
    o, rate = config.optimizer, learning_rate_schedule(config)
    method = get_method(config.sparsity.method)
    accepted = f"False with sparsity.method {method.name!r}, which changes density"
    require(not (o.packed and method.changes_density), "optimizer.packed", o.packed, accepted)
    inner = {
        "adam": lambda: optax.adam(rate, o.b1, o.b2),
        "adamw": lambda: optax.adamw(rate, o.b1, o.b2, weight_decay=o.weight_decay),
        "sgd": lambda: optax.sgd(rate, momentum=o.b1),
        "lion": lambda: optax.lion(rate, o.b1, o.b2, weight_decay=o.weight_decay),
    }[o.name]()
    clip = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    inner = optax.chain(*clip, inner)
    # What a compiled run trains is packed already.
    if not o.packed or trains_compiled(config.sparsity):
        return sparse_updates(inner)
    return packed(
        inner,
        active_counts(config, model),
        ema_decay=lambda count: ema_decay(count, config.ema.decay),
    )


def drop_fraction_schedule(sparsity):
    """Return the optax schedule of the drop fraction over global steps.

    Args:
      sparsity: `config.sparsity`, resolved; `cosine` is RigL's (Evci et al. 2020, section 3).
    """
    end = max(sparsity.end, 1)
    return {
        "cosine": optax.cosine_decay_schedule(sparsity.drop_fraction, end),
        "constant": optax.constant_schedule(sparsity.drop_fraction),
        "linear": optax.linear_schedule(sparsity.drop_fraction, 0.0, end),
    }[sparsity.drop_schedule]


def update_schedule(sparsity):
    """Return the UpdateSchedule of `config.sparsity`, resolved."""
    s = sparsity
    return UpdateSchedule(s.update_interval, s.begin, s.end, s.includes_end)
