"""The schema: type, default, meaning and accepted values of every config key.

`configuration.default_config` and docs/configs.md are generated from it. Arguments of networks
(`model.*`) come from the fields of the network: see `families.arguments.network_keys`.
"""

import ast
import math
import re
import types
import typing
from typing import Any, NamedTuple, TypeAlias

from sparsejax.seeds import MAX_SEED
from sparsejax.sparsity.distributions import DISTRIBUTIONS
from sparsejax.sparsity.methods import METHODS
from sparsejax.types import Value

OPTIMIZERS = ("adam", "adamw", "sgd", "lion")
LEARNING_RATE_SCHEDULES = ("constant", "cosine", "linear")
DROP_SCHEDULES = ("cosine", "constant", "linear")
STRUCTURES = ("weight", "block", "channel")
SAMPLERS = ("ddim", "ddpm")
# Sections that hold the arguments of a network.
NETWORK_SECTIONS = ("model", "first_stage.model")


KeyType: TypeAlias = Any  # of a key: see `Key.type`
SIZE: KeyType = int | tuple[int, int]
# Former names of keys, still accepted in files, flags and saved configs.
RENAMED = {"sparsity.compiled": "sparsity.compact"}


class Key(NamedTuple):
    """One config key.

    Attributes:
      path: dotted path below `config`.
      type: bool, int, float, str, tuple, `tuple[int, ...]`, one of these `| None`, or
        `int | tuple[int, int]`.
      default: default value.
      meaning: one-line description.
      accepted: accepted values: a tuple, the keys of a registry, or a range in one of the forms
        that `within` reads; None where it depends on other keys or on the data.
    """

    path: str
    type: KeyType
    default: Value
    meaning: str
    accepted: tuple[Value, ...] | dict[str, Value] | str | None = None


