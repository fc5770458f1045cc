"""Place a kill inside a phase: at its n-th event, counted by the process that is killed.

Events are calls of train steps and topology updates, and changes to files inside the other phases,
as Python reports them to `sys.addaudithook`: opening for writing, renaming, deleting, new folders.
"""

import contextlib
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

PHASES = ("step", "topology update", "save", "latent encoding", "sweep", "closing")
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Place(NamedTuple):
    """Where a process gets a signal.

    Attributes:
      phase: one of `PHASES`.
      nth: number of the event, from 1; 0 for never, which only counts.
      delay: seconds between the event and the signal.
      waits: whether the event's thread waits meanwhile, or goes on.
      signum: the signal; 0 to delete the folder instead.
      folder: folder whose files count.
      mark: file to say in that the event came.
    """

    phase: str
    nth: int
    delay: float
    waits: bool
    signum: int
    folder: str
    mark: str


class _Counter:
    def __init__(self, place: Place) -> None:
        self.place, self.numbers, self.is_inside = place, itertools.count(1), False
        self.is_busy = threading.local()

    def note(self, what: str) -> None:
        """Count an event; send the signal if it is the one."""
        number, place = next(self.numbers), self.place
        if place.nth == 0:
            _write(place.mark, {"count": number})
        if number != place.nth:
            return
        _write(place.mark, {"event": what, "number": number})
        if place.waits:
            self._send()
        else:
            threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        time.sleep(self.place.delay)
        if self.place.signum:
            os.kill(os.getpid(), self.place.signum)
        else:
            # Not all at once: the process may write in it meanwhile.
            while os.path.exists(self.place.folder):
                shutil.rmtree(self.place.folder, ignore_errors=True)

    def audit(self, event: str, arguments: tuple) -> None:
        """Count changes to files, if they are of this phase."""
        if not self.is_inside or getattr(self.is_busy, "now", False):
            return
        self.is_busy.now = True
        try:
            path = self._changed(event, arguments)
            if path:
                self.note(f"{event} {path}")
        finally:
            self.is_busy.now = False

    def _changed(self, event: str, arguments: tuple) -> str:
        """Return the file that an event of this phase changes, or an empty text."""
        if event == "open":
            path, _, flags = arguments
            is_change = isinstance(flags, int) and flags & _WRITES
        else:
            path, is_change = (arguments or ("",))[0], event in _CHANGES
        if not is_change or not isinstance(path, str | bytes | os.PathLike):
            return ""
        text = os.fsdecode(os.path.abspath(path))
        if not text.startswith(self.place.folder + os.sep) or text == self.place.mark:
            return ""
        text = text.removeprefix(self.place.folder + os.sep)
        if self.place.phase == "save" and not re.match(r"checkpoints/\d", text):
            return ""
        return text

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Count changes to files inside the context."""
        self.is_inside = True
        try:
            yield
        finally:
            self.is_inside = False


def arm(place: Place) -> None:
    """Let this process get a signal at a place."""
    counter, phase = _Counter(place), place.phase
    sys.addaudithook(counter.audit)
    if phase in ("step", "topology update"):
        _wrap_program(counter, "train_step" if phase == "step" else "topology_update")
    elif phase == "save":
        counter.is_inside = True  # from the first change on: saving goes on in the background
    elif phase == "latent encoding":
        _wrap("sparsejax.data.latents", "encode_dataset", counter)
    elif phase == "closing":
        _wrap("sparsejax.evaluation.closing", "close_run", counter)
    elif phase == "sweep":
        counter.is_inside = True
    else:
        raise ValueError(f"there is no phase {phase!r}")


class _ArmedContext:
    """A multiprocessing context whose processes are armed before they begin."""

    def __init__(self, context: multiprocessing.context.BaseContext, place: Place) -> None:
        self.context, self.place = context, place

    def Process(self, target: Callable, args: tuple) -> object:  # noqa: N802  as in multiprocessing
        return self.context.Process(target=_arm_and_call, args=(self.place, target, args))


def arm_runs(place: Place) -> None:
    """Arm the processes that this one, a sweep, starts for its runs."""
    get_context = multiprocessing.get_context

    def get(method: str | None = None) -> object:
        context = get_context(method)
        return _ArmedContext(context, place) if method == "spawn" else context

    multiprocessing.get_context = get


def _arm_and_call(place: Place, target: Callable, args: tuple) -> None:
    arm(place)
    target(*args)


def _wrap_program(counter: _Counter, name: str) -> None:
    """Count the calls of a compiled function: the signal comes while it computes."""
    from sparsejax.training import loop

    build = loop.build_program

    def build_counting(*arguments: object) -> object:
        program = build(*arguments)
        function = getattr(program, name)

        def call(*arguments: object) -> object:
            results = function(*arguments)
            counter.note(name)
            return results

        return program._replace(**{name: call})

    loop.build_program = build_counting


def _wrap(module: str, name: str, counter: _Counter) -> None:
    """Count changes to files inside the calls of a function."""
    home = importlib.import_module(module)
    function: Callable = getattr(home, name)

    @functools.wraps(function)
    def call(*arguments: object, **named: object) -> object:
        with counter.inside():
            return function(*arguments, **named)

    setattr(home, name, call)


def _write(path: str, values: dict) -> None:
    """Write at once: what comes next is SIGKILL."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, json.dumps(values).encode())
    os.close(file)


def read_mark(path: str | os.PathLike[str]) -> dict:
    """Return what a process noted: `event` and `number`, or `count`; empty if it noted nothing."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return {}
