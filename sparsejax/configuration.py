"""The one configuration schema: defaults, checks, what a resumed run may change.

Configs are `ml_collections.ConfigDict`. `default_config` documents every key; a file in
configs/ sets what its experiment needs. `resolve` fills in what follows from other keys and
refuses what can't work, naming the key, before anything compiles.
"""

import json

import ml_collections
from ml_collections import config_dict

from sparsejax.sparsity.distributions import DISTRIBUTIONS
from sparsejax.sparsity.methods import METHODS

OPTIMIZERS = ("adam", "adamw", "sgd", "lion")
LEARNING_RATE_SCHEDULES = ("constant", "cosine", "linear")
DROP_SCHEDULES = ("cosine", "constant", "linear")
STRUCTURES = ("weight", "block", "channel")

# Keys, and groups of keys, that don't touch the training: a resumed run may change them.
FREE_ON_RESUME = ("steps", "log", "checkpoint.every", "checkpoint.keep", "sample")
FREE_ON_RESUME += ("task.reference_split",)
# Where the data lie: free too where what lies there is the same.
PLACES = ("task.source", "task.data_dir", "task.latents_dir", "first_stage.path")


def default_config():
    """Return the schema with its defaults, a ConfigDict."""
    config = ml_collections.ConfigDict()
    config.name = "experiment"  # first part of the default workdir's name
    config.seed = 0
    config.steps = 1000  # optimizer steps
    config.batch_size = 128  # global: over all devices and microbatches

    # The model family and its data; `model` are arguments of its network, whose defaults hold
    # for those left out.
    config.task = ml_collections.ConfigDict({"name": "images", "dataset": ""})
    config.task.source = ""  # the files, where the dataset is `files` or of pen strokes
    config.task.image_size = 0  # pixels of a side
    config.task.split = "train"  # as tensorflow-datasets slices them: train[:12500]
    config.task.reference_split = "train"  # what samples are compared with
    config.task.flip = False  # mirror every second image
    config.task.data_dir = ""  # of tensorflow-datasets; its own default
    config.model = ml_collections.ConfigDict({"dtype": "float32"})  # or bfloat16

    # Task `autoencoder`, a first stage.
    config.task.kind = "vq"  # or kl; birnn or transformer for strokes
    config.task.regulariser = 1.0  # weight of the model's own loss; published KL models have 1e-6

    # Task `latents`: the frozen first stage. `kind` and `model` describe a file that doesn't say
    # itself how it is built, such as CompVis's; no arguments give the published VQ-f4.
    config.first_stage = ml_collections.ConfigDict({"path": "", "kind": "vq", "model": {}})
    config.task.latents_dir = ""  # their cache; beside the first stage
    config.task.latent_scale = config_dict.placeholder(float)  # 1 / their standard deviation

    # Task `strokes`.
    config.task.words = ()  # of QuickDraw; all that the source holds
    config.task.representation = "threeseqdel"  # steps of the pen; threeseqabs: points
    config.task.buckets = 5  # batches are padded to so many different lengths

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.steps = 1000
    config.diffusion.schedule = "linear"  # linear, scaled_linear, cosine
    config.diffusion.start = config_dict.placeholder(float)  # first beta; the schedule's default
    config.diffusion.end = config_dict.placeholder(float)  # last beta; the schedule's default

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # adam, adamw, sgd, lion
    config.optimizer.learning_rate = 1e-3
    # If set, learning_rate is this times batch_size: Latent Diffusion's rule.
    config.optimizer.base_learning_rate = config_dict.placeholder(float)
    config.optimizer.schedule = "constant"  # constant, or decay to 0 by cosine or linear
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9  # momentum for sgd
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0  # adamw and lion
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    config.optimizer.accumulate = 1  # microbatches a step
    config.optimizer.packed = False  # keep moments and EMA of active weights only: less memory

    config.ema = ml_collections.ConfigDict({"decay": 0.9999})

    config.sparsity = ml_collections.ConfigDict()
    config.sparsity.method = "rigl"  # dense, static, rigl, magran
    config.sparsity.level = 0.5  # fraction of zeros among the sparsifiable weights
    config.sparsity.structure = "weight"  # what moves as one: weight, block, channel
    config.sparsity.block_size = 64  # of blocks: input and output channels
    config.sparsity.compiled = True  # static, block or channel: train without what is inactive
    config.sparsity.distribution = "erdos_renyi_kernel"  # uniform, erdos_renyi
    config.sparsity.drop_fraction = 0.5  # of the active weights, at the first update
    config.sparsity.drop_schedule = "cosine"  # to 0 at `end`; constant, linear
    config.sparsity.update_interval = 100  # optimizer steps between topology updates
    config.sparsity.begin = config_dict.placeholder(int)  # update_interval
    config.sparsity.end = config_dict.placeholder(int)  # 0.75 steps; no update from here on
    # Whether an update is due at `end` itself; False, but True in runs saved without this key.
    config.sparsity.includes_end = config_dict.placeholder(bool)
    config.sparsity.custom = ()  # ((pattern, sparsity), ...), first match wins

    # `every` is in optimizer steps; 0 = at the end only.
    config.checkpoint = ml_collections.ConfigDict({"every": 500, "keep": 2})
    # A run's workdir, a sparse file (`sparse_files`), or published weights (`models.files`).
    config.checkpoint.init_from = ""
    config.log = ml_collections.ConfigDict({"every": 50, "tensorboard": True})
    config.sample = ml_collections.ConfigDict()
    config.sample.every = 500
    config.sample.count = 64
    config.sample.sampler = "ddim"  # ddim, ddpm
    config.sample.steps = 50  # ddim only
    config.sample.eta = 0.0  # ddim only
    config.sample.clip = config_dict.placeholder(float)  # limit of predicted data; none
    config.sample.noise_weight = 1.0  # ddpm only: factor of the noise's standard deviation
    config.sample.lengths = ()  # of strokes, in points, in turn; as in the training data
    return config


