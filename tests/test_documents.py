"""What the README and docs/ show is run."""

import contextlib
import functools
import io
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from sparsejax.sparse_files import save_sparse
from sparsejax.sparsity.masks import path_name

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_own_loop_example_learns_and_stays_sparse():
    command = [sys.executable, "docs/own_loop.py"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loss = float(out.split()[1])
    assert loss < 0.1
    assert "active=436" in out


@functools.cache
def run_example(name):
    """Run a file of docs/; return its names, and what it printed as `printed`."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        names = runpy.run_path(str(ROOT / "docs" / f"{name}.py"))
    return names | {"printed": out.getvalue()}


def holes_of(tree, mask):
    """What arrays of the parameters' shapes hold where the mask is False."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    return np.concatenate([np.asarray(x)[~np.broadcast_to(m, x.shape)] for x, m in pairs])


@pytest.mark.parametrize("library", ["nnx", "equinox", "haiku"])
def test_the_loops_of_other_libraries_learn_and_stay_sparse(library):
    """`sparse_updates`, then `packed`, whose state moves with the topology."""
    if library != "nnx":
        missing = f"NOT TESTED: {library} is not installed; pip install -e '.[test]'"
        pytest.importorskip(library, reason=missing)
    names = run_example(f"own_loop_{library}")
    lines = names["printed"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["sparse_updates", "packed"]
    assert all(float(line.split()[2]) < 0.01 for line in lines)
    assert all(names["counts"].sparsifiable.density == pytest.approx(0.2, abs=1e-3) for _ in lines)
    # What the last of them left, the packed one.
    mask = names["mask"]
    if library == "nnx":
        params, state = names["nnx"].as_pure(
            (names["nnx"].state(names["model"], names["nnx"].Param), names["optimizer"].opt_state)
        )
    else:
        params, state = names["trained"], names["state"]
        assert any(
            (a != b).any()
            for a, b in zip(*map(jax.tree.leaves, (mask, names["first_mask"])), strict=True)
        )
    assert holes_of(params, mask).size > 1000
    assert not holes_of(params, mask).any()
    dense = {path_name(path) for path, m in jax.tree_util.tree_leaves_with_path(mask) if not m.ndim}
    assert {"nnx": "out/kernel", "equinox": "embed/weight", "haiku": "embed/embeddings"}[
        library
    ] in dense
    for index, m in zip(*map(jax.tree.leaves, (state.indices, mask)), strict=True):
        if m.ndim:
            np.testing.assert_array_equal(index, np.flatnonzero(m))


def test_the_loop_in_nnx_resets_state_and_keeps_it_in_the_optimizer():
    """After a topology update, moments of inactive weights are zero in `nnx.Optimizer` itself."""
    names = run_example("own_loop_nnx")
    nnx, model, mask = names["nnx"], names["model"], names["mask"]
    optimizer = names["transforms"].sparse_updates(names["optax"].adamw(1e-2))
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    ones = jax.tree.map(jax.numpy.ones_like, nnx.as_pure(optimizer.opt_state))
    nnx.update(optimizer.opt_state, nnx.state(ones))
    mask = names["change_topology"](jax.random.key(0), model, optimizer, mask, 0.5)
    moments = nnx.as_pure(optimizer.opt_state)[0].mu
    for moment, m in zip(*map(jax.tree.leaves, (moments, mask)), strict=True):
        np.testing.assert_array_equal(moment, np.broadcast_to(m, moment.shape))


def test_the_readme_shows_the_own_loop_as_it_is():
    code = (ROOT / "docs" / "own_loop.py").read_text()
    assert code in (ROOT / "README.md").read_text()


def test_the_readme_holds_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()[:40]
    assert "pip install -e . && python train.py" in lines
    assert "pip install -e '.[test]' && pytest" in lines


def test_the_reader_in_numpy_that_the_docs_show_reads_a_sparse_file(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "sparse_files.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    mask = np.arange(35).reshape(5, 7) % 3 == 0
    params = {"a": {"kernel": np.where(mask, np.float16(1.5), 0), "bias": np.arange(3.0)}}
    masks = {"a": {"kernel": mask, "bias": np.array(True)}}
    save_sparse(tmp_path / "model.safetensors", params, masks)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["params"].keys() == {"a/kernel", "a/bias"}
    for name, leaf in params["a"].items():
        assert names["params"][f"a/{name}"].dtype == leaf.dtype
        np.testing.assert_array_equal(names["params"][f"a/{name}"], leaf)


def anchors_of(document):
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_documents_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link
