"""The field's terms as types, for the signatures of this package.

Python can't express the content of a pytree, so the trees are names for `Any`: they tell the reader
which tree is meant, and docstrings give shapes and dtypes. This module imports only jax, optax and
numpy, so that `sparsity` can use it.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
import optax

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike  # an array of jax or numpy, or a Python number
NumpyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # on the host
Pictures: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]  # [..., height, width, channels]
Shape: TypeAlias = tuple[int, ...]
Dtype: TypeAlias = Any  # of numpy or jax; None stands for that of the input
PRNGKey: TypeAlias = jax.Array  # one key
Keys: TypeAlias = jax.Array  # one key per example, [batch]

PyTree: TypeAlias = Any
Leaf: TypeAlias = Any  # array or `jax.ShapeDtypeStruct`
Params: TypeAlias = PyTree  # parameters; where only shapes matter, also `jax.ShapeDtypeStruct`s
Masks: TypeAlias = PyTree  # of booleans in the structure of params (see `sparsejax.sparsity`)
Gradients: TypeAlias = PyTree  # in the structure of params
Updates: TypeAlias = PyTree  # what an optimizer adds to params
Sparsities: TypeAlias = PyTree  # a Python float for each leaf of params, or for each group
Units: TypeAlias = PyTree  # an array [units] for each array of params, or for each group
Indices: TypeAlias = PyTree  # int32 arrays: where the active units are
Scores: TypeAlias = PyTree  # an array for each leaf; the largest are kept or grown
Frozen: TypeAlias = PyTree  # arrays that sampling needs besides params
OptState: TypeAlias = optax.OptState
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
Schedule: TypeAlias = Callable[[ArrayLike], Array | float]  # of the step

Example: TypeAlias = dict[str, Any]  # one record of a dataset, its features by name
Batch: TypeAlias = dict[str, Any]  # arrays [batch, ...] by name
Batches: TypeAlias = Iterator[Batch]
Samples: TypeAlias = Any  # array [count, ...] of jax or numpy
Metrics: TypeAlias = dict[str, jax.Array]  # scalars by name
StateDict: TypeAlias = dict[str, NumpyArray]  # tensors by name, in PyTorch's layout
# Units of channels, as `models.units` describes them: (path, axis, unit of each index, incoming).
Groups: TypeAlias = dict[str, list[tuple[str, int, NumpyArray, bool]]]
LayerFlops: TypeAlias = dict[str, float]  # FLOPs of one forward pass by path of the weights

KeyPath: TypeAlias = jax.tree_util.KeyPath  # of a leaf in a pytree
IsSparsifiable: TypeAlias = Callable[[KeyPath | str, Leaf], bool]
PathLike: TypeAlias = str | os.PathLike[str]  # of a file or folder
Value: TypeAlias = Any  # of a config key, or of JSON
Input: TypeAlias = Any  # of a network: an array or several


class Apply(Protocol):
    """Run a network: `apply(params, *inputs, train=False, rngs=None) -> output`.

    `rngs` holds one PRNG key per example, [batch], by purpose (`dropout`).
    """

    def __call__(self, params: Params, /, *inputs: Input, **options: Input) -> PyTree:
        """Return the network's output."""


class Loss(Protocol):
    """Return the mean loss of a batch; `keys` is one PRNG key per example, [batch]."""

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, keys: Keys, train: bool
    ) -> Array:
        """Return a scalar."""


class Sample(Protocol):
    """Sample examples `start` to `start + count - 1` of the sequence that `key` determines."""

    def __call__(
        self,
        apply: Apply,
        params: Params,
        frozen: Frozen,
        key: PRNGKey,
        count: int,
        start: int | Array = 0,
    ) -> Array:
        """Return samples [count, ...]."""
