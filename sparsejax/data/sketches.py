"""Pen drawings for training: loaded into memory, batched by length.

Functions take `config.task` and read dataset, source, url, words, data_dir and representation from
it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import jax
import ml_collections
import numpy as np
from ml_collections import ConfigDict

from sparsejax.data.builders import SKETCHES, full_name, open_builder
from sparsejax.data.splits import check_split
from sparsejax.data.strokes import MAX_POINTS, REPRESENTATIONS, VERSION, represent
from sparsejax.errors import require
from sparsejax.seeds import check_seed
from sparsejax.types import Batch, Batches, NumpyArray

_MULTIPLE = 8  # padded lengths are multiples of it


class Sketches(NamedTuple):
    """The drawings of one split, concatenated.

    Attributes:
      points: [points, 4] float32: x, y, pen, time, in the requested representation.
      offsets: [count + 1] int64; drawing i is `points[offsets[i]:offsets[i + 1]]`.
      labels: [count] int, to go with the drawings; None for drawings alone.
    """

    points: NumpyArray
    offsets: NumpyArray
    labels: NumpyArray | None = None

    @property
    def lengths(self) -> NumpyArray:
        """Number of points of each drawing, [count] int32."""
        return np.diff(self.offsets).astype(np.int32)


def load_sketches(settings: ConfigDict, split: str) -> Sketches:
    """Load the drawings of a split, preparing the dataset on disk the first time.

    Args:
      settings: `config.task`.
      split: as in tensorflow-datasets, such as train, validation or train[:1000].

    Returns:
      Sketches.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    return _load_split(settings, split)[0]


