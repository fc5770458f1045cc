"""One process at a time holds a folder: real processes, and files as other hosts leave them."""

import contextlib
import errno
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from sparsejax import lease

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOLD = """
import os, sys, time
from sparsejax import lease, signals
signals.watch("More.")
while not all(map(os.path.exists, sys.argv[2:])):
    pass
with lease.hold(sys.argv[1], renew_every=0.05):
    print("holds", flush=True)
    time.sleep(60)
"""
COUNT = """
import pathlib, sys
from sparsejax import lease
count = pathlib.Path(sys.argv[1]) / "count"
for _ in range(int(sys.argv[2])):
    with lease.hold_in_turn(sys.argv[1]) as guard:
        number = int(count.read_text())
        guard()
        count.write_text(str(number + 1))
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="needs /proc")


@pytest.fixture
def start():
    """Start Python with code; what is left of it is killed after the test."""
    processes = []

    def start(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": "."}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def start_holder(start, folder):
    process = start(HOLD, folder)
    assert process.stdout.readline() == "holds\n"
    return process


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def lease_of(folder, **changes):
    """What the file of this process would hold, with changes: that of another host, or time."""
    with lease.hold(folder):
        (path,) = folder.glob("lease-*.json")
        values = json.loads(path.read_text()) | changes
    return json.dumps(values) + "\n"


def leave(folder, number=1, **changes):
    """Leave a lease file behind, as a process that was killed does."""
    text = lease_of(folder, **changes)
    (folder / f"lease-{number}.json").write_text(text)
    return text


ELSEWHERE = {"host": "elsewhere", "boot": "another", "token": "another"}


def took(folder, **options):
    """Return whether the lease could be had, and the seconds that took."""
    began = time.monotonic()
    with contextlib.suppress(lease.HeldError), lease.hold(folder, **options) as guard:
        guard()
        return True, time.monotonic() - began
    return False, time.monotonic() - began


def test_a_second_holder_is_refused_in_one_line_that_says_who_holds_it(start, tmp_path):
    process = start_holder(start, tmp_path)
    with pytest.raises(lease.HeldError) as caught, lease.hold(tmp_path):
        pass
    since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    host = re.escape(os.uname().nodename)
    pattern = rf"'{re.escape(str(tmp_path))}' is in use by process {process.pid} on {host}, {since}"
    assert re.fullmatch(pattern, str(caught.value))
    assert files(tmp_path) == ["lease-1.json"], "the first one still holds it"


def test_it_is_released_however_the_body_ends(tmp_path):
    folder = tmp_path / "a" / "b"
    with lease.hold(folder):
        assert files(folder) == ["lease-1.json"]
    assert files(tmp_path) == [], "folders that it made are gone if they are empty"
    folder.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), lease.hold(folder):
        raise ZeroDivisionError
    assert files(folder) == [], "a folder that was there stays"
    with lease.hold(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "more").touch()
    assert files(tmp_path / "c" / "d") == ["more"], "and one that isn't empty"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_releases_it(start, tmp_path, signum):
    process = start_holder(start, tmp_path)
    process.send_signal(signum)
    assert process.communicate(timeout=20)[1] == f"Stopped by {signum.name}. More.\n"
    assert files(tmp_path) == []


@needs_proc
@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_dead_holder_on_this_host_is_replaced_at_once(start, tmp_path, is_reaped):
    """A killed process that nobody has waited for is still listed, as in many containers."""
    process = start_holder(start, tmp_path)
    process.kill()
    if is_reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert files(tmp_path) == ["lease-1.json"]
    with lease.hold(tmp_path, patience=None) as guard:
        guard()
        assert files(tmp_path) == ["lease-2.json"]
    assert files(tmp_path) == []


@needs_proc
def test_a_process_id_that_is_used_again_is_not_its_holder(tmp_path):
    leave(tmp_path, started="1")  # of a process that had the id of this one
    assert took(tmp_path, patience=None)[0]


@needs_proc
@pytest.mark.parametrize("key", ["host", "boot", "namespace"])
def test_of_another_host_boot_or_container_process_ids_say_nothing(tmp_path, key):
    """It isn't dead because no process here has its id; so its lease is watched."""
    leave(tmp_path, **{key: "another", "pid": 2**31 - 1})
    assert not took(tmp_path, patience=None)[0]
    is_taken, seconds = took(tmp_path, patience=0.4)
    assert is_taken
    assert 0.4 <= seconds < 5


