"""Load published weights of DiT: the reference's files and diffusers' folders.

See `models.published`, which reads the files; nothing in them is executed.
"""

import jax
import numpy as np

from sparsejax.models import dit_layout
from sparsejax.models.arguments import check_arguments, read_arguments
from sparsejax.models.dit import DiT
from sparsejax.models.published import (
    below,
    check_params,
    find_weights,
    naming,
    read_config,
    read_state_dict,
    unknown_layout,
)
from sparsejax.types import Params, PathLike

# What the reference computes, for files that don't state otherwise.
REFERENCE_ARGUMENTS = {"freq_shift": 0, "mlp_norm_eps": 1e-6}


def load_dit(path: PathLike, *, model: DiT | None = None) -> Params:
    """Load published weights of a DiT.

    Args:
      path: a file with the state dict of the reference's `DiT` or of diffusers'
        `DiTTransformer2DModel`; or a folder of diffusers, of the transformer or of the whole
        pipeline.
      model: the `models.dit.DiT` that will run the weights, if known.

    Returns:
      `params` of `models.dit.DiT`, numpy arrays; `check_params` checks their shapes.

    Raises:
      ValueError: see `models.published.read_state_dict`; or the layout is unknown, or config.json
        or the file's metadata contradict `model`. Names the file and the tensor or key.

    Examples:
      `params = load_dit("DiT-XL-2-256x256.pt")`
    """
    path = find_weights(path, ("transformer",))
    state_dict = read_state_dict(path)
    if below(state_dict, "transformer_blocks."):
        config = path.with_name("config.json")
        if model is not None and config.is_file():
            arguments = read_config(config, dit_layout.dit_arguments)
            del arguments["classes"]  # the table of labels shows them
            check_arguments(arguments, model, config)
        return naming(path, dit_layout.dit_from_diffusers, state_dict)
    if below(state_dict, "blocks."):
        if model is not None:
            check_arguments(REFERENCE_ARGUMENTS | read_arguments(path), model, path)
        return naming(path, dit_layout.dit_from_torch, state_dict)
    raise unknown_layout(path, state_dict, "DiT", "blocks.*, transformer_blocks.*")


def dit_from_diffusers(folder: PathLike) -> tuple[DiT, Params]:
    """Load a DiT of diffusers with the architecture in its config.json.

    Args:
      folder: folder of a `DiTTransformer2DModel`, or of a pipeline that has one in `transformer`;
        or a file of weights next to its config.json.

    Returns:
      Tuple of the `models.dit.DiT` and its `params`, numpy arrays.

    Raises:
      ValueError: see `load_dit`; or there is no config.json, or `models.dit.DiT` doesn't support
        the network it describes, or the weights don't fit.

    Examples:
      `model, params = dit_from_diffusers("DiT-XL-2-256")`
    """
    path = find_weights(folder, ("transformer",))
    model = DiT(**read_config(path.with_name("config.json"), dit_layout.dit_arguments))
    params = load_dit(path, model=model)
    if "y_embedder" not in params:
        model = model.clone(classes=0)
    check_dit_params(params, model, path)
    return model, params


def check_dit_params(params: Params, model: DiT, path: PathLike) -> None:
    """Check that parameters fit a DiT.

    Args:
      params: tree of arrays.
      model: `models.dit.DiT`.
      path: file that `params` come from.

    Raises:
      ValueError: see `published.check_params`.
    """
    x = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, model.in_channels), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.int32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    check_params(params, expected, path, dit_layout.dit_to_torch)
