"""Whatever is wrong with a config file or a key on the command line is one line that names it."""

import glob
import json
import logging
import pathlib
import sys

import grain
import jax
import numpy as np
import pytest

from sparsejax import command_line
from sparsejax.__main__ import COMMANDS, run
from sparsejax.config_files import load_config
from sparsejax.config_flags import parse_with_config, split_overrides
from sparsejax.configuration import (
    default_config,
    differing_keys,
    resolve,
    set_key,
    to_json,
    with_defaults,
)
from sparsejax.data.images import image_batches
from sparsejax.data.latents import latent_batches
from sparsejax.errors import ConfigError
from sparsejax.evaluation.comparison import evaluate_runs
from sparsejax.evaluation.grids import grid
from sparsejax.evaluation.sweep import sweep
from sparsejax.families.arguments import network_keys
from sparsejax.families.registry import FAMILIES, model_keys
from sparsejax.keys_page import keys_page
from sparsejax.metrics.distances import inception_score, kernel_distance
from sparsejax.schema import KEYS, PLACES
from sparsejax.sparsity.methods import METHODS
from sparsejax.training.keys import named_key
from sparsejax.training.loop import train
from sparsejax.training.metrics_log import MetricsLog
from sparsejax.training.runs import read_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "configs" / "digits.py")
PUBLISHED = [f for f in sorted(glob.glob(f"{ROOT}/configs/*.py")) if "chirodiff.py" not in f[-13:]]
PUBLISHED = [f for f in PUBLISHED if not f.endswith("latent_diffusion.py")]

BAD_KEYS = {
    "sparsty.level=.9": "config.sparsty.level .*'.9'.* nearest: config.sparsity.level",
    "lerning_rate=1": "config.lerning_rate .* nearest: config.optimizer.learning_rate",
    "remat=True": "config.remat .* nearest: config.model.remat",
    "sparsity=3": "config.sparsity .* nearest: config.sparsity.",
    "model.reamt=True": "config.model.reamt .*model_channels, .*nearest: config.model.remat",
    "model.codes=5": "config.model.codes .* is not a key",
    "first_stage.model.code=5": "nearest: config.first_stage.model.codes",
    "sparsity.block_size=16x": "block_size is '16x'; accepted: a whole number, or two such",
    "sparsity.block_size=(16,64,8)": "block_size is '.16,64,8.'; accepted: a whole number, or two",
    "sparsity.block_size=16x0": r"block_size is \(16, 0\); accepted: .*, 1 to 65536",
    "sparsity.compiled=2": "config.sparsity.compact is '2'; accepted: True or False",
    "steps=abc": "config.steps is 'abc'; accepted: a whole number, 1 to 1000000000",
    "steps=1.5": "config.steps is '1.5'; accepted: a whole number, 1 to 1000000000",
    "steps=1e3": "config.steps is '1e3'; accepted: a whole number",
    "steps=True": "config.steps is 'True'; accepted: a whole number",
    "steps=(1,2)": r"config.steps is '\(1,2\)'; accepted: a whole number",
    "steps=0": "config.steps is 0; accepted: a whole number, 1 to 1000000000",
    "steps=": "config.steps is ''; accepted: a whole number",
    "steps": "config.steps is ''; accepted: a value: --config.steps=VALUE, a whole number",
    "sparsity.level=none": r"config.sparsity.level is 'none'; accepted: a finite number, \[0, 1\)",
    "sparsity.level=nan": "config.sparsity.level is 'nan'; accepted: a finite number",
    "sample.clip=x": "config.sample.clip is 'x'; accepted: None, or a finite number",
    "sparsity.begin=1.0": "config.sparsity.begin is '1.0'; accepted: None, or a whole number",
    "task.flip=2": "config.task.flip is '2'; accepted: True or False",
    "sparsity.method=snip": "config.sparsity.method is 'snip'; accepted: dense, static, rigl",
    "model.remat=5": "config.model.remat is '5'; accepted: True or False",
    "model.dropout=(1,)": "config.model.dropout is .* accepted: a finite number",
    "model.channel_mult=(1,2.5)": "config.model.channel_mult is .* tuple of whole numbers",
    "model.channel_mult=(1,True)": "config.model.channel_mult is .* tuple of whole numbers",
    "model.channel_mult=(1,": "config.model.channel_mult is .* tuple of whole numbers",
    "model.dtype=float8": "config.model.dtype is 'float8'; accepted: float32, bfloat16",
    "seed=-1": "config.seed is -1; accepted: a whole number, 0 to 4294967295",
    "seed=4294967296": "config.seed is 4294967296; accepted: a whole number, 0 to 4294967295",
    "sparsity.custom={'a': 0.5}": "config.sparsity.custom is .* accepted: a tuple",
    "diffusion.steps=0": "config.diffusion.steps is 0; accepted: a whole number, 2 to 1000000",
    "diffusion.steps=1000001": "config.diffusion.steps is 1000001; accepted: a whole number, 2",
    "seed=0.5": "config.seed is '0.5'; accepted: a whole number, 0 to 4294967295",
}
FILES = {
    "def get_config(:": "raises SyntaxError in line 1",
    "x = 1": "has no function get_config",
    "get_config = 3": "has no function get_config",
    "def get_config():\n    return {}['a']": "raises KeyError in line 2: 'a'",
    "import nosuchmodule": "raises ModuleNotFoundError in line 1: No module named 'nosuchmodule'",
    "def get_config():\n    return 3": "get_config returns int",
    "def get_config(a, b):\n    return 3": "raises TypeError",
    "{0}\n    c.sparsity.levle = 0.5\n    return c": "levle .* nearest: config.sparsity.level",
    "{0}\n    c.steps = 'many'\n    return c": "raises TypeError in line 4: .*steps",
    "{0}\n    c.task = 3\n    return c": "raises TypeError|config.task .* is not a key",
    "{0}\n    c.steps = True\n    return c": "raises TypeError|config.steps is True",
    "{0}\n    raise SystemError('a\\nb')": "raises SystemError in line 4: a\nb",
    "\0": "raises (SyntaxError|ValueError)",
    "import sys\nsys.exit(0)": "raises SystemExit in line 2: 0",
    "def get_config():\n    raise SystemExit": "raises SystemExit in line 2",
}
HEAD = """from sparsejax.configuration import default_config
def get_config():
    c = default_config()"""


