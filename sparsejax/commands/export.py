"""Write trained models and their masks as files that other programs read.

    python -m sparsejax export --workdir runs/celebahq_ldm-rigl-0.5-0 --output exported
    python -m sparsejax export --workdir runs/digits-rigl-0.75-0 --output exported --sparse

Writes the weights of a UNet in the layouts of CompVis Latent Diffusion and of Hugging Face
diffusers, and beside each its masks: arrays of zeros and ones, under the same names and of the
same shapes. `diffusers` is a whole pipeline, with the run's scheduler and first stage. With
--sparse, writes model.safetensors instead, of a run of any task: what is not zero, and masks as
packed bits (`sparse_files`).
"""

import argparse
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from sparsejax import atomic, command_line
from sparsejax.errors import ConfigError
from sparsejax.models.arguments import COMPVIS_ARGUMENTS, MODEL_KEY, network_arguments
from sparsejax.models.convert import unet_to_torch
from sparsejax.models.diffusers_config import unet_diffusers_config
from sparsejax.models.diffusers_layout import unet_to_diffusers
from sparsejax.models.pipelines import (
    FirstStage,
    export_pipeline,
    has_same_steps,
    scheduler_config,
)
from sparsejax.models.unet import UNet
from sparsejax.storage import require_writable
from sparsejax.types import Masks, NumpyArray, Params, PathLike

if TYPE_CHECKING:
    from sparsejax.families import Model

SPARSE_FILE = "model.safetensors"


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

    Example:
      `export_unet(params, masks, "exported", UNet(), metadata={"sparsity_level": "0.75"})`
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    full_masks = jax.tree.map(_full_mask, params, masks)
    # PyTorch's readers want to know that the tensors are theirs.
    metadata = {"format": "pt", **(metadata or {})}
    if any(getattr(model, name) != theirs for name, theirs in COMPVIS_ARGUMENTS.items()):
        # Neither names nor shapes tell.
        metadata = {MODEL_KEY: json.dumps(network_arguments(model))} | metadata
    trees = {"unet.safetensors": params, "masks.safetensors": full_masks}
    written = [
        _write_tensors(folder / name, unet_to_torch(tree), metadata) for name, tree in trees.items()
    ]
    if model.channel_mult[0] != 1:
        return written
    diffusers_folder = folder / "diffusers" / "unet"
    diffusers_folder.mkdir(parents=True, exist_ok=True)
    trees = {"diffusion_pytorch_model.safetensors": params, "masks.safetensors": full_masks}
    for name, tree in trees.items():
        tensors = unet_to_diffusers(tree, model.num_head_channels)
        written.append(_write_tensors(diffusers_folder / name, tensors, metadata))
    config = unet_diffusers_config(model, sample_size)
    atomic.write_text(diffusers_folder / "config.json", json.dumps(config, indent=2) + "\n")
    return [*written, diffusers_folder / "config.json"]


def compvis_differences(model: UNet) -> str:
    """Return in which arguments a UNet is none that CompVis's code computes; most often, "".

    The names and shapes of its weights are CompVis's all the same.

    Args:
      model: `models.unet.UNet`.

    Example:
      >>> compvis_differences(UNet(norm_eps=1e-6))
      'norm_eps is 1e-06, in CompVis 1e-05'
    """
    differing = [
        f"{name} is {getattr(model, name)!r}, in CompVis {theirs!r}"
        for name, theirs in ({"norm_groups": 32} | COMPVIS_ARGUMENTS).items()
        if getattr(model, name) != theirs
    ]
    return "; ".join(differing)


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


def _input_size(model: "Model", params: Params) -> int:
    """Return the height of the UNet's input: its first layer costs 2 FLOPs a weight and pixel."""
    kernel = params["input_blocks_0_0"]["kernel"]
    pixels = model.layer_flops(params)["input_blocks_0_0/kernel"] / (2 * kernel.size)
    return math.isqrt(round(pixels))


