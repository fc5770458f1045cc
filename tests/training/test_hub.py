"""Models are loaded from hf://OWNER/NAME by huggingface_hub itself, from a local server."""

import hashlib
import http.server
import re
import shutil
import sys
import threading

import jax
import numpy as np
import pytest

import sparsejax
from sparsejax.__main__ import run
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.training import load_run, save_sparse_run
from sparsejax.training.hub import sparse_file_of
from sparsejax.training.init_from import other_weights
from tests.training.tiny import small_config

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture(scope="module")
def repositories(small_run, tmp_path_factory):
    """A folder `owner/name/<revision>/model.safetensors`: EMA weights, at v1 those of the end."""
    folder = tmp_path_factory.mktemp("repositories")
    for revision in COMMITS:
        path = folder / "owner/name" / revision / "model.safetensors"
        save_sparse_run(small_run, path, ema=revision == "main")
        (folder / "owner/empty" / revision).mkdir(parents=True)
    return folder


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does where a file is asked for, by HEAD and GET."""

    def do_GET(self):  # noqa: N802
        found = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w-]+)/(.+)", self.path)
        repository, revision, name = found.groups()
        by_commit = {commit: branch for branch, commit in COMMITS.items()}
        revision = by_commit.get(revision, revision)
        folder = self.server.folder / repository
        self.server.asked.append(self.path)
        for path, code in (
            (folder, "RepoNotFound"),
            (folder / revision, "RevisionNotFound"),
            (folder / revision / name, "EntryNotFound"),
        ):
            if not path.exists():
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS[revision])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        """Say nothing."""


def begin(monkeypatch, **variables):
    """Have huggingface_hub, which reads the environment once, begin anew with these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """The server; `asked` lists the paths that it was asked for."""
    missing = "NOT TESTED: huggingface_hub is not installed; pip install -e '.[test]'"
    pytest.importorskip("huggingface_hub", reason=missing)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked = repositories, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    begin(
        monkeypatch,
        HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        HF_HOME=str(tmp_path / "home"),
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_OFFLINE="0",
    )
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_model_is_loaded_by_name_and_revision(hub, small_run):
    for uri, ema in {
        "hf://owner/name": True,
        "hf://owner/name@v1": False,
        f"hf://owner/name@{COMMITS['v1']}": False,
    }.items():
        loaded = sparsejax.load(uri)
        assert_equal((loaded.params, loaded.masks), load_run(small_run, ema=ema)[1:])
    assert {path.rpartition("/")[2] for path in hub.asked} == {"model.safetensors"}


def test_a_file_is_downloaded_once_and_is_there_without_network(hub, tmp_path, monkeypatch):
    first = sparse_file_of("hf://owner/name")
    assert tmp_path / "home" in first.parents
    asked = len(hub.asked)
    assert sparse_file_of("hf://owner/name") == first
    assert len(hub.asked) == asked + 1  # whether there is a newer one
    begin(monkeypatch, HF_HUB_OFFLINE="1")
    assert sparse_file_of("hf://owner/name") == first
    message = "^hf://owner/name@v1: the Hub can't be reached, and the file hasn't been downloaded"
    with pytest.raises(ConfigError, match=message):
        sparse_file_of("hf://owner/name@v1")
    assert len(hub.asked) == asked + 1


@pytest.mark.usefixtures("own_logging")
def test_it_is_sampled_on_the_command_line(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("sample", ["--run=hf://owner/name@v1", "--count=4"])
    assert capsys.readouterr().out.splitlines()[-1] == "In samples/name: samples.npz, grid.png"
    assert np.load("samples/name/samples.npz")["images"].shape == (4, 8, 8, 1)


def test_a_run_begins_with_it(hub, small_run):
    config = resolve(small_config(**{"checkpoint.init_from": "hf://owner/name"}))
    assert_equal(other_weights(config, build_model(config)), load_run(small_run)[1:])
    config = resolve(small_config(**{"checkpoint.init_from": "hf://owner/nobody"}))
    message = "^config.checkpoint.init_from is 'hf://owner/nobody': no such model repository"
    with pytest.raises(ConfigError, match=message):
        other_weights(config, build_model(config))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://owner/other", "hf://owner/other: no such model repository, or a private one"),
        ("hf://owner/name@v2", "hf://owner/name@v2: no such revision; accepted: a branch, tag"),
        ("hf://owner/empty", "hf://owner/empty: it holds no model.safetensors; accepted: what"),
        ("hf://owner", "'hf://owner' names no model repository; accepted: hf://OWNER/NAME"),
        ("hf://owner/name@", "'hf://owner/name@' names no model repository"),
        ("hf://owner/name/more", "'hf://owner/name/more' names no model repository"),
        ("hf://owner/../x", "'hf://owner/../x' names no model repository"),
        ("hf://-owner/name", "hf://-owner/name: "),  # which huggingface_hub refuses
    ],
)
def test_what_is_not_there_is_one_line(hub, uri, message):
    with pytest.raises(ConfigError) as error:
        sparsejax.load(uri)
    assert str(error.value).startswith(message)


@pytest.mark.usefixtures("own_logging")
def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit):
        run("sample", ["--run=hf://owner/name"])
    assert capsys.readouterr().err == (
        "error: hf://owner/name needs the package huggingface_hub: pip install 'sparsejax[hub]'\n"
    )


def test_other_paths_are_what_they_were(small_run, tmp_path):
    """A folder counts as a repository only if it holds the file, and is no workdir."""
    assert sparse_file_of(tmp_path) == tmp_path
    assert sparse_file_of("nowhere") == sparse_file_of("./nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert sparse_file_of(tmp_path) == tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match="model.safetensors is damaged"):
        sparsejax.load(tmp_path)
    workdir = shutil.copytree(small_run, tmp_path / "run")
    shutil.copy(tmp_path / "model.safetensors", workdir)
    assert sparse_file_of(workdir) == workdir
