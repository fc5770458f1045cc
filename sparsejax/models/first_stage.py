"""First stages on disk: one file of weights that says itself how it was built."""

import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsejax.atomic import replacing
from sparsejax.models.arguments import MODEL_KEY
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.convert import autoencoder_to_torch
from sparsejax.models.diffusers_config import autoencoder_arguments
from sparsejax.models.published import (
    DIFFUSERS_STEM,
    check_params,
    find_autoencoder,
    load_autoencoder,
    read_config,
)
from sparsejax.types import Params, PathLike, Value

KINDS: dict[str, type[VQModel | KLModel]] = {"vq": VQModel, "kl": KLModel}
FILE = "autoencoder.safetensors"


def save_first_stage(
    path: PathLike, params: Params, kind: str, arguments: Mapping[str, Value]
) -> None:
    """Write a first stage in CompVis's layout, whole or not at all.

    Args:
      path: safetensors file to write.
      params: of a `VQModel` or `KLModel`.
      kind: a key of `KINDS`.
      arguments: JSON-able dictionary of the model's attributes; kept in the metadata.
    """
    metadata = {"kind": kind, MODEL_KEY: json.dumps(arguments)}
    arrays = {k: np.ascontiguousarray(v) for k, v in autoencoder_to_torch(params).items()}
    with replacing(path) as partial:
        save_file(arrays, partial, metadata=metadata)


def read_description(path: PathLike) -> tuple[str, dict[str, Value]] | None:
    """Return what a first stage on disk says of itself.

    Args:
      path: of a file that `save_first_stage` wrote; of a folder of diffusers, of the first stage
        or the whole pipeline, with its config.json; or of any other file.

    Returns:
      Tuple `(kind, arguments)`, or None if the file doesn't say.

    Raises:
      ValueError: a folder of diffusers holds no weights, or its config.json is damaged or
        describes a network that `models.autoencoder` doesn't have.
    """
    path = find_autoencoder(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        metadata = {}
    if "kind" in metadata and MODEL_KEY in metadata:
        return metadata["kind"], json.loads(metadata[MODEL_KEY])
    config_path = path.with_name("config.json")
    if path.name.startswith(DIFFUSERS_STEM) and config_path.is_file():
        return read_config(config_path, autoencoder_arguments)
    return None


def load_first_stage(path: PathLike, model: VQModel | KLModel) -> Params:
    """Read the params of a first stage, checked against the model that will run them.

    Args:
      path: safetensors file in CompVis's or diffusers' layout, or a CompVis `.ckpt`, or a
        folder of diffusers.
      model: VQModel or KLModel.

    Returns:
      params, numpy arrays.

    Raises:
      ValueError: names the file and the tensors that are missing, extra or misshaped, or what
        it says of a network that differs from the model.
    """
    params = load_autoencoder(path, model=model)
    size = model.factor
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    check_params(params, expected, path)
    return params


def first_stage_from_diffusers(folder: PathLike) -> tuple[VQModel | KLModel, Params]:
    """Load a first stage of diffusers, built as its config.json says.

    Args:
      folder: of a `VQModel` or `AutoencoderKL`, or of a pipeline with one in its folder `vqvae`
        or `vae`; or a file of weights with config.json beside it.

    Returns:
      Tuple of the model of `models.autoencoder` and its params, numpy arrays.

    Raises:
      ValueError: see `models.published.unet_from_diffusers`.

    Example:
      `model, params = first_stage_from_diffusers("ldm-celebahq-256")`
    """
    path = find_autoencoder(folder)
    kind, arguments = read_config(path.with_name("config.json"), autoencoder_arguments)
    model = KINDS[kind](**arguments)
    return model, load_first_stage(path, model)


def digest(params: Params) -> str:
    """Return the SHA-256 of a parameter tree: names, shapes and values, as hexadecimal text."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        leaf = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()
