"""First stages on disk: one file of weights that describes its own architecture."""

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
    """Write a first stage in CompVis's layout, atomically.

    Args:
      path: safetensors file to write.
      params: params of a `VQModel` or `KLModel`.
      kind: a key of `KINDS`.
      arguments: attributes of the model, JSON-serializable; stored in the metadata.
    """
    metadata = {"kind": kind, MODEL_KEY: json.dumps(arguments)}
    arrays = {k: np.ascontiguousarray(v) for k, v in autoencoder_to_torch(params).items()}
    with replacing(path) as partial:
        save_file(arrays, partial, metadata=metadata)


def read_description(path: PathLike) -> tuple[str, dict[str, Value]] | None:
    """Return the description of the architecture that a first stage on disk contains.

    Args:
      path: a file written by `save_first_stage`; a folder of diffusers with config.json, of the
        first stage or the whole pipeline; or any other file.

    Returns:
      Tuple `(kind, arguments)`, or None if there is no description.

    Raises:
      ValueError: the description is damaged; or a folder of diffusers holds no weights, or its
        config.json is damaged or describes a network that `models.autoencoder` doesn't have.
    """
    path = find_autoencoder(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        metadata = {}
    if "kind" in metadata and MODEL_KEY in metadata:
        return metadata["kind"], _described(metadata[MODEL_KEY], path)
    config_path = path.with_name("config.json")
    if path.name.startswith(DIFFUSERS_STEM) and config_path.is_file():
        return read_config(config_path, autoencoder_arguments)
    return None


def _described(text: str, path: PathLike) -> dict[str, Value]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} is damaged: its description is not a JSON object")
    return arguments


def load_first_stage(path: PathLike, model: VQModel | KLModel) -> Params:
    """Load the params of a first stage, checked against the model that will run them.

    Args:
      path: safetensors file in CompVis's or diffusers' layout, or a CompVis `.ckpt`, or a
        folder of diffusers.
      model: VQModel or KLModel.

    Returns:
      params, numpy arrays.

    Raises:
      ValueError: tensors are missing, unexpected or of another shape, or the file describes
        another network; names the file and what differs.
    """
    params = load_autoencoder(path, model=model)
    size = model.factor
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    check_params(params, expected, path)
    return params


def first_stage_from_diffusers(folder: PathLike) -> tuple[VQModel | KLModel, Params]:
    """Load a first stage of diffusers with the architecture in its config.json.

    Args:
      folder: folder of a `VQModel` or `AutoencoderKL`, or of a pipeline that has one in `vqvae`
        or `vae`; or a file of weights next to its config.json.

    Returns:
      Tuple of the model of `models.autoencoder` and its params, numpy arrays.

    Raises:
      ValueError: see `models.published.unet_from_diffusers`.

    Examples:
      `model, params = first_stage_from_diffusers("ldm-celebahq-256")`
    """
    path = find_autoencoder(folder)
    kind, arguments = read_config(path.with_name("config.json"), autoencoder_arguments)
    model = KINDS[kind](**arguments)
    return model, load_first_stage(path, model)


def digest(params: Params) -> str:
    """Return the SHA-256 of names, shapes and values of a parameter tree, in hexadecimal."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        leaf = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()