def test_a_stale_lease_of_another_host_is_waited_for_in_one_line(tmp_path, caplog):
    leave(tmp_path, **ELSEWHERE, renewed="2020-01-01 00:00:00.000000 UTC")
    caplog.set_level("INFO")
    with lease.hold(tmp_path, patience=0.4):
        assert files(tmp_path) == ["lease-2.json"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.match(rf"{tmp_path} is held by process \d+ on elsewhere, since .*; waiting", message)


def test_another_hosts_holder_that_renews_is_refused_long_before_patience_ends(tmp_path):
    """Whatever its clock says: here it is always years ago."""
    text, ended = lease_of(tmp_path, **ELSEWHERE), threading.Event()
    path, values = tmp_path / "lease-1.json", json.loads(text)
    path.write_text(text)

    def renew():
        for second in range(1000):
            if ended.wait(0.3):
                return
            date = f"2020-01-01 00:00:00.{second:06d} UTC"
            path.write_text(json.dumps(values | {"renewed": date}) + "\n")

    thread = threading.Thread(target=renew)
    thread.start()
    is_taken, seconds = took(tmp_path, patience=30)
    ended.set()
    thread.join()
    assert not is_taken
    assert seconds < 15
    assert json.loads(path.read_text())["token"] == "another"


def test_a_thread_renews_it_while_the_main_thread_is_in_native_code(tmp_path):
    """As XLA is while it compiles; the file keeps its length, so that a reader sees a whole one."""
    with lease.hold(tmp_path, renew_every=0.02):
        before = (tmp_path / "lease-1.json").read_bytes()
        time.sleep(0.3)
        after = (tmp_path / "lease-1.json").read_bytes()
    assert before != after
    assert len(before) == len(after)
    old, new = json.loads(before), json.loads(after)
    assert old.pop("renewed") < new.pop("renewed")
    assert old == new


@pytest.mark.parametrize(
    "content",
    [b"", b'{"token": "abc', b"[]", b'{"pid": 1}', b"\0\xff" * 99]
    + [{"pid": "7"}, {"pid": 0}, {"pid": 2**31}, {"host": 7}, {"started": None}],
)
def test_a_torn_lease_is_waited_for_and_then_replaced(tmp_path, content):
    if isinstance(content, dict):
        content = lease_of(tmp_path, **content).encode()
    (tmp_path / "lease-1.json").write_bytes(content)
    with pytest.raises(lease.HeldError, match="is in use by another process$"):
        lease.hold(tmp_path, patience=None).__enter__()
    is_taken, seconds = took(tmp_path, patience=0.2)
    assert is_taken
    assert seconds >= 0.2
    assert files(tmp_path) == []


def test_one_that_is_being_written_is_read_when_it_is_complete(start, tmp_path):
    """The file is empty for a moment; then it turns out to be that of a living process."""
    text = lease_of(tmp_path)
    path = tmp_path / "lease-1.json"
    path.touch()
    threading.Timer(0.2, lambda: path.write_text(text)).start()
    is_taken, seconds = took(tmp_path, patience=20)
    assert not is_taken
    assert seconds < 10


def test_who_was_replaced_notices_before_its_next_write_and_says_by_whom(tmp_path):
    """It was suspended, say; neither its renewals nor its end touch the other's lease."""
    with lease.hold(tmp_path, renew_every=0.02) as guard:
        guard()
        text = lease_of(tmp_path.parent, **ELSEWHERE)
        (tmp_path / "lease-2.json").write_text(text)  # as `hold` takes over a stale lease
        (tmp_path / "lease-1.json").unlink()
        with pytest.raises(lease.HeldError, match=r"taken over by process \d+ on elsewhere, since"):
            guard()
        time.sleep(0.1)
    assert files(tmp_path) == ["lease-2.json"]
    assert (tmp_path / "lease-2.json").read_text() == text


def test_who_lost_its_file_notices(tmp_path):
    with lease.hold(tmp_path) as guard:
        text = lease_of(tmp_path.parent, **ELSEWHERE)
        (tmp_path / "lease-1.json").write_text(text)
        with pytest.raises(lease.HeldError, match=r"taken over by process \d+ on elsewhere, since"):
            guard()
        (tmp_path / "lease-1.json").unlink()
        with pytest.raises(lease.HeldError, match=r"is gone: no lease-1.json; this process writes"):
            guard()


def test_whose_folder_is_gone_notices(tmp_path):
    folder = tmp_path / "run"
    with lease.hold(folder) as guard:
        shutil.rmtree(folder)
        with pytest.raises(lease.HeldError, match=r"is gone: no lease-1.json; this process writes"):
            guard()
    assert files(tmp_path) == []


def test_who_was_replaced_leaves_the_lease_of_the_same_number(tmp_path):
    """Those who took it over have ended; then others began, with numbers from 1 again."""
    path, text = tmp_path / "lease-1.json", lease_of(tmp_path, **ELSEWHERE)
    with lease.hold(tmp_path):
        path.unlink()
        path.write_text(text)
    assert path.read_text() == text


@contextlib.contextmanager
def no_file_may_grow():
    """As on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_lease_that_cannot_be_written_is_not_left_behind(tmp_path):
    with (
        no_file_may_grow(),
        pytest.raises(OSError, match="File too large"),
        lease.hold(tmp_path / "run"),
    ):
        pass
    assert files(tmp_path / "run") == []


def test_a_renewal_that_fails_is_not_the_last(tmp_path):
    path = tmp_path / "lease-1.json"
    with lease.hold(tmp_path, renew_every=0.02) as guard:
        with no_file_may_grow():
            time.sleep(0.2)
            before = path.read_bytes()
            time.sleep(0.1)
            assert path.read_bytes() == before
        end = time.monotonic() + 20
        while path.read_bytes() == before and time.monotonic() < end:
            time.sleep(0.01)
        assert path.read_bytes() != before
        guard()


def test_a_folder_that_its_creator_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Another process had made it, and ended between our look at it and our file."""
    folder, create = tmp_path / "run", os.open

    def remove_once(path, *arguments):
        monkeypatch.setattr(os, "open", create)
        folder.rmdir()
        return create(path, *arguments)

    monkeypatch.setattr(os, "open", remove_once)
    with lease.hold(folder):
        assert files(folder) == ["lease-1.json"]


@needs_proc
@pytest.mark.parametrize("number", [9, 1])
def test_who_comes_after_others_ended_and_began_again_does_not_hold_it_too(
    number, tmp_path, monkeypatch
):
    """A dead holder has number 9; ours would be 10, but meanwhile 10 came and went, and 1 came."""
    text, create = lease_of(tmp_path), lease.create
    leave(tmp_path, number=number, pid=2**31 - 1)

    def create_late(path, holder):
        (tmp_path / f"lease-{number}.json").unlink(missing_ok=True)
        (tmp_path / "lease-1.json").write_text(text)
        return create(path, holder)

    monkeypatch.setattr(lease, "create", create_late)
    assert not took(tmp_path)[0]
    assert files(tmp_path) == ["lease-1.json"]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_file_that_another_host_removed_is_gone_and_an_error_is_none(code, tmp_path, monkeypatch):
    """NFS has a name for it, where the file was open or known here."""
    leave(tmp_path, **ELSEWHERE)
    read = pathlib.Path.read_bytes

    def removed(path):
        monkeypatch.setattr(pathlib.Path, "read_bytes", read)
        path.unlink()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pathlib.Path, "read_bytes", removed)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output"), lease.hold(tmp_path, patience=None):
            pass
    else:
        assert took(tmp_path, patience=None)[0]
    assert files(tmp_path) == []


