"""Configs: defaults, checks, and what a resumed run may change.

Configs are `ml_collections.ConfigDict`. `schema.KEYS` documents every key; a file in configs/ sets
what its experiment needs. `resolve` fills in keys that follow from others and raises ConfigError,
naming the key, before anything compiles.
"""

import functools
import json
import logging
import re
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import ml_collections
from ml_collections import ConfigDict, config_dict

from sparsejax import network_values, schema, values
from sparsejax.diffusion import noise_schedules
from sparsejax.errors import ConfigError, nearest, require
from sparsejax.nested import flatten
from sparsejax.plugins import import_modules
from sparsejax.schema import KEYS, NETWORK_SECTIONS, STRUCTURES
from sparsejax.seeds import MAX_SEED
from sparsejax.sparsity.distributions import GLOBAL
from sparsejax.sparsity.methods import METHODS, get_method
from sparsejax.types import Value

Saved: TypeAlias = dict[str, Any]  # a config as nested dictionaries, as `json.loads` gives it

logger = logging.getLogger(__name__)

# Keys and sections that don't affect training: a resumed run may change them.
FREE_ON_RESUME = (
    "steps",
    "log",
    "checkpoint.every",
    "checkpoint.keep",
    "optimizer.skip_nonfinite",
    "sample",
    "sparsity.compact",
    "task.reference_split",
    "task.url",
    "task.labelled_split",
    "imports",
)
_ONE_BATCH = "1 with optimizer.skip_nonfinite"


def default_config() -> ConfigDict:
    """Return a ConfigDict with the default of every key in `schema.KEYS`.

    `model` and `first_stage.model` hold arguments of networks; those left out have the network's
    own defaults.
    """
    config = ml_collections.ConfigDict()
    for section in ("model", "first_stage", "first_stage.model"):
        _assign(config, section, ml_collections.ConfigDict())
    config.model.dtype = "float32"
    for key in KEYS:
        is_open = values.is_optional(key.type) and key.default is None
        value = key.default
        if is_open:
            value = config_dict.placeholder(values.without_none(key.type))
        if key.type == schema.SIZE:  # otherwise a number couldn't become a pair
            value = config_dict.FieldReference(value, field_type=object)
        _assign(config, key.path, value)
    return config


def set_key(config: ConfigDict, path: str, value: Value) -> None:
    """Set a key of a ConfigDict by its dotted path; missing sections are created.

    Raises:
      ConfigError: the path goes on below a key that is not a section.
    """
    section, name = _section_of(config, path)
    with section.ignore_type(), section.unlocked():
        section[name] = value


def _assign(config: ConfigDict, path: str, value: Value) -> None:
    """Set a new key, or one of a ConfigDict that ignores types; `set_key` visits every key."""
    section, name = _section_of(config, path)
    section[name] = value


