"""The wheel: it holds the configs, and works in a folder that holds nothing."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel, of a copy since setuptools leaves files behind."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("sparsejax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", place, source], check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sparsejax(wheel, tmp_path_factory):
    """Run the script `sparsejax` of an environment with the wheel and what it depends on."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python"]
    # The dependencies may hold an editable installation, which would count as the wheel's.
    install = ["install", "-q", "--ignore-installed", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True)

    def run(*arguments, cwd):
        environment = {"PATH": "", "SPARSEJAX_CACHE": str(place), "TFDS_DATA_DIR": str(place)}
        command = [place / "bin/sparsejax", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    return run


def test_a_wheel_holds_the_package_and_the_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparsejax").rglob("*.py")}
    ours |= {f"sparsejax/configs/{name}" for name in CONFIGS} | {"sparsejax/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.parametrize("flags", [[], ["--config", "digits:rigl,0.9"]], ids=["default", "named"])
def test_an_installed_wheel_checks_a_run_in_an_empty_folder(sparsejax, tmp_path, flags):
    done = sparsejax("train", *flags, "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Checked: the run can start." in done.stdout
    assert f"runs/digits-rigl-{'0.9' if flags else '0.75'}-0" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_its_configs_import_each_other_whatever_configs_the_folder_holds(sparsejax, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("")
    done = sparsejax("train", "--config=kanjivg_chirodiff:cpu", "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/kanjivg_chirodiff_cpu-" in done.stdout


def test_a_config_that_it_does_not_hold_is_one_line_with_those_it_does(sparsejax, tmp_path):
    done = sparsejax("train", "--config=digts", cwd=tmp_path)
    names = ", ".join(name.removesuffix(".py") for name in CONFIGS)
    assert done.stderr == (
        f"error: --config is 'digts': no such file; accepted: a config file, or one of {names}; "
        "nearest: digits\n"
    )
    assert done.returncode == 2
