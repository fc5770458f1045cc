"""A model repository is the run: it loads, says what it is and costs, and no more than that."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import sparsejax
from sparsejax.__main__ import run
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing, sharing
from sparsejax.reports import model_card
from sparsejax.training import load_run, runs
from sparsejax.training.init_from import other_weights
from sparsejax.training.keys import named_key
from sparsejax.training.plan import build_plan
from tests.training.tiny import small_config, tiny_config

WRITTEN = {"README.md", "config.json", "model.safetensors"}
WRITTEN |= {"samples.png", "curves.png", "layers.png"}
MEASURES = {"FD[classifier:digits]@1797": 8.294, "precision[classifier:digits]@1797": 0.5}


@pytest.fixture(scope="module")
def workdir(small_run, tmp_path_factory):
    """A run that was evaluated, twice; of others in the same file nothing is said."""
    workdir = shutil.copytree(small_run, tmp_path_factory.mktemp("runs") / "small-rigl-0.75-0")
    row = {"run": workdir.name, "method": "rigl", "sparsity": 0.75, "seed": 0, "steps": 40}
    rows = [
        row | {"measures": {"KID": 77.7}},
        row | {"measures": MEASURES | {"IS": None}},
        row | {"run": "other", "measures": {"KID": 55.5}},
    ]
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "digits"
    sharing.write_repository(workdir, folder)
    return folder


@pytest.fixture(scope="module")
def card(folder):
    return (folder / "README.md").read_text()


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def table(card, heading):
    """Return the rows of the table below a heading: `{first cell: other cells}`."""
    text = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name.strip("`"): others for name, *others in cells}


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_repository_is_loaded_sampled_and_begun_with(workdir, folder):
    assert {path.name for path in folder.iterdir()} == WRITTEN
    loaded, expected = sparsejax.load(folder), load_run(workdir)
    assert_equal((loaded.params, loaded.masks), expected[1:])
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (workdir / "config.json").read_text()
    )
    config = resolve(small_config(**{"checkpoint.init_from": str(folder)}))
    assert_equal(other_weights(config, expected[0]), expected[1:])
    key = named_key(loaded.config.seed, "samples")
    assert_equal(loaded.sample(key, 4), sparsejax.load(workdir).sample(key, 4))


def test_its_pictures_show_samples_of_the_file_and_no_data(workdir, folder):
    """The data may be anybody's, so they aren't published in passing."""
    loaded = sparsejax.load(folder)
    samples = loaded.sample(named_key(loaded.config.seed, "samples"), loaded.config.sample.count)
    grid, shown = loaded.model.render(samples), np.asarray(Image.open(folder / "samples.png"))
    factor = 800 // grid.shape[1]
    enlarged = grid.repeat(factor, 0).repeat(factor, 1)
    height, width = enlarged.shape[:2]
    np.testing.assert_array_equal(shown[-16 - height : -16, 16 : 16 + width], enlarged)
    assert shown.shape[1] == width + 32
    for name in ("curves.png", "layers.png"):
        assert Image.open(folder / name).width > 800


def test_its_card_has_metadata_that_the_hub_reads(folder, card):
    assert front_matter(card) == {
        "license": "cc-by-4.0",
        "library_name": "sparsejax",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["sparsejax", "jax", "flax", "diffusion", "sparse-training", "rigl", "small"],
    }
    missing = "NOT TESTED: huggingface_hub is not installed; pip install -e '.[test]'"
    hub = pytest.importorskip("huggingface_hub", reason=missing)
    data = hub.ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name) == ("cc-by-4.0", "sparsejax")
    assert "rigl" in data.tags


def test_its_card_says_what_it_costs_and_how_good_it_is(workdir, folder, card):
    _, params, masks = load_run(workdir)
    active = sum(
        int(np.broadcast_to(mask, param.shape).sum())
        for param, mask in zip(*map(jax.tree.leaves, (params, masks)), strict=True)
    )
    weights = sum(param.size for param in jax.tree.leaves(params))
    costs = table(card, "Costs")
    assert costs["parameters"] == [
        *(f"{count / 1e3:.2f} k" for count in (weights, active)),
        f"{active / weights:.3f}",
    ]
    size = (folder / "model.safetensors").stat().st_size
    assert costs["bytes of the weights"][-1] == f"{size / (4 * weights):.3f}"
    summary = closing.run_costs(*described(workdir))
    assert costs["FLOPs, training"][-1] == (
        f"{summary['training_flops_run'] / summary['training_flops_dense']:.3f}"
    )
    mask = masks["Dense_0"]["kernel"]
    assert costs["Dense_0"] == [f"{mask.size:,}", f"{mask.sum():,}", f"{mask.mean():.3f}"]
    assert table(card, "Figures") == {
        "measure": ["value"],
        "---": ["---:"],
        "FD[classifier:digits]@1797 ↓": ["8.294"],
        "precision[classifier:digits]@1797 ↑": ["0.5"],
    }
    assert "it is no FID" in card


@pytest.mark.parametrize("place", ["result.json", "../comparison/results.jsonl"])
def test_its_card_has_the_newest_figures_whichever_command_made_them(place, workdir, tmp_path):
    """A sweep and a comparison write them elsewhere, the latter next to runs of other folders."""
    ours = shutil.copytree(workdir, tmp_path / workdir.name)
    os.utime(ours / "results.jsonl", (0, 0))
    config = json.loads((ours / "config.json").read_text())
    row = {"run": ours.name, "method": "rigl", "sparsity": 0.75, "seed": 0, "steps": 40}
    row |= {"measures": {"KID": 0.25}, "config": config}
    path = ours / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row) + "\n")
    sharing.write_repository(ours, tmp_path / "shared")
    assert table((tmp_path / "shared/README.md").read_text(), "Figures")["KID ↓"] == ["0.25"]
    if path.parent != ours:
        path.write_text(json.dumps(row | {"config": config | {"seed": 1}}) + "\n")
        sharing.write_repository(ours, tmp_path / "again")
        found = table((tmp_path / "again/README.md").read_text(), "Figures")
        assert "KID ↓" not in found


def described(workdir):
    config = runs.read_config(workdir)
    model, params, masks = load_run(workdir)
    return config, model, build_plan(config, model), params, masks


def test_everything_that_its_card_shows_is_there(folder, card):
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card)
    assert set(pictures) == {"samples.png", "curves.png", "layers.png"}
    assert "CC BY 4.0" in card
    assert model_card.FILL_IN not in card.lower()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(code.replace("FOLDER", str(folder)), names)
    assert names["pictures"].shape == (16, 8, 8, 1)
    assert names["pictures"].dtype == np.uint8


@pytest.mark.parametrize(
    ("dataset", "licence"),
    [("kanjivg", "cc-by-sa-3.0"), ("vmnist", "cc-by-sa-3.0"), ("files", "other")],
)
def test_of_unknown_data_the_licence_is_asked_for(dataset, licence, workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["task"] |= {"dataset": dataset, "source": "mine.npz"}
    costs = closing.run_costs(*described(workdir))
    rest = ({}, {}, "9 files", "EMA weights", (1, 2), [])
    card = model_card.model_card(model_card.Described("a", config, costs, False, *rest))
    pruned = model_card.model_card(model_card.Described("a", config, costs, True, *rest))
    assert "sparse from the first step to the last" in card
    assert "sparse from the first step to the last" not in pruned
    assert "labels" not in card
    config["model"]["classes"] = 7
    labelled = model_card.model_card(model_card.Described("a", config, costs, False, *rest))
    assert "have 7 labels" in labelled
    assert "pipeline_tag" in front_matter(card)
    assert "pipeline_tag" not in front_matter(labelled)
    data = front_matter(card)
    assert data["license"] == licence
    assert data.get("datasets") == (["ylecun/mnist"] if dataset == "vmnist" else None)
    assert ("**Licence: fill in.**" in card) == (dataset == "files")
    assert ("(`mine.npz`: 9 files)" in card) == (dataset == "files")
    assert "## Figures" not in card
    assert "![" not in card


def test_no_path_of_this_machine_is_published():
    paths = {"task.source": "/home/somebody/photos.npz", "task.data_dir": "/data/sets/"}
    paths |= {"first_stage.path": "../stages/vq-f4.ckpt", "checkpoint.init_from": "/runs/first"}
    shown = runs.without_places(resolve(tiny_config(**paths)))
    assert (shown.task.source, shown.task.data_dir) == ("photos.npz", "sets")
    assert (shown.first_stage.path, shown.checkpoint.init_from) == ("vq-f4.ckpt", "first")


def test_a_folder_that_holds_something_is_left_alone(workdir, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder, holds in ((tmp_path, "holds file, notes.txt"), (tmp_path / "file", "is a file")):
        with pytest.raises(ConfigError, match=f"^--hub is '{folder}', which {holds}; accepted: a"):
            sharing.write_repository(workdir, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes.txt"]


def test_until_it_is_whole_there_is_no_repository(workdir, tmp_path, monkeypatch):
    """Whatever ends the process, a folder that loads is complete."""
    seen, write_text = [], sharing.write_text

    def watching(path, text):
        write_text(path, text)
        [partial] = (tmp_path / "below").iterdir()
        with pytest.raises(ConfigError, match="holds no run|no complete checkpoint"):
            sparsejax.load(partial)
        seen.append(path.name)

    monkeypatch.setattr(sharing, "write_text", watching)
    sharing.write_repository(workdir, tmp_path / "below" / "digits")
    assert seen == ["config.json", "README.md"]

    def failing(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing, "write_text", failing)
    with pytest.raises(OSError, match="No space left"):
        sharing.write_repository(workdir, tmp_path / "new" / "digits")
    assert os.listdir(tmp_path) == ["below"]


@pytest.mark.usefixtures("own_logging")
def test_the_command_writes_it_and_says_how_to_upload_it(workdir, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    run("export", [f"--workdir={workdir}", f"--hub={tmp_path / 'digits'}", "--no-ema"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in WRITTEN)
    assert printed.endswith(f"hf upload OWNER/NAME {tmp_path / 'digits'}\n")
    card = (tmp_path / "digits" / "README.md").read_text()
    assert "weights of the last step" in card
    assert "## Figures" not in card, "those are of the EMA weights"
    assert_equal(sparsejax.load(tmp_path / "digits").params, load_run(workdir, ema=False)[1])
    for flags in (["--hub=x", "--output=y"], ["--hub=x", "--sparse"], []):
        with pytest.raises(SystemExit):
            run("export", [f"--workdir={workdir}", *flags])
        assert "either --output" in capsys.readouterr().err
