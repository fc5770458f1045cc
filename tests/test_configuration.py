"""Bad input is refused before anything compiles, by the config key."""

import json

import jax
import pytest

from sparsejax import configuration
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.training import loop
from tests.training.tiny import tiny_config

BAD = {
    "sparsity.method": ("snip", "accepted: dense, static, rigl, magran"),
    "sparsity.level": (1.0, r"accepted: \[0, 1\)"),
    "sparsity.distribution": ("gaussian", "accepted: uniform, erdos_renyi"),
    "sparsity.drop_fraction": (1.5, r"accepted: \[0, 1\]"),
    "sparsity.drop_schedule": ("step", "accepted: cosine, constant, linear"),
    "sparsity.update_interval": (0, "accepted: 1 to 1000000000"),
    "task.name": ("audio", "accepted: images, autoencoder, latents"),
    "task.dataset": ("mnist", "accepted: digits"),
    "task.image_size": (0, "accepted: 1 to 65536"),
    "task.split": ("test", r"accepted: train \(1797\)"),
    "model.model_channels": (20, r"accepted: multiples of 8 \(norm_groups\)"),
    "model.num_head_channels": (24, "accepted: divisors of 32"),
    "model.in_channels": (3, "accepted: 1, the channels of digits"),
    "model.out_channels": (3, "accepted: 1, as model.in_channels"),
    "model.dtype": ("float8", "accepted: float32, bfloat16"),
    "diffusion.schedule": ("square", "accepted: linear, scaled_linear, cosine"),
    "optimizer.name": ("adamx", "accepted: adam, adamw, sgd, lion"),
    "optimizer.schedule": ("step", "accepted: constant, cosine, linear"),
    "optimizer.weight_decay": (0.1, "accepted: 0.0 with adam"),
    "sample.sampler": ("euler", "accepted: ddim, ddpm"),
    "sample.steps": (1001, "accepted: 1 to 1000"),
    "ema.decay": (1.0, r"accepted: \[0, 0.9999999\]"),
    "batch_size": (0, "accepted: 1 to 1000000000"),
    "steps": (0, "accepted: 1 to 1000000000"),
    "seed": (-1, "accepted: 0 to 4294967295"),
    "model.channel_mult": ((1, 0), "accepted: 1 to 100"),
    "model.attention_resolutions": ((3,), r"accepted: some of \[1\], the downsampling factors"),
    "model.dropout": (1.5, r"accepted: \[0, 1\)"),
    "model.norm_eps": (0.0, r"accepted: \(0, 1\]"),
    "model.freq_shift": (2, "accepted: 0, 1"),
    "model.downsample_padding": (2, "accepted: 0, 1"),
    "optimizer.b1": (1.5, r"accepted: \[0, 0.9999999\]"),
    "sample.clip": (-1.0, r"accepted: None, or \[1e-30, 1e30\]"),
    "sparsity.begin": (-5, "accepted: None, or 0 to 1000000000"),
}
# Too large or too small for int32, for float32, or for anybody to wait for.
EXTREME = {
    "steps": 2**31,
    "batch_size": 2**63,
    "optimizer.warmup_steps": 2**31,
    "optimizer.learning_rate": 1e38,
    "optimizer.base_learning_rate": 1e-46,
    "optimizer.b2": 0.999999999999,
    "optimizer.weight_decay": 1e308,
    "optimizer.clip_norm": 1e300,
    "optimizer.accumulate": 2**70,
    "ema.decay": 0.99999999999,
    "task.regulariser": 1e300,
    "task.latent_scale": 1e-46,
    "sparsity.update_interval": 2**70,
    "sparsity.begin": 2**31,
    "sparsity.end": 10**20,
    "sparsity.block_size": 2**70,
    "checkpoint.keep": 2**70,
    "log.every": 2**70,
    "sample.count": 10**9,
    "sample.clip": 1e300,
    "sample.noise_weight": 1e300,
    "model.model_channels": 10**9,
    "model.num_res_blocks": 10**7,
    "model.channel_mult": (10**9,),
    "name": "a\0b",
}


