"""Trained models to sample from: a workdir, a sparse file alone, or a model repository."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sparsejax.compact.states import without_inactive
from sparsejax.configuration import set_key, structure_name
from sparsejax.errors import ConfigError, require
from sparsejax.families import Model
from sparsejax.schema import BY_PATH, SAMPLERS
from sparsejax.training import runs
from sparsejax.training.facts import build_model_of, read_facts
from sparsejax.training.hub import sparse_file_of
from sparsejax.training.plan import compact_network, complete_units
from sparsejax.training.sampling import make_keyed_sampler
from sparsejax.training.sparse_models import build_sparse_model
from sparsejax.training.state import ema_params_of
from sparsejax.types import Masks, NumpyArray, Params, PathLike, PRNGKey, Value
from sparsejax.values import check_value

T = TypeVar("T")

BATCH = 256  # samples drawn at once, as in evaluation


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready to be sampled.

    Attributes:
      config: resolved config of the run.
      model: its Model.
      params: its EMA parameters, or the parameters in the sparse file.
      masks: their masks.
      decodes: False for a run on latents whose first stage is missing: it samples latents.
      is_compact: whether sampling uses the compact network.
    """

    config: ml_collections.FrozenConfigDict
    model: Model
    params: Params
    masks: Masks
    decodes: bool
    is_compact: bool
    _sampler: Callable[[int], Callable[[PRNGKey, int], NumpyArray]] = dataclasses.field(repr=False)

    def sample(self, key: PRNGKey, count: int, *, batch: int = BATCH) -> NumpyArray:
        """Draw samples.

        Args:
          key: PRNG key; it determines an endless sequence, of which the first samples are returned.
          count: number of samples.
          batch: number of samples drawn at once, over all devices; a new number compiles again.

        Returns:
          Samples [count, ...] float32: images [height, width, channels] in [-1, 1], drawings
          [length, 3], or latents; `model.to_images` makes 8-bit pictures of images and drawings.

        Raises:
          ConfigError: a sample isn't finite.
        """
        return np.concatenate(list(self.sample_batches(key, count, batch=batch)))

    def sample_batches(
        self, key: PRNGKey, count: int, *, batch: int = BATCH
    ) -> Iterator[NumpyArray]:
        """Yield the samples of `sample`, `batch` at a time."""
        batch = min(batch, count)
        draw = self._sampler(batch)
        for start in range(0, count, batch):
            yield draw(key, start)[: count - start]


def load(
    path: PathLike,
    *,
    first_stage: PathLike | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    clip: float | None = None,
    label: int | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    spacing: str | None = None,
    churn: float | None = None,
) -> Run:
    """Load a trained model to sample from, without needing its data.

    Args:
      path: workdir of a run, a sparse file (`python -m sparsejax export --sparse`), a folder that
        `export --hub` wrote, or `hf://OWNER/NAME[@REVISION]`, such a folder on the Hugging Face
        Hub, which is downloaded once.
      first_stage: first stage of a run on latents: a file, a diffusers folder, or the workdir that
        trained it (default: the path in the config, if it exists).
      sampler: one of `schema.SAMPLERS` (default: `config.sample.sampler`).
      steps: number of steps, of other samplers than ddpm (default: `config.sample.steps`).
      eta: eta of DDIM, from 0 (deterministic) to 1 (default: `config.sample.eta`).
      clip: bound of the predicted data (default: `config.sample.clip`).
      label: label of all samples, of a network with `model.classes` (default:
        `config.sample.label`; if that is None, all labels in turn).
      guidance: weight of classifier-free guidance (default: `config.sample.guidance`).
      guidance_interval: times in which guidance acts, from and to (default:
        `config.sample.guidance_interval`).
      spacing: which steps DDIM and DPM-Solver++ take, one of `schema.SPACINGS` (default:
        `config.sample.spacing`).
      churn: noise that Heun adds, of a network of EDM (default: `config.sample.churn`).

    Returns:
      Run.

    Raises:
      ConfigError: `path` is none of these, or can't be downloaded; `first_stage` is not the one
        that the run was trained with, or the run can't be sampled with these arguments.

    Examples:
      `sparsejax.load("runs/digits-rigl-0.75-0").sample(jax.random.key(0), 16)`
    """
    changes = {
        "first_stage.path": first_stage and str(first_stage),
        "sample.sampler": sampler,
        "sample.steps": steps,
        "sample.eta": eta,
        "sample.clip": clip,
        "sample.label": label,
        "sample.guidance": guidance,
        "sample.guidance_interval": guidance_interval,
        "sample.spacing": spacing,
        "sample.churn": churn,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    config, model, params, masks = _read(sparse_file_of(path), changes)
    takes_one = model.first_stage is not None or not first_stage
    require(takes_one, "task.name", config.task.name, "latents, with a first stage")
    decodes = model.first_stage is None or bool(first_stage) or _is_there(config.first_stage.path)
    frozen = model.frozen() if decodes else ()
    params = jax.tree.map(jnp.asarray, params)
    network = compact_network(config.sparsity, model, masks)
    compact, small = without_inactive(network, model, params, masks)

    @functools.cache
    def sampler_of(batch: int) -> Callable[[PRNGKey, int], NumpyArray]:
        draw = make_keyed_sampler(compact, frozen, batch)
        return lambda key, start: draw(small, key, start)

    return Run(config, model, params, masks, decodes, compact is not model, sampler_of)


def _read(
    path: pathlib.Path, changes: Mapping[str, Value]
) -> tuple[ml_collections.FrozenConfigDict, Model, Params, Masks]:
    """Return the changed config, the Model, params and masks of a workdir or of a sparse file."""
    if path.is_file():
        config, known, params, masks = _named(runs.read_sparse, path)
        config = _changed(config, changes)
        model = build_sparse_model(config, known, params, path)
        return config, model, *complete_units(structure_name(config.sparsity), model, params, masks)
    config = runs.read_config(path)
    known = read_facts(path, config)
    config = _changed(config, changes)
    model = build_model_of(config, known, path)
    state = runs.load_state_of(path, config, model)
    return config, model, ema_params_of(state), state.masks


def _named(function: Callable[..., T], *args: Value) -> T:
    """Call a function, turning a ValueError that names a file into a ConfigError."""
    try:
        return function(*args)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _changed(
    config: ml_collections.FrozenConfigDict, changes: Mapping[str, Value]
) -> ml_collections.FrozenConfigDict:
    """Return a resolved config with the changes that the caller of `load` requests.

    No other key is checked: sampling a sparse file needs none of the modules that trained it.
    """
    sampler = changes.get("sample.sampler", config.sample.sampler)
    changed = ml_collections.ConfigDict(config.to_dict())
    takes = {
        "sample.steps": tuple(name for name in SAMPLERS if name != "ddpm"),
        "sample.eta": ("ddim",),
        "sample.spacing": ("ddim", "dpmpp_2m"),
        "sample.churn": ("heun",),
    }
    for key, value in changes.items():
        accepted = f"the default of a run whose sample.sampler is {sampler}"
        require(sampler in takes.get(key, (sampler,)), key, value, accepted)
        set_key(changed, key, check_value(BY_PATH[key], value))
    if sampler != "heun":
        changed.sample.churn = 0.0  # which no other sampler has
    return ml_collections.FrozenConfigDict(changed)


def _is_there(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)  # nothing that blocks
