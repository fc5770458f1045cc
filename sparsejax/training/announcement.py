"""What a run says when it starts: its method, its size, and what isn't as one might expect."""

import logging

import jax
import ml_collections

from sparsejax.sparsity.masks import Summary
from sparsejax.training.optimizers import learning_rate_schedule
from sparsejax.training.plan import Plan
from sparsejax.training.setup import Setup

logger = logging.getLogger(__name__)


def announce(run: Setup, counts: Summary) -> None:
    """Print what is trained, before the first steps, which are slow since they compile.

    Args:
      run: Setup; its state is read only where a run is resumed with another number of steps.
      counts: Summary of its params and masks.
    """
    config, plan, total = run.config, run.plan, counts.total
    if run.steps_before not in (None, config.steps):
        announce_other_steps(config, plan, run.steps_before, int(run.state.step))
    print(
        f"{config.name}: {plan.method.name}, {total.active:,} of {total.weights:,} "
        f"parameters active, {config.steps:,} steps on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; the first steps compile",
        flush=True,
    )
    for line in run.model.warnings:
        logger.warning(line)
    plan.log()


def announce_other_steps(
    config: ml_collections.ConfigDict, plan: Plan, steps_before: int, start: int
) -> None:
    """Print how a different number of steps affects the schedules of a resumed run.

    The learning rate follows `steps`, while `sparsity.end`, and with it the drop fraction, stay as
    they were at the start.

    Args:
      config: resolved ConfigDict of the run now.
      plan: its Plan.
      steps_before: `config.steps` when it was saved.
      start: step that it is resumed from.
    """
    before = ml_collections.ConfigDict(config.to_dict())
    before.steps = steps_before
    old, new = (float(learning_rate_schedule(c)(start)) for c in (before, config))
    parts = []
    if old != new:
        parts.append(
            f"the {config.optimizer.schedule} learning-rate schedule ends at step "
            f"{config.steps}, so step {start + 1} is taken at {new:.3g} instead of {old:.3g}"
        )
    if plan.method.is_dynamic:
        parts.append(f"topology updates still end at step {plan.updates.end}, as before")
    if parts:
        print(
            f"config.steps was {steps_before}, is now {config.steps}: {'; '.join(parts)}",
            flush=True,
        )