def main(argv: Sequence[str] | None = None) -> None:
    """Export a run.

    Raises:
      ConfigError: the workdir holds no run, or one of a task without a layout.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax export")
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="Folder of a run: on images or latents, of any task if --sparse.",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="Folder to write to.")
    parser.add_argument("--sparse", action="store_true", help="Write a sparse file.")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="The EMA weights, or those of the last step (default: EMA).",
    )
    flags = parser.parse_args(argv)
    export = _export_sparse if flags.sparse else _export_dense
    try:
        require_writable(flags.output, "--output")
        table, says = export(flags.workdir, pathlib.Path(flags.output), flags.ema)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    Console().print(table)
    if says:
        print(says)  # in one line, to be copied


def _export_sparse(workdir: str, output: pathlib.Path, ema: bool) -> tuple[Table, str]:
    """Write the sparse file; return the closing table, and nothing to say besides."""
    from sparsejax.training import runs

    runs.read_config(workdir)  # before a folder is made
    output.mkdir(parents=True, exist_ok=True)
    sizes = runs.save_sparse_run(workdir, output / SPARSE_FILE, ema=ema)
    table = Table(f"in {output}", "bytes", "ratio")
    table.add_row(SPARSE_FILE, f"{sizes.file:,}", f"{sizes.file / sizes.dense:.3f}")
    table.add_row("the same params, dense", f"{sizes.dense:,}", "1")
    return table, ""


def _export_dense(workdir: str, output: pathlib.Path, ema: bool) -> tuple[Table, str]:
    """Write a UNet in both layouts; return the closing table, and how to open the pipeline."""
    from sparsejax.families import networks_of
    from sparsejax.training import runs

    config = runs.read_config(workdir)
    if UNet not in networks_of(config).values():
        raise ValueError(
            f"{workdir} is a run of the task {config.task.name!r}; accepted: images, latents, or "
            "--sparse"
        )
    model, params, masks = runs.load_run(workdir, ema=ema)
    network = cast(UNet, model.network).clone(dtype=None)
    first_stage, problem = None, ""
    if model.first_stage:
        try:
            first_stage = model.first_stage()
        except ValueError as error:
            problem = str(error)
    metadata = _metadata(config, network, first_stage) | {"weights": "ema" if ema else "last step"}
    size = _input_size(model, params)
    written = export_unet(params, masks, output, network, sample_size=size, metadata=metadata)
    says = f"no pipeline of diffusers was written: {problem}"
    if not problem:
        more, says = _export_pipeline(config, network, output / "diffusers", first_stage)
        written += more
    table = Table(f"in {output}", "MB")
    for path in written:
        table.add_row(str(path.relative_to(output)), f"{path.stat().st_size / 1e6:.2f}")
    differences = compvis_differences(network)
    if differences:
        says += f"\nunet.safetensors is not for CompVis's own code: {differences}"
    return table, says


def _metadata(config: ConfigDict, model: UNet, first_stage: FirstStage | None) -> dict[str, str]:
    method = config.sparsity.method
    metadata = {
        "sparsity_method": method,
        "sparsity_level": "0" if method == "dense" else str(config.sparsity.level),
        MODEL_KEY: json.dumps(network_arguments(model)),
        "diffusion": json.dumps(config.diffusion.to_dict()),
    }
    return metadata | ({"latent_scale": repr(first_stage.scale)} if first_stage else {})


def _export_pipeline(
    config: ConfigDict, model: UNet, folder: pathlib.Path, first_stage: FirstStage | None
) -> tuple[list[pathlib.Path], str]:
    """Write the rest of a pipeline; return the paths written, and how to open and call it."""
    from sparsejax.families import denoising

    schedule, ddim = denoising.sampling_schedules(config)
    settings, is_ddim = config.sample, config.sample.sampler == "ddim"
    scheduler = scheduler_config(
        schedule.betas,
        ddim.timesteps,
        sampler=settings.sampler,
        clip=settings.clip,
        set_alpha_to_one=bool(ddim.alphas_prev[0] == 1),
    )
    try:
        unet_diffusers_config(model)
        written = export_pipeline(folder, scheduler, first_stage)
    except ValueError as error:
        return [], f"no pipeline of diffusers was written: {error}"
    call = f"num_inference_steps={settings.steps if is_ddim else schedule.steps}"
    call += ", use_clipped_model_output=True" if is_ddim and settings.clip else ""
    call += f", eta={settings.eta}" if is_ddim and settings.eta else ""
    says = f"diffusers.DiffusionPipeline.from_pretrained({str(folder)!r})({call})"
    notes = [
        (is_ddim and settings.clip and first_stage, "LDMPipeline clips without correcting eps"),
        (
            is_ddim and not has_same_steps(ddim.timesteps, schedule.steps),
            f"diffusers spaces {settings.steps} of {schedule.steps} steps otherwise",
        ),
        (not is_ddim and settings.noise_weight != 1, "DDPMPipeline has no sample.noise_weight"),
    ]
    differs = "; ".join(note for holds, note in notes if holds)
    return written, f"{says}; samples will differ: {differs}" if differs else says