def _section_of(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Return the section of a dotted path, created if it is missing, and the name in it."""
    *sections, name = path.split(".")
    for i, section in enumerate(sections, 1):
        if section not in config:
            config[section] = ml_collections.ConfigDict()
        config = config[section]
        if not isinstance(config, ml_collections.ConfigDict):
            raise ConfigError(
                f"config.{path} is not a key; accepted: a value of "
                f"config.{'.'.join(sections[:i])}, such as {config!r}"
            )
    return config, name


def set_sparsity(config: ConfigDict, arg: str, variants: Sequence[str] = ()) -> list[str]:
    """Set the keys of `config.sparsity` from a config file's argument.

    Args:
      config: ConfigDict, changed in place.
      arg: comma-separated words: a method, a structure (`channel`; `block32` for blocks of 32 by 32
        channels, `block16x64` of 16 inputs by 64 outputs), and numbers: the sparsity, then the drop
        fraction; a whole number of 2 or more after the sparsity is the update interval.
      variants: other words that the config file accepts.

    Returns:
      The variants that `arg` contains.

    Raises:
      ConfigError: a word is none of these, or the second of its kind; `dense` has a sparsity or a
        structure.

    Examples:
      >>> config = default_config()
      >>> set_sparsity(config, "magran,0.9,0.05,1000,small", ["small"])
      ['small']
      >>> config.sparsity.level, config.sparsity.drop_fraction, config.sparsity.update_interval
      (0.9, 0.05, 1000)
    """
    given: dict[str, str] = {}  # word of the argument by key of config.sparsity
    chosen = []
    for word in filter(None, arg.split(",")):
        if word in variants:
            chosen.append(word)
            continue
        key = _key_of(word, given, variants)
        if key in given:
            both = f"{given[key]!r} and {word!r} both set {key}"
            raise ConfigError(f"config argument {arg!r}: {both}; accepted: one of them")
        given[key] = word
        if key == "structure" and word not in STRUCTURES:
            config.sparsity.block_size = values.parse(schema.SIZE, word[5:])
            word = "block"
        number = {"update_interval": int, "level": float, "drop_fraction": float}.get(key, str)
        config.sparsity[key] = number(word)
    others = [word for key, word in given.items() if key != "method"]
    if given.get("method") == "dense" and others:
        raise ConfigError(
            f"config argument {arg!r}: a dense network has no {others[0]!r}; accepted: 'dense' "
            f"without it, or one of {', '.join(name for name in METHODS if name != 'dense')}"
        )
    return chosen


def _key_of(word: str, given: Collection[str], variants: Sequence[str]) -> str:
    """Return the key of `config.sparsity` that a word sets after those that set `given`."""
    if word in METHODS:
        return "method"
    if word in STRUCTURES or re.fullmatch(r"block\d+(x\d+)?", word, re.ASCII):
        return "structure"
    if word.isdecimal():
        if "level" in given and int(word) > 1:
            return "update_interval"
        example = f"0.{word}" if word.strip("0") else "0.5"
        raise ConfigError(
            f"config argument {word!r} is a whole number; accepted: first a sparsity such as "
            f"{example}, then an update interval of 2 or more"
        )
    if word.replace(".", "", 1).isdecimal():
        return "drop_fraction" if "level" in given else "level"
    numbers = ["a sparsity such as 0.9", "then a drop fraction", "an update interval"]
    accepted = ", ".join([*METHODS, *variants, "channel", "block32", "block16x64", *numbers])
    near = nearest(word, [*METHODS, *variants, *STRUCTURES])
    raise ConfigError(f"config argument {word!r}; accepted: {accepted}; nearest: {near}")


def structure_name(sparsity: ConfigDict) -> str:
    """Return the unit that `config.sparsity` prunes and regrows; `weight` if dense."""
    return "weight" if sparsity.method == "dense" else sparsity.structure


def asked_level(sparsity: ConfigDict) -> float:
    """Return the sparsity that `config.sparsity` asks for: 0 if dense."""
    return 0.0 if sparsity.method == "dense" else sparsity.level


def structure_words(sparsity: ConfigDict) -> list[str]:
    """Return the part of a run's name for its structure: [], `["channel"]` or `["block16x64"]`.

    Blocks without constant fan-in have another name if the config says so: `["block32free"]`.

    Args:
      sparsity: `config.sparsity`.
    """
    name = structure_name(sparsity)
    if name != "block":
        return [] if name == "weight" else [name]
    return [f"block{size_word(sparsity.block_size)}{'free' if sparsity.fan_in is False else ''}"]


def size_word(size: int | Sequence[int]) -> str:
    """Return the size of a block as a word: `64` or `16x64`."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def sparsity_words(sparsity: ConfigDict) -> list[str]:
    """Return the part of a run's name for `config.sparsity`: `["rigl", "block32", "0.9"]`."""
    level = [] if sparsity.method == "dense" else [f"{sparsity.level:g}"]
    return [sparsity.method, *structure_words(sparsity), *level]


def _check_distribution(sparsity: ConfigDict) -> None:
    if sparsity.distribution != GLOBAL or sparsity.method == "dense":
        return
    prunes = get_method(sparsity.method).changes_density and sparsity.structure == "weight"
    accepted = "the others; this one is for gradual and one_shot with structure weight"
    require(prunes, "sparsity.distribution", GLOBAL, accepted)


def resolve(config: ConfigDict, saved: Saved | None = None) -> ConfigDict:
    """Check a config and fill in keys that follow from others.

    Args:
      config: ConfigDict with the schema of `default_config`.
      saved: resolved config of the run that is resumed, if any, as nested dictionaries; keys
        that were filled in keep their values.

    Returns:
      A new, frozen ConfigDict.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    config = complete(config.copy_and_resolve_references().to_dict())
    import_modules(config.imports)
    config.task.kind = network_values.kind_of(_kinds(config), config.task.kind)
    sparsity = config.sparsity
    if saved:
        for name in ("begin", "end", "includes_end", "fan_in"):
            if sparsity[name] is None:
                sparsity[name] = saved["sparsity"][name]
        # Not read once there is a checkpoint, so it may be left out and may no longer exist.
        checkpoint = config.checkpoint
        checkpoint.init_from = checkpoint.init_from or saved["checkpoint"]["init_from"]
    prunes_once = sparsity.method == "one_shot"
    if sparsity.begin is None:
        sparsity.begin = config.steps // 2 if prunes_once else sparsity.update_interval
    if sparsity.end is None:
        once = sparsity.begin + sparsity.update_interval
        sparsity.end = once if prunes_once else int(0.75 * config.steps)
    if sparsity.includes_end is None:
        sparsity.includes_end = False
    if sparsity.fan_in is None:
        sparsity.fan_in = True
    base = config.optimizer.base_learning_rate
    if base is not None:
        config.optimizer.learning_rate = base * config.batch_size
    flat = flatten(config.to_dict(), ".")
    for key in KEYS:
        values.check_value(key, flat[key.path])
    _check_distribution(sparsity)
    _resolve_betas(config, saved)
    o = config.optimizer
    decays = o.name in ("adamw", "lion")
    accepted = f"0.0 with {o.name}; adamw and lion decay weights"
    require(decays or not o.weight_decay, "optimizer.weight_decay", o.weight_decay, accepted)
    # A skipped step's batch would make the mean not finite.
    batches, skips = sparsity.gradient_batches, o.skip_nonfinite
    require(batches == 1 or not skips, "sparsity.gradient_batches", batches, _ONE_BATCH)
    return ml_collections.FrozenConfigDict(config)


def _resolve_betas(config: ConfigDict, saved: Saved | None) -> None:
    """Fill in the first and last beta, for noise schedules that have them."""
    if not _has_beta_limits(config):
        return
    diffusion = config.diffusion
    given = {key: diffusion[key] for key in ("start", "end") if diffusion[key] is not None}
    if saved and _has_beta_limits(saved):
        limits = saved["diffusion"]["start"], saved["diffusion"]["end"]
    else:
        limits = noise_schedules.beta_limits(diffusion.schedule, diffusion.steps)
    start, end = (given.get(k, limit) for k, limit in zip(("start", "end"), limits, strict=True))
    if not saved:  # a resumed run keeps its betas
        if list(given) == ["start"]:
            accepted = f"(0, {end:g}], where diffusion.end is not given"
            require(start <= end, "diffusion.start", start, accepted)
        require(start <= end, "diffusion.end", end, f"[{start:g}, 1): diffusion.start or more")
    diffusion.start, diffusion.end = start, end


def _kinds(config: ConfigDict) -> tuple[str, ...]:
    """Return the kinds of networks of a config's task; none for a family from elsewhere."""
    return network_values.KINDS.get(config.task.name, ())


def _has_beta_limits(config: ConfigDict | Saved) -> bool:
    """Return whether a config's schedule has start and end; ChiroDiff's linear one doesn't."""
    has_betas = config["task"]["name"] in ("images", "latents")
    has_betas = has_betas and config["diffusion"]["process"] == "ddpm"
    return has_betas and config["diffusion"]["schedule"] in noise_schedules.LIMITS


def complete(tree: Saved) -> ConfigDict:
    """Return a ConfigDict from nested dictionaries, with defaults for missing keys.

    Args:
      tree: nested dictionaries; lists become tuples.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    config = default_config()
    flat = flatten(tree, ".")
    # Last, since a file that sets a former name has the default of the new one too.
    former = {new: flat.pop(old) for old, new in schema.RENAMED.items() if old in flat}
    networks = tuple(f"{section}." for section in NETWORK_SECTIONS)
    sections = (*schema.BY_PATH, *networks)
    with config.ignore_type():  # once: it visits every key
        for path, value in (flat | former).items():
            if value == {} and any(one.startswith(f"{path}.") for one in sections):
                continue  # a section without keys
            if not path.startswith(networks):
                values.require_key(path, value, schema.BY_PATH)
                value = values.typed(schema.BY_PATH[path], value)
            elif any(part.startswith("__") for part in path.split(".")):  # ConfigDict's own
                raise ConfigError(f"config.{path} is not a key; accepted: arguments of a network")
            _assign(config, path, value)
    return config


def to_json(config: ConfigDict) -> str:
    """Return a resolved config as JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


# What a trained model is sampled with. Other keys did their work in training.
_OF_SAMPLING = ("task.", "diffusion.", "sample.")


def with_defaults(saved: Saved, origin: str = "") -> Saved:
    """Return a saved config with defaults for keys that were added since, or that nothing read.

    Three exceptions keep old runs as they were: without `sparsity.includes_end`, updates happened
    at `end` itself; without `sparsity.fan_in`, blocks had no constant fan-in; without
    `diffusion.start` and `end`, the betas were those of 1000 steps, whatever the number of steps (a
    warning says so, once per origin).

    Args:
      saved: nested dictionaries, as `json.loads` gives them.
      origin: path or name of the saved run, for the warning.

    Returns:
      Nested dictionaries with every key of `schema.KEYS`.

    Raises:
      ConfigError: an unknown key, a value of the wrong type, or one that no run is sampled with.
    """
    config = complete(saved)
    config.task.kind = network_values.kind_of(_kinds(config), config.task.kind)
    flat = flatten(config.to_dict(), ".")
    for one in (key for key in KEYS if key.path.startswith(_OF_SAMPLING)):
        values.check_range(one, flat[one.path])
    if "includes_end" not in saved.get("sparsity", {}):
        config.sparsity.includes_end = True
    if "fan_in" not in saved.get("sparsity", {}):
        config.sparsity.fan_in = False
    if config.seed > MAX_SEED:
        seed = config.seed % (MAX_SEED + 1)
        logger.warning("config.seed %d of a saved run is read as %d", config.seed, seed)
        config.seed = seed
    diffusion = config.diffusion
    for key, process in (("times", "flow"), ("sigma_data", "edm")):  # others once ignored them
        if diffusion.process != process:
            diffusion[key] = schema.BY_PATH[f"diffusion.{key}"].default
    left_out = [key for key in ("start", "end") if diffusion[key] is None]
    if left_out and _has_beta_limits(config):
        limits = dict(
            zip(("start", "end"), noise_schedules.LIMITS[diffusion.schedule], strict=True)
        )
        for key in left_out:
            diffusion[key] = limits[key]
        if diffusion.steps != 1000:
            _warn_of_unscaled_betas(origin, diffusion.steps, diffusion.start, diffusion.end)
    return json.loads(to_json(config))


@functools.cache
def _warn_of_unscaled_betas(origin: str, steps: int, start: float, end: float) -> None:
    logger.warning(
        "%s was saved when default betas were not scaled by 1000 / diffusion.steps: it keeps "
        "diffusion.start %g and diffusion.end %g at %d steps",
        origin or "a config",
        start,
        end,
        steps,
    )


def differing_keys(
    config: ConfigDict, saved: Saved, free: Sequence[str] = FREE_ON_RESUME
) -> dict[str, str]:
    """Return the keys whose values differ between a config and a saved one, and how.

    Args:
      config: resolved ConfigDict.
      saved: nested dictionaries, as `json.loads` gives them.
      free: keys and sections that may differ (default: what a resumed run may change).

    Returns:
      `{key: "now X, saved Y"}`, sorted by key.
    """
    now, then = flatten(json.loads(to_json(config)), "."), flatten(saved, ".")
    return {
        key: f"now {now.get(key)!r}, saved {then.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not f"{key}.".startswith(tuple(f"{k}." for k in free))
    }
