"""What processes of a run hear of each other: by the store of JAX, with times that are short."""

import contextlib
import functools
import queue
import socket
import threading
import time
import types

import pytest
from jax._src.lib import _jax  # has no public name

from sparsejax import signals
from sparsejax.errors import ConfigError
from sparsejax.processes import supervisor, together
from sparsejax.processes.joining import Processes
from sparsejax.processes.together import Failure

# What ends a process ends a thread here; pytest takes that for an error.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

COUNT = 3
GOES_ON = "The same command in each process resumes the run in runs/a from its last checkpoint"
FAILURE = Failure(1, "error: process 2 of 3: it is so")


def make_client(address, index):
    return _jax.get_distributed_runtime_client(
        *(address, index), rpc_timeout=60, heartbeat_timeout=3600, shutdown_on_destruction=False
    )


def in_threads(functions):
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def connected(address):
    """Three clients of one store, each as a process has it."""
    service = _jax.get_distributed_runtime_service(address, COUNT, heartbeat_timeout=3600)
    clients = [make_client(address, i) for i in range(COUNT)]
    for method in ("connect", "shutdown"):
        for thread in in_threads(getattr(client, method) for client in clients):
            thread.join(60)
        if method == "connect":
            yield clients
    service.shutdown()


@pytest.fixture
def clients(connected):
    """The clients of a store that holds nothing."""
    connected[0].key_value_delete("sparsejax")
    return connected


@pytest.fixture
def ended(monkeypatch):
    """Exit statuses and last lines of processes, in order."""
    said = queue.Queue()

    def end(status, line):
        said.put(Failure(status, line))
        raise SystemExit

    monkeypatch.setattr(signals, "end", end)
    return said


@pytest.fixture
def watch(ended, monkeypatch):
    """`watch(client, index)` returns a Watch, followed by its threads unless told otherwise."""
    for name, value in {"POLL": 0.05, "SILENCE": 14, "SUSPECTED": 8, "GRACE": 0.3}.items():
        monkeypatch.setattr(together, name, value)
    monkeypatch.setattr(together, "UNWINDING", 0.3)
    watches, threads = [], []

    def make(client, index, *, follow=True):
        watches.append(together.Watch(client, Processes("", COUNT, index), "runs/a"))
        if follow:
            threads.extend(in_threads((watches[-1].beat, watches[-1].judge)))
        return watches[-1]

    yield make
    for one in watches:
        one.ended.set()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
    for thread in threads[1::2]:  # those that could end this process
        thread.join(60)


def all_of(watch, clients):
    return [watch(client, index) for index, client in enumerate(clients)]


def next_of(ended):
    return ended.get(timeout=120)


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def fail_with(error, watch):
    """Call `fail`, as the main thread of a process does; returns the thread."""
    (thread,) = in_threads([lambda: watch.fail(error)])
    return thread


def leave(watch, client, index):
    """A process that has left, and says nothing any more."""
    one = watch(client, index, follow=False)
    one.leave()
    return one


def lost(index):
    return f"error: process {index} of 3 was lost. {GOES_ON}"


def test_a_process_is_lost_once_it_says_nothing_any_more(watch, clients, ended, monkeypatch):
    """As long as it is heard, its silence begins anew."""
    monkeypatch.setattr(together, "SILENCE", 10**9)
    first, third = watch(clients[0], 0), watch(clients[2], 2)
    leave(watch, clients[1], 1)
    for _ in range(3):
        wait_until(lambda: first.quiet[2])
        wait_until(lambda: not first.quiet[2])
    third.ended.set()  # it neither speaks nor ends any more, as if it had been killed
    first.silence = 10
    status, line = next_of(ended)
    assert status == supervisor.LOST
    assert line.startswith(lost(2))


def test_a_process_that_has_left_is_not_lost(watch, clients):
    first = watch(clients[0], 0)
    for index in (1, 2):
        leave(watch, clients[index], index)
    wait_until(lambda: first.quiet[2] > 1.5 * together.SILENCE)
    assert not first.ending.locked()


@pytest.mark.parametrize("index", [0, 1])
def test_while_the_store_does_not_answer_only_its_process_is_lost(index, watch, ended):
    """It belongs to process 0, which hears nothing of others then, and takes none for lost."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as of a machine that hangs
        one = watch(make_client(f"127.0.0.1:{silent.getsockname()[1]}", index), index)
        if index:
            status, line = next_of(ended)
            assert status == supervisor.LOST
            assert line.startswith(lost(0))
        else:
            wait_until(lambda: one.contact > 1.3 * together.SILENCE)
            assert not one.ending.locked()


def test_a_store_that_fails_for_a_moment_is_asked_again(watch, clients):
    tries = []

    def set_later(*arguments, **options):
        tries.append(arguments)
        if len(tries) < 5:
            raise ConnectionError
        clients[1].key_value_set(*arguments, **options)

    client = types.SimpleNamespace(
        key_value_set=set_later, key_value_dir_get=clients[1].key_value_dir_get
    )
    second = watch(client, 1)
    wait_until(lambda: len(tries) >= 5 and second.contact < 3)
    assert not second.ending.locked()


def test_the_failure_of_one_is_that_of_all(watch, clients, ended, monkeypatch):
    """A thread ends the one that failed, too, if it is still there after some time."""
    monkeypatch.setattr(together, "SILENCE", 10**9)
    watches = all_of(watch, clients)
    failing = fail_with(OSError(5, "Input/output error", "shard"), watches[2])
    failure = Failure(1, "error: process 2 of 3: Input/output error: shard")
    assert [next_of(ended) for _ in range(COUNT)] == [failure] * COUNT
    failing.join(60)


def test_of_two_failures_the_first_is_heard(watch, clients):
    watches = all_of(functools.partial(watch, follow=False), clients)
    watches[2].post(FAILURE)
    watches[1].post(FAILURE._replace(status=2))
    for one in watches:
        one._exchange("0", {})
        assert one.failure == FAILURE


def test_a_process_that_fails_itself_says_its_own_failure(watch, clients, ended, monkeypatch):
    """It hears of the other's while it unwinds."""
    monkeypatch.setattr(together, "SILENCE", 10**9)
    second = watch(clients[1], 1)
    second.own = own = FAILURE._replace(line="error: process 1 of 3: mine")
    watch(clients[2], 2, follow=False).post(FAILURE)
    wait_until(lambda: second.failure == FAILURE)
    time.sleep(together.GRACE + 5 * together.POLL)
    assert not second.ending.locked()
    in_threads([lambda: second.end(own)])
    assert next_of(ended) == own


