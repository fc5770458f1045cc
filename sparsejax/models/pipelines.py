"""Export a pipeline of Hugging Face diffusers: scheduler and first stage around a UNet.

`DiffusionPipeline.from_pretrained` opens such a folder: model_index.json names the parts, the
scheduler has the betas and steps of the run, and `vqvae` is the first stage, if there is one.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sparsejax import atomic
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.diffusers_config import KINDS, autoencoder_diffusers_config
from sparsejax.models.diffusers_layout import autoencoder_to_diffusers
from sparsejax.types import NumpyArray, Params, Value

_PIPELINES = {"ddim": "DDIMPipeline", "ddpm": "DDPMPipeline"}
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}
_SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}


class FirstStage(NamedTuple):
    """The frozen first stage of a run on latents.

    Attributes:
      model: model of `models.autoencoder`.
      params: its parameters.
      scale: factor between the first stage's latents and the UNet's.
      sample_size: height and width of its images.
    """

    model: VQModel | KLModel
    params: Params
    scale: float
    sample_size: int


def scheduler_config(
    betas: NumpyArray,
    timesteps: NumpyArray,
    *,
    sampler: str = "ddim",
    predicts: str = "eps",
    clip: float | None = None,
    set_alpha_to_one: bool = False,
    spacing: str = "leading",
) -> dict[str, Value]:
    """Return the scheduler_config.json that makes diffusers take the steps of our samplers.

    Args:
      betas: [T], as in training.
      timesteps: [S] int, increasing: the steps that DDIM takes; DDPM takes all T.
      sampler: `ddim` or `ddpm`.
      predicts: what the network predicts, `eps`, `v` or `x_0`.
      clip: bound of the predicted x_0, if any. diffusers' DDIM agrees with ours only with
        `use_clipped_model_output=True`.
      set_alpha_to_one: whether DDIM ends at alpha_bar = 1 rather than that of t = 0.
      spacing: of DDIM's steps, `leading` or `trailing`; another is written as `leading`, since
        diffusers' DDIM has no more.

    Returns:
      JSON-serializable dictionary. For S steps, diffusers takes the same ones if `has_same_steps`.

    Examples:
      >>> config = scheduler_config(np.full(100, 0.01), 1 + 10 * np.arange(10))
      >>> config["_class_name"], config["steps_offset"]
      ('DDIMScheduler', 1)
    """
    config = {
        "_class_name": _SCHEDULERS[sampler],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else float(clip),
        "num_train_timesteps": len(betas),
        "prediction_type": _PREDICTIONS[predicts],
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
        # The shortest decimals that round-trip in float32, which is how diffusers reads them.
        "trained_betas": [float(str(beta)) for beta in np.asarray(betas, np.float32)],
    }
    if sampler == "ddpm":
        return config | {"variance_type": "fixed_small"}
    config |= {"set_alpha_to_one": set_alpha_to_one}
    if spacing == "trailing":
        return config | {"timestep_spacing": "trailing"}
    return config | {"steps_offset": int(timesteps[0])}


def has_same_steps(timesteps: NumpyArray, total: int) -> bool:
    """Return whether diffusers, which rounds T / S down, spaces its steps like these.

    Args:
      timesteps: [S] int, increasing.
      total: number of diffusion steps T.
    """
    stride = total // len(timesteps)
    return np.array_equal(timesteps, timesteps[0] + stride * np.arange(len(timesteps)))


def export_pipeline(
    folder: str | pathlib.Path, scheduler: dict[str, Value], first_stage: FirstStage | None = None
) -> list[pathlib.Path]:
    """Turn a folder that has a UNet in `unet` into a pipeline.

    Each file is written atomically.

    Args:
      folder: folder of the pipeline, as `models.export.export_unet` writes `diffusers`.
      scheduler: result of `scheduler_config`.
      first_stage: first stage of a UNet on latents, written to `vqvae`.

    Returns:
      Paths of the files written.

    Raises:
      ValueError: diffusers can't represent the first stage; nothing is written.

    Examples:
      `export_pipeline("exported/diffusers", scheduler_config(schedule.betas, timesteps))`
    """
    folder = pathlib.Path(folder)
    name = scheduler["_class_name"]
    sampler = next(key for key, value in _SCHEDULERS.items() if value == name)
    index = {
        "_class_name": _PIPELINES[sampler] if first_stage is None else "LDMPipeline",
        "scheduler": ["diffusers", name],
        "unet": ["diffusers", "UNet2DModel"],
    }
    written = []
    if first_stage is not None:
        model, params, scale, size = first_stage
        kind = "vq" if isinstance(model, VQModel) else "kl"
        config = autoencoder_diffusers_config(model, kind, scale, size)
        tensors = autoencoder_to_diffusers(params)
        index["vqvae"] = ["diffusers", KINDS[kind]]
        (folder / "vqvae").mkdir(parents=True, exist_ok=True)
        path = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
        with atomic.replacing(path) as partial:
            arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
            save_file(arrays, partial, metadata={"format": "pt"})
        written += [path, _write_json(folder / "vqvae" / "config.json", config)]
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    written.append(_write_json(folder / "scheduler" / "scheduler_config.json", scheduler))
    # Written last: it marks a complete pipeline.
    return [*written, _write_json(folder / "model_index.json", index)]


def _write_json(path: pathlib.Path, content: Value) -> pathlib.Path:
    atomic.write_text(path, json.dumps(content, indent=2) + "\n")
    return path