KEYS = (
    Key("name", str, "experiment", "first part of the default workdir's name"),
    Key(
        "imports",
        tuple[str, ...],
        (),
        "modules to import first: they register methods, data sets and families of your own",
    ),
    Key("seed", int, 0, "seed of weights, masks, data order and noise", f"0 to {MAX_SEED}"),
    Key("steps", int, 1000, "optimizer steps", "1 or more"),
    Key(
        "batch_size",
        int,
        128,
        "global batch size: examples per step, all devices and microbatches together",
    ),
    Key("task.name", str, "images", "model family: images, autoencoder, latents, strokes"),
    Key("task.dataset", str, "", "name of the dataset; `files` for images of your own"),
    Key("task.source", str, "", "path of the files, for `files` and pen strokes"),
    Key("task.image_size", int, 0, "height and width in pixels"),
    Key("task.split", str, "train", "training split; slices such as `train[:12500]` work"),
    Key("task.reference_split", str, "train", "split that samples are compared with"),
    Key("task.flip", bool, False, "mirror images with probability 1/2, drawn anew in each epoch"),
    Key("task.data_dir", str, "", "data folder of tensorflow-datasets (default: its own default)"),
    Key("task.kind", str, "vq", "network: vq or kl (autoencoder), birnn or transformer (strokes)"),
    Key(
        "task.regulariser",
        float,
        1.0,
        "autoencoder: weight of the codebook or KL loss; 1e-6 in published KL models",
        "0 or more",
    ),
    Key("task.latents_dir", str, "", "latents: cache folder (default: next to the first stage)"),
    Key(
        "task.latent_scale",
        float | None,
        None,
        "latents: scale factor (default: 1 / standard deviation of the latents)",
        "more than 0",
    ),
    Key(
        "task.words",
        tuple[str, ...],
        (),
        "strokes: QuickDraw categories to keep (default: all in the source)",
    ),
    Key(
        "task.representation",
        str,
        "threeseqdel",
        "strokes: offsets between points (threeseqdel) or absolute points (threeseqabs)",
    ),
    Key("task.buckets", int, 5, "strokes: number of length buckets", "1 or more"),
    Key("first_stage.path", str, "", "latents: the first stage, a file or the workdir of a run"),
    Key(
        "first_stage.kind",
        str,
        "vq",
        "first stage's type, where the file does not say",
        ("vq", "kl"),
    ),
    Key("diffusion.steps", int, 1000, "number of diffusion steps T", "2 to 1000000"),
    Key("diffusion.schedule", str, "linear", "noise schedule: linear, scaled_linear, cosine"),
    Key(
        "diffusion.start",
        float | None,
        None,
        "first beta (default: 1e-4, scaled_linear 1.5e-3, times 1000 / T, at most 0.999)",
        "(0, 1)",
    ),
    Key(
        "diffusion.end",
        float | None,
        None,
        "last beta (default: 2e-2, scaled_linear 1.95e-2, times 1000 / T, at most 0.999)",
        "(0, 1)",
    ),
    Key("optimizer.name", str, "adam", "optax optimizer", OPTIMIZERS),
    Key(
        "optimizer.learning_rate",
        float,
        1e-3,
        "peak learning rate, after warm-up and before decay",
        "more than 0",
    ),
    Key(
        "optimizer.base_learning_rate",
        float | None,
        None,
        "if set, learning_rate = base_learning_rate * batch_size, as in Latent Diffusion",
        "more than 0",
    ),
    Key(
        "optimizer.schedule",
        str,
        "constant",
        "learning-rate schedule after warm-up; cosine and linear decay to 0",
        LEARNING_RATE_SCHEDULES,
    ),
    Key("optimizer.warmup_steps", int, 0, "linear warm-up steps", "0 or more"),
    Key("optimizer.b1", float, 0.9, "decay rate of the first moment; momentum for sgd", "[0, 1)"),
    Key("optimizer.b2", float, 0.999, "decay rate of the second moment", "[0, 1)"),
    Key(
        "optimizer.weight_decay",
        float,
        0.0,
        "decoupled weight decay, adamw and lion only",
        "0 or more",
    ),
    Key(
        "optimizer.clip_norm",
        float,
        0.0,
        "gradients are clipped to this global norm; 0 disables clipping",
        "0 or more",
    ),
    Key(
        "optimizer.accumulate", int, 1, "gradient accumulation: microbatches per step", "1 or more"
    ),
    Key(
        "optimizer.packed",
        bool,
        False,
        "store moments and EMA for active weights only, to save memory; blocks and channels that "
        "move are then trained masked",
    ),
    Key("ema.decay", float, 0.9999, "EMA decay of the weights, after warm-up", "[0, 1)"),
    Key("sparsity.method", str, "rigl", "sparse training method", METHODS),
    Key(
        "sparsity.level",
        float,
        0.5,
        "sparsity S: fraction of sparsifiable weights that are zero",
        "[0, 1)",
    ),
    Key("sparsity.structure", str, "weight", "unit that is pruned and regrown", STRUCTURES),
    Key("sparsity.block_size", SIZE, 64, "block: channels, or inputs x outputs", "1 or more"),
    Key("sparsity.fan_in", bool | None, None, "constant fan-in (default: True; not in old runs)"),
    Key("sparsity.compact", bool, True, "with blocks or channels: train the compact network"),
    Key(
        "sparsity.distribution",
        str,
        "erdos_renyi_kernel",
        "how sparsity is distributed over layers",
        DISTRIBUTIONS,
    ),
    Key(
        "sparsity.drop_fraction",
        float,
        0.5,
        "fraction of active weights replaced at the first update",
        "[0, 1]",
    ),
    Key(
        "sparsity.drop_schedule",
        str,
        "cosine",
        "schedule of drop_fraction; cosine and linear decay to 0 at `end`",
        DROP_SCHEDULES,
    ),
    Key("sparsity.update_interval", int, 100, "steps between topology updates", "1 or more"),
    Key(
        "sparsity.begin",
        int | None,
        None,
        "first step with a topology update (default: update_interval)",
        "0 or more",
    ),
    Key(
        "sparsity.end",
        int | None,
        None,
        "first step without topology updates (default: 0.75 * steps)",
        "0 or more",
    ),
    Key(
        "sparsity.includes_end",
        bool | None,
        None,
        "update at step `end` itself (default: False; True in runs saved without this key)",
    ),
    Key(
        "sparsity.custom",
        tuple,
        (),
        "per-layer sparsities ((pattern, sparsity), ...); the first match wins",
    ),
    Key("checkpoint.every", int, 500, "steps between checkpoints; 0: only at the end", "0 or more"),
    Key("checkpoint.keep", int, 2, "number of checkpoints to keep", "1 or more"),
    Key(
        "checkpoint.init_from",
        str,
        "",
        "initial weights: a workdir, a sparse file or published weights",
    ),
    Key("log.every", int, 50, "steps between entries in metrics.jsonl", "1 or more"),
    Key("log.tensorboard", bool, True, "also write metrics for TensorBoard"),
    Key("sample.every", int, 500, "steps between sample grids; 0: only at the end", "0 or more"),
    Key("sample.count", int, 64, "samples per grid", "1 or more"),
    Key("sample.sampler", str, "ddim", "sampler", SAMPLERS),
    Key("sample.steps", int, 50, "ddim: number of sampling steps"),
    Key(
        "sample.eta", float, 0.0, "ddim: 0 is deterministic, 1 adds as much noise as ddpm", "[0, 1]"
    ),
    Key(
        "sample.clip",
        float | None,
        None,
        "predicted x_0 is clipped to [-clip, clip] (default: no clipping)",
        "more than 0",
    ),
    Key(
        "sample.set_alpha_to_one",
        bool | None,
        None,
        "ddim: end at alpha_bar = 1 rather than alpha_bar_0 (default: False; strokes: True)",
    ),
    Key(
        "sample.noise_weight",
        float,
        1.0,
        "ddpm: factor on the standard deviation of the noise",
        "0 or more",
    ),
    Key(
        "sample.lengths",
        tuple[int, ...],
        (),
        "strokes: lengths of samples in points, cycled through (default: drawn from the data)",
    ),
)

_WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}


def is_optional(type_: KeyType) -> bool:
    """Return whether a key of this type can be None."""
    return isinstance(type_, types.UnionType) and types.NoneType in typing.get_args(type_)


def without_none(type_: KeyType) -> KeyType:
    """Return a type without its None: `float` for `float | None`."""
    if not is_optional(type_):
        return type_
    return next(t for t in typing.get_args(type_) if t is not types.NoneType)


def describe_type(type_: KeyType) -> str:
    """Describe the values of a type in words.

    Example:
      >>> describe_type(float | None), describe_type(tuple[int, ...])
      ('None, or a finite number', 'a tuple of whole numbers, such as (1, 2)')
    """
    plain = without_none(type_)
    if plain == SIZE:
        return "a whole number, or two such as 16x64"
    if typing.get_origin(plain) is tuple:
        words = {int: "whole numbers, such as (1, 2)", str: "texts, such as ('a', 'b')"}
        text = f"a tuple of {words[typing.get_args(plain)[0]]}"
    else:
        text = _WORDS.get(plain, "a tuple")
    return f"None, or {text}" if is_optional(type_) else text


def describe_accepted(key: Key) -> str:
    """Describe the accepted values of a key: its choices, or its type and range."""
    if isinstance(key.accepted, dict):
        return f"{', '.join(key.accepted)}, or what a module of config.imports registers"
    if isinstance(key.accepted, tuple):
        return ", ".join(map(str, key.accepted))
    text = describe_type(key.type)
    return f"{text}, {key.accepted}" if key.accepted else text


