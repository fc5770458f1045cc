"""Every config key in one table: type, default, meaning, accepted values.

`configuration.default_config` is made from it, and so is docs/configs.md. Arguments of networks
(`model.*`) follow from the network's own fields: `families.arguments.network_keys`.
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
# Sections whose keys are arguments of a network.
NETWORK_SECTIONS = ("model", "first_stage.model")


KeyType: TypeAlias = Any  # of a key: see `Key.type`


class Key(NamedTuple):
    """One config key.

    Attributes:
      path: below `config`, with dots.
      type: bool, int, float, str, tuple, `tuple[int, ...]`, or one of them `| None`.
      default: its value where nothing else is said.
      meaning: in words.
      accepted: a tuple of values or a registry, whose keys they are; or a range in one of the
        forms that `within` reads; None where other keys or the data decide.
    """

    path: str
    type: KeyType
    default: Value
    meaning: str
    accepted: tuple[Value, ...] | dict[str, Value] | str | None = None


KEYS = (
    Key("name", str, "experiment", "first part of the default workdir's name"),
    Key("seed", int, 0, "weights, masks, batches and noise follow from it", f"0 to {MAX_SEED}"),
    Key("steps", int, 1000, "optimizer steps", "1 or more"),
    Key("batch_size", int, 128, "examples per step, over all devices and microbatches"),
    Key("task.name", str, "images", "model family: images, autoencoder, latents, strokes"),
    Key("task.dataset", str, "", "name of the dataset; `files` for images of your own"),
    Key("task.source", str, "", "its files, if the dataset is `files` or of pen strokes"),
    Key("task.image_size", int, 0, "height and width in pixels"),
    Key("task.split", str, "train", "training examples, sliced as in `train[:12500]`"),
    Key("task.reference_split", str, "train", "examples that samples are compared with"),
    Key("task.flip", bool, False, "mirror every second image"),
    Key("task.data_dir", str, "", "folder of tensorflow-datasets (default: its own)"),
    Key("task.kind", str, "vq", "network: vq or kl (autoencoder), birnn or transformer (strokes)"),
    Key(
        "task.regulariser",
        float,
        1.0,
        "autoencoder: weight of the model's own loss; 1e-6 in published KL models",
        "0 or more",
    ),
    Key(
        "task.latents_dir", str, "", "latents: folder of their cache (default: by the first stage)"
    ),
    Key(
        "task.latent_scale",
        float | None,
        None,
        "latents: factor (default: 1 / their standard deviation)",
        "more than 0",
    ),
    Key(
        "task.words",
        tuple[str, ...],
        (),
        "strokes: words of QuickDraw (default: all in the source)",
    ),
    Key(
        "task.representation",
        str,
        "threeseqdel",
        "strokes: steps of the pen (threeseqdel) or points (threeseqabs)",
    ),
    Key("task.buckets", int, 5, "strokes: number of padded lengths of batches", "1 or more"),
    Key("first_stage.path", str, "", "latents: file, or workdir of a run, of the first stage"),
    Key("first_stage.kind", str, "vq", "vq or kl, if the file does not say", ("vq", "kl")),
    Key("diffusion.steps", int, 1000, "diffusion steps T", "2 to 1000000"),
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
    Key("optimizer.learning_rate", float, 1e-3, "after warm-up, before decay", "more than 0"),
    Key(
        "optimizer.base_learning_rate",
        float | None,
        None,
        "if set, learning_rate is this times batch_size, as in Latent Diffusion",
        "more than 0",
    ),
    Key(
        "optimizer.schedule",
        str,
        "constant",
        "constant, or decay to 0 by cosine or linear",
        LEARNING_RATE_SCHEDULES,
    ),
    Key("optimizer.warmup_steps", int, 0, "steps of linear warm-up", "0 or more"),
    Key("optimizer.b1", float, 0.9, "decay of the first moment; momentum of sgd", "[0, 1)"),
    Key("optimizer.b2", float, 0.999, "decay of the second moment", "[0, 1)"),
    Key("optimizer.weight_decay", float, 0.0, "decoupled, of adamw and lion", "0 or more"),
    Key("optimizer.clip_norm", float, 0.0, "largest global gradient norm; 0: any", "0 or more"),
    Key("optimizer.accumulate", int, 1, "microbatches per step", "1 or more"),
    Key(
        "optimizer.packed", bool, False, "keep moments and EMA of active weights alone: less memory"
    ),
    Key("ema.decay", float, 0.9999, "limit of the decay of the averaged weights", "[0, 1)"),
    Key("sparsity.method", str, "rigl", "sparse training method", METHODS),
    Key("sparsity.level", float, 0.5, "fraction of zeros among sparsifiable weights", "[0, 1)"),
    Key("sparsity.structure", str, "weight", "what is pruned and regrown as one", STRUCTURES),
    Key("sparsity.block_size", int, 64, "input and output channels of a block", "1 or more"),
    Key("sparsity.compiled", bool, True, "static blocks or channels: train without inactive ones"),
    Key(
        "sparsity.distribution",
        str,
        "erdos_renyi_kernel",
        "sparsities of layers",
        DISTRIBUTIONS,
    ),
    Key(
        "sparsity.drop_fraction",
        float,
        0.5,
        "share of active weights replaced at the first update",
        "[0, 1]",
    ),
    Key(
        "sparsity.drop_schedule",
        str,
        "cosine",
        "decay of drop_fraction to 0 at `end`, or constant",
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
        "no topology updates from this step on (default: 0.75 steps)",
        "0 or more",
    ),
    Key(
        "sparsity.includes_end",
        bool | None,
        None,
        "an update is due at `end` itself (default: False; True in runs saved without this key)",
    ),
    Key("sparsity.custom", tuple, (), "((pattern, sparsity), ...) by layer; the first match holds"),
    Key("checkpoint.every", int, 500, "steps between checkpoints; 0: at the end only", "0 or more"),
    Key("checkpoint.keep", int, 2, "number of checkpoints kept", "1 or more"),
    Key(
        "checkpoint.init_from",
        str,
        "",
        "first weights: a workdir, sparse file or published weights",
    ),
    Key("log.every", int, 50, "steps between lines of metrics.jsonl", "1 or more"),
    Key("log.tensorboard", bool, True, "write metrics for TensorBoard too"),
    Key("sample.every", int, 500, "steps between sample grids; 0: at the end only", "0 or more"),
    Key("sample.count", int, 64, "samples per grid", "1 or more"),
    Key("sample.sampler", str, "ddim", "sampler", SAMPLERS),
    Key("sample.steps", int, 50, "ddim: number of steps"),
    Key("sample.eta", float, 0.0, "ddim: 0 deterministic, 1 as much noise as ddpm", "[0, 1]"),
    Key(
        "sample.clip", float | None, None, "limit of predicted data (default: none)", "more than 0"
    ),
    Key(
        "sample.set_alpha_to_one",
        bool | None,
        None,
        "ddim: end at the predicted data, not at alpha_bar_0 (default: False; strokes: True)",
    ),
    Key("sample.noise_weight", float, 1.0, "ddpm: factor of the noise's deviation", "0 or more"),
    Key(
        "sample.lengths",
        tuple[int, ...],
        (),
        "strokes: points of samples, in turn (default: as in the training data)",
    ),
)

_WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}


def is_optional(type_: KeyType) -> bool:
    """Tell whether None is a value of a key of this type."""
    return isinstance(type_, types.UnionType) and types.NoneType in typing.get_args(type_)


def without_none(type_: KeyType) -> KeyType:
    """Return the type of a key's values other than None: `float` of `float | None`."""
    if not is_optional(type_):
        return type_
    return next(t for t in typing.get_args(type_) if t is not types.NoneType)


