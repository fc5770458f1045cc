"""A sparse file is as small as it says, gives back every bit, and tells when it is damaged."""

import json
import struct
import subprocess
import sys
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sparsejax.sparse_files import is_sparse_file, load_sparse, read_metadata, save_sparse

DTYPES = ("float32", "float16", "float64", "bfloat16")


def make_model():
    """Leaves of several dtypes and sizes, with values that are easily lost, and their masks."""
    rng = np.random.default_rng(0)
    params, masks = {}, {}
    for index, dtype in enumerate(DTYPES):
        shape = (3, 5, 7 + index)
        mask = rng.random(shape) < 0.3
        values = rng.normal(size=shape).astype(dtype)
        values.flat[np.flatnonzero(mask)[:5]] = [np.nan, -0.0, np.inf, 1e-7, 0.0]
        block = {"conv": {"kernel": np.where(mask, values, np.zeros((), dtype))}}
        block["bias"] = rng.normal(size=9).astype(dtype)
        params[dtype] = block
        masks[dtype] = {"conv": {"kernel": mask}, "bias": np.array(True)}
    params["all"], masks["all"] = np.ones((2, 3), np.float32), np.ones((2, 3), bool)
    params["none"], masks["none"] = np.zeros((2, 9), np.float32), np.zeros((2, 9), bool)
    params["scalar"], masks["scalar"] = np.float32(3.5), np.array(True)
    params["count"], masks["count"] = np.arange(4), np.array(True)
    return params, masks


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.safetensors"
    params, masks = make_model()
    save_sparse(path, params, masks, {"name": "a model"})
    return path, params, masks


def test_every_bit_comes_back(written):
    path, params, masks = written
    loaded, loaded_masks, metadata = load_sparse(path)
    assert_same_bits(loaded, params)
    assert_same_bits(loaded_masks, masks)
    assert metadata == {"name": "a model"}
    assert {type(leaf) for leaf in jax.tree.leaves((loaded, loaded_masks))} == {np.ndarray}


def test_arrays_of_jax_and_of_any_memory_layout_are_written(tmp_path):
    params, masks = make_model()
    on_device = {"a": jnp.asarray(params["bfloat16"]["conv"]["kernel"])}
    mask = {"a": jnp.asarray(masks["bfloat16"]["conv"]["kernel"])}
    save_sparse(tmp_path / "jax", on_device, mask)
    assert_same_bits(load_sparse(tmp_path / "jax")[0], on_device)
    kernel, mask = params["float32"]["conv"]["kernel"], masks["float32"]["conv"]["kernel"]
    turned = {"t": kernel.T, "dense": kernel.T, "big": kernel.astype(">f4")}
    save_sparse(tmp_path / "t", turned, {"t": mask.T, "dense": np.array(True), "big": mask})
    assert_same_bits(load_sparse(tmp_path / "t")[0], turned | {"big": kernel})


def test_the_file_holds_active_values_and_a_bit_a_weight(tmp_path):
    """Counted without the library: 8 bytes of length, a JSON header, then the tensors."""
    rng = np.random.default_rng(0)
    mask = np.zeros(3 * 3 * 20 * 31, bool)
    mask[rng.permutation(mask.size)[:558]] = True
    mask = mask.reshape(3, 3, 20, 31)
    for dtype, bytes_each in (("float32", 4), ("bfloat16", 2)):
        params = {
            "kernel": np.where(mask, rng.normal(size=mask.shape), 0).astype(dtype),
            "bias": np.ones(31, dtype),
        }
        path = tmp_path / dtype
        sizes = save_sparse(path, params, {"kernel": mask, "bias": np.array(True)})
        content = path.read_bytes()
        (header,) = struct.unpack("<Q", content[:8])
        assert set(json.loads(content[8 : 8 + header])) == {
            "__metadata__", "dense/bias", "values/kernel", "mask/kernel"
        }  # fmt: skip
        packed_bytes = 698  # 5,580 weights, 8 a byte, rounded up
        assert len(content) - 8 - header == bytes_each * (558 + 31) + packed_bytes
        assert sizes == (len(content), bytes_each * (5580 + 31))
        assert header < 700


