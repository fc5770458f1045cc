"""Overlap of masks against a count weight by weight, and against simulated chance."""

import itertools

import numpy as np
import pytest

from sparsejax.reports import overlap

LAYERS = {"a/kernel": (40, 333), "b/kernel": (17, 17), "c/kernel": (101, 128), "d/kernel": (3, 70)}


def draw(rng, layers=LAYERS):
    """Draw `{layer: boolean mask}` with exact counts."""
    masks = {}
    for name, (active, weights) in layers.items():
        mask = np.zeros(weights, bool)
        mask[rng.permutation(weights)[:active]] = True
        masks[name] = mask
    return masks


def pack(masks):
    return {name: np.packbits(mask) for name, mask in masks.items()}


def save(path, masks):
    np.savez(path, **pack(masks))
    return path


def test_equals_a_count_weight_by_weight(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(4)]
    read = [
        overlap.read_masks(save(tmp_path / f"{index}.npz", masks), LAYERS)
        for index, masks in enumerate(drawn)
    ]
    assert all(list(masks) == ["a/kernel", "c/kernel", "d/kernel"] for masks in read)
    shares = []
    for first, second in itertools.combinations(drawn, 2):
        both = active = 0
        for name in ("a/kernel", "c/kernel", "d/kernel"):
            for ours, theirs in zip(first[name], second[name], strict=True):
                both += ours and theirs
                active += ours
        shares.append(both / active)
    found = overlap.overlap_of_runs(read, LAYERS)
    assert found.mean == pytest.approx(np.mean(shares))
    assert (found.low, found.high) == pytest.approx((min(shares), max(shares)))
    assert (found.masks, found.pairs) == (4, 6)


def test_chance_is_what_independent_masks_share():
    rng = np.random.default_rng(1)
    sparse = {name: counts for name, counts in LAYERS.items() if counts[0] < counts[1]}
    shares = [
        overlap.overlap(pack(draw(rng, sparse)), pack(draw(rng, sparse))) for _ in range(2000)
    ]
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(overlap.chance(LAYERS), abs=4 * error)
    assert error < 0.001
    # Not the density of all layers together, which a wrong formula would give.
    overall = sum(a for a, _ in sparse.values()) / sum(n for _, n in sparse.values())
    assert abs(overlap.chance(LAYERS) - overall) > 0.2


def test_the_ends_of_the_scale():
    masks = pack(draw(np.random.default_rng(2)))
    assert overlap.overlap(masks, masks) == 1
    opposite = {"a": np.packbits([1, 0] * 8)}, {"a": np.packbits([0, 1] * 8)}
    assert overlap.overlap(*opposite) == 0
    larger = {"a": np.packbits([1, 1, 1, 0])}
    assert overlap.overlap({"a": np.packbits([1, 0, 0, 0])}, larger) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.pop("a/kernel"), "no mask of layer a/kernel"),
        (lambda masks: masks["a/kernel"].__setitem__(0, masks["a/kernel"][0] ^ 255), "bits, not"),
        (lambda masks: masks.update({"a/kernel": masks["a/kernel"][:-1]}), "333 packed bits"),
        (lambda masks: masks.update({"a/kernel": np.ones(42)}), "333 packed bits"),
    ],
)
def test_masks_of_another_model_are_refused(change, message, tmp_path):
    masks = pack(draw(np.random.default_rng(3)))
    change(masks)
    np.savez(tmp_path / "masks.npz", **masks)
    with pytest.raises(ValueError, match=message):
        overlap.read_masks(tmp_path / "masks.npz", LAYERS)


@pytest.mark.parametrize("content", [b"", b"no masks at all", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "masks.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it isn.t an npz, or is damaged"):
        overlap.read_masks(path, LAYERS)


def test_a_file_of_one_array_is_refused(tmp_path):
    np.save(tmp_path / "masks.npy", np.ones(3))
    with pytest.raises(ValueError, match="it isn.t an npz, or is damaged"):
        overlap.read_masks(tmp_path / "masks.npy", LAYERS)
    with pytest.raises(FileNotFoundError):
        overlap.read_masks(tmp_path / "nowhere.npz", LAYERS)


def test_masks_of_different_layers_do_not_compare():
    with pytest.raises(ValueError, match="different layers"):
        overlap.overlap({"a": np.packbits([1])}, {"b": np.packbits([1])})
    with pytest.raises(ValueError, match="different layers"):
        overlap.overlap({"a": np.packbits([1])}, {"a": np.packbits([1] * 9)})