@pytest.mark.parametrize("override", BAD_KEYS)
def test_a_key_or_value_that_is_none_is_named(override):
    rest, overrides = split_overrides([f"--config.{override}"])
    assert rest == []
    with pytest.raises(ConfigError, match=BAD_KEYS[override]) as error:
        load_config(DIGITS, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", FILES)
def test_a_config_file_that_does_not_work_is_named(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{0}", HEAD))
    with pytest.raises(ConfigError, match=FILES[text]) as error:
        load_config(str(path))
    assert str(path) in str(error.value)


def test_a_missing_config_file_is_named_with_its_like():
    with pytest.raises(ConfigError, match=r"digts.py': no such file; .*configs/digits.py"):
        load_config(DIGITS.replace("digits", "digts"))
    with pytest.raises(ConfigError, match="there is no .py file in nowhere"):
        load_config("nowhere/a.py")
    with pytest.raises(ConfigError, match=r"configs': no file; .* nearest: .*configs/\w+.py"):
        load_config(str(ROOT / "configs"))
    with pytest.raises(ConfigError, match=r"x\.py': no such file"):
        load_config("x" * 300 + "/x.py")
    with pytest.raises(ConfigError, match="'digts': no such file; accepted: .*; nearest: digits"):
        load_config("digts:static")


def test_a_config_of_the_project_is_found_by_its_name(tmp_path, monkeypatch):
    """From any folder; a file of that name comes first."""
    files = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
    expected = {name: load_config(str(path)) for name, path in files.items()}
    monkeypatch.chdir(tmp_path)
    assert {name: load_config(name) for name in files} == expected
    assert load_config("digits:dense,sweep").sparsity.method == "dense"
    with pytest.raises(ConfigError, match=f"one of {', '.join(files)}; nearest: chirodiff$"):
        load_config("chirodif")
    (tmp_path / "digits").write_text("def get_config():\n  return 3")
    with pytest.raises(ConfigError, match="get_config returns int"):
        load_config("digits")


def test_a_config_file_imports_those_beside_it_wherever_they_are(tmp_path):
    for folder in ("a.b", "a_b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(f"name = '{folder}'\n{HEAD}\n    return c")
        mine = "from . import base\ndef get_config(arg=''):\n  c = base.get_config()\n"
        (tmp_path / folder / "mine.py").write_text(f"{mine}  c.name = base.name + arg\n  return c")
    names = [load_config(f"{tmp_path}/{folder}/mine.py:!").name for folder in ("a.b", "a_b")]
    assert names == ["a.b!", "a_b!"]
    (tmp_path / "a_b" / "mine.py").write_text("from . import other")
    with pytest.raises(ConfigError, match="raises ImportError in line 1: .*other"):
        load_config(f"{tmp_path}/a_b/mine.py")


@pytest.mark.parametrize("key", [*PLACES, "checkpoint.init_from"])
@pytest.mark.parametrize("path", ["x" * 300, "a\0b"])
def test_a_path_that_the_system_refuses_is_named_by_its_key(key, path):
    config = default_config()
    set_key(config, key, path)
    with pytest.raises(ConfigError, match=f"config.{key} is .* (too long|null .*)"):
        resolve(config)


def test_an_argument_that_the_file_does_not_know_is_named_with_its_like():
    with pytest.raises(ConfigError, match="'rigll'; accepted: dense, .*; nearest: rigl"):
        load_config(f"{DIGITS}:rigll")
    with pytest.raises(ConfigError, match="config argument 'block²'; accepted: dense"):
        load_config(f"{DIGITS}:block²")


@pytest.mark.parametrize("file", PUBLISHED)
def test_every_argument_of_the_network_can_be_set_whatever_the_file_lists(file):
    """Each to its own default, as text: it comes back as the type that the network declares."""
    keys = [key for key in model_keys(load_config(file)) if key.path.startswith("model.")]
    assert "model.dtype" in {key.path for key in keys}
    config = load_config(file, [(key.path, str(key.default)) for key in keys])
    for key in keys:
        value = config.model[key.path.removeprefix("model.")]
        assert value == key.default
        assert type(value) is type(key.default)


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_words_of_an_argument_count_more_than_its_variants(file):
    """A variant such as `short` has an update interval of its own, but no more than that."""
    with pytest.raises(ConfigError) as error:
        load_config(f"{file}:no-such-word")
    known = str(error.value).partition(f"{list(METHODS)[-1]}, ")[2].partition("channel, ")[0]
    variants = [word for word in known.split(", ") if word]
    short = ("folder.py", "chirodiff", "fashion_")
    assert ("short" in variants) == any(name in file for name in short)
    for variant in ["", *variants]:
        for arg in (f"rigl,0.6,0.2,77,{variant}", f"{variant},rigl,0.6,0.2,77"):
            sparsity = load_config(f"{file}:{arg}").sparsity
            found = (
                sparsity.method,
                sparsity.level,
                sparsity.drop_fraction,
                sparsity.update_interval,
            )
            assert found == ("rigl", 0.6, 0.2, 77), arg


def test_values_are_read_by_the_type_of_their_key():
    words = ["--config.sparsity.level=0", "--config.steps", "7", "--noconfig.log.tensorboard"]
    words += ["--config.sparsity.custom=(('a', .5),)", "--config.model.channel_mult=1,2,"]
    words += ["--config.sample.clip=None", "--config.task.words=cat", "--config.model.remat"]
    words += ["--config.optimizer.learning_rate=1e-3", "--config.model.attention_resolutions=()"]
    words += ["-config.task.flip=true", "--config.name=", "--config.seed=4294967295"]
    rest, overrides = split_overrides(["--workdir=x", *words])
    config = load_config(DIGITS, overrides)
    assert rest == ["--workdir=x"]
    assert config.sparsity.level == 0
    assert isinstance(config.sparsity.level, float)
    assert config.steps == 7
    assert config.log.tensorboard is False
    assert config.sparsity.custom == (("a", 0.5),)
    assert config.model.channel_mult == (1, 2)
    assert config.model.attention_resolutions == ()
    assert config.sample.clip is None
    assert config.task.words == ("cat",)
    assert config.model.remat is True
    assert config.task.flip is True
    assert config.optimizer.learning_rate == 0.001
    assert config.name == ""
    assert config.seed == 2**32 - 1


def test_the_network_of_another_kind_is_asked_for_its_arguments():
    file = str(ROOT / "configs" / "kanjivg_chirodiff.py")
    overrides = [("model.heads", "2"), ("task.kind", "transformer")]
    assert load_config(file, overrides).model.heads == 2
    with pytest.raises(ConfigError, match="config.model.heads .* is not a key"):
        load_config(file, overrides[:1])
    with pytest.raises(ConfigError, match="config.task.kind is 'gru'; accepted: birnn"):
        load_config(file, [("model.heads", "2"), ("task.kind", "gru")])


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("vmnist_chirodiff.py", "path of an npz in the packed layout .*dasayan05/chirodiff"),
        ("vmnist_chirodiff.py:like", "path of an npz in the packed layout .*with mnist_index"),
        ("folder.py", "path of a folder of images"),
    ],
)
def test_data_that_a_config_leaves_to_the_user_are_asked_for(tmp_path, name, accepted):
    config = resolve(load_config(str(ROOT / "configs" / name)))
    with pytest.raises(ConfigError, match=f"^config.task.source is ''; accepted: .*{accepted}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"sparsity": {"levl": 0.5}}, "config.sparsity.levl .* nearest: config.sparsity.level"),
        ({"colour": "red"}, "config.colour .*'red'"),
        ({"steps": "many"}, "config.steps is 'many'; accepted: a whole number"),
        ({"steps": True}, "config.steps is True"),
        ({"sparsity": 3}, "config.sparsity .* is not a key"),
        ({"task": {"words": "cat"}}, "config.task.words is 'cat'; accepted: a tuple"),
    ],
)
def test_a_saved_config_with_unknown_keys_or_types_is_refused(saved, message):
    with pytest.raises(ConfigError, match=message):
        with_defaults(saved)


