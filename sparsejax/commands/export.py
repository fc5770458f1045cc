"""Write trained models and their masks as files that other programs can read.

    python -m sparsejax export --workdir runs/celebahq_ldm-rigl-0.5-0 --output exported
    python -m sparsejax export --workdir runs/digits-rigl-0.75-0 --output exported --sparse
    python -m sparsejax export --workdir runs/digits-rigl-0.75-0 --hub exported/digits

Writes the weights of a UNet in the layouts of CompVis Latent Diffusion and of Hugging Face
diffusers, those of a DiT in the layouts of its authors and of diffusers, and next to each its
masks: arrays of zeros and ones with the same names and shapes. For a UNet, `diffusers` is a whole
pipeline, with the run's scheduler and first stage. With --sparse, writes a run of any task as
model.safetensors instead: its active weights, and its masks as packed bits (`sparse_files`). With
--hub, writes that file with config.json, a model card and pictures, as the Hugging Face Hub wants
them.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sparsejax import command_line
from sparsejax.errors import ConfigError
from sparsejax.nested import flatten
from sparsejax.storage import require_writable

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.table import Table

    from sparsejax.families import Model
    from sparsejax.models.dit import DiT
    from sparsejax.models.pipelines import FirstStage
    from sparsejax.models.unet import UNet
    from sparsejax.types import Params

SPARSE_FILE = "model.safetensors"


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
        help="Workdir of a run on images or latents; with --sparse or --hub, of any task.",
    )
    parser.add_argument("--output", metavar="FOLDER", help="Folder to write to.")
    parser.add_argument("--sparse", action="store_true", help="Write a sparse file.")
    parser.add_argument(
        "--hub",
        metavar="FOLDER",
        help="Write a model repository to this folder, which must be empty if it exists, instead "
        "of --output.",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Export the EMA weights, or those of the last step (default: EMA).",
    )
    flags = parser.parse_args(argv)
    if bool(flags.hub) == bool(flags.output or flags.sparse):
        parser.error("either --output, with or without --sparse, or --hub must be given")
    # Imported here since it takes time, which --help and a mistyped flag shouldn't wait for.
    from rich.console import Console

    export = _export_sparse if flags.sparse else _export_hub if flags.hub else _export_dense
    output = pathlib.Path(flags.hub or flags.output)
    try:
        require_writable(output, "--hub" if flags.hub else "--output")
        table, says = export(flags.workdir, output, flags.ema)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    Console().print(table)
    if says:
        print(says)  # in one line, to be copied


def _export_sparse(workdir: str, output: pathlib.Path, ema: bool) -> "tuple[Table, str]":
    """Write the sparse file; return the closing table, and an empty message."""
    from rich.table import Table

    from sparsejax.training import runs

    sizes = runs.save_sparse_run(workdir, output / SPARSE_FILE, ema=ema)
    table = Table(f"in {output}", "bytes", "ratio")
    table.add_row(SPARSE_FILE, f"{sizes.file:,}", f"{sizes.file / sizes.dense:.3f}")
    table.add_row("the same params, dense", f"{sizes.dense:,}", "1")
    return table, ""


def _export_hub(workdir: str, output: pathlib.Path, ema: bool) -> "tuple[Table, str]":
    """Write a model repository; return the closing table, and how to upload it."""
    from rich.table import Table

    from sparsejax.evaluation.sharing import write_repository
    from sparsejax.reports.model_card import FILL_IN

    write_repository(workdir, output, ema=ema)
    table = Table(f"in {output}", "bytes")
    for path in sorted(output.iterdir()):
        table.add_row(path.name, f"{path.stat().st_size:,}")
    says = f"README.md is the model card. To upload it all: hf upload OWNER/NAME {output}"
    if FILL_IN in (output / "README.md").read_text():
        says = f"README.md says '{FILL_IN}' where the licence of the data belongs. {says}"
    return table, says


def _export_dense(workdir: str, output: pathlib.Path, ema: bool) -> "tuple[Table, str]":
    """Write a network in both layouts; return the closing table, and how to open the result."""
    from rich.table import Table

    from sparsejax.families import networks_of
    from sparsejax.families.denoising import NETWORKS
    from sparsejax.models.dit import DiT
    from sparsejax.models.export import (
        compvis_differences,
        export_dit,
        export_unet,
        reference_differences,
    )
    from sparsejax.training import runs

    config = runs.read_config(workdir)
    if networks_of(config) is not NETWORKS:
        raise ValueError(
            f"{workdir} is a run of the task {config.task.name!r}; accepted: images, latents, or "
            "--sparse"
        )
    model, params, masks = runs.load_run(workdir, ema=ema)
    first_stage, problem = None, ""
    if model.first_stage:
        try:
            first_stage = model.first_stage()
        except ValueError as error:
            problem = f"no diffusers pipeline was written: {error}"
    network = cast("UNet | DiT", model.network.clone(dtype=None))
    metadata = _metadata(config, network, first_stage) | {"weights": "ema" if ema else "last step"}
    size, parts = _input_size(model, params), (params, masks, output)
    if isinstance(network, DiT):
        written = export_dit(*parts, network, sample_size=size, metadata=metadata)
        says = _how_to_open(network, output / "diffusers" / "transformer")
        differences = reference_differences(network)
        if differences:
            says += f"\ndit.safetensors can't be used with its authors' own code: {differences}"
    else:
        written = export_unet(*parts, network, sample_size=size, metadata=metadata)
        says = problem
        if not problem:
            more, says = _export_pipeline(config, network, output / "diffusers", first_stage)
            written += more
        differences = compvis_differences(network)
        if differences:
            says += f"\nunet.safetensors can't be used with CompVis's own code: {differences}"
    table = Table(f"in {output}", "MB")
    for path in written:
        table.add_row(str(path.relative_to(output)), f"{path.stat().st_size / 1e6:.2f}")
    return table, says


def _how_to_open(network: "DiT", folder: pathlib.Path) -> str:
    """Return how diffusers opens the DiT in a folder, or why it isn't there."""
    from sparsejax.models.dit_layout import dit_diffusers_config

    try:
        dit_diffusers_config(network, network.patch_size)
    except ValueError as error:
        return f"no diffusers transformer was written: {error}"
    return (
        "no diffusers pipeline was written; the transformer opens by\n"
        f"diffusers.DiTTransformer2DModel.from_pretrained({str(folder)!r})"
    )


