"""Optimizers, learning-rate and drop-fraction schedules from the config: optax, by name."""

import ml_collections
import optax

from sparsejax.sparsity.schedules import UpdateSchedule
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.types import Optimizer, Schedule


def learning_rate_schedule(config: ml_collections.ConfigDict) -> Schedule:
    """Return the learning-rate schedule of `config.optimizer`: linear warm-up, then as named.

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


def build_optimizer(config: ml_collections.ConfigDict) -> Optimizer:
    """Return the optimizer of `config.optimizer`, wrapped so that inactive weights stay zero.

    All of these treat every weight alike, so their state may be flat (`optimizer.packed`).

    Args:
      config: resolved ConfigDict.

    Returns:
      `optax.GradientTransformationExtraArgs`; its update takes `masks=` by keyword.
    """
    o, rate = config.optimizer, learning_rate_schedule(config)
    inner = {
        "adam": lambda: optax.adam(rate, o.b1, o.b2),
        "adamw": lambda: optax.adamw(rate, o.b1, o.b2, weight_decay=o.weight_decay),
        "sgd": lambda: optax.sgd(rate, momentum=o.b1),
        "lion": lambda: optax.lion(rate, o.b1, o.b2, weight_decay=o.weight_decay),
    }[o.name]()
    clip = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    return sparse_updates(optax.chain(*clip, inner))


def drop_fraction_schedule(sparsity: ml_collections.ConfigDict) -> Schedule:
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


def update_schedule(sparsity: ml_collections.ConfigDict) -> UpdateSchedule:
    """Return the UpdateSchedule of `config.sparsity`, resolved."""
    s = sparsity
    return UpdateSchedule(s.update_interval, s.begin, s.end, s.includes_end)
