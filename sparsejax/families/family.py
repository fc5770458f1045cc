"""What training, evaluation and sampling know about a model family: a Model and a Data.

A Model follows from the config alone; building one opens no data. Data provides batches, real
examples and labels. What a Model needs to know about the data (the lengths of drawings, the scale
of latents) is a small dictionary of facts: `Data.facts` computes it, and runs and sparse files
store it, so a trained model can be sampled on a machine without the data.
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
    Array,
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
    """Raise ValueError in place of `Model.load`, for a family without published weights.

    Raises:
      ValueError: always; names `path`.
    """
    raise ValueError(f"{path}: this task can't load published weights; accepted: workdirs of runs")


class Model(NamedTuple):
    """A network and how to train it, sample it and count its FLOPs: all that a config determines.

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
      passes_per_sample: number of forward passes per sample.
      labels: `labels(indices) -> labels [count]` of samples, by their place in the sequence of
        `sample`; None for a network without labels.
      schedule: the noise schedule; None for a model without diffusion.
      frozen: `frozen() -> pytree` of arrays that sampling needs besides params, such as a first
        stage; an argument of `sample`, so that they don't become constants of a compiled program.
      load: `load(path) -> params` from published files; raises ValueError if they don't fit.
      units: `units(params) -> {group: [(path, axis, units, incoming), ...]}`, the channels that
        can be removed independently (see `models.units`); empty if there are none.
      widths: widths that a narrower network of the same depth can have, in ascending order.
      narrow: `narrow(width) -> {argument: value}` of the network of that width.
      to_images: `to_images(samples) -> [count, height, width, channels]` uint8, the pictures that
        are measured and written; by default samples are images in [-1, 1] (`to_pixels`).
      statistics: `statistics(samples, reference) -> {name: value}`, distances computed from the
        examples themselves rather than from image features; None if there are none.
      illustrate: `illustrate(samples, folder)` writes further pictures of samples.
      warnings: messages to show before training or sampling, for example that a noise schedule
        doesn't end in pure noise.
      export: `export(params, folder)` writes further files of a finished run.
      closing_files: names of the files that `illustrate` and `export` write.
      first_stage: `first_stage() -> models.pipelines.FirstStage`, which decodes the network's
        latents; None if it denoises pixels or points.
    """

    network: nn.Module
    init: Callable[[PRNGKey], Params]
    apply: Apply
    loss: Loss
    sample: Sample
    render: Callable[[Samples], Pictures]
    layer_flops: Callable[[Params], LayerFlops]
    passes_per_sample: int
    labels: Callable[[Array], Array] | None = None
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
      split: description of the reference examples: their split, and how they are rendered.
      facts: `facts() -> dictionary`, JSON-serializable, of what the Model needs to know about the
        data; complete once `prepare` has run.
      prepare: `prepare()` does slow preparation on disk, and checks that there are enough training
        examples and that everything needed after training is there.
      sizes: `sizes() -> {split: number of examples}` of the splits that a run reads; makes the
        checks of `prepare` without its slow work.
      held_out: `held_out() -> iterator`, one pass over `reference_split` in the format of
        `batches` (batch sizes may differ); None if the held-out loss isn't measured.
      labelled: `labelled() -> (images uint8, labels)` of `labelled_split` (default: the training
        split), to train a classifier on, in the size of sample pictures; None without labels.
      training: `training(most) -> real examples [count, ...]` of the training split, in the format
        of samples: `most` of them, evenly spread, or all; None if the reference examples are
        trained on too, or samples aren't compared with training examples.
      reference_labels: `reference_labels() -> [count] int` of the reference examples; None for a
        network without labels.
      shown: `shown(count) -> real examples` to show beside samples, in the order of their labels;
        None for the first ones of the reference.
      inputs: `inputs() -> pytree` that samples are made from, in place of `Model.frozen()`, if
        samples are reconstructions; None if they start from noise.
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
    training: Callable[[int], NumpyArray] | None = None
    reference_labels: Callable[[], NumpyArray] | None = None
    shown: Callable[[int], NumpyArray] | None = None
    inputs: Callable[[], Frozen] | None = None


class Family(NamedTuple):
    """A model family: one file, and one line in `registry.FAMILIES`.

    Attributes:
      model: `model(config, facts) -> Model`; `facts` is None while they are unknown.
      data: `data(config) -> Data`.
      networks: Flax modules that `config.model` can describe, by `task.kind`; the key None stands
        for any kind.
      stamp: `stamp(config) -> {config key: stamp}` of the training data, wherever they are stored.
      facts: names of the facts without which a Model can't sample.
      check_facts: `check_facts(config, facts)` raises ValueError for facts, read from a file, that
        can't be those of the data.
    """

    model: Callable[[ConfigDict, Facts | None], Model]
    data: Callable[[ConfigDict], Data]
    networks: Networks
    stamp: Callable[[ConfigDict], dict[str, Stamp]]
    facts: tuple[str, ...] = ()
    check_facts: Callable[[ConfigDict, Facts], None] = lambda config, facts: None