def test_a_config_of_python_is_checked_like_a_saved_one():
    config = default_config()
    config.sparsity.levl = 0.5
    with pytest.raises(ConfigError, match="nearest: config.sparsity.level"):
        resolve(config)


def test_a_larger_seed_of_a_saved_run_is_read_as_what_it_always_was(caplog):
    with caplog.at_level(logging.WARNING):
        saved = with_defaults({"seed": 2**32 + 5})
    assert saved["seed"] == 5
    assert [record.getMessage() for record in caplog.records] == [
        "config.seed 4294967301 of a saved run is read as 5"
    ]
    with jax.numpy_dtype_promotion("standard"):
        keys = [jax.random.key_data(jax.random.key(seed)) for seed in (5, 2**32 + 5)]
    assert (keys[0] == keys[1]).all()


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--config.sparsty.level=.9"], "nearest: config.sparsity.level"),
        ("train", ["--wrokdir=x"], "there is no flag --wrokdir; nearest: --workdir"),
        ("train", ["x"], "unexpected argument 'x'"),
        ("train", ["--config=configs/none.py"], "no such file"),
        ("train", [f"--workdir={'x' * 300}"], "error: --workdir is 'xxx"),
        (
            "train",
            ["--config.sparsity.custom=1.5"],
            "config.sparsity.custom is (1.5,); accepted",
        ),
        ("train", ["--config.task.reference_split=train[99%:1%]"], "it selects nothing"),
        ("evaluate", [], "--workdirs must be given"),
        ("evaluate", ["--workdir=x"], "there is no flag --workdir; nearest: --workdirs"),
        ("evaluate", [f"--workdirs={'x' * 300}"], "holds no run"),
        ("evaluate", ["--workdirs=,"], "--workdirs is ','; accepted: one or more"),
        ("evaluate", ["--workdirs=x", "--metrics="], "--metrics is ''; accepted: one or more"),
        *(
            ("sweep", [f"--{axis}=,"], f"--{axis} is ','; accepted: one or more, with commas")
            for axis in ("methods", "levels", "seeds", "structures", "drop-fractions")
        ),
        ("evaluate", ["--workdirs=x", "--seed=4294967296"], "--seed is '4294967296'; accepted"),
        ("evaluate", ["--workdirs=x", "--seed=True"], "--seed is 'True'; accepted: whole"),
        ("evaluate", ["--workdirs=x", "--batch=0"], "--batch is '0'; accepted"),
        ("evaluate", ["--workdirs=x", "--kid_subset_size=a"], "--kid-subset-size is 'a'"),
        ("evaluate", ["--workdirs=x", "--extractor=pixel"], "nearest: pixels"),
        ("evaluate", ["--workdirs=runs/x"], "workdir 'runs/x' holds no run"),
        (
            "sweep",
            ["--config=configs/digits.py", "--seeds=0,-1"],
            "--seeds",
        ),
        ("sweep", ["--config=configs/digits.py", "--levels=a"], "--levels"),
        ("sweep", [], "--config must be given"),
        ("sweep", ["--confg=configs/digits.py"], "there is no flag --confg; nearest: --config"),
        ("prepare", ["--config=configs/digits.py:x"], "config argument 'x'"),
        ("export", ["--workdir=x", "--output=y"], "workdir 'x' holds no run"),
        (
            "export",
            ["--workdirs=x"],
            "no flag --workdirs; nearest: --workdir",
        ),
        ("report", ["--results=x"], "x"),
        ("report", [f"--results={'x' * 300}"], "can't be read"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line_and_status_2(
    command, arguments, message, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with pytest.raises(SystemExit) as exit_of:
        run(command, arguments)
    printed = capsys.readouterr()
    assert exit_of.value.code == 2
    # What is wrong with the data shows only while these are prepared.
    assert printed.out in ("", "digits: preparing data and weights\n")
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_head_of_the_command_and_its_flags_with_dashes(command, capsys):
    with pytest.raises(SystemExit) as exit_of:
        run(command, ["--help"])
    text = capsys.readouterr().out
    assert exit_of.value.code == 0
    words = [word.strip(",[]") for word in text.split() if word.startswith("--")]
    assert len(words) > 1
    assert not [word for word in words if "_" in word]
    assert f"usage: python -m sparsejax {command} [flags]" in text
    assert text.count(f"python -m sparsejax {command} --") >= 1 + (command == "train")


@pytest.mark.usefixtures("own_logging")
def test_an_unexpected_exception_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 / 0)


@pytest.mark.usefixtures("own_logging")
def test_a_loss_that_is_not_finite_ends_in_one_line(capsys, tmp_path):
    log = MetricsLog(tmp_path, 0, {}, jax.random.key(0), lambda step: 0.1)

    def diverge():
        log.add(1, {"loss": np.float32(np.nan), "grad_norm": np.float32(1)})
        log.flush()

    with pytest.raises(SystemExit) as exit_of:
        command_line.run(diverge)
    log.close()
    assert exit_of.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: loss is nan, grad_norm is 1.0 at step 1; the batch is that of st"
    )


