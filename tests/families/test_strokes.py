import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

import sparsejax
from configs.vmnist_chirodiff import get_config
from sparsejax.commands import sample
from sparsejax.configuration import resolve
from sparsejax.data.drawings import with_times
from sparsejax.data.sketches import bucket_bounds
from sparsejax.data.strokes import preprocess, represent
from sparsejax.diffusion import noise_schedules
from sparsejax.errors import ConfigError
from sparsejax.evaluation.closing import close_run
from sparsejax.evaluation.comparison import evaluate_runs
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.families import build_data, strokes
from sparsejax.families.stroke_sampling import even_times, to_drawings
from sparsejax.rendering import rasterize
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.sparse_files import load_sparse, save_sparse
from sparsejax.sparsity.masks import summarize
from sparsejax.training import loop, runs
from sparsejax.training.check import check
from sparsejax.training.metrics_log import read_metrics
from tests.data.sets import EXCERPTS
from tests.training.tiny import build, forget_copies

TINY = {
    "steps": 12,
    "batch_size": 8,
    "task.buckets": 2,
    "model.layers": 1,
    "model.hidden": 16,
    "diffusion.steps": 21,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 0,
    "optimizer.schedule": "constant",
    "sparsity.end": 9,
    "sparsity.update_interval": 4,
    "checkpoint.every": 6,
    "log.every": 3,
    "sample.every": 0,
    "sample.count": 4,
    "sample.steps": 10,
}


def write_scribbles(path, count=60, **more):
    """An npz in the packed layout: zigzags of two strokes, some twice as long as others."""
    rng = np.random.default_rng(0)
    drawings = []
    for index in range(count):
        corners = rng.integers(-50, 50, size=(4 + 8 * (index % 2), 2))
        pen = np.zeros(len(corners))
        pen[[1, -1]] = 1
        drawings.append(np.column_stack([corners, pen]))
    np.savez(
        path,
        points=np.concatenate(drawings).astype(np.int16),
        offsets=np.cumsum([0, *map(len, drawings)]),
        split=(np.arange(count) % 4 == 3).astype(int),
        **more,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("scribbles") / "scribbles.npz"
    write_scribbles(path)
    return path


@pytest.fixture(scope="module")
def labelled_source(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "scribbles.npz"
    write_scribbles(path, label=np.arange(60) % 2)
    return path


def tiny(source, **changes):
    config = get_config("cpu,rigl,0.5")
    config.update_from_flattened_dict(TINY | {"task.source": str(source)} | changes)
    return config


@pytest.fixture(scope="module")
def built(source):
    return build(resolve(tiny(source)))


@pytest.fixture(scope="module")
def model(built):
    return built[0]


@pytest.fixture(scope="module")
def data(built):
    return built[1]


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


def scaled_identity(params, x, t, lengths, timestamps, *, train=False, rngs=None):
    return params * x


def test_loss_is_the_mean_over_each_examples_own_points(model, data):
    """With a denoiser that returns c x_t, the loss is known from t and noise alone."""
    batch = next(data.batches(0, 1))
    keys = jax.random.split(jax.random.key(3), 8)
    ours = model.loss(scaled_identity, 0.5, batch, keys, train=True)
    alpha_bar = np.cumprod(1 - noise_schedules.linear_betas(21, 0.1 / 21, 20 / 21))
    errors = []
    for key, x, length in zip(keys, batch["points"], batch["lengths"], strict=True):
        t_key, noise_key = jax.random.split(key)
        t = int(jax.random.randint(t_key, (), 0, 21))
        noise = np.asarray(jax.random.normal(noise_key, x.shape))
        x_t = np.sqrt(alpha_bar[t]) * x + np.sqrt(1 - alpha_bar[t]) * noise
        errors.append(((0.5 * x_t - noise)[:length] ** 2).mean())
    assert len(set(batch["lengths"])) > 1
    np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-4)


def test_samples_do_not_depend_on_how_they_are_batched(model, params):
    """Nor on the group, padded to one bound or another, that they are drawn in."""
    frozen, key = model.frozen(), jax.random.key(0)
    sample = jax.jit(model.sample, static_argnums=(0, 4))
    whole = np.asarray(sample(model.apply, params, frozen, key, 64))
    part = np.asarray(sample(model.apply, params, frozen, key, 3, 7))
    np.testing.assert_allclose(part, whole[7:10], atol=1e-5 * np.abs(whole).max())
    ends = (whole[..., 2] < 2).sum(1)
    lengths = frozen["lengths"]
    bounds = bucket_bounds(lengths, 2)
    assert whole.shape == (64, bounds[-1] + 1, 3)
    assert set(ends - 1) <= set(lengths)
    # Some groups fit the smaller bound, some don't.
    assert min(ends) - 1 <= bounds[0] < max(ends) - 1


def test_lengths_can_be_given(source):
    given = (3, 9)
    model, _ = build(resolve(tiny(source, **{"sample.lengths": given, "sample.sampler": "ddim"})))
    drawn = model.sample(scaled_identity, 0.1, model.frozen(), jax.random.key(0), 5, start=2)
    assert ((drawn[..., 2] < 2).sum(1) - 1).tolist() == [3, 9, 3, 9, 3]
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("changes", "key", "accepted"),
    [
        ({"diffusion.steps": 0}, "diffusion.steps", "2 to 1000000"),
        ({"diffusion.steps": -1}, "diffusion.steps", "2 to 1000000"),
        ({"diffusion.steps": 20}, "diffusion.steps", "21 or more"),
        ({"diffusion.steps": 20, "model.steps": 9}, "diffusion.steps", "21 or more"),
        ({"diffusion.start": 0.5}, "diffusion.start", "None with strokes"),
        ({"diffusion.end": 0.5}, "diffusion.end", "None with strokes"),
        ({"sample.sampler": "ddim", "sample.steps": 22}, "sample.steps", "1 to 21"),
        ({"sample.sampler": "ddim", "sample.steps": 0}, "sample.steps", "1 to 21"),
    ],
)
def test_noise_schedules_that_cannot_work_are_refused_by_their_own_key(
    source, changes, key, accepted
):
    with pytest.raises(ConfigError, match=f"config.{key} is .*; accepted: {accepted}"):
        build(resolve(tiny(source, **changes)))


