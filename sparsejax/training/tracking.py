"""TensorBoard and Weights & Biases: the numbers of metrics.jsonl and the pictures of samples.

A tracker that fails is named once and gets nothing more; it neither ends nor delays a run.
"""

import functools
import importlib.util
import json
import logging
import os
import pathlib
import queue
import secrets
import threading
from collections.abc import Callable
from typing import NamedTuple

from sparsejax.atomic import set_aside, write_text
from sparsejax.errors import ConfigError, reason, require
from sparsejax.storage import read_object
from sparsejax.types import PathLike, Pictures, Value

WANDB_FILE = "wandb.json"  # which run of Weights & Biases is that of a workdir
_PATIENCE = 60.0  # seconds to wait for a tracker, at the start and at the end

logger = logging.getLogger(__name__)


class Tracker(NamedTuple):
    """Where the numbers and pictures of a run are shown.

    Attributes:
      scalars: `scalars(step, {name: number})`.
      picture: `picture(step, name, pixels)`; pixels are [height, width, 3] uint8.
      close: `close(failed)`; whether an error ends the run.
    """

    scalars: Callable[[int, dict[str, float]], None]
    picture: Callable[[int, str, Pictures], None]
    close: Callable[[bool], None]


def require_wandb(is_wanted: bool) -> None:
    """Check that Weights & Biases is installed, if `config.log.wandb` wants it.

    Raises:
      ConfigError: it isn't; says how to install it.
    """
    # Its own files lie in folders of the same name, which Python takes for packages too.
    found = importlib.util.find_spec("wandb") if is_wanted else None
    accepted = "False, or True with the package wandb: pip install 'sparsejax[wandb]'"
    require(not is_wanted or (found and found.origin), "log.wandb", True, accepted)


class Trackers:
    """The trackers of a run, each in a thread of its own, so that no step waits for one."""

    def __init__(
        self, workdir: PathLike, first: int, last: int, *, tensorboard: bool, wandb: bool
    ) -> None:
        """Open them, or go on without one that takes longer than a minute; it may follow later.

        Args:
          workdir: the run's folder.
          first: first step that will be shown, possibly again.
          last: last step that an earlier process of the run showed; 0 if there is none.
          tensorboard: whether to write to TensorBoard.
          wandb: whether to write to Weights & Biases.
        """
        workdir = pathlib.Path(workdir)
        self._threads: list[_Thread] = []
        if tensorboard:
            opening = functools.partial(_open_tensorboard, workdir, first)
            self._threads.append(_Thread("TensorBoard", opening))
        if wandb:
            opening = functools.partial(_open_wandb, workdir, last)
            self._threads.append(_Thread("Weights & Biases", opening))
        for thread in self._threads:
            thread.is_open.wait(_PATIENCE)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Show the numbers of a step."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, pixels: Pictures) -> None:
        """Show a picture, [height, width, 3] uint8, of a step."""
        self._each(lambda tracker: tracker.picture(step, name, pixels))

    def close(self, failed: bool) -> None:
        """Close them; `failed` says whether an error ends the run. Wait a minute at most."""
        self._each(lambda tracker: tracker.close(failed))
        for thread in self._threads:
            thread.calls.put(None)
            thread.join(_PATIENCE if thread.is_open.is_set() else 0)
            if thread.is_alive():
                logger.warning("%s takes too long: some of it may be missing there", thread.name)
        self._threads = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for thread in self._threads:
            if thread.is_alive():
                thread.calls.put(call)


class _Thread(threading.Thread):
    """Opens a tracker and makes its calls, in their order.

    Attributes:
      calls: functions of the tracker; None ends the thread.
      is_open: whether the tracker is open, or has failed.
    """

    def __init__(self, name: str, opening: Callable[[], Tracker]) -> None:
        super().__init__(name=name, daemon=True)
        self.calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.is_open = threading.Event()
        self._opening = opening
        self.start()

    def run(self) -> None:
        """Open the tracker and call it; whatever it raises costs a warning."""
        try:
            tracker = self._opening()
            self.is_open.set()
            while call := self.calls.get():
                call(tracker)
        except Exception as error:  # noqa: BLE001
            logger.warning("%s failed, the run goes on without it: %s", self.name, reason(error))
        finally:
            self.is_open.set()


def _open_tensorboard(workdir: pathlib.Path, first: int) -> Tracker:
    from tensorboardX import SummaryWriter

    # What an earlier process wrote of steps from `first` on is hidden.
    board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)

    def scalars(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    def picture(step: int, name: str, pixels: Pictures) -> None:
        board.add_image(name, pixels, step, dataformats="HWC")

    return Tracker(scalars, picture, lambda failed: board.close())


def _open_wandb(workdir: pathlib.Path, last: int) -> Tracker:
    """Open the run's own run of Weights & Biases, or go on with it.

    Its steps only go up, while pictures and topology updates come in any order, so the step of
    training is a value among others, and what an earlier process sent isn't sent again.
    """
    import wandb

    identity, sent = _identity(workdir, last)
    run = wandb.init(
        id=identity,
        resume=_unless_set("WANDB_RESUME", "allow"),
        project=_unless_set("WANDB_PROJECT", "sparsejax"),
        name=_unless_set("WANDB_NAME", workdir.name),
        dir=_unless_set("WANDB_DIR", str(workdir)),
        config=read_object(workdir / "config.json"),
        reinit="create_new",  # the caller may have a run of its own
        settings=_unless_set("WANDB_FINISH_TIMEOUT", {"finish_timeout": _PATIENCE}),
    )
    # This process may be killed before it is as far as the one before, so the file remembers.
    write_text(workdir / WANDB_FILE, json.dumps({"id": identity, "step": sent}) + "\n")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")

    def log(step: int, values: dict[str, Value]) -> None:
        if step > sent:
            run.log({"step": step} | values)

    return Tracker(
        log,
        lambda step, name, pixels: log(step, {name: wandb.Image(pixels)}),
        lambda failed: run.finish(exit_code=int(failed)),
    )


def _unless_set(variable: str, value: Value) -> Value:
    """Return None, which leaves a choice to wandb, where an environment variable makes it."""
    return None if os.environ.get(variable) else value


def _identity(workdir: pathlib.Path, last: int) -> tuple[str, int]:
    """Return the id of the workdir's run of Weights & Biases, and the last step sent to it."""
    path = workdir / WANDB_FILE
    saved: dict[str, Value] = {}
    if os.path.lexists(path):
        try:
            saved = read_object(path)
        except ConfigError as error:
            logger.warning(
                "%s; set aside as %s: Weights & Biases gets a new run", error, set_aside(path)
            )
    known, sent, given = saved.get("id"), saved.get("step"), os.environ.get("WANDB_RUN_ID")
    if isinstance(known, str) and isinstance(sent, int) and given in (None, "", known):
        return known, max(sent, last)
    return given or secrets.token_hex(4), 0
