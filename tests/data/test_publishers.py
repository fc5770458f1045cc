"""Data sets that a config leaves out are downloaded from their publishers, or from a mirror."""

import io
import os
import pathlib
import socket
import subprocess
import sys
import tarfile

import pytest

from configs import imagenette64_vq, kanjivg_chirodiff, quickdraw_chirodiff
from sparsejax.__main__ import run
from sparsejax.data import images, publishers
from sparsejax.data.builders import SKETCHES, full_name, open_builder, stamp
from sparsejax.errors import ConfigError
from tests.data.serving import serving
from tests.data.sets import EXCERPTS, encoded, pixels, task
from tests.data.sketches import line, save_packed

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as site:
        site.files["/kanjivg.zip"] = (EXCERPTS / "kanjivg.zip").read_bytes()
        for word in ("cat", "crab", "The Eiffel Tower"):
            lines = [line(word, str(key)) for key in range(9)]
            site.files[f"/{word}.ndjson"] = "\n".join(lines).encode()
        yield site


def kanji(site, place, **changes):
    return task(place, **{"dataset": "kanjivg", "url": f"{site.url}/kanjivg.zip"} | changes)


def quickdraw(site, place, *words):
    url = f"{site.url}/{{word}}.ndjson"
    return task(place, dataset="quickdraw_strokes", url=url, words=words)


def names(settings):
    builder = open_builder(settings)
    return sorted(
        record["name"].decode()
        for split in builder.info.splits
        for record in builder.as_data_source(split=split)
    )