def test_ddim_of_drawings_ends_where_the_config_says(source):
    """At the predicted drawing, or at alpha_bar_0; a denoiser that sees nothing but noise."""
    ends = []
    for to_one in (None, True, False):
        changes = {"sample.sampler": "ddim", "sample.steps": 3, "sample.lengths": (4,)}
        model, _ = build(resolve(tiny(source, **changes, **{"sample.set_alpha_to_one": to_one})))
        drawn = model.sample(scaled_identity, 0.5, model.frozen(), jax.random.key(0), 1)
        ends.append(np.asarray(drawn)[0, :, :2])
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2], rtol=1e-4)


@pytest.mark.parametrize("name", ["birnn_del", "birnn_abs"])
def test_drawings_equal_the_references(golden, name):
    numbers = golden(f"d_chirodiff_{name}.npz")
    ours = np.asarray(
        to_drawings(numbers["v2p/in"], numbers["lens"], f"threeseq{name.split('_')[1]}")
    )
    for drawing, expected, length in zip(
        ours, numbers["v2p/out"], numbers["v2p/lens"], strict=True
    ):
        np.testing.assert_allclose(drawing[:length], expected[:length], rtol=1e-5, atol=1e-2)
        assert (drawing[length:, 2] == 2).all()


@pytest.mark.parametrize("representation", ["threeseqdel", "threeseqabs"])
def test_samples_are_timed_as_drawings_of_even_pace(representation):
    line = preprocess([np.array([[0, 0, 0], [0, 1, 1.0]])])
    points = represent(line, representation)
    times = even_times(30, np.array([len(points), 5]), representation)
    np.testing.assert_allclose(times[0, : len(points)], points[:, 3], atol=1e-6)


def test_the_fourier_matrix_never_changes(model):
    """Trained weights mean nothing without it: these are numpy's, of seed 0, for all time."""
    inputs = jnp.zeros((1, 2, 3)), jnp.array([20]), jnp.array([2]), jnp.zeros((1, 2))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    # All that is left of the network is the last layer's view of the time embedding at t = T.
    params["final_proj_0"]["kernel"] = (
        params["final_proj_0"]["kernel"].at[16:, 0].set(2.0 ** jnp.arange(8))
    )
    eps = model.apply(params, *inputs)[0, 0, 0]
    angles = 8 * np.pi * np.array([1.76405235, 0.40015721, 0.97873798, 2.2408932])
    expected = np.concatenate([np.sin(angles), np.cos(angles)]) @ 2.0 ** np.arange(8)
    np.testing.assert_allclose(eps, expected, rtol=1e-4)