@needs_proc
@pytest.mark.parametrize("hidden", ["processes of others", "boots"])
def test_what_is_hidden_from_us_may_be_alive(hidden, tmp_path, monkeypatch):
    """Neither is told then whether a holder is dead: its lease is watched."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(*((os, "kill") if hidden != "boots" else (os, "readlink")), refuse)
    leave(tmp_path, pid=2**31 - 1)
    assert not took(tmp_path, patience=None)[0]
    assert took(tmp_path, patience=0.2)[0]


@needs_proc
def test_of_many_that_find_it_dead_one_takes_it_and_the_highest_number_counts(start, tmp_path):
    for number in (1, 2, 9):  # takers that died, too
        leave(tmp_path, number=number, pid=2**31 - 1)
    go = tmp_path.with_name("go")
    processes = [start(HOLD, tmp_path, go) for _ in range(4)]
    time.sleep(1)
    go.touch()
    while sum(process.poll() is None for process in processes) > 1:
        time.sleep(0.01)
    assert files(tmp_path) == ["lease-10.json"]
    (holder,) = [process for process in processes if process.poll() is None]
    assert json.loads((tmp_path / "lease-10.json").read_text())["pid"] == holder.pid
    refused = [process for process in processes if process is not holder]
    for process in refused:
        assert f"is in use by process {holder.pid} on " in process.communicate()[1]


def test_writers_that_take_turns_lose_nothing(start, tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [start(COUNT, tmp_path, 25) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "75"


def test_a_listing_that_is_old_misleads_nobody(tmp_path, monkeypatch):
    """As on shared storage, where another host's new file may be listed only later."""
    with lease.hold(tmp_path) as guard:
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", lambda _: [])
            with pytest.raises(lease.HeldError, match="is in use by"), lease.hold(tmp_path):
                pass
        guard()
