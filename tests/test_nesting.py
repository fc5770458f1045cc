"""JSON that is nested too deeply for the parser is damaged JSON, whatever file it stands in."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsejax import lease, values
from sparsejax.metrics.moments import load_statistics
from sparsejax.models import diffusers_config, first_stage, published
from sparsejax.models.arguments import MODEL_KEY, read_arguments

DEEP = "[" * 100_000


def described(path, **metadata):
    save_file({"a": np.zeros(1, np.float32)}, path, metadata=metadata)
    return path


def test_statistics(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(2), sigma=np.eye(2), about=np.array(DEEP))
    with pytest.raises(ValueError, match="its about is not a JSON object"):
        load_statistics(tmp_path / "a.npz")


def test_configs_of_published_models(tmp_path):
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match="config.json is damaged or not JSON"):
        published.read_config(tmp_path / "config.json", diffusers_config.unet_arguments)


def test_first_stages(tmp_path):
    path = described(tmp_path / "a.safetensors", kind="vq", **{MODEL_KEY: DEEP})
    with pytest.raises(ValueError, match="its description is not a JSON object"):
        first_stage.read_description(path)


def test_arguments_of_exported_networks(tmp_path):
    assert read_arguments(described(tmp_path / "a.safetensors", **{MODEL_KEY: DEEP})) == {}


def test_leases(tmp_path):
    (tmp_path / "lease-1.json").write_text(DEEP)
    with (
        pytest.raises(lease.HeldError, match="is in use by another process$"),
        lease.hold(tmp_path, patience=None),
    ):
        pass


@pytest.mark.parametrize("text", ["(" * 100_000, "-" * 100_000 + "1", "[" * 3_000 + "]" * 3_000])
def test_values_of_flags(text):
    with pytest.raises(ValueError, match=r"[(\[-]"):
        values.parse(tuple[int, ...], text)
