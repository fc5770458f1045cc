"""Export a network and its masks, in the layout that it was published in and in diffusers'."""

import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from safetensors.numpy import save_file

from sparsejax import atomic, command_line
from sparsejax.models.arguments import COMPVIS_ARGUMENTS, MODEL_KEY, network_arguments
from sparsejax.models.convert import unet_to_torch
from sparsejax.models.diffusers_config import unet_diffusers_config
from sparsejax.models.diffusers_layout import unet_to_diffusers
from sparsejax.models.dit import DiT
from sparsejax.models.dit_layout import dit_diffusers_config, dit_to_diffusers, dit_to_torch
from sparsejax.models.published import DIFFUSERS_STEM
from sparsejax.models.published_dit import REFERENCE_ARGUMENTS
from sparsejax.models.unet import UNet
from sparsejax.types import Masks, NumpyArray, Params, PathLike, Value


def export_unet(
    params: Params,
    masks: Masks,
    folder: PathLike,
    model: UNet,
    *,
    sample_size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[pathlib.Path]:
    """Write a UNet and its masks.

    Each file is written whole or not at all.

    Args:
      params: of `models.unet.UNet`.
      masks: tree of `params`'s structure, boolean, full-shape or 0-d.
      folder: where to write `unet.safetensors` and `masks.safetensors` (names and shapes of
        CompVis's `UNetModel`, which computes the network if `compvis_differences` has
        nothing to say), and `diffusers/unet` (`UNet2DModel.from_pretrained` reads it,
        with `masks.safetensors` beside the weights). Masks are uint8, ones for active weights;
        layers without a mask have ones everywhere. diffusers has no network whose
        `channel_mult` doesn't begin with 1: `diffusers` is left out then.
      model: the `models.unet.UNet`.
      sample_size: height and width of its input, for config.json.
      metadata: `{name: text}` kept in every safetensors file; those of a network that neither
        names and shapes nor CompVis's code tell have its arguments besides.

    Returns:
      Paths of the files written.

    Examples:
      `export_unet(params, masks, "exported", UNet(), metadata={"sparsity_level": "0.75"})`
    """
    folder = pathlib.Path(folder)
    full_masks = jax.tree.map(_full_mask, params, masks)
    metadata = _metadata(model, COMPVIS_ARGUMENTS, metadata)
    tensors = {"unet": unet_to_torch(params), "masks": unet_to_torch(full_masks)}
    written = _write_all(folder, tensors, metadata)
    if model.channel_mult[0] != 1:
        return written
    tensors = {
        DIFFUSERS_STEM: unet_to_diffusers(params, model.num_head_channels),
        "masks": unet_to_diffusers(full_masks, model.num_head_channels),
    }
    config = unet_diffusers_config(model, sample_size)
    return written + _write_all(folder / "diffusers" / "unet", tensors, metadata, config)


def export_dit(
    params: Params,
    masks: Masks,
    folder: PathLike,
    model: DiT,
    *,
    sample_size: int,
    metadata: Mapping[str, str] | None = None,
) -> list[pathlib.Path]:
    """Write a DiT and its masks.

    Each file is written whole or not at all.

    Args:
      params: of `models.dit.DiT`.
      masks: see `export_unet`.
      folder: where to write `dit.safetensors` and `masks.safetensors` (names and shapes of the
        reference's `DiT`, with its position embedding), and `diffusers/transformer`
        (`DiTTransformer2DModel.from_pretrained` reads it), which is left out if diffusers has no
        such DiT (`dit_layout.dit_diffusers_config`).
      model: the `models.dit.DiT`.
      sample_size: height and width of its input.
      metadata: see `export_unet`.

    Returns:
      Paths of the files written.
    """
    folder = pathlib.Path(folder)
    full_masks = jax.tree.map(_full_mask, params, masks)
    metadata = _metadata(model, REFERENCE_ARGUMENTS, metadata)
    weights = dit_to_torch(params, grid=sample_size // model.patch_size)
    tensors = {"dit": weights, "masks": dit_to_torch(full_masks)}
    written = _write_all(folder, tensors, metadata)
    try:
        config = dit_diffusers_config(model, sample_size)
    except ValueError:
        return written
    tensors = {DIFFUSERS_STEM: dit_to_diffusers(params), "masks": dit_to_diffusers(full_masks)}
    return written + _write_all(folder / "diffusers" / "transformer", tensors, metadata, config)


def _metadata(
    model: UNet | DiT, published: Mapping[str, Value], metadata: Mapping[str, str] | None
) -> dict[str, str]:
    """Add what the published layout doesn't tell: names and shapes don't."""
    # PyTorch's readers want to know that the tensors are theirs.
    metadata = {"format": "pt", **(metadata or {})}
    if any(getattr(model, name) != theirs for name, theirs in published.items()):
        metadata = {MODEL_KEY: json.dumps(network_arguments(model))} | metadata
    return metadata


def _write_all(
    folder: pathlib.Path,
    files: Mapping[str, Mapping[str, NumpyArray]],
    metadata: dict[str, str],
    config: dict[str, Value] | None = None,
) -> list[pathlib.Path]:
    """Write safetensors files by stem, and config.json; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        _write_tensors(folder / f"{stem}.safetensors", tensors, metadata)
        for stem, tensors in files.items()
    ]
    if config is None:
        return written
    atomic.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return [*written, folder / "config.json"]


def compvis_differences(model: UNet) -> str:
    """Return in which arguments a UNet is none that CompVis's code computes; most often, "".

    The names and shapes of its weights are CompVis's all the same.

    Args:
      model: `models.unet.UNet`.

    Examples:
      >>> compvis_differences(UNet(norm_eps=1e-6))
      'norm_eps is 1e-06, in CompVis 1e-05'
    """
    return _differences(model, {"norm_groups": 32} | COMPVIS_ARGUMENTS, "CompVis")


def reference_differences(model: DiT) -> str:
    """Return in which arguments a DiT is none that its authors' code computes; most often, "".

    The names and shapes of its weights are the authors' all the same.

    Args:
      model: `models.dit.DiT`.

    Examples:
      >>> reference_differences(DiT(freq_shift=1, classes=10))
      "freq_shift is 1, in the authors' code 0"
    """
    differences = _differences(model, REFERENCE_ARGUMENTS, "the authors' code")
    without = "" if model.classes else "classes is 0, in the authors' code 1 or more"
    return "; ".join(filter(None, (differences, without)))


def _differences(model: UNet | DiT, theirs: Mapping[str, Value], code: str) -> str:
    return "; ".join(
        f"{name} is {getattr(model, name)!r}, in {code} {value!r}"
        for name, value in theirs.items()
        if getattr(model, name) != value
    )


def _full_mask(param: NumpyArray, mask: NumpyArray) -> NumpyArray:
    return np.broadcast_to(np.asarray(mask, np.uint8), param.shape)


def _write_tensors(
    path: pathlib.Path, tensors: Mapping[str, NumpyArray], metadata: dict[str, str]
) -> pathlib.Path:
    # save_file writes an array's memory as it lies, whatever its strides.
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with atomic.replacing(path) as partial:
        save_file(tensors, partial, metadata=metadata)
    return path


if __name__ == "__main__":
    command_line.moved("sparsejax.models.export", "export")
