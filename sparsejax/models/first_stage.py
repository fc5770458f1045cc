"""First stages on disk: one file of weights that says itself how it was built."""

import hashlib
import json

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsejax.atomic import replacing
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.convert import autoencoder_to_torch
from sparsejax.models.files import check_params, load_autoencoder

KINDS = {"vq": VQModel, "kl": KLModel}
FILE = "autoencoder.safetensors"


def save_first_stage(path, params, kind, arguments):
    """Write a first stage in CompVis's layout, whole or not at all.

    Args:
      path: safetensors file to write.
      params: of a `VQModel` or `KLModel`.
      kind: a key of `KINDS`.
      arguments: JSON-able dictionary of the model's attributes; kept in the metadata.
    """
    metadata = {"kind": kind, "model": json.dumps(arguments)}
    arrays = {k: np.ascontiguousarray(v) for k, v in autoencoder_to_torch(params).items()}
    with replacing(path) as partial:
        save_file(arrays, partial, metadata=metadata)


def read_description(path):
    """Return what a file written by `save_first_stage` says of itself.

    Args:
      path: of any file.

    Returns:
      Tuple `(kind, arguments)`, or None if the file doesn't say.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    if "kind" not in metadata or "model" not in metadata:
        return None
    return metadata["kind"], json.loads(metadata["model"])


def load_first_stage(path, model):
    """Read the params of a first stage, checked against the model that will run them.

    Args:
      path: safetensors file in CompVis's or diffusers' layout, or a CompVis `.ckpt`.
      model: VQModel or KLModel.

    Returns:
      params, numpy arrays.

    Raises:
      ValueError: names the file and the tensors that are missing, extra or misshaped.
    """
    params = load_autoencoder(path)
    size = model.factor
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    check_params(params, expected, path)
    return params


def digest(params):
    """Return the SHA-256 of a parameter tree: names, shapes and values, as hexadecimal text."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        leaf = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()