@pytest.mark.usefixtures("own_logging")
def test_messages_are_plain_lines_and_those_of_libraries_warnings_alone(capsys, monkeypatch):
    command_line.show_messages()
    logging.getLogger("sparsejax.training.loop").info("resumed %s", "runs/a")
    logging.getLogger("sparsejax.data").warning("a short text")
    monkeypatch.setattr(logging.getLogger("orbax"), "level", logging.INFO)  # as some set it
    logging.getLogger("orbax").info("noise")
    logging.getLogger("orbax").warning("a disk is slow")
    assert capsys.readouterr().err.splitlines() == [
        "resumed runs/a",
        "warning: a short text",
        "warning: a disk is slow",
    ]


@pytest.mark.usefixtures("own_logging")
def test_a_progress_bar_is_not_torn_by_messages(capsys, monkeypatch):
    """On a terminal, rich takes stderr while a bar is shown: messages go above the bar."""
    from rich.console import Console
    from rich.progress import Progress

    command_line.show_messages()
    console = Console(force_terminal=True, width=60)
    with Progress(console=console) as progress:
        progress.add_task("training", total=2)
        logging.getLogger("sparsejax.x").info("a message")
    printed = capsys.readouterr()
    assert "a message" in printed.out
    assert "a message" not in printed.err


