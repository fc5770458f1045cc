"""How processes find each other: what flags and environment say, and what is wrong with it."""

import argparse
import pathlib
import re
import signal
import socket
import threading
import time

import jax
import pytest
import yaml

from sparsejax import command_line
from sparsejax.errors import ConfigError
from sparsejax.processes import joining, supervisor
from sparsejax.processes.joining import Processes

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "running.md"

VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "train-0.train:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
FLAGS = ["--coordinator=10.0.0.1:80", "--num-processes=2", "--process-id=1"]


def parse(words):
    parser = command_line.Parser("")
    joining.add_flags(parser)
    return parser.parse_args(words)


def find(words, environment=None):
    return joining.find_processes(parse(words), environment or {})


def test_flags_name_the_processes_and_go_before_the_environment():
    assert find(FLAGS) == find(FLAGS, VARIABLES) == Processes("10.0.0.1:80", 2, 1)
    assert find(["--distributed"], VARIABLES) == Processes("train-0.train:1234", 4, 3)
    assert find(["--process-id=0"], VARIABLES) == Processes("train-0.train:1234", 4, 0)
    assert find(FLAGS[:1] + FLAGS[2:], {"JAX_NUM_PROCESSES": "9"}).number == 9


def test_without_a_number_jax_looks_for_the_processes():
    """It reads the coordinator's address itself."""
    assert find(["--distributed"]) is None
    assert find(["--distributed"], {"JAX_COORDINATOR_ADDRESS": "a:1"}) is None


@pytest.mark.parametrize("left_out", range(3))
def test_flags_that_are_missing_are_named(left_out):
    flags = [flag for i, flag in enumerate(FLAGS) if i != left_out]
    with pytest.raises(ConfigError) as caught:
        find(flags)
    flag, variable = FLAGS[left_out].split("=")[0], list(VARIABLES)[left_out]
    assert str(caught.value).endswith(f"missing: {flag} (or {variable})")


def test_a_process_id_is_less_than_the_number_of_processes():
    with pytest.raises(ConfigError, match="--process-id is 2; accepted: 0 to 1"):
        find([*FLAGS[:2], "--process-id=2"])


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        ("JAX_NUM_PROCESSES", "0", "a whole number, 1 or more"),
        ("JAX_PROCESS_ID", "-1", "a whole number, 0 or more"),
        ("JAX_COORDINATOR_ADDRESS", "train-0", "HOST:PORT"),
    ],
)
def test_a_wrong_variable_is_named(variable, text, accepted):
    with pytest.raises(ConfigError, match=f"{variable} is '{text}'; accepted: {accepted}"):
        find(["--distributed"], VARIABLES | {variable: text})


@pytest.mark.parametrize(
    "flag",
    ["--coordinator=a", "--coordinator=:1", "--coordinator=a:0", "--coordinator=a:65536"]
    + ["--coordinator=http://a:1", "--num-processes=0", "--process-id=-1", "--process-id=x"],
)
def test_a_wrong_flag_ends_in_one_line(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 2
    name, text = flag.split("=")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name} is {text!r}; accepted: ")


@pytest.mark.parametrize("text", ["localhost:1234", "10.0.0.1:1", "[::1]:65535", "a-b.c_d:80"])
def test_addresses_are_a_host_and_a_port(text):
    assert joining.address(text) == text


def test_flags_that_ask_for_several_processes_are_known_before_they_are_parsed():
    for words in (["--distributed"], *([flag] for flag in FLAGS), ["--num_processes", "2"]):
        assert joining.are_several(words)
        assert joining.is_asked_for(parse(words))
    assert not joining.are_several(["--workdir=--distributed", "--join-timeout=3"])
    assert not joining.is_asked_for(parse([]))
    assert isinstance(parse([]), argparse.Namespace)


@pytest.fixture
def used():
    """The address of a socket that listens, in a process where JAX refuses to begin a run."""
    assert jax.devices()
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def unused():
    assert jax.devices()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# What JAX is asked to do it refuses here: so far it is all right.
ASKED = "process {} of 2 can't join the others at {}: RuntimeError .* must be called before"


def test_a_port_that_is_in_use_is_named_before_the_runtime_shares_it(used, unused):
    named = f"^--coordinator is '{used}', but this machine can't listen on port {used[10:]}: Addr"
    with pytest.raises(ConfigError, match=named):
        joining.join(Processes(used, 2, 0), 1)
    with pytest.raises(ConfigError, match=ASKED.format(0, unused)):
        joining.join(Processes(unused, 2, 0), 1)


def test_where_the_runtime_listens_elsewhere_the_port_is_not_looked_at(used, monkeypatch):
    """As behind a proxy, at whose address the others reach it."""
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=ASKED.format(0, used)):
        joining.join(Processes(used, 2, 0), 1)


def test_a_process_waits_until_process_0_listens(unused):
    """Longer than the first tries take; the port is that of a socket that listens later."""
    listening = []

    def listen():
        listening.append(socket.create_server(("127.0.0.1", int(unused[10:]))))

    timer = threading.Timer(0.5, listen)
    timer.start()
    with pytest.raises(ConfigError, match=ASKED.format(1, unused)):
        joining.join(Processes(unused, 2, 1), 60)
    assert listening, "it was not waited for"
    timer.join()
    listening[0].close()


def test_a_process_0_that_never_listens_is_waited_for_and_named(unused):
    began = time.monotonic()
    named = f"^--coordinator is '{unused}', where process 0 can't be reached within 1 s: Connection"
    with pytest.raises(ConfigError, match=named):
        joining.join(Processes(unused, 2, 1), 1)
    assert time.monotonic() - began >= 1


def test_the_kubernetes_manifest_of_the_docs_names_its_processes():
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    service, job = yaml.safe_load_all(text)
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    program, script, *flags = container["command"]
    assert (program, script) == ("python", "train.py")
    assert joining.are_several(flags)
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    (index,) = (v["valueFrom"] for v in container["env"] if v["name"] == "JAX_PROCESS_ID")
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert index == {"fieldRef": {"fieldPath": path}}
    for i in range(spec["completions"]):
        found = find(flags[:1], given | {"JAX_PROCESS_ID": str(i)})
        # A pod of an indexed job is reached as JOB-INDEX.SUBDOMAIN, by a headless service.
        assert found == Processes(f"{name}-0.{pod['subdomain']}:1234", spec["parallelism"], i)
    assert service["metadata"]["name"] == pod["subdomain"]
    assert (service["spec"]["clusterIP"], spec["completionMode"]) == ("None", "Indexed")
    assert service["spec"]["selector"] == {"job-name": name}
    fail, again, _ = (rule.get("onExitCodes") for rule in spec["podFailurePolicy"]["rules"])
    assert fail["values"] == [2]
    assert again["values"] == [supervisor.LOST, 128 + signal.SIGTERM]