def _input_size(model: "Model", params: "Params") -> int:
    """Return the height of the input: the first layer costs 2 FLOPs per weight and position."""
    first = "x_embedder/proj/kernel" if "x_embedder" in params else "input_blocks_0_0/kernel"
    positions = model.layer_flops(params)[first] / (2 * flatten(params)[first].size)
    return math.isqrt(round(positions)) * getattr(model.network, "patch_size", 1)


def _metadata(
    config: "ConfigDict", model: "UNet | DiT", first_stage: "FirstStage | None"
) -> dict[str, str]:
    from sparsejax.models.arguments import MODEL_KEY, network_arguments

    method = config.sparsity.method
    metadata = {
        "sparsity_method": method,
        "sparsity_level": "0" if method == "dense" else str(config.sparsity.level),
        MODEL_KEY: json.dumps(network_arguments(model)),
        "diffusion": json.dumps(config.diffusion.to_dict()),
    }
    return metadata | ({"latent_scale": repr(first_stage.scale)} if first_stage else {})


def _export_pipeline(
    config: "ConfigDict",
    model: "UNet",
    folder: pathlib.Path,
    first_stage: "FirstStage | None",
) -> tuple[list[pathlib.Path], str]:
    """Write the rest of a pipeline; return the paths written, and how to open and call it."""
    from sparsejax.families import objectives
    from sparsejax.models.diffusers_config import unet_diffusers_config
    from sparsejax.models.pipelines import export_pipeline, has_same_steps, scheduler_config

    name = config.diffusion.process
    if name != "ddpm":
        return [], f"no diffusers pipeline was written: none samples UNets of the process {name}"
    if model.classes:
        return [], "no diffusers pipeline was written: none gives a UNet its labels"
    schedule, ddim = objectives.sampling_schedules(config)
    # diffusers' pipelines without conditions take DDIM's steps or DDPM's.
    settings, is_ddim = config.sample, config.sample.sampler != "ddpm"
    scheduler = scheduler_config(
        schedule.betas,
        ddim.timesteps,
        sampler="ddim" if is_ddim else "ddpm",
        predicts=config.diffusion.predicts,
        clip=settings.clip,
        set_alpha_to_one=bool(ddim.alphas_prev[0] == 1),
        spacing=settings.spacing,
    )
    try:
        unet_diffusers_config(model)
        written = export_pipeline(folder, scheduler, first_stage)
    except ValueError as error:
        return [], f"no diffusers pipeline was written: {error}"
    call = f"num_inference_steps={settings.steps if is_ddim else schedule.steps}"
    call += ", use_clipped_model_output=True" if is_ddim and settings.clip else ""
    call += f", eta={settings.eta}" if is_ddim and settings.eta else ""
    says = f"diffusers.DiffusionPipeline.from_pretrained({str(folder)!r})({call})"
    notes = [
        (settings.sampler == "dpmpp_2m", "DDIMPipeline doesn't extrapolate as dpmpp_2m does"),
        (is_ddim and settings.clip and first_stage, "LDMPipeline clips without correcting eps"),
        (
            is_ddim and not has_same_steps(ddim.timesteps, schedule.steps),
            f"diffusers spaces {settings.steps} of {schedule.steps} steps differently",
        ),
        (not is_ddim and settings.noise_weight != 1, "DDPMPipeline has no sample.noise_weight"),
    ]
    differs = "; ".join(note for holds, note in notes if holds)
    return written, f"{says}; samples will differ: {differs}" if differs else says