@pytest.mark.parametrize("flag", ["--save_statistics", "--save-statistics"])
def test_flags_may_be_spelled_as_they_were(flag):
    parser = command_line.Parser("head")
    parser.add_argument("--save-statistics")
    assert parser.parse_args([f"{flag}=a_b"]).save_statistics == "a_b"
    assert parser.parse_args([flag, "a_b"]).save_statistics == "a_b"


def test_the_config_may_stand_anywhere(monkeypatch):
    words = ["train.py", "--config.steps=5", "--config", f"{DIGITS}:static", "--workdir=x"]
    monkeypatch.setattr(sys, "argv", words)
    parser = command_line.Parser("head")
    parser.add_argument("--workdir")
    flags = parse_with_config(parser)
    assert (flags.workdir, flags.config.steps) == ("x", 5)
    assert flags.config.sparsity.method == "static"


def test_the_page_of_config_keys_is_the_schema():
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert page == keys_page(), "run  python -m sparsejax.keys_page > docs/configs.md"
    for key in KEYS:
        assert f"| `{key.path}` |" in page
        assert key.meaning
    for family in FAMILIES.values():
        for network in family.networks.values():
            for key in network_keys(network):
                assert f"| `{key.path}` |" in page
                assert key.meaning


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, True, 1.0, "1", None])
def test_functions_that_take_a_seed_refuse_what_is_none(seed):
    calls = [
        lambda: named_key(seed, "init"),
        lambda: image_batches([], 1, seed, 0, 1),
        lambda: latent_batches(grain.MapDataset.range(3), 1.0, 1, seed, 0, 1),
        lambda: sweep([], "nowhere", "nowhere", seed=seed),
        lambda: evaluate_runs([], "nowhere", seed=seed),
        lambda: grid(load_config(DIGITS), methods=["dense"], levels=[0.0], seeds=(seed,)),
        lambda: kernel_distance(np.zeros((9, 1)), np.zeros((9, 1)), subset_size=4, seed=seed),
        lambda: inception_score(np.zeros((9, 2)), seed=seed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="seed .*accepted: whole numbers from 0 to 4294967295"):
            call()


def test_the_largest_seed_is_one():
    large, none = (jax.random.key_data(named_key(seed, "init")) for seed in (2**32 - 1, 0))
    assert (large != none).any()


def test_a_missing_run_is_named_with_its_neighbours(tmp_path):
    for name in ("digits-rigl-0.75-0", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / "digits-rigl-0.5-0")
    message = str(error.value)
    assert f"workdir {str(tmp_path / 'digits-rigl-0.5-0')!r} holds no run" in message
    assert message.endswith(f"runs in {tmp_path}: digits-rigl-0.75-0, other")
    with pytest.raises(ConfigError, match="there are no runs in .*nowhere"):
        read_config(tmp_path / "nowhere" / "x")


def test_a_saved_config_with_an_unknown_key_is_named_by_its_file(tmp_path):
    (tmp_path / "config.json").write_text('{"sparsity": {"levl": 0.5}}')
    with pytest.raises(ConfigError, match="config.json: config.sparsity.levl .*sparsity.level"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["16x64", "(16,64)", "16,64", "[16, 64]"])
@pytest.mark.parametrize("word", ["block32", "block8x8"])
def test_a_size_is_a_number_or_a_pair_whatever_it_was_before(word, text):
    file = f"{DIGITS}:rigl,{word}"
    given = [("sparsity.block_size", text)]
    config = resolve(load_config(file, given))
    assert config.sparsity.block_size == (16, 64)
    assert resolve(load_config(file, [("sparsity.block_size", "64")])).sparsity.block_size == 64
    saved = json.loads(to_json(config))  # where the pair is a list
    assert saved["sparsity"]["block_size"] == [16, 64]
    assert with_defaults(saved) == saved
    again = resolve(load_config(file, given), with_defaults(saved))
    assert differing_keys(again, saved) == {}
    for bad in ("x", (16, 64, 2), (16, 0), 1.5):
        config = load_config(file)
        config.sparsity.block_size = bad
        with pytest.raises(ConfigError, match="config.sparsity.block_size is .*; accepted: "):
            resolve(config)


def test_the_former_name_of_a_key_is_accepted_wherever_a_key_is(tmp_path):
    given = [("sparsity.compiled", "False")]
    assert resolve(load_config(DIGITS, given)).sparsity.compact is False
    (tmp_path / "file.py").write_text(
        "from sparsejax.configuration import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.sparsity.compiled = False\n"
        "    return config\n"
    )
    for config in (load_config(str(tmp_path / "file.py")), with_defaults({})):
        assert "compiled" not in config["sparsity"]
    assert load_config(str(tmp_path / "file.py")).sparsity.compact is False
    assert with_defaults({"sparsity": {"compiled": False}})["sparsity"]["compact"] is False
    # Once any process could have them; none but one ever read them.
    idle = {"process": "flow", "times": "uniform", "sigma_data": 0.7}
    assert with_defaults({"diffusion": idle})["diffusion"]["sigma_data"] == 0.5
    assert with_defaults({"diffusion": idle})["diffusion"]["times"] == "uniform"


def test_blocks_have_constant_fan_in_but_in_runs_saved_before_it_existed():
    file = f"{DIGITS}:rigl,block8"
    new = resolve(load_config(file))
    assert new.sparsity.fan_in is True
    old = json.loads(to_json(new))
    del old["sparsity"]["fan_in"]
    old = with_defaults(old)
    assert old["sparsity"]["fan_in"] is False
    resumed = resolve(load_config(file), old)
    assert resumed.sparsity.fan_in is False
    assert differing_keys(resumed, old) == {}
    asked = resolve(load_config(file, [("sparsity.fan_in", "True")]), old)
    assert differing_keys(asked, old) == {"sparsity.fan_in": "now True, saved False"}