@pytest.mark.parametrize("representation", ["threeseqdel", "threeseqabs"])
def test_reference_drawings_are_the_data(source, representation):
    """The real drawings have the same form as samples, whatever the representation."""
    config = tiny(source, **{"task.representation": representation})
    drawings = build_data(resolve(config)).reference()
    assert len(drawings) == 15
    assert set(np.unique(drawings[..., 2])) == {0, 1, 2}
    assert ((drawings[..., 2] == 1).sum(1) == 2).all()
    np.testing.assert_array_equal(drawings[:, 0, :2], 0)
    np.testing.assert_allclose(np.hypot(*drawings[..., :2].T).max(0), 10, rtol=1e-4)


def pictures_of(path, split):
    """Pictures of one split's drawings [count, 32, 32, 1], and labels, straight from an npz."""
    with np.load(path, allow_pickle=False) as file:
        points, offsets = file["points"], file["offsets"]
        chosen = np.flatnonzero(file["split"] == split)
        labels, scale = file["label"][chosen], file.get("scale", 1)
    pictures = []
    for i in chosen:
        drawn = points[offsets[i] : offsets[i + 1]]
        lines = np.split(drawn[:, :2] / scale, np.flatnonzero(drawn[:, 2]) + 1)[:-1]
        pictures.append(rasterize(preprocess(with_times(lines))[:, :3], size=32)[0])
    return np.array(pictures), labels


def assert_labels_fit(data, path):
    """Every labelled image is a drawing of the training split, each one once, with its label."""
    images, labels = data.labelled()
    assert images.dtype == np.uint8
    pictures, expected = pictures_of(path, 0)
    assert images.shape == pictures.shape
    ours = to_unit_range(images).reshape(len(images), -1)
    distances = cdist(ours, pictures.reshape(ours.shape), "cityblock") / ours.shape[1]
    nearest = distances.argmin(1)
    assert sorted(nearest) == list(range(len(pictures)))
    # Sums of float32 steps may move a pixel of the large paper.
    assert distances.min(1).max() < 0.01
    np.testing.assert_array_equal(labels, expected[nearest])
    assert len(set(labels)) > 1


@pytest.mark.parametrize("representation", ["threeseqdel", "threeseqabs"])
def test_labelled_images_are_the_training_drawings(labelled_source, representation):
    config = tiny(labelled_source, **{"task.representation": representation})
    assert_labels_fit(build_data(resolve(config)), labelled_source)


def test_labelled_images_of_real_drawings(tmp_path):
    source = EXCERPTS / "quickdraw_eye_mouth.npz"
    changes = {"task.dataset": "quickdraw_strokes", "task.data_dir": str(tmp_path)}
    assert_labels_fit(build_data(resolve(tiny(source, **changes))), source)


def test_labelled_images_are_spread_over_the_split(labelled_source, monkeypatch):
    data = build_data(resolve(tiny(labelled_source)))
    images, labels = data.labelled()
    monkeypatch.setattr(strokes, "LABELLED", 12)
    fewer = data.labelled()
    chosen = np.linspace(0, 44, 12).astype(int)
    assert chosen.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44]
    np.testing.assert_array_equal(fewer[0], images[chosen])
    np.testing.assert_array_equal(fewer[1], labels[chosen])


def test_a_split_of_one_label_has_no_labelled_images(data, tmp_path, monkeypatch):
    assert data.labelled is None
    monkeypatch.setattr(strokes, "rasterize", pytest.fail)  # the labels alone tell
    write_scribbles(tmp_path / "threes.npz", label=np.full(60, 3))
    assert build_data(resolve(tiny(tmp_path / "threes.npz"))).labelled is None


def test_images_of_samples_are_as_the_labelled_ones(labelled_source):
    """Of the same size and the same range, so that a classifier can read both."""
    model, data = build(resolve(tiny(labelled_source)))
    images, labelled = model.to_images(data.reference()), data.labelled()[0]
    assert images.shape[1:] == labelled.shape[1:] == (32, 32, 1)
    for some in (images, labelled):
        assert some.dtype == np.uint8
        assert (some.min(), some.max()) == (0, 255)
        assert ((some < 128).mean((1, 2, 3)) > 0.01).all()
    # Rasters are 8-bit from the start: nothing is lost.
    np.testing.assert_array_equal(to_unit_range(images), rasterize(data.reference(), 32))


