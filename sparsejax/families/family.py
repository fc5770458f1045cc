"""What training, evaluation and sampling know of a model family: a Model and a Data.

A Model follows from the config alone; building one opens no data. Data gives batches, real
examples and labels. What a Model has to know of the data (the lengths of drawings, the scale of
latents) is a small dictionary, its facts: `Data.facts` finds them, a run and a sparse file keep
them, so a trained model samples on a machine that never saw the data.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

from flax import linen as nn
from ml_collections import ConfigDict

from sparsejax.data.stamps import Stamp
from sparsejax.diffusion.noise_schedules import NoiseSchedule
from sparsejax.models.pipelines import FirstStage
from sparsejax.rendering.pixels import to_pixels
from sparsejax.types import (
    Apply,
    Batches,
    Frozen,
    Groups,
    LayerFlops,
    Loss,
    NumpyArray,
    Params,
    PathLike,
    Pictures,
    PRNGKey,
    Sample,
    Samples,
    Value,
)

Networks: TypeAlias = Mapping[Any, type[nn.Module]]
Facts: TypeAlias = Mapping[str, Any]  # of JSON values


def load_nothing(path: PathLike) -> NoReturn:
    """Raise ValueError: there are no published weights to load from `path`."""
    raise ValueError(
        f"{path}: this task loads no files of published weights; accepted: workdirs of runs"
    )


class Model(NamedTuple):
    """A network and how it is trained, sampled and counted: all that follows from the config.

    `apply` is a parameter of `loss` and `sample`, so that another way of running the same
    network can be put in its place.

    Attributes:
      network: Flax module that `apply` runs.
      init: `init(key) -> params`.
      apply: `apply(params, *inputs, train=False, rngs=None) -> output`; rngs hold one PRNG key
        per example, [batch].
      loss: `loss(apply, params, batch, keys, train) -> scalar`, the mean over the batch;
        `keys` is one PRNG key per example, [batch].
      sample: `sample(apply, params, frozen, key, count, start=0) -> samples [count, ...]`,
        examples `start` to `start + count - 1` of the endless sequence that `key` determines.
      render: `render(samples) -> image [height, width, 3] uint8`.
      layer_flops: `layer_flops(params) -> {path: FLOPs}` of one example's forward pass.
      passes_per_sample: forward passes that one sample takes.
      schedule: the noise schedule; None where nothing diffuses.
      frozen: `frozen() -> pytree` of arrays that sampling needs beside params, such as a first
        stage: an argument of `sample`, since a compiled program should hold no such constants.
      load: `load(path) -> params` of published files; a ValueError names what doesn't fit.
      units: `units(params) -> {group: [(path, axis, units, incoming), ...]}`, the channels that
        can be left out by themselves (see `models.units`); an empty dictionary if there are none.
      widths: widths that a narrower network of the same depth can have, in increasing order.
      narrow: `narrow(width) -> {argument: value}` of the network of that width.
      to_images: `to_images(samples) -> [count, height, width, channels]` uint8, the pictures that
        are measured and written; by default samples are images in [-1, 1] (`to_pixels`).
      statistics: `statistics(samples, reference) -> {name: value}` distances made from the
        examples themselves, not from features of images; None where there are none.
      illustrate: `illustrate(samples, folder)` writes pictures of samples beside the grid.
      warnings: lines that whoever trains or samples should read, such as of a noise schedule that
        does not end in noise.
      export: `export(params, folder)` writes what else a finished run leaves.
      closing_files: names of the files that `illustrate` and `export` write.
      first_stage: `first_stage() -> models.pipelines.FirstStage` that decodes what the network
        denoises; None where it denoises the pictures themselves.
    """

    network: nn.Module
    init: Callable[[PRNGKey], Params]
    apply: Apply
    loss: Loss
    sample: Sample
    render: Callable[[Samples], Pictures]
    layer_flops: Callable[[Params], LayerFlops]
    passes_per_sample: int
    schedule: NoiseSchedule | None = None
    frozen: Callable[[], Frozen] = lambda: ()
    load: Callable[[PathLike], Params] = load_nothing
    units: Callable[[Params], Groups] = lambda params: {}
    widths: tuple[int, ...] = ()
    narrow: Callable[[int], dict[str, Value]] = lambda width: {}
    to_images: Callable[[Samples], Pictures] = to_pixels
    statistics: Callable[[Samples, Samples], dict[str, float]] | None = None
    illustrate: Callable[[Samples, pathlib.Path], None] = lambda samples, folder: None
    warnings: tuple[str, ...] = ()
    export: Callable[[Params, PathLike], None] = lambda params, folder: None
    closing_files: tuple[str, ...] = ()
    first_stage: Callable[[], FirstStage] | None = None


class Data(NamedTuple):
    """The examples that a config names.

    Attributes:
      batches: `batches(start, stop) -> iterator` over this process's training batches:
        dictionaries of numpy arrays [batch / processes, ...].
      reference: `reference() -> real examples [count, ...]`, in the format of samples.
      label: short name of the data.
      split: what of the data the reference is, and how it is drawn.
      facts: `facts() -> dictionary`, JSON-able, of what the Model has to know of the data; whole
        when `prepare` is done.
      prepare: `prepare()` makes the data ready on disk where that takes long, and checks that
        there is enough to train on, and what is needed only when training is over.
      sizes: `sizes() -> {split: number of examples}` of the splits that a run reads: opens them
        and checks what `prepare` checks, but does nothing that takes long.
      held_out: `held_out() -> iterator` once over the batches of `reference_split`, in the format
        of `batches`, sizes may differ; None where the held-out loss isn't measured.
      labelled: `labelled() -> (images uint8, labels)` of the training split, to train a
        classifier on, of the size of the pictures of samples; None where there is no such thing.
      inputs: `inputs() -> pytree` that samples are made from in place of `Model.frozen()`, where
        samples are reconstructions of examples; None where they come from noise.
    """

    batches: Callable[[int, int], Batches]
    reference: Callable[[], NumpyArray]
    label: str
    split: str
    facts: Callable[[], Facts] = dict
    prepare: Callable[[], None] = lambda: None
    sizes: Callable[[], Mapping[str, int]] = dict
    held_out: Callable[[], Batches] | None = None
    labelled: Callable[[], tuple[Pictures, NumpyArray]] | None = None
    inputs: Callable[[], Frozen] | None = None


class Family(NamedTuple):
    """A model family: one file, and one line in `registry.FAMILIES`.

    Attributes:
      model: `model(config, facts) -> Model`; `facts` is None where they aren't known yet.
      data: `data(config) -> Data`.
      networks: Flax modules whose arguments `config.model` takes, by `task.kind`; None: whatever
        the kind.
      stamp: `stamp(config) -> {config key: stamp}` of what a run trains on, wherever it lies.
    """

    model: Callable[[ConfigDict, Facts | None], Model]
    data: Callable[[ConfigDict], Data]
    networks: Networks
    stamp: Callable[[ConfigDict], dict[str, Stamp]]
