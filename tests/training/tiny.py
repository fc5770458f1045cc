"""A config small enough to train in seconds: the digits, a UNet of one resolution."""

import os

from configs.digits import get_config
from sparsejax.families import build_data, build_model

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


def tiny_config(**changes):
    """The tiny config with changes: `tiny_config(**{"sparsity.level": 0.9})`."""
    config = get_config()
    config.update_from_flattened_dict(OVERRIDES | changes)
    return config


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