def set_sparsity(config, arg, variants=()):
    """Set method, level, drop fraction and update interval from a config file's argument.

    Args:
      config: ConfigDict, changed in place.
      arg: words with commas between: a method, a structure (`channel`, or `block32` for blocks
        of 32 channels), and numbers: the sparsity, then the drop fraction; a whole number from 2
        on is the update interval.
      variants: other words that the config file knows.

    Returns:
      Those of the variants that `arg` names.

    Raises:
      ConfigError: a word that is none of these.

    Example:
      >>> config = default_config()
      >>> set_sparsity(config, "magran,0.9,0.05,1000,small", ["small"])
      ['small']
      >>> config.sparsity.level, config.sparsity.drop_fraction, config.sparsity.update_interval
      (0.9, 0.05, 1000)
    """
    fractions, chosen = ["level", "drop_fraction"], []
    for word in filter(None, arg.split(",")):
        is_number = word.replace(".", "", 1).isdigit()
        if word in variants:
            chosen.append(word)
        elif word in METHODS:
            config.sparsity.method = word
        elif word in STRUCTURES:
            config.sparsity.structure = word
        elif word.startswith("block") and word[5:].isdigit():
            config.sparsity.structure, config.sparsity.block_size = "block", int(word[5:])
        elif word.isdigit() and int(word) > 1:
            config.sparsity.update_interval = int(word)
        elif is_number and fractions:
            config.sparsity[fractions.pop(0)] = float(word)
        else:
            numbers = ["a sparsity such as 0.9", "then a drop fraction", "an update interval"]
            accepted = ", ".join([*METHODS, *variants, "channel", "block32", *numbers])
            raise ConfigError(f"config argument {word!r}; accepted: {accepted}")
    return chosen


def structure_words(sparsity):
    """Return what names say of a structure: nothing, `["channel"]`, or `["block32"]`.

    Args:
      sparsity: `config.sparsity`.
    """
    if sparsity.method == "dense" or sparsity.structure == "weight":
        return []
    size = sparsity.block_size if sparsity.structure == "block" else ""
    return [f"{sparsity.structure}{size}"]


class ConfigError(ValueError):
    """A config or a workdir that can't work; the message says which key and what is accepted."""


def require(condition, key, value, accepted):
    """Raise a ConfigError that names a config key, its value and what is accepted.

    Args:
      condition: nothing happens if it is true.
      key: path of the key below `config`.
      value: what the key holds.
      accepted: what it may hold, in words.

    Raises:
      ConfigError: `condition` is false.
    """
    if not condition:
        raise ConfigError(f"config.{key} is {value!r}; accepted: {accepted}")


