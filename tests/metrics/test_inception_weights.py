"""The file of Inception weights is found, downloaded, and refused where its hash is wrong."""

import hashlib
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsejax.errors import ConfigError
from sparsejax.metrics import inception_weights
from sparsejax.metrics.inception_weights import find_weights, load_inception, read_weights

CONTENT = b"made up"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = hashlib.sha256(b"other").hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARSEJAX_CACHE", str(folder))
    monkeypatch.delenv("SPARSEJAX_INCEPTION", raising=False)
    return folder


def write(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def nowhere(tmp_path):
    return [(tmp_path / "nowhere" / name).as_uri() for name in ("weights-1.pth", "pt_1.pth")]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_published_file_is_named_by_the_head_of_its_hash():
    names = [url.rpartition("/")[2] for url in inception_weights.URLS]
    assert all(name.endswith(f"-2015-12-05-{inception_weights.SHA256[:8]}.pth") for name in names)
    assert len(inception_weights.SHA256) == 64


def test_a_path_goes_before_the_variable_and_that_before_the_cache(tmp_path, cache, monkeypatch):
    urls = nowhere(tmp_path)
    write(cache / "pt_1.pth")
    assert find_weights(None, SHA256, urls) == cache / "pt_1.pth"
    monkeypatch.setenv("SPARSEJAX_INCEPTION", str(write(tmp_path / "by_variable.pth")))
    assert find_weights(None, SHA256, urls) == tmp_path / "by_variable.pth"
    path = write(tmp_path / "by_path.pth")
    assert find_weights(str(path), SHA256, urls) == path


def test_a_download_is_kept(tmp_path, cache):
    source = write(tmp_path / "site" / "pt_1.pth")
    urls = [nowhere(tmp_path)[0], source.as_uri()]
    path = find_weights(None, SHA256, urls)
    assert path == cache / "pt_1.pth"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["pt_1.pth"]
    source.unlink()
    assert find_weights(None, SHA256, urls) == path


def test_a_download_with_another_hash_is_not_kept(tmp_path, cache):
    source = write(tmp_path / "site" / "pt_1.pth", b"other")
    with pytest.raises(ConfigError, match=f"{WRONG}, not {SHA256}"):
        find_weights(None, SHA256, [source.as_uri()])
    assert files_in(cache) == []


def test_without_network_the_error_says_what_to_do(tmp_path, cache):
    urls = nowhere(tmp_path)
    with pytest.raises(ConfigError, match="could not be downloaded") as refusal:
        find_weights(None, SHA256, urls)
    for part in (*urls, str(cache), "--inception-weights", "SPARSEJAX_INCEPTION", SHA256):
        assert part in str(refusal.value)
    assert files_in(cache) == []


def test_a_named_file_that_is_absent_is_not_replaced_by_another(tmp_path, cache, monkeypatch):
    urls = nowhere(tmp_path)
    write(cache / "pt_1.pth")
    with pytest.raises(ConfigError, match="--inception-weights is .*absent.pth: no such file"):
        find_weights(tmp_path / "absent.pth", SHA256, urls)
    monkeypatch.setenv("SPARSEJAX_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match="SPARSEJAX_INCEPTION is .*absent.pth: no such file"):
        find_weights(None, SHA256, urls)


@pytest.mark.parametrize("place", ["path", "variable", "cache"])
def test_another_hash_is_refused_wherever_the_file_is(tmp_path, cache, monkeypatch, place):
    path = write(cache / "weights-1.pth", b"other")
    if place == "variable":
        monkeypatch.setenv("SPARSEJAX_INCEPTION", str(path))
    with pytest.raises(ConfigError, match=f"weights-1.pth .*{WRONG}, not {SHA256}"):
        find_weights(path if place == "path" else None, SHA256, nowhere(tmp_path))


def test_a_file_is_converted_once_and_then_needs_no_pytorch(tmp_path, cache, monkeypatch):
    path, tensors = tmp_path / "1.pth", {"fc.bias": np.arange(3, dtype=np.float32)}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys)  # any module: it is only looked for
        patch.setattr(inception_weights, "read_state_dict", lambda path: tensors)
        np.testing.assert_array_equal(read_weights(path, SHA256)["fc.bias"], tensors["fc.bias"])
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(read_weights(path, SHA256)["fc.bias"], tensors["fc.bias"])
    with pytest.raises(ConfigError, match=r"the first time needs PyTorch: pip install"):
        read_weights(path, WRONG)


def test_a_damaged_copy_is_converted_again_where_pytorch_is(tmp_path, cache, monkeypatch, caplog):
    path, tensors = tmp_path / "1.pth", {"fc.bias": np.arange(3, dtype=np.float32)}
    read = inception_weights.read_state_dict
    monkeypatch.setattr(
        inception_weights, "read_state_dict", lambda file: tensors if file == path else read(file)
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys)  # any module: it is only looked for
        read_weights(path, SHA256)
    (copy,) = cache.iterdir()
    whole = copy.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for damage in (CONTENT, b"", whole[:-2], flipped):
        copy.write_bytes(damage)
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(ConfigError, match=f"{copy.name} is damaged"):
            read_weights(path, SHA256)
        monkeypatch.setitem(sys.modules, "torch", sys)
        caplog.clear()
        np.testing.assert_array_equal(read_weights(path, SHA256)["fc.bias"], tensors["fc.bias"])
        assert f"{copy.name} is damaged" in caplog.text
        assert copy.read_bytes() == whole


def test_pytorchs_file_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed; it writes .pth files")
    torch.save({"fc.bias": torch.arange(3.0)}, tmp_path / "1.pth")
    for _ in range(2):
        tensors = read_weights(tmp_path / "1.pth", SHA256)
        np.testing.assert_array_equal(tensors["fc.bias"], np.arange(3.0))


def test_tensors_of_another_network_are_refused(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "1.pth")
    monkeypatch.setattr(inception_weights, "SHA256", SHA256)
    monkeypatch.setenv("SPARSEJAX_INCEPTION", str(path))
    cache.mkdir()
    tensors = {"fc.bias": np.zeros(1000, np.float32)}
    save_file(tensors, cache / f"inception-{SHA256[:16]}.safetensors")
    with pytest.raises(ConfigError, match="not the published Inception"):
        load_inception()
    monkeypatch.setattr(inception_weights, "find_weights", lambda path: path)
    with pytest.raises(ConfigError, match=r"1 of another shape \(fc\.bias \(1000,\)"):
        load_inception()