@pytest.fixture
def compiled():
    """Names of what is compiled while the test runs."""
    names = []

    def note(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("key", sorted(BAD))
def test_a_value_that_cannot_work_is_refused_by_its_key(key, tmp_path, compiled):
    value, message = BAD[key]
    with pytest.raises(ValueError, match=message) as error:
        loop.train(tiny_config(**{key: value}), tmp_path / "run")
    assert f"config.{key} is" in str(error.value)
    assert not (tmp_path / "run").exists()
    assert compiled == []


@pytest.mark.parametrize("key", sorted(EXTREME))
def test_an_extreme_value_is_refused_by_its_key(key, tmp_path, compiled):
    with pytest.raises(ConfigError, match="accepted: ") as error:
        loop.train(tiny_config(**{key: EXTREME[key]}), tmp_path / "run")
    named = {"optimizer.base_learning_rate": "optimizer."}.get(key, f"{key} is")
    assert f"config.{named}" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert compiled == []


@pytest.mark.parametrize(
    ("mults", "message"),
    [
        ((), r"channel_mult is \(\); accepted: 1 to 16 whole numbers"),
        ((1,) * 17, "channel_mult is .*; accepted: 1 to 16 whole numbers"),
        ((1, 100), r"model_channels is 8192; accepted: 655 or less: 65536 channels"),
    ],
)
def test_the_levels_of_a_network_are_counted_and_measured(mults, message, tmp_path):
    changes = {"model.channel_mult": mults, "model.model_channels": 8192}
    with pytest.raises(ConfigError, match=message):
        loop.train(tiny_config(**changes), tmp_path / "run")


def test_a_batch_larger_than_the_training_split_is_refused(tmp_path, compiled):
    changes = {"task.split": "train[:7]", "batch_size": 8}
    message = r"config.batch_size is 8; accepted: 7 or less, .* in task.split \('train\[:7\]'\)$"
    with pytest.raises(ValueError, match=message):
        loop.train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert {"jit(create)", "jit(_fun)"}.isdisjoint(compiled)


def test_images_that_the_unet_cannot_halve_are_refused(tmp_path):
    changes = {"model.channel_mult": (1, 1, 1, 1, 1)}
    message = "config.task.image_size is 8; accepted: multiples of 16: .* 4 times"
    with pytest.raises(ValueError, match=message):
        loop.train(tiny_config(**changes), tmp_path / "run")


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf")])
def test_a_number_that_no_float_holds_is_refused(value):
    """JSON may hold any of them."""
    with pytest.raises(ConfigError, match="config.optimizer.learning_rate is .*finite number"):
        configuration.complete({"optimizer": {"learning_rate": value}})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"dtype": {"": None}}}, "config.model.dtype. is .*: a value of .*dtype, such"),
        ({"model": {"a": 1, "a.b": 2}}, "config.model.a.b is not a key; accepted: a value of"),
        ({"model": {"__class__": 1}}, "config.model.__class__ is not a key; accepted: arguments"),
        ({"first_stage": {"model": {"a": {"__init__": 1}}}}, "config.first_stage.model.a.__init__"),
        ({"steps": {}}, "config.steps is {}; accepted: a whole number"),
        ({"no_section": {}}, "config.no_section .*is not a key"),
    ],
)
def test_sections_that_are_none_are_refused(tree, message):
    """A saved config may have been damaged anywhere."""
    with pytest.raises(ConfigError, match=message):
        configuration.complete(tree)


def test_sections_without_keys_have_all_defaults():
    tree = {"sparsity": {}, "model": {}, "first_stage": {"model": {}}}
    assert configuration.complete(tree).to_dict() == configuration.default_config().to_dict()


