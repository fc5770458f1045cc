"""Both stages for real, on a few coloured blobs."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sparsejax.commands import export, sample
from sparsejax.configuration import resolve
from sparsejax.data import latents as cache
from sparsejax.data.images import load_images
from sparsejax.errors import ConfigError
from sparsejax.evaluation import comparison
from sparsejax.evaluation.closing import close_run
from sparsejax.families import build_data, build_model
from sparsejax.models import first_stage
from sparsejax.models.autoencoder import VQModel
from sparsejax.models.export import export_unet
from sparsejax.models.published import unet_from_diffusers
from sparsejax.models.unet import UNet
from sparsejax.rendering.pixels import to_pixels, to_unit_range
from sparsejax.sparse_files import read_metadata
from sparsejax.sparsity.masks import summarize
from sparsejax.training import load_run, load_sparse_run, loop, runs, save_sparse_run
from sparsejax.training.check import check
from sparsejax.training.metrics_log import read_metrics
from tests.families.first_stage import first_stage_config, second_stage_config
from tests.training.tiny import build, forget_copies

MODEL = VQModel(channels=8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4)
apply = jax.jit(MODEL.apply, static_argnames="method")


@pytest.fixture(scope="module")
def first_params(stages):
    return first_stage.load_first_stage(stages[1] / first_stage.FILE, MODEL)


@pytest.fixture(scope="module")
def latents_cache(stages):
    """The cache that training the second stage left, opened as it is."""
    folder = stages[1] / "latents" / "blobs-16"
    stamp = json.loads((folder / "stamp.json").read_text())
    return cache.open_latents(folder, stamp["identity"])


def test_the_file_of_a_first_stage_is_its_run(stages, first_params):
    _, params, _ = load_run(stages[1])
    jax.tree.map(np.testing.assert_array_equal, params, first_params)
    kind, arguments = first_stage.read_description(stages[1] / first_stage.FILE)
    expected = first_stage_config(stages[0]).model.to_dict() | {"channel_mult": [1, 2]}
    assert (kind, arguments) == ("vq", expected)


def test_cached_latents_are_the_images_encodings(stages, first_params, latents_cache):
    latents, std = latents_cache
    images, _ = load_images(second_stage_config(*stages[:2]).task, "train")
    for i in (0, 23):
        pair = np.stack([images[i], images[i][:, ::-1]])
        expected = apply({"params": first_params}, to_unit_range(pair), method="encode")
        np.testing.assert_allclose(latents[i], expected, atol=1e-5)
    assert std == pytest.approx(np.std([latents[i] for i in range(24)]), rel=1e-5)


def test_training_sees_latents_of_unit_variance(stages, latents_cache):
    config = resolve(second_stage_config(*stages[:2]))
    batches = list(build_data(config).batches(0, 6))
    assert batches[0]["latent"].shape == (4, 8, 8, 3)
    cached = {latents_cache[0][i].tobytes() for i in range(24)}
    assert len(cached) == 24
    whole = np.concatenate([batch["latent"] for batch in batches])  # one epoch
    assert np.std(whole) == pytest.approx(1, abs=0.05)


def test_each_latent_comes_with_the_label_of_its_image(stages, latents_cache):
    """Whatever the order, and whether the image is mirrored."""
    config = second_stage_config(*stages[:2])
    with config.unlocked():
        config.model.classes = 3
    config = resolve(config)
    latents, std = latents_cache
    _, labels = load_images(config.task, "train")
    known = {
        ((1 / std) * version).tobytes(): labels[i] for i in range(24) for version in latents[i]
    }
    drawn = list(build_data(config).batches(0, 12))
    pairs = [pair for batch in drawn for pair in zip(batch["latent"], batch["label"], strict=True)]
    assert [label for _, label in pairs] == [known[latent.tobytes()] for latent, _ in pairs]
    assert [label for _, label in pairs] != [*labels, *labels]
    assert {label for _, label in pairs} == {0, 1, 2}


def test_samples_are_decoded_latents(stages, first_params, latents_cache):
    """With a denoiser that sees no noise, DDIM's chain is the start, scaled: known by hand."""
    model, _ = build(resolve(second_stage_config(*stages[:2])))

    def noiseless(params, x, t, *, train=False, rngs=None):
        return jnp.zeros_like(x)

    key = jax.random.key(5)
    sample = jax.jit(lambda frozen, key: model.sample(noiseless, None, frozen, key, 3, start=1))
    samples = sample(model.frozen(), key)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(1 + jnp.arange(3))
    start = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (8, 8, 3)))(keys)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    # Of 3 steps: t = 667, 334, 1, ending at alpha_bar_0.
    z = start * np.sqrt(alpha_bar[0] / alpha_bar[667])
    z = z * latents_cache[1]
    expected = apply({"params": first_params}, z, method="decode")
    np.testing.assert_allclose(samples, expected, atol=1e-4)


