"""What the README and docs/ show is run."""

import contextlib
import functools
import io
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from sparsejax import sparsity
from sparsejax.evaluation.sharing import write_repository
from sparsejax.sparse_files import save_sparse
from sparsejax.sparsity.masks import path_name
from sparsejax.training import load_run, save_sparse_run
from sparsejax.training.metrics_log import WALL_CLOCK, read_metrics
from tests.training.test_structured_runs import CHANGES, LEVEL
from tests.training.tiny import tiny_config, write_run

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_own_loop_example_learns_and_stays_sparse():
    command = [sys.executable, "docs/own_loop.py"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loss = float(out.split()[1])
    assert loss < 0.1
    assert "active=436" in out


@functools.cache
def run_example(library, optimizer="packed"):
    """Run a loop of docs/ with either optimizer; return its names, what it printed, first masks."""
    path = ROOT / "docs" / f"own_loop_{library}.py"
    code = path.read_text()
    (other,) = re.findall("or, for those of all: (.*)", code)
    (ours,) = re.findall(r" = (sparsity\.packed\(.*)", code)
    code = code.replace(ours, other) if optimizer == "sparse_updates" else code
    before, loop = code.split("\nfor step in")
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(before, path, "exec"), names)
        first = names["masks"]
        exec(compile(f"for step in{loop}", path, "exec"), names)
    return names | {"printed": out.getvalue(), "first_masks": first}


def holes_of(tree, masks):
    """What arrays of the parameters' shapes hold where the mask is False."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True)
    return np.concatenate([np.asarray(x)[~np.broadcast_to(m, x.shape)] for x, m in pairs])


def params_and_state(library, names):
    if library != "nnx":
        return names["params"], names["state"]
    nnx, model = names["nnx"], names["model"]
    return nnx.as_pure((nnx.state(model, nnx.Param), names["optimizer"].opt_state))


@pytest.mark.parametrize(
    ("library", "optimizer"),
    [
        ("nnx", "packed"),
        pytest.param("equinox", "packed", marks=pytest.mark.slow),
        pytest.param("haiku", "packed", marks=pytest.mark.slow),
        ("nnx", "sparse_updates"),
        pytest.param("equinox", "sparse_updates", marks=pytest.mark.slow),
        pytest.param("haiku", "sparse_updates", marks=pytest.mark.slow),
    ],
)
def test_the_loops_of_other_libraries_learn_and_stay_sparse(library, optimizer):
    """With packed state, which moves with the topology, and with the other that they name."""
    if library != "nnx":
        missing = f"NOT TESTED: {library} is not installed; pip install -e '.[test]'"
        pytest.importorskip(library, reason=missing)
    names = run_example(library, optimizer)
    assert float(names["printed"].split()[1]) < 0.01
    assert re.search(r"density=0\.200\d+\)$", names["printed"].strip())
    masks = names["masks"]
    params, state = params_and_state(library, names)
    pairs = zip(*map(jax.tree.leaves, (masks, names["first_masks"])), strict=True)
    assert any((a != b).any() for a, b in pairs)
    assert holes_of(params, masks).size > 1000
    assert not holes_of(params, masks).any()
    paths = jax.tree_util.tree_leaves_with_path(masks)
    dense = {path_name(path) for path, mask in paths if not mask.ndim}
    embedding = {"nnx": "out/kernel", "equinox": "embed/weight", "haiku": "embed/embeddings"}
    assert embedding[library] in dense
    if optimizer == "sparse_updates":
        assert not holes_of(state[0].mu, masks).any()
        return
    for index, mask in zip(*map(jax.tree.leaves, (state.indices, masks)), strict=True):
        if mask.ndim:
            np.testing.assert_array_equal(index, np.flatnonzero(mask))


def test_the_loop_in_nnx_resets_state_and_keeps_it_in_the_optimizer():
    """After a topology update, moments of inactive weights are zero in `nnx.Optimizer` itself."""
    names = run_example("nnx", "sparse_updates")
    nnx, optimizer = names["nnx"], names["optimizer"]
    ones = jax.tree.map(jax.numpy.ones_like, nnx.as_pure(optimizer.opt_state))
    nnx.update(optimizer.opt_state, nnx.state(ones))
    masks = names["update_topology"](
        jax.random.key(0), names["model"], optimizer, names["masks"], 0.5
    )
    moments = nnx.as_pure(optimizer.opt_state)[0].mu
    for moment, mask in zip(*map(jax.tree.leaves, (moments, masks)), strict=True):
        np.testing.assert_array_equal(moment, np.broadcast_to(mask, moment.shape))


def test_the_page_shows_the_own_loop_as_it_is():
    code = (ROOT / "docs" / "own_loop.py").read_text()
    assert code in (ROOT / "docs" / "own_loop.md").read_text()


def test_the_loop_of_the_readme_learns_and_moves_a_tenth_of_the_weights():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    key = jax.random.key(0)
    x = jax.random.normal(key, (64, 8))
    params = {"hidden": jax.random.normal(key, (8, 64)) / 3, "out": jax.numpy.zeros((64, 1))}

    def loss(params, batch):
        return ((jax.nn.relu(batch @ params["hidden"]) @ params["out"] - batch[:, :1]) ** 2).mean()

    names = {"key": key, "params": params, "batches": [x] * 220, "loss": loss}
    exec(code, {"jax": jax, "optax": optax} | names, names)
    first = sparsity.random_masks(key, params, sparsity.erdos_renyi_kernel(params, 0.9))
    active = [sum(int(mask.sum()) for mask in jax.tree.leaves(m)) for m in (first, names["masks"])]
    assert active[0] == active[1] == pytest.approx(0.1 * 576, abs=3)  # rounded by layer
    pairs = zip(*map(jax.tree.leaves, (first, names["masks"])), strict=True)
    assert any((a != b).any() for a, b in pairs)
    assert not holes_of(names["params"], names["masks"]).any()
    assert loss(names["params"], x) < loss(params, x)


def test_the_readme_holds_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()[:60]
    assert "pip install -e . && python train.py" in lines
    assert "pip install -e '.[test]' && pytest" in lines


SPARSE_FILES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "sparse_files.md").read_text(), re.DOTALL
)


def assert_reads(params):
    """The reader in numpy that the docs show finds these params in model.safetensors."""
    names = {}
    exec(SPARSE_FILES[-1], names)
    expected = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    assert names["params"].keys() == expected.keys()
    for name, leaf in expected.items():
        assert names["params"][name].dtype == leaf.dtype
        np.testing.assert_array_equal(names["params"][name], leaf)


def test_the_reader_in_numpy_that_the_docs_show_reads_a_sparse_file(tmp_path, monkeypatch):
    mask = np.arange(35).reshape(5, 7) % 3 == 0
    params = {"a": {"kernel": np.where(mask, np.float16(1.5), 0), "bias": np.arange(3.0)}}
    masks = {"a": {"kernel": mask, "bias": np.array(True)}}
    save_sparse(tmp_path / "model.safetensors", params, masks)
    monkeypatch.chdir(tmp_path)
    assert_reads(params)


# Of which another test has runs too.
STRUCTURES = {name: changes | {"sparsity.level": LEVEL} for name, changes in CHANGES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_examples_of_sparse_files_run_with_blocks_and_channels(
    structure, tmp_path, monkeypatch
):
    """All in turn, with a run of that structure in place of theirs."""
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "runs" / "digits-rigl-0.75-0"
    write_run(workdir, tiny_config(**STRUCTURES[structure], **{"model.num_res_blocks": 1}))
    run, library, _ = SPARSE_FILES
    names = {}
    exec(run, names)
    _, params, masks = load_run(workdir)
    assert names["samples"].shape == (16, 8, 8, 1)
    assert names["sizes"].file < 0.6 * names["sizes"].dense
    jax.tree.map(np.testing.assert_array_equal, (names["params"], names["masks"]), (params, masks))
    assert_reads(params)
    exec(library, names)
    jax.tree.map(np.testing.assert_array_equal, (names["params"], names["masks"]), (params, masks))
    assert names["metadata"] == {"trained on": "digits"}
    assert_reads(params)


@pytest.mark.parametrize("structure", [pytest.param("block", marks=pytest.mark.slow), "channel"])
def test_the_reader_in_numpy_reads_files_of_blocks_and_channels(structure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", tiny_config(**STRUCTURES[structure], **{"model.num_res_blocks": 1}))
    save_sparse_run("run", "model.safetensors")
    assert_reads(load_run("run")[1])


def python_of(name):
    """The Python blocks of a document in docs/."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