def test_samples_are_compared_with_drawings_by_their_strokes(model, data):
    reference = data.reference()
    found = model.statistics(reference, reference)
    assert set(found.values()) == {0}
    # A network that predicts nothing: all of the noise stays.
    drawn = model.sample(scaled_identity, 0.0, model.frozen(), jax.random.key(0), 8)
    untrained = model.statistics(drawn, reference)
    assert untrained.keys() == found.keys()
    assert untrained["W1[ink length]"] > 20
    assert all(isinstance(value, float) for value in untrained.values())


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A finished run, and the same run trained in two parts: the second from step 6."""
    whole, parts = (tmp_path_factory.mktemp("strokes") / name for name in ("whole", "parts"))
    assert loop.train(tiny(source), whole)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "12")
    assert loop.train(tiny(source), parts)
    close_run(whole)
    return whole, parts


def test_a_sparse_file_rebuilds_the_run(run, tmp_path):
    runs.save_sparse_run(run[0], tmp_path / "model.safetensors")
    model, *weights = runs.load_sparse_run(tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights, list(runs.load_run(run[0])[1:]))
    assert model.passes_per_sample == runs.load_run(run[0])[0].passes_per_sample


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "facts in the metadata is not JSON"),
        ("[]", "facts in the metadata is not a JSON object"),
        ("{}", "its facts have no lengths"),
        ('{"lengths": 3}', "lengths is 3; accepted: a list of whole numbers from 1 to 300"),
        ('{"lengths": []}', r"lengths is \[\]; accepted: a list"),
        ('{"lengths": [20, -1]}', r"lengths is \[-1\]; accepted: whole numbers from 1 to 300"),
        ('{"lengths": [NaN]}', r"lengths is \[nan\]; accepted"),
        ('{"lengths": [true]}', r"lengths is \[True\]; accepted"),
        ('{"lengths": [1000000000]}', r"lengths is \[1000000000\]; accepted"),
    ],
)
def test_facts_that_cannot_be_the_data_s_are_named_with_their_file(run, tmp_path, facts, message):
    path = tmp_path / "model.safetensors"
    runs.save_sparse_run(run[0], path)
    params, masks, metadata = load_sparse(path)
    save_sparse(path, params, masks, metadata | {"facts": facts})
    with pytest.raises(ConfigError, match=f"^{path} is damaged: .*{message}"):
        runs.load_sparse_run(path)


def test_an_older_run_finds_its_facts_in_its_own_data_alone(run, source, tmp_path):
    """It has no facts.json; without the data, or with others, one line tells why it needs them."""
    old = shutil.copytree(run[0], tmp_path / "old")
    forget_copies(old)
    facts = json.loads((old / "facts.json").read_text())
    (old / "facts.json").unlink()
    model, *weights = runs.load_run(old)
    jax.tree.map(np.testing.assert_array_equal, weights, list(runs.load_run(run[0])[1:]))
    np.testing.assert_array_equal(model.frozen()["lengths"], facts["lengths"])
    config, saved = old / "config.json", json.loads((old / "config.json").read_text())
    other = tmp_path / "other.npz"
    other.write_bytes(pathlib.Path(source).read_bytes() + b"\0")
    for place, message in (("gone", "doesn't exist"), (str(other), "which holds different data")):
        saved["task"]["source"] = place
        config.write_text(json.dumps(saved))
        with pytest.raises(ConfigError, match=f"^{old} was written by an older .*{message}"):
            runs.load_run(old)


@pytest.mark.parametrize(
    ("key", "value"), [("sampler", "x"), ("noise_weight", -1), ("lengths", [1000])]
)
def test_a_file_whose_config_cannot_be_sampled_is_named(run, tmp_path, key, value):
    path = tmp_path / "model.safetensors"
    runs.save_sparse_run(run[0], path)
    params, masks, metadata = load_sparse(path)
    config = json.loads(metadata["config"])
    config["sample"][key] = value
    save_sparse(path, params, masks, metadata | {"config": json.dumps(config)})
    with pytest.raises(ConfigError, match=f"^{path}: config.sample.{key} is .*; accepted: "):
        runs.load_sparse_run(path)


def test_a_sparse_file_is_data_whatever_its_config_says(run, source, tmp_path, monkeypatch):
    """Nothing is written or prepared, though the data are where the config says."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "model.safetensors"
    runs.save_sparse_run(run[0], path)
    params, masks, metadata = load_sparse(path)
    config = json.loads(metadata["config"])
    config["task"] |= {"source": str(source), "data_dir": str(tmp_path / "made")}
    config["imports"] = ["a_module_that_does_not_exist"]
    metadata["config"] = json.dumps(config)
    save_sparse(path, params, masks, metadata)
    before = sorted(tmp_path.rglob("*"))
    assert sparsejax.load(path).model.frozen()
    del metadata["facts"]
    save_sparse(path, params, masks, metadata)
    for load in (runs.load_sparse_run, sparsejax.load):
        with pytest.raises(ConfigError, match=f"^{path}: .*older version.*exported from its run"):
            load(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("own_logging")
def test_a_sparse_file_is_sampled_without_its_data(run, tmp_path, monkeypatch):
    """The same drawings as from the workdir, bit for bit, and the pictures that are measured."""
    for name in ("check_sketches", "load_sketches", "load_labels"):
        monkeypatch.setattr(strokes.data, name, lambda *args: pytest.fail("opens the data"))
    runs.save_sparse_run(run[0], tmp_path / "model.safetensors")
    for source, output in ((run[0], "run"), (tmp_path / "model.safetensors", "file")):
        flags = ["--count=3", f"--output={tmp_path / output}", "--gif", "--grid"]
        sample.main([f"--run={source}", *flags])
    ours, theirs = (np.load(tmp_path / name / "samples.npz") for name in ("run", "file"))
    assert sorted(ours) == ["images", "samples"]
    assert ours["samples"].shape[::2] == (3, 3)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_array_equal(ours["images"], strokes.to_images(ours["samples"]))
    names = {path.name for path in (tmp_path / "file").iterdir()}
    assert names == {"samples.npz", "samples.gif", "samples.svg", "grid.png"}


def test_a_check_finds_the_drawings(run, source, tmp_path):
    found = check(tiny(source), tmp_path / "run")
    assert found.data == ("vmnist", {"train": 45, "test": 15})
    _, params, masks = runs.load_run(run[0])
    assert found.counts.total == summarize(params, masks).total
    lines = read_metrics(run[0] / "metrics.jsonl")
    assert found.updates == len([line for line in lines if "replaced" in line])
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_sees_the_same_batches(run):
    states = [runs.load_run(workdir)[1:] for workdir in run]
    jax.tree.map(np.testing.assert_array_equal, *states)
    for name in ("loss", "replaced"):
        ours, theirs = (
            [x[name] for x in read_metrics(w / "metrics.jsonl") if name in x] for w in run
        )
        assert ours == theirs
        assert len(ours) >= 2


def test_half_of_the_recurrent_weights_are_inactive(run):
    _, params, masks = runs.load_run(run[0])
    kernels = params["rnn_l0"]["forward_hh"]["kernel"], masks["rnn_l0"]["forward_hh"]["kernel"]
    assert 0 < kernels[1].sum() < kernels[1].size
    assert not kernels[0][~kernels[1]].any()
    summary = json.loads((run[0] / "summary.json").read_text())
    assert summary["density"] == pytest.approx(0.5, abs=1e-3)


def test_costs_are_of_a_drawing_of_mean_length(run, model, params):
    mean = round(model.frozen()["lengths"].mean())
    weights = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    assert sum(model.layer_flops(params).values()) == 2 * weights * mean


def test_a_closed_run_has_its_pictures(run):
    assert Image.open(run[0] / "samples.gif").n_frames > 10
    assert "<path" in (run[0] / "samples.svg").read_text()
    assert np.asarray(Image.open(run[0] / "samples.png").convert("L")).std() > 5


@pytest.mark.slow
def test_held_out_loss_is_the_same_for_every_run(run, source, model, data):
    _, params, _ = runs.load_run(run[0])
    params = jax.tree.map(jnp.asarray, params)
    loss = held_out_loss(model, data.held_out(), params)
    other, others = build(resolve(tiny(source, seed=5, **{"task.buckets": 1})))
    assert held_out_loss(other, others.held_out(), params) == loss
    assert held_out_loss(model, data.held_out(), params, seed=1) != loss
    # A denoiser that predicts nothing is left with the whole noise: a mean square of one.
    silent = model._replace(apply=lambda params, x, *args, **kwargs: jnp.zeros_like(x))
    assert held_out_loss(silent, data.held_out(), {}, draws=16) == pytest.approx(1, abs=0.03)


def test_training_drawings_are_spread_over_the_split_in_the_format_of_samples(data):
    every = data.training(1000)
    assert len(every) == 45
    assert every.shape[2] == 3
    np.testing.assert_array_equal(data.training(3), every[[0, 22, 44]])


@pytest.mark.slow
def test_runs_are_compared_by_held_out_loss_and_strokes(run, tmp_path):
    options = {"count": 6, "metrics": ["fd"]}
    rows = evaluate_runs(run, tmp_path, batch=4, png=True, **options)
    first, second = (row["measures"] for row in rows)
    assert first == second
    text = (tmp_path / "report.md").read_text()
    for name in ("held-out loss", "W1[strokes]@6", "W1[ink length]@6"):
        assert first[name] > 0
        assert name in text
    pictures = sorted((tmp_path / "samples" / run[0].name).iterdir())
    assert [path.name for path in pictures] == [f"{i:05d}.png" for i in range(6)]
    picture = np.asarray(Image.open(pictures[3]))
    assert picture.shape == (32, 32)
    assert picture.min() < 60 < 200 < picture.max()


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("task.kind", "gru", "birnn, transformer"),
        ("task.representation", "polar", "threeseqdel, threeseqabs"),
        ("task.dataset", "digits", "quickdraw_strokes, kanjivg, vmnist, vmnist_like"),
        ("task.buckets", 0, "1 to 1000"),
        ("model.hidden", 0, "1 to 65536"),
        ("model.pe_dim", 7, "even"),
        ("model.time_embedding", "learned", "randomfourier, sinusoidal"),
        ("diffusion.schedule", "scaled_linear", "linear, cosine"),
        ("diffusion.steps", 20, "21 or more"),
        ("diffusion.start", 1e-4, "None"),
        ("sample.sampler", "euler", "ddim, ddpm"),
        ("sample.noise_weight", -1.0, "0 to 1000"),
        ("sample.lengths", (400,), "whole numbers from 1 to"),
        ("task.reference_split", "validation", "train .45., test .15."),
    ],
)
def test_a_config_that_cannot_work_is_refused(source, key, value, accepted):
    config = tiny(source)
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    if key == "task.dataset":
        config.task.source = ""
    with pytest.raises(ConfigError, match=rf"config\.{key} is .*{accepted}"):
        build(resolve(config))