@pytest.mark.parametrize(
    "custom",
    [
        (("no_such_layer", 0.5),),
        (("kernel", 1.0),),
        (("kernel", "0.5"),),
        (("(", 0.5),),
        ("kernel", 0.5),
    ],
)
def test_faulty_custom_patterns_are_refused(custom, tmp_path, compiled):
    with pytest.raises(ValueError, match="config.sparsity.custom is .* accepted: pairs"):
        loop.train(tiny_config(**{"sparsity.custom": custom}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert {"jit(create)", "jit(_fun)"}.isdisjoint(compiled)


def test_schedule_keys_follow_from_steps_and_interval():
    config = configuration.resolve(tiny_config(steps=400))
    assert config.sparsity.begin == 5
    assert config.sparsity.end == 300


def test_the_learning_rate_may_follow_the_batch():
    config = tiny_config(batch_size=12, **{"optimizer.base_learning_rate": 2e-6})
    assert configuration.resolve(config).optimizer.learning_rate == pytest.approx(2.4e-5)


def test_a_resolved_config_survives_json():
    config = configuration.resolve(tiny_config(**{"sparsity.custom": (("conv", 0.5),)}))
    saved = json.loads(configuration.to_json(config))
    assert configuration.differing_keys(config, saved) == {}
    saved["sparsity"]["level"] = 0.1
    saved["steps"] = 7
    assert configuration.differing_keys(config, saved) == {"sparsity.level": "now 0.75, saved 0.1"}


def test_only_keys_that_do_not_touch_the_training_are_free_on_resume():
    """Every key of the schema, changed alone."""
    config = configuration.resolve(tiny_config())
    saved = json.loads(configuration.to_json(config))
    free = set()
    for group, keys in saved.items():
        for key in keys if isinstance(keys, dict) else [None]:
            changed = json.loads(json.dumps(saved))
            if key is None:
                changed[group] = "?"
            else:
                changed[group][key] = "?"
            name = group if key is None else f"{group}.{key}"
            differing = configuration.differing_keys(config, changed)
            assert list(differing) in ([], [name])
            free |= set() if differing else {name}
    groups = {f"{group}.{key}" for group in ("sample", "log") for key in saved[group]}
    alone = {"steps", "imports", "task.reference_split", "checkpoint.every", "checkpoint.keep"}
    alone |= {"sparsity.compact", "optimizer.skip_nonfinite", "task.labelled_split", "task.url"}
    assert free == alone | groups


def test_the_weights_a_run_began_with_may_be_left_out_when_it_resumes():
    saved = json.loads(configuration.to_json(configuration.resolve(tiny_config())))
    saved["checkpoint"]["init_from"] = "runs/a"
    resumed = configuration.resolve(tiny_config(), saved)
    assert resumed.checkpoint.init_from == "runs/a"
    assert configuration.differing_keys(resumed, saved) == {}
    other = configuration.resolve(tiny_config(**{"checkpoint.init_from": "runs/b"}), saved)
    expected = {"checkpoint.init_from": "now 'runs/b', saved 'runs/a'"}
    assert configuration.differing_keys(other, saved) == expected


def test_config_arguments_choose_method_and_level():
    from configs.digits import get_config

    config = get_config("static,0.9")
    assert (config.sparsity.method, config.sparsity.level) == ("static", 0.9)
    assert get_config("sweep,dense").name == "digits-sweep"
    assert get_config().sparsity.method == "rigl"
    assert get_config().sparsity.level == 0.75
    sparsity = get_config("magran,0.5,0.05,1000").sparsity
    assert (sparsity.level, sparsity.drop_fraction) == (0.5, 0.05)
    assert sparsity.update_interval == 1000
    with pytest.raises(ValueError, match="'stattic'; accepted: dense, static, rigl, magran, grad"):
        get_config("stattic")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("rigl,50", "'50' is a whole number; accepted: first a sparsity such as 0.50, then"),
        ("rigl,0,5", "'0' is a whole number; accepted: first a sparsity such as 0.5, then"),
        ("rigl,0.5,1", "'1' is a whole number; accepted: .* an update interval of 2 or more"),
        ("rigl,0.5,10,20", "'10' and '20' both set update_interval; accepted: one of them"),
        ("rigl,0.5,0.1,0.2", "'0.1' and '0.2' both set drop_fraction; accepted: one of them"),
        ("rigl,magran", "'rigl' and 'magran' both set method; accepted: one of them"),
        ("channel,0.5,block8", "'channel' and 'block8' both set structure; accepted: one of them"),
        ("0.5,dense", "a dense network has no '0.5'; accepted: .* one of static, rigl, magran"),
        ("dense,block8", "a dense network has no 'block8'"),
        ("32,64", "'32' and '64' both set the size; accepted: one of them"),
    ],
)
def test_words_that_are_probably_a_slip_are_refused(arg, message):
    from configs.folder import get_config

    with pytest.raises(configuration.ConfigError, match=message):
        get_config(arg)


def test_the_config_of_ones_own_images_takes_size_and_colour_with_the_rest():
    """Names differ, so that default workdirs do; each network fits its images."""
    from configs.folder import get_config

    seen = {}
    for words in ("", "64", "grey", "short", "rigl,grey,64,short,0.9,0.1,50"):
        config = configuration.resolve(get_config(words))
        params = jax.eval_shape(build_model(config).init, jax.random.key(0))
        first = params["input_blocks_0_0"]["kernel"].shape
        seen[config.name] = (config.task.image_size, config.task.channels, first[2])
    assert seen == {
        "folder": (32, 3, 3),
        "folder64": (64, 3, 3),
        "folder-grey": (32, 1, 1),
        "folder-short": (32, 3, 3),
        "folder64-grey-short": (64, 1, 1),
    }
    sparsity = config.sparsity
    assert (sparsity.method, sparsity.level, sparsity.drop_fraction) == ("rigl", 0.9, 0.1)
    assert sparsity.update_interval == 50
    assert get_config("short").sparsity.update_interval == 20
    assert get_config("32").sparsity.update_interval == get_config().sparsity.update_interval
    with pytest.raises(ValueError, match="'gray'; accepted: .*, grey, .*; nearest: grey"):
        get_config("gray")
