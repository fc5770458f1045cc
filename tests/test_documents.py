"""What the README and docs/ show is run."""

import pathlib
import re
import subprocess
import sys

import numpy as np

from sparsejax.sparse_files import save_sparse

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_own_loop_example_learns_and_stays_sparse():
    command = [sys.executable, "docs/own_loop.py"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loss = float(out.split()[1])
    assert loss < 0.1
    assert "active=436" in out


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
