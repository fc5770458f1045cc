"""The progress of a run, on a terminal and elsewhere."""

import contextlib
import os
import re
import threading
import time
import types

from sparsejax.training import progress
from sparsejax.training.progress import progress_bar


@contextlib.contextmanager
def terminal(monkeypatch):
    """Make stdout a terminal of 80 columns; yields a list, in the end of the lines it was sent."""
    reader, writer = os.openpty()
    parts, lines = [], []

    def read():
        try:
            while part := os.read(reader, 4096):
                parts.append(part)
        except OSError:  # on Linux, how the end is reported
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(writer, "w") as stdout, contextlib.redirect_stdout(stdout):
        yield lines
    thread.join()
    os.close(reader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode())
    lines += [line for line in text.splitlines() if line.strip()]


def test_a_terminal_shows_a_bar_and_what_is_compiled(monkeypatch):
    with terminal(monkeypatch) as frames, progress_bar(10, 4, 0.25) as bar:
        step = bar.compiling("train step", lambda seconds: time.sleep(seconds))
        step(1.2)
        bar.show(5, 0.5, 12.34)
        step(0)
    assert any(frame.startswith("compiling train step, 1 s") for frame in frames)
    assert re.match(r"training .* 4/10 loss - - steps/s density 0\.250", frames[0])
    assert re.match(r"training .* 5/10 loss 0\.5000 12\.3 steps/s density 0\.250", frames[-1])


def test_elsewhere_it_is_a_line_every_15_seconds_and_one_after_a_long_compilation(
    capsys, monkeypatch
):
    now = 100.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    with progress_bar(400, 0, None) as bar:
        for step in range(100, 500, 100):
            with bar.during("drawing samples"):
                now += step / 50
            bar.show(step)
            bar.show(step, 0.5, 20.0)
    assert capsys.readouterr().out.splitlines() == [
        "step 100/400  loss 0.5000  20.0 steps/s  15 s left",
        "drawing samples took 6 s",
        "drawing samples took 8 s",
        "step 400/400  loss 0.5000  20.0 steps/s  0 s left",
    ]
