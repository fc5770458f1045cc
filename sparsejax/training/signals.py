"""SIGTERM: a request to save and stop, as preemptible machines send it."""

import contextlib
import signal

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def sigterm():
    """Yield `stopping(step)`, true once any process of the run got a SIGTERM."""
    received = False

    def note(signum, frame):
        del signum, frame
        nonlocal received
        received = True

    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    try:
        previous = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda step: False
        return
    try:
        yield lambda step: received
    finally:
        signal.signal(signal.SIGTERM, previous)
