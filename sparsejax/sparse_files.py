"""Sparse models as a single safetensors file: active values and bit-packed masks, no zeros.

Needs only numpy and safetensors, not jax. docs/sparse_files.md has the layout.
"""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from sparsejax import checksums, nested
from sparsejax.atomic import replacing
from sparsejax.limits import VARIABLE, TooLargeError, limits

FORMAT, BLOCK_FORMAT = "1", "2"  # without and with masks of one bit a block
_FORMAT_KEY, _SHAPES_KEY, _SUMS_KEY = "sparsejax_format", "shapes", "crc32"
_BLOCKS_KEY, _METADATA_SUM_KEY = "mask_blocks", "crc32_metadata"
_RESERVED = (_FORMAT_KEY, _SHAPES_KEY, _SUMS_KEY, _BLOCKS_KEY, _METADATA_SUM_KEY)
# Names of safetensors and of numpy; bfloat16 is apart, since numpy has no such type.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BOOL": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}"
    for kind, name in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}

# Of leaves: numpy's and more than networks need.
_MOST_DIMENSIONS, _LARGEST_DIMENSION, _DEEPEST = 32, 2**40, 64


Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Tree: TypeAlias = Any  # nested dictionaries of arrays


class Sizes(NamedTuple):
    """Sizes in bytes: of a sparse file, and of the same params as dense arrays."""

    file: int
    dense: int


def save_sparse(
    path: str | os.PathLike[str],
    params: Tree,
    masks: Tree,
    metadata: Mapping[str, str] | None = None,
    blocks: Mapping[str, tuple[int, int]] | None = None,
) -> Sizes:
    """Write a sparse model, atomically.

    Args:
      path: safetensors file to write; its folder must exist.
      params: nested dictionaries of arrays, of numpy or jax; floats (also bfloat16), integers or
        booleans; zero wherever the mask is False. A negative zero there is read back as zero.
      masks: dictionaries of the same structure with boolean arrays: of the parameter's shape, or
        a 0-d True to store all of it.
      metadata: `{name: text}` to keep in the file.
      blocks: `{path: (inputs, outputs)}`, paths joined by slashes: masks that are constant within
        blocks of so many of the last two dimensions, which are stored as one bit a block.

    Returns:
      Sizes.

    Raises:
      ValueError: a weight is not zero where its mask is False, masks don't fit params, a mask isn't
        constant within its blocks, or the format can't hold a leaf; names the leaf.

    Examples:
      `save_sparse("model.safetensors", params, masks, {"trained on": "digits"})`
    """
    params, masks, metadata = _flatten(params), _flatten(masks), dict(metadata or {})
    differing = sorted(params.keys() ^ masks.keys())
    if differing:
        raise ValueError(f"params and masks have different leaves: {', '.join(differing[:3])}")
    reserved = [name for name in _RESERVED if name in metadata]
    if reserved:
        raise ValueError(f"metadata has the names {reserved}, which the format keeps for itself")
    blocks = blocks or {}
    tensors, shapes, used = {}, {}, {}
    for name, param in params.items():
        mask = masks[name]
        _check_leaf(name, param, mask)
        if mask.ndim == 0:
            tensors[f"dense/{name}"] = np.asarray(param, order="C")
        else:
            tensors[f"values/{name}"], shapes[name] = param[mask], param.shape
            if name in blocks:
                mask, used[name] = _to_grid(name, mask, blocks[name]), blocks[name]
            tensors[f"mask/{name}"] = np.packbits(mask)
    sums = {name: checksums.of_array(array) for name, array in tensors.items()}
    metadata[_FORMAT_KEY] = BLOCK_FORMAT if used else FORMAT
    metadata |= {_BLOCKS_KEY: json.dumps(used)} if used else {}
    metadata |= {_SHAPES_KEY: json.dumps(shapes), _SUMS_KEY: json.dumps(sums)}
    metadata[_METADATA_SUM_KEY] = str(checksums.of_json(metadata))
    path = pathlib.Path(path)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata=metadata)
    return Sizes(path.stat().st_size, sum(param.nbytes for param in params.values()))