def resolve(config, saved=None):
    """Check a config and fill in the keys that follow from others.

    Args:
      config: ConfigDict with the schema of `default_config`.
      saved: the resolved config of the run that is resumed, as nested dictionaries, if any;
        keys that were filled in keep the values they have there.

    Returns:
      A new, frozen ConfigDict.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    sparsity = config.sparsity
    if saved:
        for key in ("begin", "end", "includes_end"):
            if sparsity[key] is None:
                sparsity[key] = saved["sparsity"][key]
        # No longer read once there is a checkpoint, so it may be left out, and be gone.
        checkpoint = config.checkpoint
        checkpoint.init_from = checkpoint.init_from or saved["checkpoint"]["init_from"]
    if sparsity.begin is None:
        sparsity.begin = sparsity.update_interval
    if sparsity.end is None:
        sparsity.end = int(0.75 * config.steps)
    if sparsity.includes_end is None:
        sparsity.includes_end = False
    base = config.optimizer.base_learning_rate
    if base is not None:
        config.optimizer.learning_rate = base * config.batch_size
    _check_run(config)
    _check_sparsity(sparsity)
    _check_optimizer(config.optimizer)
    return ml_collections.FrozenConfigDict(config)


def _check_run(config):
    require(config.seed >= 0, "seed", config.seed, "0 or more")
    require(config.steps >= 1, "steps", config.steps, "1 or more")
    require(0 <= config.ema.decay < 1, "ema.decay", config.ema.decay, "[0, 1)")
    require(config.log.every >= 1, "log.every", config.log.every, "1 or more")
    require(config.checkpoint.keep >= 1, "checkpoint.keep", config.checkpoint.keep, "1 or more")
    require(config.checkpoint.every >= 0, "checkpoint.every", config.checkpoint.every, "0 or more")
    require(config.sample.every >= 0, "sample.every", config.sample.every, "0 or more")
    require(config.sample.count >= 1, "sample.count", config.sample.count, "1 or more")


def _check_sparsity(s):
    require(s.method in METHODS, "sparsity.method", s.method, ", ".join(METHODS))
    require(0 <= s.level < 1, "sparsity.level", s.level, "[0, 1)")
    known = s.structure in STRUCTURES
    require(known, "sparsity.structure", s.structure, ", ".join(STRUCTURES))
    require(s.block_size >= 1, "sparsity.block_size", s.block_size, "1 or more")
    names = ", ".join(DISTRIBUTIONS)
    require(s.distribution in DISTRIBUTIONS, "sparsity.distribution", s.distribution, names)
    require(0 <= s.drop_fraction <= 1, "sparsity.drop_fraction", s.drop_fraction, "[0, 1]")
    known = s.drop_schedule in DROP_SCHEDULES
    require(known, "sparsity.drop_schedule", s.drop_schedule, ", ".join(DROP_SCHEDULES))
    interval = s.update_interval
    require(interval >= 1, "sparsity.update_interval", interval, "1 or more")
    require(s.begin >= 0, "sparsity.begin", s.begin, "0 or more")
    require(s.end >= 0, "sparsity.end", s.end, "0 or more")


def _check_optimizer(o):
    require(o.name in OPTIMIZERS, "optimizer.name", o.name, ", ".join(OPTIMIZERS))
    known = o.schedule in LEARNING_RATE_SCHEDULES
    require(known, "optimizer.schedule", o.schedule, ", ".join(LEARNING_RATE_SCHEDULES))
    is_rate = 0 < o.learning_rate < float("inf")
    require(is_rate, "optimizer.learning_rate", o.learning_rate, "more than 0, finite")
    for key in ("b1", "b2"):
        require(0 <= o[key] < 1, f"optimizer.{key}", o[key], "[0, 1)")
    require(o.weight_decay >= 0, "optimizer.weight_decay", o.weight_decay, "0 or more")
    require(o.warmup_steps >= 0, "optimizer.warmup_steps", o.warmup_steps, "0 or more")
    require(o.clip_norm >= 0, "optimizer.clip_norm", o.clip_norm, "0 (no clipping) or more")
    require(isinstance(o.packed, bool), "optimizer.packed", o.packed, "True, False")
    require(o.accumulate >= 1, "optimizer.accumulate", o.accumulate, "1 or more")
    decays = o.name in ("adamw", "lion")
    accepted = f"0.0 with {o.name}; adamw and lion decay weights"
    require(decays or not o.weight_decay, "optimizer.weight_decay", o.weight_decay, accepted)


def to_json(config):
    """Return a resolved config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def with_defaults(saved):
    """Return a saved config in which keys that are younger than it have their defaults.

    All but `sparsity.includes_end`: runs that are older than this key had updates at `end`.

    Args:
      saved: nested dictionaries, as `json.loads` gives them.

    Returns:
      The same, with every key of `default_config`.
    """
    config = default_config()
    config.sparsity.includes_end = True
    with config.unlocked(), config.ignore_type():
        config.update(saved)
    return json.loads(to_json(config))


def differing_keys(config, saved, free=FREE_ON_RESUME):
    """List the keys in which a config differs from a saved one.

    Args:
      config: resolved ConfigDict.
      saved: nested dictionaries, as `json.loads` gives them.
      free: keys, and groups of keys, that may differ; those that a resumed run may change.

    Returns:
      Lines `key: now X, saved Y`, sorted by key.
    """
    now, then = _flatten(json.loads(to_json(config))), _flatten(saved)
    return [
        f"{key}: now {now.get(key)!r}, saved {then.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not f"{key}.".startswith(tuple(f"{k}." for k in free))
    ]


def _flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