WITHOUT_JAX = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "ml_dtypes", "torch", "optax"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from sparsejax.sparse_files import load_sparse
params, masks, metadata = load_sparse(sys.argv[1])
flat = {f"{k}/kernel": v["conv"]["kernel"] for k, v in params.items() if isinstance(v, dict)}
flat |= {f"{k}/bias": v["bias"] for k, v in params.items() if isinstance(v, dict)}
np.savez(sys.argv[2], mask=masks["float32"]["conv"]["kernel"], **flat)
"""


def test_it_is_read_where_there_is_no_jax(written, tmp_path):
    """In float32 where numpy has no bfloat16: the same values."""
    path, params, masks = written
    command = [sys.executable, "-c", WITHOUT_JAX, str(path), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True)
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"], masks["float32"]["conv"]["kernel"])
        for dtype in DTYPES:
            wide = np.float32 if dtype == "bfloat16" else dtype
            for name, leaf in (
                ("kernel", params[dtype]["conv"]["kernel"]),
                ("bias", params[dtype]["bias"]),
            ):
                found = arrays[f"{dtype}/{name}"]
                assert found.dtype == wide
                assert found.tobytes() == leaf.astype(wide).tobytes()


def test_a_torn_file_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "model.safetensors"
    save_sparse(path, {"a": np.eye(5, dtype=np.float32)}, {"a": np.eye(5, dtype=bool)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            load_sparse(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    params = {"a": np.eye(5, dtype=np.float32), "b": np.ones(2, ml_dtypes.bfloat16)}
    masks = {"a": np.eye(5, dtype=bool), "b": np.array(True)}
    save_sparse(path, params, masks, {"scale": "3.065"})
    content = bytearray(path.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - data == 4 * 5 + 4 + 2 * 2
    written = load_sparse(path)
    for place in range(len(content)):
        flipped = content.copy()
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        refusal = ""
        try:
            params, masks, metadata = load_sparse(path)
        except ValueError as error:
            refusal = str(error)
        if not refusal:  # the name of the checksum itself, or a space: nothing that was written
            assert place < data
            assert_same_bits((params, masks), written[:2])
            assert metadata | written[2] == metadata, place
        assert not refusal or str(path) in refusal, place


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a": np.ones(2)}, None, "holds no sparse model: its metadata has no sparsejax_format"),
        ({"a": np.ones(2)}, {"sparsejax_format": "9"}, "sparse format '9'; accepted: '1'"),
        ({"a": np.ones(2)}, {"sparsejax_format": "1"}, "metadata has no shapes"),
    ],
)
def test_foreign_files_are_refused_and_said_what_they_lack(tmp_path, tensors, metadata, message):
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        load_sparse(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask/a": None}, "a has no mask of packed bits"),
        ({"mask/a": np.uint8([128])}, "mask of a has 1 bytes; 25 weights"),
        ({"mask/a": np.uint8([255, 0, 0, 0])}, "mask of a doesn't fit values of shape .5,."),
        ({"mask/a": np.uint8([0, 0, 0, 0b11111])}, "mask of a doesn't fit"),
        ({"mask/b": np.uint8([1])}, "the tensor mask/b belongs to no leaf"),
        ({"dense/a": np.ones(3)}, "the tensor mask/a belongs to no leaf"),
        ({"dense/a/b": np.ones(3)}, "a/b lies below another leaf"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path, change, message):
    """Written with right checksums, as another program may."""
    tensors = {"values/a": np.ones(5, np.float32), "mask/a": np.packbits(np.eye(5, dtype=bool))}
    tensors |= change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    sums = {name: zlib.crc32(array.tobytes()) for name, array in tensors.items()}
    metadata = {"shapes": '{"a": [5, 5]}', "crc32": json.dumps(sums), "sparsejax_format": "1"}
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=f"{path} is damaged: .*{message}"):
        load_sparse(path)


EYE, ONES = np.eye(3, dtype=bool), np.ones((3, 3), np.float32)


@pytest.mark.parametrize(
    ("params", "masks", "metadata", "message"),
    [
        ({"in": {"a": ONES}}, {"in": {"a": EYE}}, {}, "^in/a has 6 weights that are not zero"),
        ({"a": ONES * np.nan}, {"a": EYE}, {}, "^a has 6 weights that are not zero"),
        ({"a": ONES}, {"b": EYE}, {}, "different leaves: a, b"),
        ({"a": ONES}, {"a": EYE[:2]}, {}, r"mask of a is bool of shape \(2, 3\); accepted"),
        ({"a": ONES}, {"a": EYE.astype(int)}, {}, "mask of a is int64 of shape"),
        ({"a": ONES}, {"a": np.array(False)}, {}, "mask of a is a 0-d False"),
        ({"a": [ONES]}, {"a": [EYE]}, {}, "^a is a list; accepted: nested dictionaries"),
        ({"a": {}, "b": ONES}, {"b": EYE}, {}, "^a is an empty dictionary"),
        ({"a/b": ONES}, {"a/b": EYE}, {}, "key 'a/b'; accepted: text without slashes"),
        ({"a": ONES.astype(complex)}, {"a": EYE}, {}, "a is of dtype complex128"),
        (ONES, EYE, {}, "the tree is a ndarray"),
        ({"a": EYE}, {"a": EYE}, {"shapes": "1"}, "metadata has the names .*shapes"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(tmp_path, params, masks, metadata, message):
    with pytest.raises(ValueError, match=message):
        save_sparse(tmp_path / "model.safetensors", params, masks, metadata)
    assert list(tmp_path.iterdir()) == []


def test_sparse_files_are_told_from_others(written, tmp_path):
    path, _, _ = written
    assert is_sparse_file(path)
    assert read_metadata(path)["name"] == "a model"
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("text")
    for other in ("other.safetensors", "text", "nowhere", "."):
        assert not is_sparse_file(tmp_path / other)
    with pytest.raises(ValueError, match="there is no file .*nowhere"):
        load_sparse(tmp_path / "nowhere")


def test_a_write_that_fails_leaves_the_file_before_it(written, monkeypatch):
    path, params, masks = written
    before = path.read_bytes()

    def fail(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("sparsejax.sparse_files.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_sparse(path, params, masks)
    assert path.read_bytes() == before


def test_masks_of_blocks_take_one_bit_a_block_and_come_back(tmp_path):
    rng = np.random.default_rng(0)
    grid = rng.random((3, 5)) < 0.5
    mask = np.broadcast_to(np.kron(grid, np.ones((4, 8), bool)), (3, 3, 12, 40))
    odd = rng.random((5, 7)) < 0.5
    params = {
        "conv": {"kernel": np.where(mask, rng.normal(size=mask.shape), 0)},
        "out": np.where(odd, rng.normal(size=odd.shape), 0),
        "dense": np.ones((4, 8)),
    }
    masks = {"conv": {"kernel": mask}, "out": odd, "dense": np.array(True)}
    path = tmp_path / "model"
    save_sparse(path, params, masks, {"by": "me"}, {"conv/kernel": (4, 8), "dense": (4, 8)})
    loaded, loaded_masks, metadata = load_sparse(path)
    assert metadata == {"by": "me"}
    np.testing.assert_array_equal(loaded["conv"]["kernel"], params["conv"]["kernel"])
    np.testing.assert_array_equal(loaded_masks["conv"]["kernel"], mask)
    np.testing.assert_array_equal(loaded["out"], params["out"])
    np.testing.assert_array_equal(loaded_masks["out"], odd)
    assert loaded_masks["dense"].ndim == 0
    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(
            np.unpackbits(file.get_tensor("mask/conv/kernel"), count=15).reshape(3, 5), grid
        )
    save_sparse(path, params, masks, {"by": "me"})
    again = load_sparse(path)[0]  # as files of format 1
    np.testing.assert_array_equal(again["conv"]["kernel"], params["conv"]["kernel"])


@pytest.mark.parametrize("block", [(4, 5), (5, 8), (12, 8)])
def test_a_mask_that_is_not_of_such_blocks_is_refused(block, tmp_path):
    mask = np.kron(np.eye(3, 5) > 0, np.ones((4, 8), bool))
    with pytest.raises(ValueError, match="mask of a isn't constant within blocks of"):
        save_sparse(tmp_path / "model", {"a": 1.0 * mask}, {"a": mask}, {}, {"a": block})


DEEP = "[" * 100_000
NOTHING = {"values/a": np.ones(0, np.float32), "mask/a": np.uint8([0])}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (NOTHING, {"shapes": DEEP}, "its shapes is nested too deeply"),
        (NOTHING, {"crc32": DEEP}, "its crc32 is nested too deeply"),
        ({"dense/" + "a/" * 5000: np.ones(1)}, {}, "nested too deeply"),
        (
            NOTHING,
            {
                "shapes": '{"a": [40000, 40000]}',
                "mask_blocks": '{"a": [40000, 40000]}',
                "sparsejax_format": "2",
            },
            "1 stored values for 1,600,000,000 weights; accepted: 16,777,216 weights, or more by",
        ),
        (NOTHING, {"shapes": '{"a": [4611686018427387904]}'}, "which is too large"),
        (NOTHING, {"shapes": json.dumps({"a": [9] * 9999})}, "which is too large"),
        (NOTHING, {"shapes": '{"a": [true]}'}, "a has no shape, but"),
    ],
)
def test_what_claims_more_than_it_holds_is_refused_before_anything_is_made(
    tensors, metadata, message, tmp_path
):
    sums = {name: zlib.crc32(array.tobytes()) for name, array in tensors.items()}
    written = {"shapes": "{}", "crc32": json.dumps(sums), "sparsejax_format": "1"} | metadata
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, metadata=written)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{path} is damaged: .*{message}"):
            load_sparse(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


def test_a_very_sparse_model_is_read_within_the_limit(tmp_path, monkeypatch):
    """Half as many weights a stored value as the limit; then a limit that says less."""
    mask = np.zeros((100, 100), bool)
    mask[0, :20] = True
    path = tmp_path / "model.safetensors"
    save_sparse(path, {"a": mask.astype(np.float32)}, {"a": mask})
    limits = "sparse_weights=1,sparse_inflation"  # 20 values and 1,250 bytes of bits
    monkeypatch.setenv("SPARSEJAX_LIMITS", f"{limits}=8")
    np.testing.assert_array_equal(load_sparse(path)[1]["a"], mask)
    monkeypatch.setenv("SPARSEJAX_LIMITS", f"{limits}=7")
    with pytest.raises(ValueError, match="1,270 stored values for 10,000 weights; accepted: 8,890"):
        load_sparse(path)
