"""The record that binds network, diffusion, data and rendering of one model family."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sparsejax.data.images import to_pixels


def load_nothing(path):
    """Refuse to load published weights; raises ValueError, naming `path`."""
    raise ValueError(
        f"{path}: this task loads no files of published weights; accepted: workdirs of runs"
    )


class Task(NamedTuple):
    """What training and evaluation need to know of a model family.

    `apply` is a parameter of `loss` and `sample`, so that another way of running the same
    network can be put in its place.

    Attributes:
      init: `init(key) -> params`.
      apply: `apply(params, *inputs, train=False, rngs=None) -> output`; rngs hold one PRNG key
        per example, [batch].
      loss: `loss(apply, params, batch, keys, train) -> scalar`, the mean over the batch;
        `keys` is one PRNG key per example, [batch].
      sample: `sample(apply, params, frozen, key, count, start=0) -> samples [count, ...]`,
        examples `start` to `start + count - 1` of the endless sequence that `key` determines.
      render: `render(samples) -> image [height, width, 3] uint8`.
      batches: `batches(start, stop) -> iterator` over this process's training batches:
        dictionaries of numpy arrays [batch / processes, ...].
      reference: `reference() -> real examples [count, ...]`, in the format of samples.
      layer_flops: `layer_flops(params) -> {path: FLOPs}` of one example's forward pass.
      passes_per_sample: forward passes that one sample takes.
      frozen: `frozen() -> pytree` of arrays that sampling needs beside params, such as a first
        stage: an argument of `sample`, since a compiled program should hold no such constants.
      prepare: `prepare()` makes the data ready on disk where that takes long, and checks that
        there is enough to train on, and what is needed only when training is over.
      load: `load(path) -> params` of published files; a ValueError names what doesn't fit.
      units: `units(params) -> {group: [(path, axis, units, incoming), ...]}`, the channels that
        can be left out by themselves (see `models.units`); an empty dictionary if there are none.
      held_out: `held_out() -> iterator` once over the batches of `reference_split`, in the format
        of `batches`, sizes may differ; None where the held-out loss isn't measured.
      to_images: `to_images(samples) -> [count, height, width, channels]` uint8, the pictures that
        are measured and written; by default samples are images in [-1, 1] (`to_pixels`).
      labelled: `labelled() -> (images uint8, labels)` of the training split, to train a
        classifier on, of the size that `to_images` gives; None where there is no such thing.
      statistics: `statistics(samples, reference) -> {name: value}` distances made from the
        examples themselves, not from features of images; None where there are none.
      illustrate: `illustrate(samples, folder)` writes pictures of samples beside the grid.
      warnings: lines that whoever trains or samples should read, such as of a noise schedule that
        does not end in noise.
      export: `export(params, folder)` writes what else a finished run leaves.
      closing_files: names of the files that `illustrate` and `export` write.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    loss: Callable[..., Any]
    sample: Callable[..., Any]
    render: Callable[..., Any]
    batches: Callable[..., Any]
    reference: Callable[..., Any]
    layer_flops: Callable[..., dict[str, float]]
    passes_per_sample: int
    frozen: Callable[[], Any] = lambda: ()
    prepare: Callable[[], None] = lambda: None
    load: Callable[..., Any] = load_nothing
    units: Callable[..., dict[str, list]] = lambda params: {}
    held_out: Callable[[], Any] | None = None
    to_images: Callable[[Any], Any] = to_pixels
    labelled: Callable[[], Any] | None = None
    statistics: Callable[..., dict[str, float]] | None = None
    illustrate: Callable[..., None] = lambda samples, folder: None
    warnings: tuple[str, ...] = ()
    export: Callable[..., None] = lambda params, folder: None
    closing_files: tuple[str, ...] = ()