@pytest.mark.parametrize("is_lost", [True, False])
def test_what_another_process_caused_is_not_said_as_an_own_failure(
    is_lost, watch, clients, ended, monkeypatch
):
    """An operation fails because process 2 is gone: that is found out before the silence is up."""
    monkeypatch.setattr(together, "SILENCE", 10**9)
    monkeypatch.setattr(together, "UNWINDING", 600.0)
    first = watch(clients[0], 0)
    leave(watch, clients[1], 1)
    if is_lost:
        wait_until(lambda: first.quiet[2] > together.SUSPECTED)
    else:
        leave(watch, clients[2], 2).post(FAILURE)
    failing = fail_with(RuntimeError("Connection closed by peer"), first)
    expected = Failure(supervisor.LOST, lost(2)) if is_lost else FAILURE
    status, line = next_of(ended)
    assert status == expected.status
    assert line.startswith(expected.line)
    failing.join(60)


def test_a_failure_of_the_own_code_is_told_once_no_other_is_found(watch, clients, monkeypatch):
    monkeypatch.setattr(together, "UNWINDING", 600.0)
    first, second = (watch(clients[index], index, follow=False) for index in (0, 1))
    failing = fail_with(KeyError("image"), second)
    time.sleep(together.SUSPECTED * together.POLL)
    assert failing.is_alive()
    failing.join(60)
    first._exchange("0", {})
    expected = Failure(1, "error: process 1 of 3: KeyError 'image'")
    assert first.failure == second.own == expected


def test_a_failure_is_told_once_however_often_it_is_raised_again(watch, clients):
    """The loop and the command each tell of an exception that passes them."""
    second = watch(clients[1], 1, follow=False)
    second.own = FAILURE
    second.fail(RuntimeError("and what came of it"))
    assert second.own is FAILURE


def test_process_0_ends_once_the_others_have_read_why(watch, clients, ended, monkeypatch):
    """The store ends with it. Whoever has been silent is not waited for."""
    monkeypatch.setattr(together, "GRACE", 600.0)
    first, second = (watch(clients[index], index, follow=False) for index in (0, 1))
    first.quiet = [0, 0, together.SUSPECTED]
    in_threads([lambda: first.end(FAILURE)])
    wait_until(lambda: second._exchange("0", {}) or second.failure == FAILURE)
    time.sleep(5 * together.POLL)
    assert ended.empty()
    second.leave()
    first._exchange("0", {})
    assert next_of(ended) == FAILURE


def test_a_process_says_one_last_line_and_the_others_know_that_it_has_left(watch, clients, ended):
    first, second = (watch(clients[index], index, follow=False) for index in (0, 1))
    in_threads([lambda: second.end(FAILURE) for _ in range(3)])
    assert next_of(ended) == FAILURE
    time.sleep(0.1)
    assert ended.empty()
    first._exchange("0", {})
    assert (first.failure, first.left) == (FAILURE, {1})


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("a record\n is bad"), 2, "a record; is bad"),
        (FloatingPointError("loss is nan"), 1, "loss is nan"),
        (OSError(28, "No space left on device", "a"), 1, "No space left on device: a"),
        (SystemExit("error: a full disk; step 4 is saved"), 1, "a full disk; step 4 is saved"),
    ],
)
def test_an_exception_is_told_before_it_is_handled_further(
    error, status, message, watch, clients, monkeypatch
):
    second = watch(clients[1], 1, follow=False)
    monkeypatch.setattr(together, "running", second)
    monkeypatch.setattr(together, "UNWINDING", 600.0)
    with pytest.raises(type(error)), together.failing():
        raise error
    first = watch(clients[0], 0, follow=False)
    first._exchange("0", {})
    assert first.failure == second.own == Failure(status, f"error: process 1 of 3: {message}")


@pytest.mark.parametrize("error", [SystemExit(143), SystemExit()])
def test_a_process_that_a_signal_ends_has_not_failed(error, watch, clients, monkeypatch):
    second = watch(clients[1], 1, follow=False)
    monkeypatch.setattr(together, "running", second)
    monkeypatch.setattr(together, "UNWINDING", 600.0)
    with contextlib.suppress(SystemExit), together.failing():
        raise error
    second._exchange("0", {})
    assert second.failure is second.own is None