def test_only_the_unet_is_sparsified(stages):
    _, params, masks = load_run(stages[2])
    assert set(params) == set(masks)
    assert "encoder" not in params
    lines = read_metrics(stages[2] / "metrics.jsonl")
    assert [line["step"] for line in lines if "replaced" in line] == [2, 4]
    sparse = [m for m in jax.tree.leaves(masks) if np.ndim(m)]
    assert sum(m.sum() for m in sparse) < 0.6 * sum(m.size for m in sparse)


def test_a_sparse_first_stage_is_refused(stages, tmp_path):
    config = first_stage_config(stages[0])
    config.sparsity.method = "rigl"
    with pytest.raises(ConfigError, match="accepted: dense: only the UNet"):
        loop.train(config, tmp_path / "run")


def test_a_first_stage_that_changed_makes_the_cache_stale(stages, first_params, tmp_path):
    """Refused before anything is written, and nothing of the cache is touched."""
    source, first, _ = stages
    shutil.copytree(first / "latents", tmp_path / "latents")
    changed = jax.tree.map(lambda x: x + np.float32(1e-3), first_params)
    path = tmp_path / first_stage.FILE
    arguments = first_stage_config(source).model.to_dict()
    first_stage.save_first_stage(path, changed, "vq", arguments)
    with pytest.raises(ConfigError, match=r"is stale:\n  first_stage: cached '\w{64}', asked"):
        loop.train(second_stage_config(source, path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_where_data_first_stage_and_latents_have_moved(stages, tmp_path):
    source, first, second = stages
    shutil.copytree(second, tmp_path / "run")
    shutil.copy(source, tmp_path / "renamed.npz")
    shutil.copy(first / first_stage.FILE, tmp_path / "first.safetensors")
    shutil.copytree(first / "latents" / "blobs-16", tmp_path / "cache")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    changes = {"task.latents_dir": str(tmp_path / "cache"), "steps": 10}
    moved = second_stage_config(tmp_path / "renamed.npz", tmp_path / "first.safetensors", **changes)
    config = runs.resolve_for(tmp_path / "run", moved)
    data = build_data(config)
    data.prepare()
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    theirs = build_data(resolve(second_stage_config(source, first))).batches(8, 10)
    for ours, batch in zip(data.batches(8, 10), theirs, strict=True):
        np.testing.assert_array_equal(ours["latent"], batch["latent"])


def test_another_first_stage_in_the_same_place_is_refused_by_its_key(
    stages, first_params, tmp_path
):
    source, _, second = stages
    shutil.copytree(second, tmp_path / "run")
    path = tmp_path / "first.safetensors"
    changed = jax.tree.map(lambda x: x + np.float32(1e-3), first_params)
    first_stage.save_first_stage(path, changed, "vq", first_stage_config(source).model.to_dict())
    with pytest.raises(ConfigError, match=r"^config\.first_stage\.path is .* different data"):
        runs.resolve_for(tmp_path / "run", second_stage_config(source, path))


BAD = {
    "first_stage.path": ("nowhere", "is 'nowhere'; accepted: a file, a diffusers folder"),
    "model.in_channels": (4, "is 4; accepted: 3, of the first stage's latents"),
    "task.image_size": (15, "is 15; accepted: multiples of 2, the first stage's factor"),
    "task.latent_scale": (-1.0, r"is -1.0; accepted: None, or \[1e-30, 1e30\]"),
    "task.reference_split": ("test", r"accepted: train \(24\), validation \(8\)"),
    "batch_size": (25, r"is 25; accepted: 24 or less, the number of examples in task.split"),
    "task.split": ("test", r"accepted: train \(24\), validation \(8\)"),
}


@pytest.mark.parametrize("key", sorted(BAD))
def test_what_cannot_work_is_refused_by_its_key(key, stages, tmp_path):
    value, message = BAD[key]
    config = second_stage_config(*stages[:2])
    config.task.latent_scale = 1.0
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=f"config.{key} .*{message}"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_lost_first_stage_is_written_again(stages, tmp_path):
    shutil.copytree(stages[1], tmp_path / "first")
    file = tmp_path / "first" / first_stage.FILE
    before = first_stage.load_first_stage(file, MODEL), first_stage.read_description(file)
    file.unlink()
    close_run(tmp_path / "first")
    # Not byte by byte: safetensors writes its metadata in any order.
    after = first_stage.load_first_stage(file, MODEL), first_stage.read_description(file)
    jax.tree.map(np.testing.assert_array_equal, after[0], before[0])
    assert after[1] == before[1]


def test_a_first_stage_needs_as_many_images_as_a_batch(stages, tmp_path):
    config = first_stage_config(stages[0])
    config.batch_size = 25
    with pytest.raises(ConfigError, match="config.batch_size is 25; accepted: 24 or less"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_latents_that_the_unet_cannot_halve_are_refused(stages, tmp_path):
    changes = {"model.channel_mult": (1,) * 5, "model.num_head_channels": 8}
    message = "image_size is 16; accepted: multiples of 32: .* halves latents 4 times"
    with pytest.raises(ConfigError, match=message):
        loop.train(second_stage_config(*stages[:2], **changes), tmp_path / "run")


def test_a_first_stage_that_does_not_fit_is_named_by_tensor(stages, first_params, tmp_path):
    source = stages[0]
    arguments = first_stage_config(source).model.to_dict() | {"codes": 32}
    path = tmp_path / "other.safetensors"
    first_stage.save_first_stage(path, first_params, "vq", arguments)
    with pytest.raises(ConfigError, match=r"first_stage.path is .*quantize.embedding.weight") as e:
        loop.train(second_stage_config(source, path), tmp_path / "run")
    assert str(path) in str(e.value)


@pytest.mark.slow
def test_a_gaussian_first_stage_by_config(stages, tmp_path):
    """Its loss draws latents from each example's key; a second stage runs on its means."""
    config = first_stage_config(stages[0])
    config.task.kind, config.task.regulariser = "kl", 0.1
    del config.model["codes"]
    config.model.z_channels = 4
    model, data = build(resolve(config))
    params = jax.jit(model.init)(jax.random.key(0))
    x = jnp.asarray(data.reference()[:2])
    losses = [
        float(model.loss(model.apply, params, {"image": x}, jax.random.split(key, 2), True))
        for key in jax.random.split(jax.random.key(1), 2)
    ]
    assert losses[0] != losses[1]

    model.export(params, tmp_path)
    config = second_stage_config(stages[0], tmp_path)
    config.model.in_channels = config.model.out_channels = 4
    config.task.latent_scale = 0.5
    build_data(resolve(config)).prepare()
    second, latents = build(resolve(config))
    (batch,) = latents.batches(0, 1)
    assert batch["latent"].shape == (4, 8, 8, 4)
    frozen = second.frozen()
    assert frozen["scale"] == 0.5
    jax.tree.map(np.testing.assert_array_equal, frozen["params"], params)


def test_an_exported_unet_loads_again(stages, tmp_path):
    """In CompVis's layout and in diffusers', as one would load published weights."""
    config = resolve(second_stage_config(*stages[:2]))
    model, params, masks = load_run(stages[2])
    network = UNet(**(config.model.to_dict() | {"dtype": None}))
    export_unet(params, masks, tmp_path, network)
    for path in (tmp_path / "unet.safetensors", tmp_path / "diffusers" / "unet"):
        jax.tree.map(np.testing.assert_array_equal, model.load(path), params)


def test_a_sparse_file_rebuilds_the_run_of_either_stage(stages, tmp_path):
    for workdir in stages[1:]:
        save_sparse_run(workdir, tmp_path / "model.safetensors")
        _, *model = load_sparse_run(tmp_path / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, model, list(load_run(workdir)[1:]))


@pytest.fixture(scope="module")
def elsewhere(stages, tmp_path_factory):
    """A sparse file of the second stage, as on a machine that has neither images nor first stage.

    And the workdir that it is of.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    workdir = shutil.copytree(stages[2], folder / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["first_stage"]["path"] = config["task"]["source"] = "gone"
    (workdir / "config.json").write_text(json.dumps(config))
    save_sparse_run(workdir, folder / "model.safetensors")
    return folder / "model.safetensors", workdir


def sampled(folder, run, *flags):
    sample.main([f"--run={run}", "--count=3", f"--output={folder}", *map(str, flags)])
    return dict(np.load(folder / "samples.npz"))


@pytest.mark.slow
def test_without_its_first_stage_a_run_samples_latents(
    elsewhere, first_params, latents_cache, stages, tmp_path, capsys
):
    ours, theirs = (sampled(tmp_path, path) for path in elsewhere)
    assert list(ours) == ["latents"]
    assert ours["latents"].shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(ours["latents"], theirs["latents"])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
    says = capsys.readouterr().out
    assert says.count("latents are saved, not pictures: config.first_stage.path is 'gone'") == 2

    decoded = sampled(tmp_path, elsewhere[0], f"--first-stage={stages[1]}", "--png")["images"]
    z = ours["latents"] * latents_cache[1]
    expected = to_pixels(apply({"params": first_params}, z, method="decode"))
    np.testing.assert_allclose(decoded, expected, atol=1)
    pictures = [np.asarray(Image.open(tmp_path / f"png/{i:05d}.png")) for i in range(3)]
    np.testing.assert_array_equal(decoded, pictures)
    again = sampled(tmp_path, stages[2])["images"]  # whose config says where the first stage is
    np.testing.assert_array_equal(decoded, again)


def test_another_first_stage_than_that_of_the_training_is_named(
    elsewhere, stages, first_params, tmp_path
):
    changed = jax.tree.map(lambda x: x + np.float32(1e-3), first_params)
    path, arguments = tmp_path / "other.safetensors", first_stage_config(stages[0]).model.to_dict()
    first_stage.save_first_stage(path, changed, "vq", arguments)
    ours, theirs = first_stage.digest(changed), first_stage.digest(first_params)
    with pytest.raises(ConfigError, match=f"{ours}.* accepted: .*{theirs}"):
        sampled(tmp_path, elsewhere[0], f"--first-stage={path}")
    with pytest.raises(ConfigError, match="--png needs .*: .*'gone', which doesn't exist"):
        sampled(tmp_path, elsewhere[0], "--png")
    with pytest.raises(ConfigError, match="config.first_stage.path is 'nowhere'; accepted: a file"):
        sampled(tmp_path, elsewhere[0], "--first-stage=nowhere")
    assert json.loads(read_metadata(elsewhere[0])["facts"])["first_stage"] == theirs


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latent_scale", float("nan"), "latent_scale is nan; accepted: a number from"),
        ("latent_scale", -2, "latent_scale is -2; accepted: a number from"),
        ("latent_scale", "3", "latent_scale is '3'; accepted: a number from"),
        ("latent_size", 0, "latent_size is 0; accepted: divisors of 16"),
        ("latent_size", 5, "latent_size is 5; accepted: divisors of 16"),
        ("first_stage", None, "first_stage is None; accepted: a digest"),
    ],
)
def test_facts_that_cannot_be_a_run_s_are_named_with_their_file(
    elsewhere, tmp_path, name, value, message
):
    workdir = shutil.copytree(elsewhere[1], tmp_path / "run")
    forget_copies(workdir)
    path = workdir / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ConfigError, match=f"^{path} is damaged: the fact {message}"):
        load_run(workdir)


def test_latents_of_another_size_than_the_first_stage_decodes_are_noticed(
    elsewhere, stages, tmp_path
):
    workdir = shutil.copytree(elsewhere[1], tmp_path / "run")
    forget_copies(workdir)
    path = workdir / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_size": 16}))
    with pytest.raises(ConfigError, match=r"config.task.image_size is 16; accepted: 32, "):
        sampled(tmp_path, workdir, f"--first-stage={stages[1]}")


@pytest.mark.slow
@pytest.mark.usefixtures("latents_cache")
def test_an_older_run_is_decoded_by_the_first_stage_that_the_flag_names(
    elsewhere, stages, tmp_path
):
    """Though its config names one that is gone and it kept no facts: the cache has the scale."""
    workdir = shutil.copytree(elsewhere[1], tmp_path / "run")
    forget_copies(workdir)
    (workdir / "facts.json").unlink()
    config = json.loads((workdir / "config.json").read_text())
    config["task"]["source"] = str(stages[0])
    (workdir / "config.json").write_text(json.dumps(config))
    decoded = sampled(tmp_path, workdir, f"--first-stage={stages[1]}")["images"]
    np.testing.assert_array_equal(decoded, sampled(tmp_path, stages[2])["images"])
    with pytest.raises(ConfigError, match=f"^{workdir} was written by an older .*'gone'"):
        sampled(tmp_path, workdir)


def test_a_check_finds_images_and_first_stage_and_encodes_nothing(stages, tmp_path):
    first = shutil.copytree(stages[1], tmp_path / "first")
    shutil.rmtree(first / "latents")
    config = second_stage_config(stages[0], first)
    found = check(config, tmp_path / "run")
    assert found.data == ("blobs", {"train": 24, "validation": 8})
    assert (found.updates, found.batch_per_device) == (2, 4)
    _, params, masks = load_run(stages[2])
    assert found.counts.total == summarize(params, masks).total
    assert {path.name for path in tmp_path.iterdir()} == {"first"}
    assert not (first / "latents").exists()
    config.first_stage.path = "nowhere"
    with pytest.raises(ConfigError, match="config.first_stage.path is 'nowhere'; accepted: a file"):
        check(config, tmp_path / "run")


def test_weights_of_another_network_are_refused_by_tensor(stages, tmp_path):
    config = second_stage_config(*stages[:2])
    config.checkpoint.init_from = str(stages[1] / first_stage.FILE)
    with pytest.raises(ConfigError, match="init_from is .* holds no UNet; accepted: tensors"):
        loop.train(config, tmp_path / "run")
    _, params, masks = load_run(stages[2])
    model = UNet(**(config.model.to_dict() | {"dtype": None}))
    export_unet(params, masks, tmp_path, model)
    config.checkpoint.init_from = str(tmp_path / "unet.safetensors")
    config.model.num_res_blocks = 2
    with pytest.raises(ConfigError, match=r"missing \(input_blocks\.2\.0\.\w+"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_measures_nothing_with_another_first_stage(
    stages, first_params, tmp_path, monkeypatch
):
    """The run's config names a file whose weights aren't those of the training."""
    changed = jax.tree.map(lambda x: x + np.float32(1e-3), first_params)
    path, arguments = tmp_path / "other.safetensors", first_stage_config(stages[0]).model.to_dict()
    first_stage.save_first_stage(path, changed, "vq", arguments)
    workdir = tmp_path / "second"
    shutil.copytree(stages[2], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["first_stage"]["path"] = str(path)
    (workdir / "config.json").write_text(json.dumps(config))

    def measured(*_, **__):
        raise AssertionError("the reference set was measured first")

    monkeypatch.setattr(comparison, "meter_of", measured)
    with pytest.raises(ConfigError, match=f"digest {first_stage.digest(changed)}") as error:
        comparison.evaluate_runs([workdir], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluation_writes_pictures(stages, tmp_path):
    options = {"count": 6, "metrics": ["fd"], "extractor": "pixels"}
    (row,) = comparison.evaluate_runs([stages[2]], tmp_path, png=True, **options)
    assert row["measures"]["FD[pixels:16x16]@6"] > 0
    folder = tmp_path / "samples" / "second"
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:05d}.png" for i in range(6)]
    with Image.open(folder / "00000.png") as image:
        assert image.size == (16, 16)
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_reconstructions_stand_beside_their_images(stages):
    """The samples of a first stage are its reconstructions of the reference images, in order."""
    model, params, _ = load_run(stages[1])
    data = build_data(runs.read_config(stages[1]))
    reference = data.reference()
    assert reference.shape == (8, 16, 16, 3)
    samples = model.sample(model.apply, params, data.inputs(), jax.random.key(0), 4, start=6)
    expected, _ = MODEL.apply({"params": params}, reference[[6, 7, 0, 1]])
    np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_the_first_stages_loss_is_the_error_and_the_models_own(stages):
    source = stages[0]
    config = first_stage_config(source)
    config.task.regulariser = 0.5
    model, data = build(resolve(config))
    x = jnp.asarray(data.reference()[:2])
    keys = jax.random.split(jax.random.key(0), 2)
    ours = model.loss(lambda p, x, noise, train: (0.5 * x, 3.0), None, {"image": x}, keys, True)
    # A sum of n numbers in float32, in whatever order, is off by n halves of a unit at most.
    bound = x.size * np.finfo(np.float32).eps / 2
    expected = np.abs(0.5 * np.asarray(x, np.float64)).mean() + 1.5
    np.testing.assert_allclose(ours, expected, rtol=bound)


def test_an_exported_run_is_a_pipeline_with_its_first_stage_and_scale(
    stages, first_params, tmp_path, monkeypatch, capsys
):
    arguments = ["export", "--workdir", str(stages[2]), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    export.main()
    folder = tmp_path / "diffusers"
    assert f"from_pretrained('{folder}')(num_inference_steps=3)\n" in capsys.readouterr().out
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LDMPipeline"
    model, params = first_stage.first_stage_from_diffusers(folder)
    assert model == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, first_params)
    stamp = json.loads((stages[1] / "latents" / "blobs-16" / "stamp.json").read_text())
    config = json.loads((folder / "vqvae" / "config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(1 / stamp["std"], rel=1e-6)
    metadata = read_metadata(tmp_path / "unet.safetensors")
    assert float(metadata["latent_scale"]) == config["scaling_factor"]
    _, unet, _ = load_run(stages[2])
    jax.tree.map(np.testing.assert_array_equal, unet_from_diffusers(folder)[1], unet)


def test_a_pipeline_is_the_first_stage_and_the_weights_of_another_run(stages, tmp_path):
    """An exported folder, as `first_stage.path`, says itself how its first stage is built."""
    source, first, second = stages
    export.main(["--workdir", str(second), "--output", str(tmp_path)])
    folder = tmp_path / "diffusers"
    config = second_stage_config(source, folder, **{"task.latents_dir": str(first / "latents")})
    model = build_model(resolve(config))
    _, params, _ = load_run(second)
    jax.tree.map(np.testing.assert_array_equal, model.load(folder), params)
    for key, value, message in (
        ("model.norm_groups", 16, "unet/config.json describes another network: norm_groups is 8"),
        ("first_stage.model", {"norm_groups": 8}, "first_stage.model.norm_groups is 8; acc"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=message):
            build_model(resolve(changed)).load(folder)
    (folder / "vqvae" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.first_stage.path is .* damaged or not JSON"):
        build_model(resolve(config))


def test_a_run_that_does_not_know_its_scale_lacks_a_pipeline_alone(stages, tmp_path, capsys):
    """A run keeps its scale; a run from before scales were kept needs the latent cache."""
    source, first, second = stages
    shutil.copytree(first, tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "latents")
    shutil.copytree(second, tmp_path / "second")
    path = tmp_path / "second" / "config.json"
    saved = json.loads(path.read_text())
    saved["first_stage"]["path"] = str(tmp_path / "first")
    path.write_text(json.dumps(saved))
    export.main([f"--workdir={tmp_path / 'second'}", f"--output={tmp_path / 'whole'}"])
    assert "from_pretrained" in capsys.readouterr().out
    assert (tmp_path / "whole/diffusers/model_index.json").is_file()
    (tmp_path / "second" / "facts.json").unlink()
    forget_copies(tmp_path / "second")
    export.main([f"--workdir={tmp_path / 'second'}", f"--output={tmp_path / 'out'}"])
    says = capsys.readouterr().out
    assert "no diffusers pipeline was written: config.task.latent_scale is None" in says
    assert (tmp_path / "out/diffusers/unet/config.json").is_file()
    assert not (tmp_path / "out/diffusers/model_index.json").exists()
