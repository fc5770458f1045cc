"""The command exports a run: a UNet in both layouts, any model as a sparse file."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sparsejax.commands import export
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.models import published
from sparsejax.sparse_files import load_sparse
from sparsejax.training import load_run
from sparsejax.training.runs import save_config
from tests.models.test_convert import assert_same_trees
from tests.models.test_export import WEIGHTS
from tests.training.tiny import tiny_config, write_run


def run_command(*arguments):
    export.main([*map(str, arguments)])


def test_the_command_exports_a_run(tiny_run, tmp_path, capsys):
    workdir, _ = tiny_run
    for ema, flags in ((True, ()), (False, ("--no-ema",))):
        folder = tmp_path / str(ema)
        run_command("--workdir", workdir, "--output", folder, *flags)
        _, params, masks = load_run(workdir, ema=ema)
        assert_same_trees(published.load_unet(folder / "unet.safetensors"), params)
        exported = load_file(folder / "masks.safetensors")
        active = sum(int(mask.sum()) for mask in exported.values())
        shaped = jax.tree.map(lambda p, mask: np.broadcast_to(mask, p.shape), params, masks)
        assert active == sum(int(mask.sum()) for mask in jax.tree.leaves(shaped))
        assert active < 0.5 * sum(mask.size for mask in exported.values())
        printed = capsys.readouterr().out
        for name in (*WEIGHTS, *WEIGHTS.values(), "config.json", "model_index.json"):
            assert name in printed
        call = "num_inference_steps=5, use_clipped_model_output=True"
        assert f"from_pretrained('{folder}/diffusers')({call})\n" in printed
        assert printed.endswith(
            "can't be used with CompVis's own code: norm_groups is 8, in CompVis 32\n"
        )
    config = json.loads((folder / "diffusers/unet/config.json").read_text())
    assert config["sample_size"] == tiny_config().task.image_size
    index = json.loads((folder / "diffusers/model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
    scheduler = json.loads((folder / "diffusers/scheduler/scheduler_config.json").read_text())
    t = np.arange(1001) / 1000  # the digits have the cosine schedule
    alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    np.testing.assert_allclose(scheduler["trained_betas"], betas, rtol=1e-6)
    assert (scheduler["clip_sample"], scheduler["clip_sample_range"]) == (True, 1.0)
    with safe_open(folder / "unet.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["model"])["norm_groups"] == tiny_config().model.norm_groups
    assert json.loads(metadata["diffusion"])["steps"] == 1000
    assert metadata["sparsity_method"] == "rigl"
    assert float(metadata["sparsity_level"]) == tiny_config().sparsity.level
    assert metadata["weights"] == "last step"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model.classes": 10}, "none gives a UNet its labels"),
        pytest.param(
            {"diffusion.process": "flow", "sample.sampler": "euler"},
            "none samples UNets of the process flow",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pipeline_that_could_not_sample_the_network_is_not_written(
    changes, why, tmp_path, capsys
):
    write_run(tmp_path / "run", tiny_config(**changes))
    run_command("--workdir", tmp_path / "run", "--output", tmp_path / "out")
    assert f"no diffusers pipeline was written: {why}\n" in capsys.readouterr().out
    assert (tmp_path / "out/diffusers/unet/config.json").is_file()
    assert not (tmp_path / "out/diffusers/model_index.json").exists()


def test_the_command_writes_a_sparse_file(tiny_run, tmp_path, capsys):
    """And says how small it is: the tiny run's S is 0.75."""
    workdir, _ = tiny_run
    for ema, flags in ((True, ()), (False, ("--no-ema",))):
        run_command("--workdir", workdir, "--output", tmp_path, "--sparse", *flags)
        _, params, masks = load_run(workdir, ema=ema)
        loaded = load_sparse(tmp_path / "model.safetensors")
        assert_same_trees(loaded[0], params)
        assert_same_trees(loaded[1], masks)
        assert loaded[2]["weights"] == ("ema" if ema else "last step")
        assert loaded[2]["steps"] == str(tiny_config().steps)
        assert json.loads(loaded[2]["config"]) == json.loads((workdir / "config.json").read_text())
        assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
        dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        size = (tmp_path / "model.safetensors").stat().st_size
        assert 0.25 < size / dense < 0.35
        printed = capsys.readouterr().out
        for text in ("model.safetensors", f"{size:,}", f"{dense:,}", f"{size / dense:.3f}"):
            assert text in printed


@pytest.mark.parametrize("flags", [(), ("--sparse",)])
def test_the_command_says_where_there_is_no_run(flags, tmp_path):
    with pytest.raises(ConfigError, match="^workdir .* holds no run"):
        run_command("--workdir", tmp_path, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [(), ("--sparse",)])
def test_the_command_leaves_no_folder_where_there_is_nothing_to_write(flags, tmp_path):
    """The workdir has a config but no checkpoint."""
    save_config(tmp_path, resolve(tiny_config()))
    with pytest.raises(ConfigError, match="checkpoint"):
        run_command("--workdir", tmp_path, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_run_of_another_task(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": {"name": "strokes"}}))
    with pytest.raises(ConfigError, match="task 'strokes'; accepted: images, latents, or --s"):
        run_command("--workdir", tmp_path, "--output", tmp_path / "out")
