"""A transformer on latents, with the labels of the images that were encoded."""

import jax
import numpy as np
import pytest

from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.training import load_run, loop
from sparsejax.training.runs import read_config
from sparsejax.training.trained import load
from tests.families.first_stage import second_stage_config


def labelled_config(source, first, **changes):
    config = second_stage_config(source, first)
    config.task.kind = "dit"
    with config.unlocked():
        config.model = {
            "in_channels": 3,
            "patch_size": 2,
            "hidden_size": 32,
            "depth": 1,
            "num_heads": 2,
            "classes": 3,
            "dtype": "float32",
        }
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_a_labelled_transformer_trains_on_latents_and_is_measured_by_label(stages, tmp_path):
    config = labelled_config(*stages[:2], **{"sample.guidance": 2.0, "sparsity.level": 0.5})
    assert loop.train(config, tmp_path / "run")
    _, params, masks = load_run(tmp_path / "run")
    assert params["y_embedder"]["embedding_table"]["embedding"].shape == (4, 32)
    mask = masks["blocks_0"]["attn"]["qkv"]["kernel"]
    assert 0 < mask.mean() < 1
    assert not np.asarray(params["blocks_0"]["attn"]["qkv"]["kernel"])[~mask].any()
    drawn = load(tmp_path / "run", label=1).sample(jax.random.key(0), 2)
    assert drawn.shape == (2, 16, 16, 3)
    assert np.isfinite(drawn).all()
    meter = meter_of(read_config(tmp_path / "run"), count=12, metrics=["fd"])
    row = evaluate_run(tmp_path / "run", meter, batch=4)
    named = {name.split("[")[0] for name in row["by_label"]}
    assert named >= {"FD of label 0", "FD of label 1", "FD of label 2"}
