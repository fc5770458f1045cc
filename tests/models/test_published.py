"""Files of weights are read, recognised and checked; what is wrong with one is said."""

import json
import os
import re
import shutil
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsejax.models import published
from tests.models.test_convert import assert_same_trees, recorded_weights

NEEDS_TORCH = "PyTorch isn't installed; it is needed to write .ckpt files"


def random_state(names, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}


UNET = random_state(
    {
        "input_blocks.0.0.weight": (8, 3, 3, 3),
        "input_blocks.0.0.bias": (8,),
        "middle_block.1.qkv.weight": (24, 8, 1),
        "out.0.weight": (8,),
    }
)
EMA = random_state({name: array.shape for name, array in UNET.items()}, seed=1)
FIRST_STAGE = random_state(
    {"encoder.down.0.block.0.norm1.weight": (8,), "quantize.embedding.weight": (16, 3)}, seed=2
)


def training_checkpoint():
    """The entries of a checkpoint that CompVis's training leaves."""
    return {
        **{f"model.diffusion_model.{name}": array for name, array in UNET.items()},
        **{f"model_ema.diffusion_model{n.replace('.', '')}": array for n, array in EMA.items()},
        "model_ema.decay": np.array(0.9999, np.float32),
        "model_ema.num_updates": np.array(7, np.int32),
        **{f"first_stage_model.{name}": array for name, array in FIRST_STAGE.items()},
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": np.ones((1, 64, 1, 1)),
        "first_stage_model.colorize": np.ones((3, 2, 1, 1)),
        "betas": np.linspace(0, 1, 10),
    }


def scale(params):
    return params["out_0"]["scale"]


def test_a_state_dict_of_the_unet_alone_is_read(tmp_path):
    save_file(UNET, tmp_path / "unet.safetensors")
    params = published.load_unet(tmp_path / "unet.safetensors")
    np.testing.assert_array_equal(scale(params), UNET["out.0.weight"])
    assert params["input_blocks_0_0"]["kernel"].shape == (3, 3, 3, 8)