def test_a_batch_larger_than_the_training_split_is_refused(source, tmp_path):
    """45 drawings in two buckets: a bucket of fewer than a batch is no matter."""
    build_data(resolve(tiny(source, batch_size=45))).prepare()
    message = r"config\.batch_size is 46; accepted: 45 or less, .* in task\.split \('train'\)"
    with pytest.raises(ConfigError, match=message):
        loop.train(tiny(source, batch_size=46), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ddim_on_the_cosine_schedule_needs_a_limit(source):
    """Its last alpha_bar is 4e-33: predicted x_0 would be anything."""
    ddim = {"diffusion.schedule": "cosine", "sample.sampler": "ddim"}
    with pytest.raises(ConfigError, match=r"config\.sample\.clip is None; accepted: a number"):
        build(resolve(tiny(source, **ddim)))
    model, _ = build(resolve(tiny(source, **ddim, **{"sample.clip": 10.0, "sample.steps": 21})))
    drawn = model.sample(scaled_identity, 0.9, model.frozen(), jax.random.key(0), 3)
    assert np.abs(drawn[..., :2]).max() < 11


def test_a_transformer_by_config(source):
    config = tiny(source, **{"task.kind": "transformer", "model.hidden": 8})
    model, data = build(resolve(config))
    params = jax.jit(model.init)(jax.random.key(0))
    batch = next(data.batches(0, 1))
    keys = jax.random.split(jax.random.key(0), 8)
    loss = jax.jit(lambda p: model.loss(model.apply, p, batch, keys, True))(params)
    assert 0.3 < loss < 5
    config.model.heads = 3
    with pytest.raises(ConfigError, match=r"config\.model\.heads is 3; accepted: divisors of 8"):
        build(resolve(config))
