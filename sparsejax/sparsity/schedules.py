"""When the topology changes. How much changes is an optax schedule over global steps."""

import dataclasses

import jax.numpy as jnp

from sparsejax.types import Array, ArrayLike


@dataclasses.dataclass(frozen=True)
class UpdateSchedule:
    """Schedule of topology updates: every `update_interval` steps while `begin <= step < end`.

    Drop fractions decay to zero at `end`, so an update there would change nothing but still cost
    RigL a dense gradient.

    Attributes:
      update_interval: optimizer steps between updates.
      begin: first step at which an update may be due.
      end: first step from which on no update is due.
      includes_end: whether an update is due at `end` itself, as in jaxpruner.

    Examples:
      >>> schedule = UpdateSchedule(update_interval=100, begin=100, end=700)
      >>> [step for step in range(1001) if schedule.is_due(step)]
      [100, 200, 300, 400, 500, 600]
    """

    update_interval: int
    begin: int
    end: int
    includes_end: bool = False

    def __post_init__(self) -> None:
        if self.update_interval < 1:
            raise ValueError(f"update_interval is {self.update_interval}; accepted: 1 or more")

    def is_due(self, step: int | Array) -> bool | Array:
        """Return whether the topology changes after optimizer step `step` (int or array)."""
        stop = self.end + 1 if self.includes_end else self.end
        return (self.begin <= step) & (step < stop) & (step % self.update_interval == 0)

    def due(self, steps: int) -> range:
        """Return the steps of a run of this many optimizer steps at which the topology changes."""
        interval = self.update_interval
        first = -(-max(self.begin, 1) // interval) * interval
        stop = self.end + 1 if self.includes_end else self.end
        return range(first, min(stop, steps + 1), interval)

    def count_due(self, steps: int) -> int:
        """Return the number of updates in a run of this many optimizer steps."""
        return len(self.due(steps))

    def progress(self, step: ArrayLike) -> Array:
        """Return how far a run is at a step: 0 at its first topology update, 1 at its last.

        Float32 scalar; 1 throughout if there is one update or none.
        """
        due = self.due(self.end)
        if len(due) < 2:
            return jnp.float32(1)
        return jnp.clip((jnp.float32(step) - due[0]) / (due[-1] - due[0]), 0, 1)
