"""How the processes of a run find each other: flags, the environment, or the cluster.

The runtime answers most mistakes by ending the process with a stack trace, so they are looked for
before it is asked.
"""

import argparse
import errno
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsejax import command_line
from sparsejax.errors import ConfigError, reason
from sparsejax.processes import supervisor

JOIN_TIMEOUT = 300  # seconds
# JAX's own. `together` notices a lost process before, and doesn't count time in which all are
# suspended.
_HEARTBEAT_TIMEOUT = 300
_SHUTDOWN_TIMEOUT = 60
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num-processes": "JAX_NUM_PROCESSES",
    "process-id": "JAX_PROCESS_ID",
}
_CLUSTERS = "a TPU pod, SLURM, Open MPI or Kubernetes"


class Processes(NamedTuple):
    """The processes of a run.

    Attributes:
      coordinator: HOST:PORT where process 0 listens.
      number: number of processes.
      process: number of this one, from 0.
    """

    coordinator: str
    number: int
    process: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that can run as several processes."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=f"Run as one of several processes, which JAX finds on {_CLUSTERS}, or which "
        f"{', '.join(_VARIABLES.values())} name.",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        type=address,
        help="Run as one of several processes: the machine of process 0, and a free port of it.",
    )
    parser.add_argument(
        "--num-processes", metavar="N", type=command_line.count, help="Number of processes."
    )
    parser.add_argument(
        "--process-id", metavar="I", type=index, help="Number of this process: 0 to N - 1."
    )
    parser.add_argument(
        "--join-timeout",
        metavar="SECONDS",
        type=command_line.count,
        default=JOIN_TIMEOUT,
        help="How long to wait for the other processes at the start.",
    )


def is_asked_for(flags: argparse.Namespace) -> bool:
    """Return whether parsed flags ask to run as one of several processes."""
    named = (flags.coordinator, flags.num_processes, flags.process_id)
    return flags.distributed or any(value is not None for value in named)


def are_several(argv: Sequence[str]) -> bool:
    """Return whether a command line asks to run as one of several processes."""
    flags = ("--distributed", *(f"--{name}" for name in _VARIABLES))
    return any(word.split("=")[0].replace("_", "-") in flags for word in argv)


def address(text: str) -> str:
    """Parse HOST:PORT.

    Raises:
      argparse.ArgumentTypeError: `text` is something else; says what is accepted.
    """
    match = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.%\w]+\]):(\d{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        accepted = "HOST:PORT, such as 10.0.0.1:1234, with a port from 1 to 65535"
        raise argparse.ArgumentTypeError(f"is {text!r}; accepted: {accepted}")
    return text


def index(text: str) -> int:
    """Parse a whole number, 0 or more.

    Raises:
      argparse.ArgumentTypeError: `text` is something else; says what is accepted.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; accepted: a whole number, 0 or more")
    return int(text)


def find_processes(
    flags: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> Processes | None:
    """Return the processes that flags and environment variables name.

    Args:
      flags: parsed flags; see `add_flags`.
      environment: environment variables; a flag goes before its variable.

    Returns:
      Processes; None if only `--distributed` is given, and JAX has to find them.

    Raises:
      ConfigError: some are missing, or contradict each other; names them.
    """
    given = {
        "coordinator": flags.coordinator,
        "num-processes": flags.num_processes,
        "process-id": flags.process_id,
    }
    is_named = any(value is not None for value in given.values())
    # JAX itself reads the coordinator's variable, also where it finds the rest.
    is_named |= any(environment.get(_VARIABLES[name]) for name in ("num-processes", "process-id"))
    if not is_named:
        return None
    parsers = {"coordinator": address, "num-processes": command_line.count, "process-id": index}
    for name, variable in _VARIABLES.items():
        text = environment.get(variable)
        if given[name] is None and text:
            try:
                given[name] = parsers[name](text)
            except argparse.ArgumentTypeError as error:
                raise ConfigError(f"{variable} {error}") from error
    missing = [
        f"--{name} (or {_VARIABLES[name]})" for name, value in given.items() if value is None
    ]
    if missing:
        names = ", ".join(f"--{name}" for name in _VARIABLES)
        raise ConfigError(f"{names} belong together, and missing: {', '.join(missing)}")
    found = Processes(given["coordinator"], given["num-processes"], given["process-id"])
    if found.process >= found.number:
        raise ConfigError(
            f"--process-id is {found.process}; accepted: 0 to {found.number - 1}, since "
            f"--num-processes is {found.number}"
        )
    return found


def join(processes: Processes | None, timeout: int = JOIN_TIMEOUT) -> Processes:
    """Wait until all processes of a run have started, and join them.

    Args:
      processes: what `find_processes` returns; None to have JAX find them.
      timeout: seconds to wait.

    Returns:
      The processes.

    Raises:
      ConfigError: JAX finds no other processes; the coordinator can't be reached, or its port is
        in use.
    """
    import jax
    from jax._src.distributed import global_state  # has no public name

    began = time.monotonic()
    named: dict[str, Any] = {}
    if processes:
        if processes.process == 0:
            _require_free(processes.coordinator)
        else:
            _wait_for(processes.coordinator, timeout)
        named = {
            "coordinator_address": processes.coordinator,
            "num_processes": processes.number,
            "process_id": processes.process,
            "cluster_detection_method": "deactivate",
        }
        supervisor.report(**processes._asdict())
    supervisor.report(phase="joining", timeout=timeout)
    left = max(1, round(timeout - (time.monotonic() - began)))
    try:
        jax.distributed.initialize(
            **named,
            initialization_timeout=left,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ConfigError(_problem(processes, error)) from error
    if processes is None:
        coordinator = str(global_state.coordinator_address)
        processes = Processes(coordinator, global_state.num_processes, global_state.process_id)
    supervisor.report(phase="training", **processes._asdict())
    return processes


def _problem(processes: Processes | None, error: Exception) -> str:
    if processes:
        this = f"process {processes.process} of {processes.number}"
        return f"{this} can't join the others at {processes.coordinator}: {reason(error)}"
    flags = "--coordinator HOST:PORT --num-processes N --process-id I"
    return (
        f"--distributed: JAX can't find the processes of this run: {reason(error)}; accepted: "
        f"{_CLUSTERS}, or {flags} in each process"
    )


def _require_free(coordinator: str) -> None:
    """Raise ConfigError if process 0 can't listen on the coordinator's port.

    The runtime would share the port with another run of the same user, or end without a word.
    """
    if os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return
    port = int(coordinator.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"--coordinator is {coordinator!r}, but this machine can't listen on port {port}: "
                f"{error.strerror}; accepted: a free port, the same in all processes"
            ) from error


def _wait_for(coordinator: str, timeout: float) -> None:
    """Wait until process 0 listens.

    Raises:
      ConfigError: it doesn't within `timeout` seconds; names the address and the reason.
    """
    began = time.monotonic()
    while problem := supervisor.unreachable(coordinator):
        if time.monotonic() - began > timeout:
            raise ConfigError(
                f"--coordinator is {coordinator!r}, where process 0 can't be reached within "
                f"{timeout:g} s: {problem}; accepted: the machine of process 0 and a port that "
                "others can reach (--join-timeout waits longer)"
            )
        time.sleep(0.2)
