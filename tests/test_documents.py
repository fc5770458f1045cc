"""What the README and docs/ show is run."""

import pathlib
import subprocess
import sys

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