def archive(folder):
    """A .tgz like Imagenette's: two classes, three pictures to train and one for validation."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for index, place in enumerate(("train/n0/0", "train/n0/1", "train/n1/2", "val/n1/3")):
            content = encoded(pixels(index))
            info = tarfile.TarInfo(f"{folder}/{place}.png")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_characters_are_downloaded_once_and_equal_those_of_the_zip(site, tmp_path):
    settings = kanji(site, tmp_path)
    ours = task(tmp_path / "own", dataset="kanjivg", source=EXCERPTS / "kanjivg.zip")
    assert names(settings) == names(ours)
    assert full_name(settings) == full_name(ours)
    assert stamp(settings) == stamp(ours)
    assert site.asked == [("/kanjivg.zip", None)]
    assert (tmp_path / "downloads" / "kanjivg" / "kanjivg.zip").is_file()


def test_a_source_that_is_given_always_wins(site, tmp_path):
    path = save_packed(tmp_path / "own.npz")
    assert names(kanji(site, tmp_path / "sets", source=path)) == ["item 0", "item 1", "item 2"]
    with pytest.raises(ConfigError, match=r"config\.task\.source is 'nowhere': it doesn't exist"):
        open_builder(kanji(site, tmp_path / "sets", source="nowhere"))
    assert site.asked == []


def test_each_word_is_a_file_and_words_form_sets_of_their_own(site, tmp_path):
    two = quickdraw(site, tmp_path, "The Eiffel Tower", "cat")
    held = names(two)
    assert {name.partition(".")[0] for name in held} == {"The Eiffel Tower", "cat"}
    assert len(held) == 18
    before = full_name(two), stamp(two)
    assert {name[:4] for name in names(quickdraw(site, tmp_path, "crab"))} == {"crab"}
    assert len(names(quickdraw(site, tmp_path, "crab", "cat"))) == 18
    assert (full_name(two), stamp(two)) == before
    asked = [path for path, _ in site.asked]
    assert asked == ["/The Eiffel Tower.ndjson", "/cat.ndjson", "/crab.ndjson"]


def test_without_words_there_are_cats(site, tmp_path):
    assert names(quickdraw(site, tmp_path)) == names(quickdraw(site, tmp_path, "cat"))
    assert site.asked == [("/cat.ndjson", None)]


def test_a_word_that_nobody_drew_is_named_with_its_address(site, tmp_path):
    with pytest.raises(ConfigError, match=rf"{site.url}/snark.ndjson can't .* HTTP status 404"):
        open_builder(quickdraw(site, tmp_path, "snark"))


def test_an_archive_of_images_is_unpacked_and_named_after_its_file(site, tmp_path):
    site.files["/photos.tgz"] = archive("photos-1")
    settings = task(tmp_path, url=f"{site.url}/photos.tgz")
    assert images.label(settings) == "photos"
    held, labels = images.load_images(settings, "train")
    assert {image.tobytes() for image in held} == {pixels(index).tobytes() for index in range(3)}
    assert sorted(labels) == [0, 0, 1]
    assert len(images.load_images(settings, "validation")[0]) == 1
    (tmp_path / "downloads" / "files" / "photos.tgz").unlink()  # which isn't needed any more
    images.load_images(task(tmp_path, url=f"{site.url}/photos.tgz", image_size=4), "train")
    assert len(site.asked) == 1


def test_imagenette_must_be_the_file_whose_sum_tensorflow_datasets_knows(site, tmp_path):
    site.files["/imagenette2-160.tgz"] = archive("imagenette2-160")
    expected = "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"
    with pytest.raises(ConfigError, match=rf"has the SHA-256 \w+, not {expected} as published"):
        open_builder(task(tmp_path, url=f"{site.url}/imagenette2-160.tgz"))


@pytest.mark.parametrize(
    "url",
    [
        "kanjivg.zip",
        "file:///etc/passwd",
        "ftp://a/c.zip",
        "http://",
        "http://[::1",
        "http://a/..",
        "http://a/b/",
    ]
    + ["http://a b/c.zip", "http://a/%2fetc%2fpasswd", "http://a/c.zip\n"],
)
def test_an_address_that_is_none_is_refused(url, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.task\.url is .*accepted: an address http"):
        open_builder(task(tmp_path, dataset="kanjivg", url=url))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["../cat", "a/b", "a\nb", "x" * 300])
def test_a_word_that_is_no_name_of_a_file_is_refused(word, site, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.task\.words is .*accepted: words that"):
        open_builder(quickdraw(site, tmp_path, "cat", word))
    with pytest.raises(ConfigError, match=r"config\.task\.url is .*accepted: .*{word} in it"):
        open_builder(
            task(tmp_path, dataset="quickdraw_strokes", url="http://a/b", words=("a", "b"))
        )
    assert site.asked == []


def test_only_sets_made_from_files_have_an_address(tmp_path):
    assert set(publishers.SOURCED) == {"files", *SKETCHES}
    assert publishers.missing(task(tmp_path, dataset="digits", url="http://a/b.zip")) == ""
    assert full_name(task(tmp_path, dataset="digits", url="http://a/b.zip")).startswith("digits/")


CONFIGS = {
    kanjivg_chirodiff: ["kanjivg-20240807-main.zip", "github.com/KanjiVG/", "CC BY-SA 3.0"],
    quickdraw_chirodiff: ["cat.ndjson", "storage.googleapis.com/quickdraw_dataset/", "CC BY 4.0"],
    imagenette64_vq: ["imagenette2-160.tgz", "fast-ai-imageclas", "non-commercial research"],
}


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_a_config_by_itself_names_what_is_downloaded(module, tmp_path):
    settings = module.get_config().task
    settings.data_dir = str(tmp_path)
    said = publishers.missing(settings)
    parts = [*CONFIGS[module], str(tmp_path / "downloads" / settings.dataset), "licence: "]
    assert [part for part in parts if part not in said] == []
    settings.source = "own"
    assert publishers.missing(settings) == ""


@pytest.mark.usefixtures("own_logging")
def test_a_check_only_says_what_would_be_downloaded(site, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    config = ROOT / "configs" / "kanjivg_chirodiff.py"
    place = f"--config.task.data_dir={tmp_path / 'sets'}"
    address = f"--config.task.url={site.url}/kanjivg.zip"
    run("train", ["--check", f"--config={config}:rigl,0.5", place, address])
    printed = capsys.readouterr().out
    assert f"kanjivg: kanjivg.zip, to be downloaded from {site.url}" in printed
    assert "416,859, 210," in printed
    assert "Checked: the run can start, once its data are downloaded." in printed
    assert site.asked == []
    assert list(tmp_path.iterdir()) == []


PROCESS = """
import sys
import jax

address, index, place, url = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from sparsejax.data.builders import open_builder
from tests.data.sets import task

print(open_builder(task(place, dataset="kanjivg", url=url)).info.splits.total_num_examples)
"""


@pytest.mark.slow
def test_of_several_processes_the_first_downloads(site, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-c", PROCESS, address]
    more = [str(tmp_path), f"{site.url}/kanjivg.zip"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*words, str(i), *more], stdout=subprocess.PIPE, text=True, env=environment
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert said == ["100", "100"]
    assert site.asked == [("/kanjivg.zip", None)]
