"""docs/extending.md: its code is run, by the commands that it shows."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import load, sparsity
from sparsejax.config_files import load_config
from sparsejax.configuration import resolve
from sparsejax.data import builders
from sparsejax.errors import ConfigError
from sparsejax.families import build_data, register_family
from sparsejax.families.registry import FAMILIES
from sparsejax.sparsity import methods, topology
from sparsejax.training import load_run, load_sparse_run, loop, save_sparse_run
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.runs import read_config
from tests.documented.documented import files_of
from tests.training.tiny import OVERRIDES, tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits.py"
FILES = files_of(ROOT / "docs" / "extending.md")
IMPORTS = ("imports", "my_method")


def forget():
    """As in another process: the module is not imported, the method is not registered."""
    sys.modules.pop("my_method", None)
    methods.METHODS.pop("gumbel", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which holds my_method.py and is not on Python's path."""
    (tmp_path / "my_method.py").write_text(FILES["my_method.py"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def test_a_run_of_a_method_from_outside_is_trained_and_loads_again(folder):
    overrides = [(key, str(value)) for key, value in OVERRIDES.items()]
    imports = ("imports", "('my_method', 'tests.training.small_family')")
    overrides += [("task.name", "small"), imports]
    config = load_config(f"{DIGITS}:gumbel,0.75", overrides)
    assert config.sparsity.method == "gumbel"
    assert loop.train(config, "run")
    assert str(folder) not in sys.path
    updates = [line["replaced"] for line in read_metrics("run/metrics.jsonl") if "replaced" in line]
    assert len(updates) == 5
    assert 0 < updates[0] <= 0.5
    save_sparse_run("run", "model.safetensors")

    forget()
    _, params, masks = load_run("run")
    assert "gumbel" in methods.METHODS
    assert read_config("run").imports[0] == "my_method"
    forget()
    (folder / "my_method.py").unlink()
    _, *loaded = load_sparse_run("model.safetensors")
    assert load("model.safetensors", steps=3, eta=1).config.sample.eta == 1.0
    for a, b in zip(*map(jax.tree.leaves, ([params, masks], loaded)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigError, match="config.json: config.imports names 'my_method'"):
        load_run("run")


def test_the_method_grows_in_proportion_to_the_gradient(folder):
    """The share of draws that each of three weights is grown in, against its |gradient|."""
    resolve(tiny_config(imports=("my_method",)))
    params = {"kernel": jnp.array([[2.0, 1.0, 0.0, 0.0, 0.0]])}
    masks = {"kernel": params["kernel"] > 0}
    gradients = {"kernel": jnp.array([[9.0, 0.0, -1.0, 2.0, 5.0]])}
    keys = jax.random.split(jax.random.key(0), 500)
    update = jax.vmap(sparsity.get_method("gumbel").update, (0, None, None, None, None))
    _, drawn = update(keys, params, masks, gradients, 0.5)
    share = np.asarray(drawn["kernel"])[:, 0].mean(0)
    assert share[:2].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(share[2:], [1 / 8, 2 / 8, 5 / 8], atol=4 * np.sqrt(0.25 / 500))


def test_imports_stand_anywhere_on_the_command_line(folder):
    for overrides in (
        [IMPORTS, ("sparsity.method", "gumbel")],
        [("sparsity.method", "gumbel"), IMPORTS],
    ):
        forget()
        config = load_config(str(DIGITS), overrides)
        assert resolve(config).sparsity.method == "gumbel"
        assert resolve(config).imports == ("my_method",)


HEAD = "from sparsejax.sparsity import *\n"
FAULTY = {
    "import nothing_here": r"ModuleNotFoundError in line 1 of .*mine.py: No module named 'nothing_",
    "x = (": "raises SyntaxError.*never closed",
    "\nraise SystemExit(3)": "raises SystemExit in line 2 of .*mine.py: 3",
    f"{HEAD}register_method('rigl', Method)": "'rigl' is sparsejax.sparsity.methods.rigl already",
    f"{HEAD}Method('a', lambda: 3)": "update of method 'a' can't be called",
}


@pytest.mark.parametrize("code", FAULTY)
def test_a_module_that_fails_is_named_in_a_line(folder, code):
    (folder / "mine.py").write_text(code)
    with pytest.raises(ConfigError, match=FAULTY[code]) as error:
        load_config(str(DIGITS), [("imports", "mine")])
    assert str(error.value).startswith("config.imports names 'mine': ")
    assert "\n" not in str(error.value)
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "name", ["my_metod", "my_method.a", "my_method.py", "./my_method", "", "."]
)
def test_modules_that_are_none_are_named_in_a_line(folder, name):
    message = f"config.imports names '{name}': .*; accepted: "
    with pytest.raises(ConfigError, match=message) as error:
        resolve(tiny_config(imports=(name,)))
    assert "\n" not in str(error.value)


def test_a_method_that_no_module_registers_raises_in_a_line(folder):
    accepted = "accepted: dense, static, rigl, magran, gradual, one_shot, or what a module of "
    accepted += "config.imports registers"
    with pytest.raises(ConfigError, match=f"config.sparsity.method is 'mine'; {accepted}"):
        resolve(tiny_config(**{"sparsity.method": "mine"}))


def test_single_weights_are_all_that_a_plain_method_moves(folder):
    config = tiny_config(imports=("my_method",))
    config.sparsity.method, config.sparsity.structure = "gumbel", "block"
    config.sparsity.block_size = 8
    message = "config.sparsity.structure is 'block': method 'gumbel' moves single weights; accepted"
    with pytest.raises(ConfigError, match=message):
        loop.train(config, folder / "run")


def test_images_of_a_builder_from_outside_are_prepared_and_read(folder):
    """The disks: their pixels against those that numpy draws here."""
    (folder / "my_images.py").write_text(FILES["my_images.py"])
    config = load_config(str(DIGITS), [("task.dataset", "disks"), ("imports", "my_images")])
    config.task.reference_split, config.task.data_dir = "test", str(folder / "data")
    data = build_data(resolve(config))
    data.prepare()
    images = data.reference()
    assert images.shape == (100, 8, 8, 1)
    assert set(np.unique(images)) == {-1.0, 1.0}
    row, column, radius = np.random.default_rng(1).uniform([2, 2, 1], [6, 6, 3])
    rows, columns = np.indices((8, 8))
    inside = np.hypot(rows - row, columns - column) < radius
    assert any((image[..., 0] == np.where(inside, 1, -1)).all() for image in images)
    batch = next(iter(data.batches(0, 1)))["image"]
    assert batch.shape == (64, 8, 8, 1)
    with pytest.raises(ValueError, match="data set 'digits' is registered already; accepted: ano"):
        builders.register_images("digits", builders.Files)
    del builders.IMAGE_BUILDERS["disks"]
    with pytest.raises(ConfigError, match="task.dataset is 'disks'; accepted: digits, files"):
        build_data(resolve(config))


def family_config(folder, words, **changes):
    """The config of the family, small."""
    (folder / "my_family.py").write_text(FILES["my_family.py"])
    overrides = {"steps": 4, "batch_size": 8, "model.hidden": 32, "sparsity.update_interval": 2}
    overrides |= {"sample.count": 4, "sample.steps": 5, "sample.every": 0, "log.tensorboard": False}
    overrides = [(k, str(v)) for k, v in (overrides | changes).items()]
    return load_config(f"my_family.py:{words}", overrides)


@pytest.mark.slow
def test_a_model_family_from_outside_is_trained_and_sampled(folder):
    assert loop.train(family_config(folder, "rigl,0.5"), "run")
    save_sparse_run("run", "model.safetensors")
    samples = load("run").sample(jax.random.key(0), 3)
    assert samples.shape == (3, 8, 8, 1)
    assert np.ptp(samples) > 0.1
    np.testing.assert_array_equal(load("model.safetensors").sample(jax.random.key(0), 3), samples)
    _, params, masks = load_run("run")
    assert masks["Dense_0"]["kernel"].shape == (64 + 12, 32)
    assert sparsity.summarize(params, masks).sparsifiable.density == pytest.approx(0.5, abs=1e-3)

    del FAMILIES["mlp"], sys.modules["my_family"]
    with pytest.raises(ConfigError, match="'mlp'; accepted: images, .* once my_family is imported"):
        load("model.safetensors")
    assert "my_family" not in sys.modules
    load("run")  # a workdir imports it by itself
    with pytest.raises(ValueError, match="family 'mlp' is registered already; accepted: another"):
        register_family("mlp", FAMILIES["images"])
    del FAMILIES["mlp"], sys.modules["my_family"]


def loose(structure):
    """A method that counts blocks over whole layers, not in each output block."""

    def update(key, params, masks, gradients, fraction):
        scores = jax.tree.map(lambda x: jax.random.uniform(key, x.shape), structure.pool(params))
        units = structure.unit_masks(masks)
        units = topology.rewire(structure.pool(params), units, scores, fraction)
        after = structure.spread(units, params)
        return sparsity.apply_masks(params, after), after

    return sparsity.Method("loose", update, methods.random_topology(structure))


@pytest.mark.slow
def test_a_method_that_breaks_constant_fan_in_is_refused_at_its_first_update(folder, monkeypatch):
    """The compact network has no place for what it left, and nothing of it is saved."""
    monkeypatch.setitem(methods.METHODS, "loose", loose)
    changes = {"steps": 3, "sparsity.update_interval": 1, "sparsity.begin": 1, "sparsity.end": 9}
    changes |= {"log.every": 1}
    changes |= {"model.hidden": 64, "sparsity.distribution": "uniform"}
    config = family_config(folder, "loose,0.5,block4x8", **changes)
    message = (
        "^config.sparsity.method is 'loose'; accepted: methods that keep the number of active "
        "blocks of each output block and channels of each group, or sparsity.compact False$"
    )
    with pytest.raises(ConfigError, match=message):
        loop.train(config, "run")
    assert list(pathlib.Path("run/checkpoints").iterdir()) == []
    assert read_metrics("run/metrics.jsonl") == []  # ended in step 1