def describe_type(type_: KeyType) -> str:
    """Return what values of a type are, in words.

    Example:
      >>> describe_type(float | None), describe_type(tuple[int, ...])
      ('None, or a finite number', 'a tuple of whole numbers, such as (1, 2)')
    """
    plain = without_none(type_)
    if typing.get_origin(plain) is tuple:
        words = {int: "whole numbers, such as (1, 2)", str: "texts, such as ('a', 'b')"}
        text = f"a tuple of {words[typing.get_args(plain)[0]]}"
    else:
        text = _WORDS.get(plain, "a tuple")
    return f"None, or {text}" if is_optional(type_) else text


def describe_accepted(key: Key) -> str:
    """Return what a key may hold, in words: choices or range, with the type where it matters."""
    if isinstance(key.accepted, tuple | dict):
        return ", ".join(map(str, key.accepted))
    text = describe_type(key.type)
    return f"{text}, {key.accepted}" if key.accepted else text


def has_type(type_: KeyType, value: Value) -> bool:
    """Tell whether a value is of a key's type: no bool for a number, no fraction for an int.

    Example:
      >>> has_type(int, True), has_type(float, 1), has_type(tuple[int, ...], (1, 2.5))
      (False, True, False)
    """
    if value is None:
        return is_optional(type_)
    plain = without_none(type_)
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
    """Return a value as a key holds it: floats for whole numbers, tuples for lists (of JSON)."""
    plain = without_none(type_)
    if plain is float and has_type(int, value):
        return float(value)
    if (plain is tuple or typing.get_origin(plain) is tuple) and isinstance(value, list):
        return tuple(as_type(tuple, child) for child in value)
    return value


def is_accepted(key: Key, value: Value) -> bool:
    """Tell whether a value of the right type is among the choices, or in the range, of a key."""
    if key.accepted is None or value is None:
        return True
    if isinstance(key.accepted, tuple | dict):
        return value in key.accepted
    return within(value, key.accepted)


def within(value: float, interval: str) -> bool:
    """Tell whether a number lies in a range that is given in words.

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
    """Return the value that a text on the command line stands for.

    Args:
      type_: of the key.
      text: `None` where the type allows it; `true`, `t`, `1` and their opposites for bool; Python
        literals for tuples, a single one being a tuple of one.

    Raises:
      ValueError: the text stands for no value of the type.

    Example:
      >>> parse(float | None, "None"), parse(float, "1e-3"), parse(tuple[int, ...], "1,2")
      (None, 0.001, (1, 2))
    """
    plain = without_none(type_)
    if is_optional(type_) and text.lower() == "none":
        return None
    if plain is bool:
        if text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "t", "1")
    value = _parse_tuple(text) if typing.get_origin(plain) or plain is tuple else plain(text)
    value = as_type(type_, value)
    if not has_type(type_, value):
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