def test_the_page_on_logs_describes_every_field(small_run, tmp_path, monkeypatch):
    """Two of them only stand in lines of runs that skip steps, or whose method changes density."""
    page = (ROOT / "docs" / "logs.md").read_text()
    described = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    fields = {name for line in read_metrics(small_run / "metrics.jsonl") for name in line}
    assert described == fields | {"skipped", "forward_flops_before"}
    assert set(WALL_CLOCK) < fields
    shutil.copytree(small_run, tmp_path / "runs" / "logged")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python_of("logs.md")[0], names)
    assert [step for step, _ in names["losses"]] == [10, 20, 30, 40]


def test_the_examples_of_sharing_run(small_run, tmp_path, monkeypatch):
    write_repository(small_run, tmp_path / "exported" / "digits")
    monkeypatch.chdir(tmp_path)
    load, reader = python_of("sharing.md")
    names = {}
    exec(load, names)
    assert names["samples"].shape == (16, 8, 8, 1)
    assert len([line for line in reader.splitlines() if line]) == 10
    monkeypatch.chdir("exported/digits")
    exec(reader, names)
    leaves = jax.tree_util.tree_leaves_with_path(load_run(small_run)[1])
    assert names["params"].keys() == {path_name(path) for path, _ in leaves}
    for path, leaf in leaves:
        np.testing.assert_array_equal(names["params"][path_name(path)], leaf)


def anchors_of(document):
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


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


def test_no_file_names_a_place_outside_the_project():
    """Nobody else has the folders beside a checkout, or those of somebody's account."""
    elsewhere = re.compile(r"\.\./shared|(?<![\w.~*])/(?:root|home|Users)/(?!somebody)\w+")
    folders = ("sparsejax", "configs", "benchmarks", "tests", "docs", ".ci")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    kinds = ("", ".py", ".md", ".json", ".jsonl", ".html", ".toml")
    files = [path for path in (*ROOT.iterdir(), *files) if path.suffix in kinds and path.is_file()]
    assert len(files) > 200
    found = {path.name: elsewhere.search(path.read_text()) for path in files}
    assert not {name: match[0] for name, match in found.items() if match}


def test_prose_of_the_readme_fits_into_100_columns():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "!"))] == []
