import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import celebahq_ldm, lsun_bedrooms_ldm
from sparsejax.configuration import resolve
from sparsejax.data import builders
from sparsejax.data import images as data
from sparsejax.data.digits import Digits
from sparsejax.data.splits import is_held_out
from sparsejax.errors import ConfigError
from sparsejax.families import build_data
from tests.data.sets import encoded, pixels, task, write

has_no_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
SIDES = {"celeb_a_hq": (256, 256), "imagenette": (80, 100), "lsun_bedroom": (100, 70)}


def prepare(dataset, data_dir):
    """Prepare a small set on disk by tensorflow-datasets' own builder, but for its examples."""
    builder = tfds.builder(builders.PUBLISHED[dataset], data_dir=data_dir)
    builder._split_generators = lambda dl_manager: {
        "train": examples(dataset, range(3)),
        "validation": examples(dataset, [3]),
    }
    builder.download_and_prepare(file_format="array_record")


def examples(dataset, seeds):
    for i in seeds:
        example = {"image": stored(dataset, i)} | {
            "celeb_a_hq": {"image/filename": f"{i}.png"},
            "imagenette": {"label": i},
            "lsun_bedroom": {"id": str(i)},
        }[dataset]
        yield i, example


def stored(dataset, seed):
    file_format = "png" if dataset == "celeb_a_hq" else "jpeg"
    return encoded(pixels(seed, *SIDES[dataset]), file_format)


@pytest.mark.parametrize("dataset", sorted(SIDES))
def test_a_prepared_set_opens(dataset, tmp_path):
    """Against Pillow's own decoding of what was stored."""
    prepare(dataset, tmp_path)
    settings = task(tmp_path, dataset=dataset, image_size=32)
    images, labels = data.load_images(settings, "train")
    assert data.load_images(settings, "validation")[0].shape == (1, 32, 32, 3)
    assert set(labels) == ({0, 1, 2} if dataset == "imagenette" else {0})
    height, width = SIDES[dataset]
    side = min(height, width)
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    wanted = set()
    for seed in range(3):
        square = Image.open(io.BytesIO(stored(dataset, seed))).crop(box)
        wanted.add(np.asarray(square.resize((32, 32), Image.BICUBIC)).tobytes())
    assert {image.tobytes() for image in images} == wanted


def test_importing_and_reading_a_prepared_set_never_imports_tensorflow(tmp_path):
    """A package of that name, found before any other, would end the process."""
    prepare("celeb_a_hq", tmp_path / "sets")
    write(tmp_path, **{"tensorflow/__init__.py": b"import sys; sys.exit('imported')"})
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from sparsejax.data import images as data
from sparsejax.data.digits import Digits
from tests.data.sets import task
images, _ = data.load_images(task({str(tmp_path / "sets")!r}, dataset="celeb_a_hq"), "train")
assert images.shape == (3, 8, 8, 3), images.shape
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@has_no_tensorflow
@pytest.mark.parametrize(
    ("dataset", "needs"),
    [
        ("celeb_a_hq", ["downloads/manual/data256x256.tar"]),
        ("imagenette", []),
        ("lsun_bedroom", ["pip install 'tensorflow-datasets[lsun]'"]),
    ],
)
def test_without_tensorflow_the_error_says_what_to_install(dataset, needs, tmp_path):
    with pytest.raises(ConfigError) as error:
        data.open_images(task(tmp_path, dataset=dataset), "train")
    command = f"tfds.builder('{builders.PUBLISHED[dataset]}', data_dir='{tmp_path}')"
    expected = ["config.task.dataset", dataset, "pip install 'sparsejax[images]'", command, *needs]
    assert [text for text in expected if text not in str(error.value)] == []
    assert not list(tmp_path.iterdir())