def load_labels(settings: ConfigDict, split: str) -> NumpyArray:
    """Load the labels of a split: the class of each drawing, or 0 if the dataset has none.

    Args:
      settings: `config.task`.
      split: see `load_sketches`.

    Returns:
      [count] int64, in the order of `load_sketches`.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    return _load_split(settings, split)[1]


def check_sketches(settings: ConfigDict, split: str) -> None:
    """Check dataset, representation and split without loading; see `load_sketches`."""
    require(settings.dataset in SKETCHES, "task.dataset", settings.dataset, ", ".join(SKETCHES))
    accepted = ", ".join(REPRESENTATIONS)
    known = settings.representation in REPRESENTATIONS
    require(known, "task.representation", settings.representation, accepted)
    check_split(settings, split, open_builder(settings))


def _load_split(settings: ConfigDict, split: str) -> tuple[Sketches, NumpyArray]:
    check_sketches(settings, split)
    return _load(ml_collections.FrozenConfigDict(settings), split, describe(settings, split))


@functools.cache
def _load(settings: ConfigDict, split: str, description: str) -> tuple[Sketches, NumpyArray]:
    """Load Sketches and labels; the description distinguishes contents of the same files."""
    del description
    records = list(open_builder(settings).as_data_source(split=split))
    drawings = [represent(record["points"], settings.representation) for record in records]
    offsets = np.cumsum([0, *map(len, drawings)])
    labels = np.array([record["label"] for record in records], np.int64)
    return Sketches(np.concatenate(drawings), offsets), labels


def describe(settings: ConfigDict, split: str) -> str:
    """Describe exactly which drawings `load_sketches` returns for these settings and split."""
    return f"{full_name(settings)} {split}, {VERSION}, {settings.representation}"


def bucket_bounds(lengths: NumpyArray, count: int) -> tuple[int, ...]:
    """Choose the padded lengths with the least padding.

    Args:
      lengths: [drawings] int, number of points of each.
      count: maximum number of padded lengths.

    Returns:
      Increasing multiples of 8; the last one is the smallest that fits all drawings.
    """
    ends = np.arange(_MULTIPLE, MAX_POINTS + _MULTIPLE, _MULTIPLE)
    shorter = np.searchsorted(np.sort(lengths), ends, side="right").tolist()

    @functools.cache
    def best(last: int, count: int) -> tuple[int, tuple[int, ...]]:
        """Return padded points and bounds up to `ends[last]` with at most `count` buckets."""
        end = int(ends[last])
        choices: list[tuple[int, tuple[int, ...]]] = [(shorter[last] * end, (end,))]
        for before in range(last if count > 1 else 0):
            points, bounds = best(before, count - 1)
            points += (shorter[last] - shorter[before]) * end
            choices.append((points, (*bounds, end)))
        # Among ties, the fewest buckets, so that none is empty.
        return min(choices, key=lambda choice: (choice[0], len(choice[1]), choice[1]))

    return best(int(np.searchsorted(ends, lengths.max())), count)[1]


def padding(lengths: NumpyArray, bounds: Sequence[int]) -> float:
    """Return the fraction of padding if each drawing is padded to the next bound.

    Args:
      lengths: [drawings] int, number of points of each.
      bounds: increasing padded lengths; the last one is at least the largest length.
    """
    padded = np.asarray(bounds)[np.searchsorted(bounds, lengths)]
    return 1 - float(lengths.sum()) / float(padded.sum())


def sketch_batches(
    sketches: Sketches, bounds: Sequence[int], batch_size: int, seed: int, start: int, stop: int
) -> Batches:
    """Iterate over the training batches of steps `start` to `stop - 1`, for this process.

    All drawings of a batch come from one bucket and are padded to its bound; a step's bucket is
    drawn in proportion to its number of drawings, so that all drawings are equally likely. A batch
    is a function of the step, as in `images.image_batches`.

    Args:
      sketches: Sketches.
      bounds: from `bucket_bounds`.
      batch_size: global batch size, a multiple of the number of processes.
      seed: Python int.
      start: first step.
      stop: step to stop before.

    Returns:
      Iterator of batches from `pad`, prefetched by threads.
    """
    seed = check_seed(seed)
    buckets = np.searchsorted(bounds, sketches.lengths)
    members = [np.flatnonzero(buckets == b) for b in range(len(bounds))]
    streams = [
        grain.MapDataset.source(m).seed(seed + b).shuffle().repeat() if len(m) else None
        for b, m in enumerate(members)
    ]
    shares = np.cumsum([len(m) for m in members]) / len(buckets)
    chosen = np.searchsorted(shares, np.random.default_rng(seed).random(stop), side="right")
    # How often a step's bucket came up before: where its batch starts in the bucket's stream.
    earlier = np.zeros(stop, np.int64)
    for b in range(len(bounds)):
        steps = chosen == b
        earlier[steps] = np.arange(steps.sum())
    processes, process = jax.process_count(), jax.process_index()
    share = batch_size // processes

    def batch(step: int) -> Batch:
        stream = streams[chosen[step]]
        first = earlier[step] * batch_size + process * share
        indices = [stream[first + i] for i in range(share)]
        return pad(sketches, np.array(indices), bounds[chosen[step]])

    steps = grain.MapDataset.range(start, stop).map(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(steps.to_iter_dataset(read_options=options))


def ordered_batches(sketches: Sketches, buckets: int, batch_size: int) -> Batches:
    """Iterate once over all drawings, in an order that depends only on their lengths.

    Args:
      sketches: Sketches.
      buckets: maximum number of padded lengths.
      batch_size: size of all batches except the last of each bucket.

    Returns:
      Iterator of batches from `pad`.
    """
    bounds = bucket_bounds(sketches.lengths, buckets)
    bucket = np.searchsorted(bounds, sketches.lengths)
    for b, bound in enumerate(bounds):
        members = np.flatnonzero(bucket == b)
        for first in range(0, len(members), batch_size):
            yield pad(sketches, members[first : first + batch_size], bound)


def pad(sketches: Sketches, indices: NumpyArray, length: int) -> Batch:
    """Gather drawings into arrays of one length.

    Args:
      sketches: Sketches.
      indices: [batch] int.
      length: length to pad to, with zeros.

    Returns:
      `{"points": [batch, length, 3], "times": [batch, length], "lengths": [batch]}`, float32
      and int32, with `label` [batch] int32 if there are labels.
    """
    lengths = sketches.lengths[indices]
    rows = np.arange(length)
    valid = rows < lengths[:, None]
    where = np.where(valid, sketches.offsets[indices][:, None] + rows, 0)
    points = np.where(valid[..., None], sketches.points[where], 0)
    batch = {"points": points[..., :3], "times": points[..., 3], "lengths": lengths}
    if sketches.labels is not None:
        batch["label"] = sketches.labels[indices].astype(np.int32)
    return batch
