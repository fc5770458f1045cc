"""Shared by the ChiroDiff configs; not an experiment by itself.

The denoiser, optimizer, batch and EMA are those of ChiroDiff's published code (Das et al. 2023):
3 layers of a bidirectional GRU of width 96, AdamW at 1e-3 with weight decay 1e-2, gradients
clipped at norm 0.1, batches of 128, EMA 0.9999. T, the representation and the sampler's noise
weight are our choice, and so is what the sparse paper doesn't state: ERK distribution, cosine
decay of the drop fraction until three quarters of the run, the update interval.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity

VARIANTS = ("cpu", "short", "evidence")


def get_config(arg: str = "") -> ConfigDict:
    """Return the config without a dataset; see kanjivg_chirodiff.py and the other configs.

    `cpu` in the argument makes it a run of half an hour on one CPU core: 4,000 steps with half the
    batch, a learning rate that starts higher and decays, and a faster EMA. `short` makes it 300
    steps, for comparisons. `evidence` is for docs/evidence.md: small batches, a quarter of the
    sampling steps, and as many training steps as fit into the minutes that are given there.
    """
    config = default_config()
    config.steps = 100_000
    config.batch_size = 128
    config.task.name = "strokes"
    config.task.kind = "birnn"
    config.task.representation = "threeseqabs"
    config.task.reference_split = "test"

    config.model.layers = 3
    config.model.hidden = 96
    config.model.pe_dim = 8
    config.model.time_embedding = "randomfourier"

    config.diffusion.steps = 100
    config.diffusion.schedule = "linear"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 0.1
    config.ema.decay = 0.9999

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.drop_fraction = 0.5
    config.sparsity.update_interval = 100

    config.checkpoint.every = 1000
    config.sample.every = 10_000
    config.sample.count = 36
    config.sample.sampler = "ddpm"
    config.sample.noise_weight = 0.75
    _set_variants(config, arg)
    set_sparsity(config, arg, VARIANTS)
    return config


def _set_variants(config: ConfigDict, arg: str) -> None:
    variants = [word for word in arg.split(",") if word in VARIANTS]
    if variants:
        config.steps = 4000
        config.batch_size = 64
        config.optimizer.learning_rate = 2e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 100
        config.ema.decay = 0.998
        config.sample.every = 1000
    if "short" in variants:
        config.steps = 300
        config.optimizer.learning_rate = 4e-3
        config.optimizer.warmup_steps = 20
        config.ema.decay = 0.98
        config.sparsity.update_interval = 20
        config.sample.every = 0
    if "evidence" in variants:
        config.batch_size = 32
        config.task.buckets = 3
        config.optimizer.warmup_steps = 50
        config.ema.decay = 0.995
        config.sparsity.update_interval = 25
        config.checkpoint.every = 250
        config.sample.every = 0
        config.sample.sampler = "ddim"
        config.sample.steps = 25


def variant_name(name: str, arg: str) -> str:
    """Return the name of an experiment with the variants that its argument selects."""
    return "_".join([name, *(word for word in arg.split(",") if word in VARIANTS)])