@has_no_tensorflow
@pytest.mark.parametrize("module", [celebahq_ldm, lsun_bedrooms_ldm], ids=lambda m: m.__name__)
def test_all_that_a_published_config_lacks_is_said_at_once(module, tmp_path, monkeypatch):
    """The first stage by the name of the published file, and the data."""
    monkeypatch.chdir(tmp_path)
    config = module.get_config()
    config.task.data_dir = str(tmp_path)
    with pytest.raises(ConfigError) as error:
        build_data(resolve(config))
    expected = ["config.first_stage.path is 'first_stage/vq-f4.ckpt'", "latent-diffusion/vq-f4.zip"]
    expected += ["unzip -p vq-f4.zip model.ckpt > first_stage/vq-f4.ckpt", "sparsejax[torch]"]
    expected += [f"config.task.dataset is {config.task.dataset!r}", "sparsejax[images]"]
    assert [text for text in expected if text not in str(error.value)] == []


def test_a_set_prepared_as_tfrecord_only_is_refused(tmp_path):
    """The format is read from dataset_info.json; its files could be read by TensorFlow alone."""
    prepare("celeb_a_hq", tmp_path)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ConfigError, match=r"as tfrecord only(.|\n)*file_format='array_record'"):
        data.open_images(task(tmp_path, dataset="celeb_a_hq"), "train")


def test_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.task\.dataset is 'mnist'; accepted: digits, "):
        data.open_images(task(tmp_path, dataset="mnist"), "train")


@pytest.mark.parametrize(
    ("key", "split", "problem"),
    [
        ("split", "test", "Unknown split"),
        ("reference_split", "validation", "Unknown split"),
        ("split", "train[:2000]", "incompatible with 1797"),
        ("split", "train[:0]", "selects nothing"),
        ("split", "train[:", "parsing"),
    ],
)
def test_a_split_that_the_set_lacks_is_refused(key, split, problem, tmp_path):
    settings = task(tmp_path, dataset="digits", **{key: split})
    message = rf"config\.task\.{key} is .*{problem}.*accepted: train \(1797\)"
    with pytest.raises(ConfigError, match=message):
        data.open_images(settings, split)


@pytest.mark.parametrize(
    ("split", "reference", "expected"),
    [
        ("train", "train", False),
        ("train[:1200]", "train[1200:]", True),
        ("train[:1201]", "train[1200:]", False),
        ("train[:10%]", "train[50%:]", True),
        ("train[:100]+train[1000:]", "train[200:1100]", False),
        ("train[:100]+train[1100:]", "train[200:1100]", True),
        ("train[-5:]", "train[1790:]", False),
    ],
)
def test_examples_are_held_out_if_none_is_in_the_training_split(
    split, reference, expected, tmp_path
):
    settings = task(tmp_path, dataset="digits", split=split, reference_split=reference)
    assert is_held_out(settings, builders.open_builder(settings)) == expected


def test_preparing_digits_is_silent(tmp_path, capfd):
    data.load_images(task(tmp_path, dataset="digits"), "train")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", [b"", b'{"name": "dig', b"[]", b"\0" * 64, b"\xff"])
def test_a_prepared_set_that_is_damaged_is_named_with_its_folder(damage, tmp_path):
    """As a disk or a kill leaves it; nothing is removed."""
    Digits(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    (path,) = tmp_path.rglob("dataset_info.json")
    path.write_bytes(damage)
    with pytest.raises(ConfigError) as caught:
        data.load_images(task(tmp_path, dataset="digits"), "train")
    assert f"prepared in {tmp_path / 'digits'} are damaged" in str(caught.value)
    assert path.read_bytes() == damage


def test_a_set_that_another_process_prepares_meanwhile_is_opened(tmp_path, monkeypatch):
    """The other is done between this one's examples and the end of its preparation."""
    races = iter([True])

    def outrun(data_dir):
        builder = Digits(data_dir=data_dir)
        generate = builder._generate_examples

        def examples():
            yield from generate()
            if next(races, False):
                Digits(data_dir=data_dir).download_and_prepare(file_format="array_record")

        builder._generate_examples = examples
        return builder

    monkeypatch.setitem(builders.IMAGE_BUILDERS, "digits", outrun)
    images, _ = data.load_images(task(tmp_path, dataset="digits"), "train")
    assert len(images) == 1797
    assert next(races, None) is None
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
