"""A request to save and stop, agreed on by all processes of a run."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from sparsejax import signals


@contextlib.contextmanager
def stopping() -> Iterator[tuple[signals.Request, Callable[[int], bool]]]:
    """Yield a `signals.Request` and `is_due(step)`, True once any process was asked to stop.

    In a run of several processes JAX handles SIGTERM and lets all processes agree on a step;
    other signals are passed on to it as SIGTERM.
    """
    if jax.process_count() == 1:
        with signals.saving() as request:
            yield request, lambda step: request.signum is not None
        return

    def is_due(step: int) -> bool:
        reached = multihost_utils.reached_preemption_sync_point(step)
        if reached and request.signum is None:
            request.signum = signal.SIGTERM
        return reached

    def pass_on() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with signals.saving(pass_on, (signal.SIGINT, signal.SIGHUP)) as request:
        yield request, is_due
        signals.take(signal.SIGTERM)  # from here on there are no steps left to agree on