def has_type(type_: KeyType, value: Value) -> bool:
    """Return whether a value has a key's type; a bool is not a number, a float not an int.

    Example:
      >>> has_type(int, True), has_type(float, 1), has_type(tuple[int, ...], (1, 2.5))
      (False, True, False)
    """
    if value is None:
        return is_optional(type_)
    plain = without_none(type_)
    if plain == SIZE:
        pair = value if isinstance(value, tuple) else (value, value)
        return len(pair) == 2 and all(has_type(int, number) for number in pair)
    if typing.get_origin(plain) is tuple:
        element = typing.get_args(plain)[0]
        return isinstance(value, tuple) and all(has_type(element, child) for child in value)
    if plain is tuple:
        kinds = (bool, int, float, str)
        return isinstance(value, tuple) and all(
            isinstance(child, kinds) or has_type(tuple, child) for child in value
        )
    if plain is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, plain)


def as_type(type_: KeyType, value: Value) -> Value:
    """Convert a value to a key's type: whole numbers to floats, lists (from JSON) to tuples."""
    plain = without_none(type_)
    if plain is float and has_type(int, value):
        return float(value)
    takes_tuple = plain is tuple or plain == SIZE or typing.get_origin(plain) is tuple
    if takes_tuple and isinstance(value, list):
        return tuple(as_type(tuple, child) for child in value)
    return value


def is_accepted(key: Key, value: Value) -> bool:
    """Return whether a value of the right type is one of a key's choices, or in its range."""
    if key.accepted is None or value is None:
        return True
    if isinstance(key.accepted, tuple | dict):
        return value in key.accepted
    values = value if isinstance(value, tuple) else (value,)
    return all(within(number, key.accepted) for number in values)


def within(value: float, interval: str) -> bool:
    """Return whether a number lies in a range such as `[0, 1)` or `1 or more`.

    Args:
      value: a number.
      interval: `[a, b]`, `[a, b)`, `(a, b)`, `a to b`, `a or more`, or `more than a`.

    Example:
      >>> within(1, "[0, 1)"), within(1, "1 or more"), within(0, "more than 0"), within(3, "0 to 3")
      (False, True, False, True)
    """
    low, *high = (float(number) for number in re.findall(r"-?\d+\.?\d*", interval))
    above = value > low if interval.startswith(("(", "more than")) else value >= low
    below = not high or (value < high[0] if interval.endswith(")") else value <= high[0])
    return above and below


def parse(type_: KeyType, text: str) -> Value:
    """Parse a value given on the command line.

    Args:
      type_: type of the key.
      text: `None` if the type allows it; `true`, `t`, `1` and their opposites for bool; Python
        literals for tuples, where a single value is a tuple of one; `64` or `16x64` for a size.

    Raises:
      ValueError: `text` is not a value of the type.

    Example:
      >>> parse(float | None, "None"), parse(float, "1e-3"), parse(tuple[int, ...], "1,2")
      (None, 0.001, (1, 2))
      >>> parse(SIZE, "64"), parse(SIZE, "16x64"), parse(SIZE, "(16, 64)")
      (64, (16, 64), (16, 64))
    """
    plain = without_none(type_)
    if is_optional(type_) and text.lower() == "none":
        return None
    if plain is bool:
        if text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "t", "1")
    if plain == SIZE:
        return _parse_size(text)
    value = _parse_tuple(text) if typing.get_origin(plain) or plain is tuple else plain(text)
    value = as_type(type_, value)
    if not has_type(type_, value):
        raise ValueError(text)
    return value


def _parse_size(text: str) -> Value:
    value = _parse_tuple(re.sub(r"^(\d+)x(\d+)$", r"\1,\2", text))
    value = value[0] if len(value) == 1 else value
    if not has_type(SIZE, value):
        raise ValueError(text)
    return value


def _parse_tuple(text: str) -> tuple[Value, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if re.search(r"['\"()\[\]]", text):
            raise ValueError(text) from None
        value = [word.strip() for word in text.split(",") if word.strip()]
    return tuple(value) if isinstance(value, list | tuple) else (value,)
