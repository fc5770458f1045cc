"""The costs of a run: counted from its masks and schedule, and read from its metrics."""

import statistics
from collections.abc import Sequence
from typing import TypeAlias

from ml_collections import ConfigDict

from sparsejax.errors import ConfigError
from sparsejax.families import Model
from sparsejax.sparsity import costs
from sparsejax.sparsity.masks import dense_masks, summarize
from sparsejax.training.plan import Plan
from sparsejax.types import Masks, Params, Value

Line: TypeAlias = dict[str, Value]  # of metrics.jsonl


def run_costs(
    config: ConfigDict,
    model: Model,
    plan: Plan,
    params: Params,
    masks: Masks,
    steps: int | None = None,
    lines: Sequence[Line] = (),
) -> dict[str, Value]:
    """Count parameters and FLOPs of a run, dense and sparse, from its masks and its schedule.

    Args:
      config: resolved ConfigDict.
      model: Model.
      plan: its Plan.
      params: parameters.
      masks: their masks.
      steps: number of steps taken so far (default: `config.steps`).
      lines: metrics lines of the run; needed if the method changes density, for the FLOPs of the
        steps before each topology update.

    Returns:
      Numbers by name. Training FLOPs are those of all these steps, at the run's batch size;
      parameters, density and FLOPs of a forward pass are those of `masks`.

    Raises:
      ConfigError: the method changes density, and an update is missing from `lines`.
    """
    method = plan.method.name
    steps = config.steps if steps is None else steps
    layer_flops = model.layer_flops(params)
    dense, sparse = (costs.forward_flops(layer_flops, m) for m in (dense_masks(params), masks))
    counts = summarize(params, masks)
    examples = steps * config.batch_size
    periods = _periods(plan, steps, sparse, lines)
    mean = sum(count * flops for count, flops, _ in periods) / steps if steps else sparse
    by_formula = costs.training_flops(method, mean, dense, config.sparsity.update_interval)
    batches = config.sparsity.gradient_batches
    as_run = sum(
        costs.run_flops(method, flops, dense, count, batches * updates)
        for count, flops, updates in periods
    )
    return {
        "method": method,
        "sparsity": plan.level,
        "actual_sparsity": 1 - counts.sparsifiable.density,
        "steps": steps,
        "parameters": counts.total.weights,
        "active_parameters": counts.total.active,
        "density": counts.sparsifiable.density,
        "forward_flops_dense": dense,
        "forward_flops": sparse,
        "training_flops_dense": 3 * dense * examples,
        "training_flops_formula": by_formula * examples,
        "training_flops_run": as_run * config.batch_size,
        "passes_per_sample": model.passes_per_sample,
        "sampling_flops_dense": model.passes_per_sample * dense,
        "sampling_flops": model.passes_per_sample * sparse,
    }


def _periods(
    plan: Plan, steps: int, flops_now: float, lines: Sequence[Line]
) -> list[tuple[int, float, int]]:
    """Split a run into periods of constant density: (steps, FLOPs of a forward pass, updates)."""
    schedule = plan.updates
    if not plan.method.changes_density:
        return [(steps, flops_now, schedule.count_due(steps))]
    key = "forward_flops_before"
    made = {line["step"]: line[key] for line in lines if key in line and line["step"] <= steps}
    due = schedule.due(steps)
    missing = [step for step in due if step not in made]
    if missing:
        raise ConfigError(
            f"metrics.jsonl doesn't hold the topology update of step {missing[0]}, so the cost of "
            f"method {plan.method.name!r} can't be counted"
        )
    ends = zip([0, *due], due, strict=False)
    periods = [(end - begin, made[end], 1) for begin, end in ends]
    return [*periods, (steps - max(due, default=0), flops_now, 0)]


def measured(lines: Sequence[Line]) -> dict[str, float | None]:
    """Return the loss, times and memory that a run's metrics lines record.

    Args:
      lines: from `training.metrics_log.read_metrics`.

    Returns:
      The training `loss` of the last logged steps; `step_seconds`, the median over logged
      intervals, without compilation and pictures; `training_seconds`, with both but without
      startup; `peak_memory_bytes` of the process or device that trained. None if not recorded.
    """
    logged = [line for line in lines if "loss" in line or "interval_seconds" in line]
    losses = [line["loss"] for line in lines if "loss" in line]
    timed = [line for line in logged if line.get("steps_per_second")]
    # The first interval is a cold start, and in old runs it includes compilation.
    speeds = [line["steps_per_second"] for line in timed[1:] or timed]
    intervals = zip([0, *(line["step"] for line in logged)], logged, strict=False)
    memory = [line["peak_memory_bytes"] for line in logged if "peak_memory_bytes" in line]
    return {
        "loss": losses[-1] if losses else None,
        "step_seconds": 1 / statistics.median(speeds) if speeds else None,
        "training_seconds": sum(_seconds(before, line) for before, line in intervals),
        "peak_memory_bytes": max(memory, default=None),
    }


def _seconds(before: int, line: Line) -> float:
    """Return the seconds of a logged interval that started after step `before`."""
    if "interval_seconds" in line:
        return line["interval_seconds"]
    speed = line.get("steps_per_second")  # runs from before interval_seconds existed
    return (line["step"] - before) / speed if speed else 0.0
