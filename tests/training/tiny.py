"""A config small enough to train in seconds: the digits, a UNet of one resolution."""

import json
import os

import jax
import numpy as np

from configs.digits import get_config
from sparsejax.configuration import resolve
from sparsejax.families import build_data, build_model
from sparsejax.sparsity.masks import apply_masks
from sparsejax.training import checkpoints, runs
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import state_from

OVERRIDES = {
    "name": "tiny",
    "steps": 40,
    "batch_size": 8,
    "model.channel_mult": (1,),
    "model.attention_resolutions": (),
    "sparsity.update_interval": 5,
    "checkpoint.every": 10,
    "log.every": 10,
    "sample.every": 0,
    "sample.count": 4,
    "sample.steps": 5,
    "optimizer.warmup_steps": 5,
}

SMALL = {"task.name": "small", "imports": ("tests.training.small_family",)}


def tiny_config(**changes):
    """The tiny config with changes: `tiny_config(**{"sparsity.level": 0.9})`."""
    config = get_config()
    config.update_from_flattened_dict(OVERRIDES | changes)
    return config


def small_config(**changes):
    """The tiny config with a network that compiles in a fifth of the time.

    For claims that hold of any network: of the loop, its files, costs and methods.
    """
    return tiny_config(**SMALL | changes)


def tiny_flags(**changes):
    """The same, as command-line flags of train.py."""
    return [f"--config.{key}={value}" for key, value in (OVERRIDES | changes).items()]


def with_devices(count):
    """Return XLA_FLAGS for a process with this number of devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


def build(config):
    """The Model and the Data of a resolved config, as training builds them."""
    data = build_data(config)
    return build_model(config, data.facts()), data


def forget_copies(workdir):
    """Leave the checkpoints of a run as versions wrote them that saved no copies and no sum."""
    for path in workdir.glob("checkpoints/*/extra/metadata"):
        extra = json.loads(path.read_text())
        kept = {key: extra[key] for key in extra if key not in ("copies", "checksum", "written")}
        path.write_text(json.dumps(kept))


def write_run(workdir, config):
    """Write a run of images that has taken no step: its own masks, random weights and EMA."""
    config = resolve(config)
    model = build_model(config)
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
    params, ema = (
        jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes) for _ in range(2)
    )

    @jax.jit
    def begin(params, ema):
        masks = plan.method.init(named_key(config.seed, "masks"), shapes, plan.sparsities)
        state = state_from(params, masks, optimizer)
        return state._replace(ema_params=apply_masks(ema, masks))

    runs.save_config(workdir, config)
    with checkpoints.open_manager(workdir / "checkpoints") as manager:
        checkpoints.save(manager, begin(params, ema), {"pending": []})