def test_a_training_checkpoint_gives_ema_weights_or_those_of_the_last_step(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(training_checkpoint(), path)
    np.testing.assert_array_equal(scale(published.load_unet(path)), EMA["out.0.weight"])
    np.testing.assert_array_equal(scale(published.load_unet(path, ema=False)), UNET["out.0.weight"])


def test_a_training_checkpoint_without_ema_gives_its_weights(tmp_path):
    kept = {k: v for k, v in training_checkpoint().items() if not k.startswith("model_ema.")}
    save_file(kept, tmp_path / "model.safetensors")
    params = published.load_unet(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(scale(params), UNET["out.0.weight"])


def test_a_missing_ema_weight_is_named(tmp_path):
    entries = training_checkpoint()
    del entries["model_ema.diffusion_modelout0weight"]
    path = tmp_path / "model.safetensors"
    save_file(entries, path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*diffusion_modelout0weight"):
        published.load_unet(path)


def test_the_first_stage_is_read_without_what_its_training_left(tmp_path):
    whole, prefix = training_checkpoint(), "first_stage_model."
    bare = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    assert "loss.perceptual_loss.lin0.model.1.weight" in bare
    for name, entries in {"whole": whole, "bare": bare}.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(entries, path)
        params = published.load_autoencoder(path)
        assert params.keys() == {"encoder", "quantize"}
        codes = params["quantize"]["embedding"]
        np.testing.assert_array_equal(codes, FIRST_STAGE["quantize.embedding.weight"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_become_float32(tmp_path, dtype):
    value = np.array([1.5, -2.0, 3e-5], dtype)
    save_file({"a": value, "n": np.array([3], np.int8)}, tmp_path / "a.safetensors")
    read = published.read_state_dict(tmp_path / "a.safetensors")
    assert read["a"].dtype == np.float32
    assert read["n"].dtype == np.int8
    np.testing.assert_array_equal(read["a"], value.astype(np.float32))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder of diffusers with a UNet of 8 channels a head and an autoencoder."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name, kind in {"unet": "unet", "vqvae": "autoencoder"}.items():
        (folder / name).mkdir()
        path = folder / name / "diffusion_pytorch_model.safetensors"
        save_file(recorded_weights(kind), path)
    config = {"attention_head_dim": 8, "norm_eps": 1e-5}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    return folder


def test_diffusers_is_read_from_a_pipeline_a_folder_or_a_file(pipeline):
    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    paths = (pipeline, pipeline / "unet", file)
    first, *others = (published.load_unet(path) for path in paths)
    assert "middle_block_1" in first
    for other in others:
        assert_same_trees(other, first)
    assert "decoder" in published.load_autoencoder(pipeline)


def test_a_folder_without_weights_says_where_it_looked(tmp_path):
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors.*vqvae or vae"):
        published.load_autoencoder(tmp_path)


def test_diffusers_config_is_read_and_heeded(pipeline, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(recorded_weights("unet"), path)
    with pytest.raises(ValueError, match="give num_head_channels"):
        published.load_unet(path)
    params = published.load_unet(path, num_head_channels=8)
    assert_same_trees(params, published.load_unet(pipeline))
    for config, message in (
        ({"attention_head_dim": 8, "norm_eps": 0}, "norm_eps is 0; accepted: "),
        ({}, "give num_head_channels"),
        ("not json", "config.json"),
    ):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            published.load_unet(path)
    (tmp_path / "config.json").write_text(json.dumps({"attention_head_dim": 8}))
    with pytest.raises(ValueError, match="attention_head_dim is 8; accepted: 16"):
        published.load_unet(path, num_head_channels=16)


def write_shards(folder, weights, name="diffusion_pytorch_model.safetensors.index.json"):
    """Two shards of a network and their index, as diffusers writes them."""
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {key: names[i % 2] for i, key in enumerate(weights)}
    for shard in names:
        save_file({k: a for k, a in weights.items() if places[k] == shard}, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / name).write_text(json.dumps(index))
    return folder / name, [folder / shard for shard in names]


def test_shards_are_read_by_their_index(pipeline, tmp_path):
    whole = published.load_unet(pipeline)
    write_shards(tmp_path, recorded_weights("unet"))
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    assert_same_trees(published.load_unet(tmp_path), whole)
    assert published.read_state_dict(next(tmp_path.glob("*.index.json"))).keys() == set(
        recorded_weights("unet")
    )


def test_an_index_or_a_shard_that_is_damaged_is_named_in_one_line(tmp_path):
    index, shards = write_shards(tmp_path, UNET)
    content = json.loads(index.read_text())
    first = next(iter(UNET))
    cases = {
        "[]": "is not an index of weights",
        "{": "is damaged or not JSON",
        json.dumps({"weight_map": {first: 3}}): "is not an index of weights",
        json.dumps({"weight_map": {first: "../a.safetensors"}}): "is not an index of weights",
        json.dumps({"weight_map": {first: "absent.safetensors"}}): "no file .*absent.safetensors",
        json.dumps(
            {"weight_map": {"other": shards[0].name}}
        ): r"00001.* is not a shard .*\(other\)",
    }
    for text, message in cases.items():
        index.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            published.read_state_dict(index)
        assert "\n" not in str(caught.value)
    index.write_text(json.dumps(content))
    shards[1].write_bytes(shards[1].read_bytes()[:20])
    with pytest.raises(ValueError, match="00002-of-00002.safetensors is damaged"):
        published.read_state_dict(index)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_only_variant_in_a_folder_is_read_and_of_several_one_must_be_named(
    pipeline, tmp_path, dtype
):
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    narrow = {name: array.astype(dtype) for name, array in recorded_weights("unet").items()}
    save_file(narrow, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    params = published.load_unet(tmp_path)
    expected = narrow["conv_in.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["input_blocks_0_0"]["kernel"], expected)
    save_file(narrow, tmp_path / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(ValueError, match=r"several variants .*fp16\.safetensors, .*non_ema"):
        published.load_unet(tmp_path)
    save_file(recorded_weights("unet"), tmp_path / "diffusion_pytorch_model.safetensors")
    assert_same_trees(published.load_unet(tmp_path), published.load_unet(pipeline))


def test_shards_of_a_variant_are_read_by_their_index(pipeline, tmp_path):
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    name = "diffusion_pytorch_model.safetensors.index.fp16.json"
    write_shards(tmp_path, recorded_weights("unet"), name)
    assert_same_trees(published.load_unet(tmp_path), published.load_unet(pipeline))


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    save_file({"a.weight": np.zeros(3)}, tmp_path / "other.safetensors")
    save_file({}, tmp_path / "nothing.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    for name, message in {
        "absent.ckpt": "there is no file",
        "notes.txt": "accepted: names ending in .safetensors",
        "nothing.safetensors": "holds no tensors",
        "other.safetensors": r"holds no UNet; accepted: tensors input_blocks.*found: a",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            published.load_unet(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="holds no autoencoder"):
        published.load_autoencoder(tmp_path / "other.safetensors")


def test_a_tensor_that_cannot_be_converted_is_named_with_its_file(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_file(UNET | {"out.0.running_mean": np.zeros(8)}, path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*out\.0\.running_mean"):
        published.load_unet(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_safetensors_file_is_refused(tmp_path, keep):
    path = tmp_path / "unet.safetensors"
    save_file(UNET, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"unet\.safetensors is damaged"):
        published.load_unet(path)


def test_params_that_fit_pass_and_others_are_listed():
    params = {
        "input_blocks_0_0": {"kernel": np.zeros((3, 3, 3, 8)), "bias": np.zeros(8)},
        "middle_block_1": {"qkv": {"kernel": np.zeros((8, 24))}},
        **{f"out_{i}": {"bias": np.zeros(2)} for i in range(5)},
    }
    shapes = jax.eval_shape(lambda: params)
    published.check_params(params, shapes, "a.ckpt")
    del params["input_blocks_0_0"]["bias"]
    params["middle_block_1"]["qkv"]["kernel"] = np.zeros((8, 12))
    params["extra"] = {"scale": np.zeros(3)}
    with pytest.raises(ValueError, match=r"a\.ckpt doesn't fit") as caught:
        published.check_params(params, shapes, "a.ckpt")
    message = str(caught.value)
    assert "1 missing (input_blocks.0.0.bias)" in message
    assert "1 not in the model (extra.weight)" in message
    assert "1 of another shape (middle_block.1.qkv.weight (12, 8, 1) for (24, 8, 1))" in message
    few = {"middle_block_1": params["middle_block_1"]}
    with pytest.raises(ValueError, match=r"7 missing \(\S+, \S+, \S+, \.\.\.\)"):
        published.check_params(few, shapes, "a.ckpt")


def test_without_pytorch_a_ckpt_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.ckpt").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install .*torch.*safetensors need nothing more"):
        published.load_unet(tmp_path / "model.ckpt")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason=NEEDS_TORCH)


def tensors(torch, arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_ckpt_is_read(tmp_path, torch, zipped):
    state = tensors(torch, training_checkpoint())
    state["model.diffusion_model.out.0.bias"] = torch.ones(8, dtype=torch.bfloat16)
    path = tmp_path / "model.ckpt"
    content = {"state_dict": state, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    params = published.load_unet(path, ema=False)
    np.testing.assert_array_equal(scale(params), UNET["out.0.weight"])
    np.testing.assert_array_equal(params["out_0"]["bias"], np.ones(8, np.float32))
    torch.save(tensors(torch, UNET), tmp_path / "bare.pt")
    np.testing.assert_array_equal(
        scale(published.load_unet(tmp_path / "bare.pt")), UNET["out.0.weight"]
    )


def test_the_class_that_lightning_names_in_its_checkpoints_is_passed_over(
    tmp_path, torch, monkeypatch
):
    packages = "pytorch_lightning", "pytorch_lightning.callbacks"
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    path = tmp_path / "model.ckpt"
    with monkeypatch.context() as patch:
        for name in packages:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        callbacks = {module.ModelCheckpoint: {"best_model_score": torch.ones(1)}}
        torch.save({"state_dict": tensors(torch, UNET), "callbacks": callbacks}, path)
    np.testing.assert_array_equal(scale(published.load_unet(path)), UNET["out.0.weight"])


class CallsWhenLoaded:
    """Its unpickling makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_not_executed(tmp_path, torch, zipped):
    path, made = tmp_path / "model.ckpt", tmp_path / "made"
    content = {"state_dict": tensors(torch, UNET), "x": CallsWhenLoaded(made)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = r"model\.ckpt holds pickled code objects.*posix\.mkdir.*nothing in it was executed"
    with pytest.raises(ValueError, match=message):
        published.load_unet(path)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "the file is harmless, so the test shows nothing"


def test_objects_besides_tensors_are_refused_with_what_to_do(tmp_path, torch):
    torch.save({"state_dict": tensors(torch, UNET), "x": os.PathLike}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"os\.PathLike.*If, and only if, you trust its source"):
        published.load_unet(tmp_path / "model.ckpt")


@pytest.mark.parametrize("keep", [0, 20, 1000, -30])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_ckpt_is_refused(tmp_path, torch, keep, zipped):
    path = tmp_path / "model.ckpt"
    state = {"state_dict": tensors(torch, UNET)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.ckpt is damaged or not a PyTorch file"):
        published.load_unet(path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_diffusers_bin_files_are_read_as_safetensors_are(pipeline, tmp_path, torch, dtype):
    weights = {
        name: tensor.to(getattr(torch, dtype))
        for name, tensor in tensors(torch, recorded_weights("unet")).items()
    }
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    params = published.load_unet(tmp_path)
    expected = weights["conv_in.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["input_blocks_0_0"]["kernel"], expected)