def load_sparse(path: str | os.PathLike[str]) -> tuple[Tree, Tree, dict[str, str]]:
    """Read a sparse model.

    bfloat16, which numpy lacks, is read as the type of the package ml_dtypes (a dependency of jax),
    or as float32 with the same values if ml_dtypes is not installed.

    Args:
      path: file written by `save_sparse`.

    Returns:
      Tuple `(params, masks, metadata)`: nested dictionaries of numpy arrays, params zero where
      the mask is False; masks boolean, of the parameter's shape or 0-d True; `{name: text}`.

    Raises:
      ValueError: the file doesn't exist, is damaged, or is not a sparse model; names the path and
        the problem.

    Examples:
      `params, masks, metadata = load_sparse("model.safetensors")`
    """
    path = pathlib.Path(path)
    metadata = read_metadata(path)
    version = metadata.pop(_FORMAT_KEY, None)
    if version is None:
        raise ValueError(f"{path} holds no sparse model: its metadata has no {_FORMAT_KEY}")
    if version not in (FORMAT, BLOCK_FORMAT):
        accepted = f"{FORMAT!r}, {BLOCK_FORMAT!r}"
        raise ValueError(f"{path} is of the sparse format {version!r}; accepted: {accepted}")
    try:
        _check_metadata(metadata | {_FORMAT_KEY: version})
        metadata.pop(_METADATA_SUM_KEY, None)
        tensors = dict(deserialize(path.read_bytes()))
        shapes = _read_dictionary(metadata, _SHAPES_KEY)
        _check_sums(tensors, _read_dictionary(metadata, _SUMS_KEY))
        blocks = _read_dictionary(metadata, _BLOCKS_KEY) if version == BLOCK_FORMAT else {}
        arrays = {name: _to_array(one) for name, one in tensors.items()}
        params, masks = _unpack(arrays, shapes, blocks)
        return nested.nest(params), nested.nest(masks), metadata
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def is_sparse_file(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a sparse file, of any version of the format."""
    try:
        return _FORMAT_KEY in read_metadata(path)
    except (OSError, ValueError):
        return False


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read only the metadata of a safetensors file, `{name: text}`.

    Args:
      path: safetensors file.

    Raises:
      ValueError: the file doesn't exist, is damaged, or is not a safetensors file; names the path.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _flatten(tree: Tree) -> dict[str, Array]:
    """Return `{path: array}` of nested dictionaries; raise ValueError for what paths can't say."""
    if not isinstance(tree, Mapping):
        kind = type(tree).__name__
        raise ValueError(f"the tree is a {kind}; accepted: nested dictionaries")
    if not tree:
        raise ValueError("the tree is an empty dictionary")
    flat: dict[str, Array] = {}
    for path, leaf in nested.leaves(tree):
        for depth, key in enumerate(path):
            if not isinstance(key, str) or not key or "/" in key:
                where = "/".join(path[:depth]) or "the tree"
                raise ValueError(f"{where} has the key {key!r}; accepted: text without slashes")
        name = "/".join(path)
        if isinstance(leaf, Mapping):
            raise ValueError(f"{name} is an empty dictionary")
        if isinstance(leaf, list | tuple):
            kind = type(leaf).__name__
            raise ValueError(f"{name} is a {kind}; accepted: nested dictionaries")
        array = np.asarray(leaf)
        native = array.dtype.isnative
        flat[name] = array if native else array.astype(array.dtype.newbyteorder("="))
    return flat


def _check_leaf(name: str, param: Array, mask: Array) -> None:
    if param.dtype.name not in (*_DTYPES.values(), "bfloat16"):
        raise ValueError(f"{name} is of dtype {param.dtype}; accepted: floats, integers, booleans")
    fits = mask.shape == param.shape or mask.ndim == 0
    if mask.dtype != bool or not fits:
        found = f"{mask.dtype} of shape {mask.shape}"
        accepted = f"booleans of shape {param.shape}, or a 0-d True"
        raise ValueError(f"the mask of {name} is {found}; accepted: {accepted}")
    if mask.ndim == 0 and not mask:
        raise ValueError(f"the mask of {name} is a 0-d False; accepted: True")
    lost = np.count_nonzero(param[~mask]) if mask.ndim else 0
    if lost:
        raise ValueError(
            f"{name} has {lost} weights that are not zero where its mask is False; they would be "
            "lost: apply the masks first"
        )


def _check_metadata(metadata: dict[str, str]) -> None:
    """Check the metadata against their own checksum, which files of older versions don't have."""
    written = metadata.pop(_METADATA_SUM_KEY, None)
    if written not in (None, str(checksums.of_json(metadata))):
        raise ValueError("the checksum of its metadata is not the one that was written")


def _read_dictionary(metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.pop(key, "null"))
    except RecursionError as error:
        raise ValueError(f"its {key} is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"its metadata has no {key}")
    return value


def _check_sums(tensors: dict[str, Any], sums: dict[str, Any]) -> None:
    differing = sorted(tensors.keys() ^ sums.keys())
    if differing:
        raise ValueError(f"tensors are missing or too many: {', '.join(differing[:3])}")
    for name, tensor in tensors.items():
        if zlib.crc32(tensor["data"]) != sums[name]:
            raise ValueError(f"the checksum of {name} is not the one that was written")


def _to_array(tensor: Any) -> Array:
    """Convert what safetensors read to a numpy array."""
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if kind != "BF16":
        if kind not in _DTYPES:
            raise ValueError(f"a tensor of the type {kind}; accepted: {', '.join(_DTYPES)}, BF16")
        return np.frombuffer(data, _DTYPES[kind]).reshape(shape)
    bits = np.frombuffer(data, np.uint16).reshape(shape)
    try:
        import ml_dtypes
    except ImportError:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(ml_dtypes.bfloat16)


def _to_grid(name: str, mask: Array, block: Sequence[int]) -> Array:
    """Return a mask as booleans [input blocks, output blocks]."""
    grid = mask.reshape(-1, *mask.shape[-2:])[:1, :: block[0], :: block[1]][0]
    if any(n % b for n, b in zip(mask.shape[-2:], block, strict=True)) or not np.array_equal(
        _from_grid(grid, mask.shape, block), mask
    ):
        raise ValueError(f"the mask of {name} isn't constant within blocks of {tuple(block)}")
    return grid


def _from_grid(grid: Array, shape: tuple[int, ...], block: Sequence[int]) -> Array:
    """Return booleans [input blocks, output blocks] as a mask of `shape`."""
    return np.broadcast_to(grid.repeat(block[0], 0).repeat(block[1], 1), shape)


def _unpack(
    arrays: dict[str, Array], shapes: dict[str, Any], blocks: dict[str, Any]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return params and masks, `{path: array}`."""
    _check_weights(arrays, shapes)
    params, masks, unused = {}, {}, set(arrays)
    for key, array in sorted(arrays.items()):
        kind, _, name = key.partition("/")
        if kind not in ("dense", "values") or name in params:
            continue
        unused -= {key, f"mask/{name}"} if kind == "values" else {key}
        if kind == "dense":
            params[name], masks[name] = array, np.array(True)
        else:
            packed = arrays.get(f"mask/{name}")
            block = blocks.get(name)
            masks[name] = _unpack_mask(name, packed, shapes.get(name), array, block)
            params[name] = np.zeros(masks[name].shape, array.dtype)
            params[name][masks[name]] = array
    if unused:
        raise ValueError(f"the tensor {min(unused)} belongs to no leaf")
    return params, masks


def _check_weights(arrays: dict[str, Array], shapes: dict[str, Any]) -> None:
    """Check shapes before anything of their size is made: a few bytes may claim any number."""
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has no shape, but {shape!r:.100}")
        if len(shape) > _MOST_DIMENSIONS or max(shape, default=0) > _LARGEST_DIMENSION:
            raise ValueError(f"{name} has the shape {shape!r:.100}, which is too large")
    for name in arrays:
        if name.count("/") > _DEEPEST:
            raise ValueError(f"{name[:100]}... is nested too deeply")
    total = sum(map(math.prod, shapes.values()))
    stored = sum(array.size for array in arrays.values())
    most = max(limits().sparse_weights, limits().sparse_inflation * stored)
    if total > most:
        raise TooLargeError(
            f"{stored:,} stored values for {total:,} weights; accepted: {most:,} weights, or more "
            f"by {VARIABLE}=sparse_weights=N"
        )


def _unpack_mask(name: str, packed: Array | None, shape: Any, values: Array, block: Any) -> Array:
    """Return the mask of `shape`, checked against the active values."""
    if packed is None or packed.dtype != np.uint8 or packed.ndim != 1:
        raise ValueError(f"{name} has no mask of packed bits")
    if shape is None:
        raise ValueError(f"{name} has no shape")
    grid = shape if block is None else _grid_shape(name, shape, block)
    size, what = math.prod(grid), "weights" if block is None else "blocks"
    if len(packed) != -(-size // 8):
        raise ValueError(f"the mask of {name} has {len(packed)} bytes; {size} {what} need others")
    bits = np.unpackbits(packed).view(bool)
    mask = bits[:size].reshape(grid)
    if block is not None:
        mask = _from_grid(mask, tuple(shape), block).copy()
    if bits[size:].any() or values.shape != (np.count_nonzero(mask),):
        raise ValueError(f"the mask of {name} doesn't fit values of shape {values.shape}")
    return mask


def _grid_shape(name: str, shape: list[int], block: Any) -> list[int]:
    is_pair = isinstance(block, list) and len(block) == 2 and len(shape) >= 2
    if not is_pair or not all(type(b) is int and b > 0 for b in block):
        raise ValueError(f"the mask of {name} has no blocks, but {block!r}")
    if shape[-2] % block[0] or shape[-1] % block[1]:
        raise ValueError(f"{name} of shape {shape} doesn't divide into blocks of {block}")
    return [shape[-2] // block[0], shape[-1] // block[1]]
