"""The schema: type, default, meaning and accepted values of every config key.

`configuration.default_config` and docs/configs.md are generated from it. Arguments of networks
(`model.*`) come from the fields of the network: see `families.arguments.network_keys`.
"""

from typing import Any, NamedTuple, TypeAlias

from sparsejax.seeds import MAX_SEED
from sparsejax.sparsity.distributions import DISTRIBUTIONS
from sparsejax.sparsity.methods import METHODS
from sparsejax.types import Value

OPTIMIZERS = ("adam", "adamw", "sgd", "lion")
LEARNING_RATE_SCHEDULES = ("constant", "cosine", "linear")
DROP_SCHEDULES = ("cosine", "constant", "linear")
STRUCTURES = ("weight", "block", "channel")
PREDICTIONS = ("eps", "v", "x_0")
SPACINGS = ("leading", "trailing", "karras")
_ODE = ("euler", "heun")
SAMPLERS_OF = {"ddpm": ("ddim", "ddpm", "dpmpp_2m"), "flow": _ODE, "edm": _ODE}  # by process
PROCESSES = tuple(SAMPLERS_OF)
SAMPLERS = tuple(dict.fromkeys(name for names in SAMPLERS_OF.values() for name in names))
TIMES = ("logit_normal", "uniform")
# Sections that hold the arguments of a network.
NETWORK_SECTIONS = ("model", "first_stage.model")
# Steps are int32 on the device; larger networks than these would take forever to set up.
_STEPS = "1 to 1000000000"
_STEPS_OR_0 = "0 to 1000000000"
_WIDTH = "1 to 65536"
# What float32 can hold, and tell from 1.
_DECAY = "[0, 0.9999999]"
_POSITIVE = "[1e-30, 1e30]"
# Keys that hold the path of data; a run may be resumed with the same data in another place.
PLACES = ("task.source", "task.data_dir", "task.latents_dir", "first_stage.path")


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
        that `values.within` reads; None where it depends on other keys or on the data.
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
    Key("steps", int, 1000, "optimizer steps", _STEPS),
    Key(
        "batch_size",
        int,
        128,
        "global batch size: examples per step, all devices and microbatches together",
        _STEPS,
    ),
    Key("task.name", str, "images", "model family: images, autoencoder, latents, strokes"),
    Key(
        "task.dataset",
        str,
        "",
        "name of the dataset; `files` for images of your own, `hf` for a Hugging Face dataset",
    ),
    Key(
        "task.source",
        str,
        "",
        "path of the files, for `files` and pen strokes; for `hf` OWNER/NAME or a folder",
    ),
    Key(
        "task.url",
        str,
        "",
        "address that the files are downloaded from where `task.source` names none (default: the "
        "publisher's, for kanjivg and quickdraw_strokes, where `{word}` stands for each word)",
    ),
    Key(
        "task.columns",
        tuple[str, ...],
        (),
        "hf: columns of images and labels (default: the only ones of type Image and ClassLabel)",
    ),
    Key(
        "task.held_out",
        float,
        0.0,
        "files, hf: fraction of the training images that becomes the split `validation`, if there "
        "is none",
        "[0, 1)",
    ),
    Key("task.image_size", int, 0, "height and width in pixels"),
    Key(
        "task.padding",
        int,
        0,
        "images: pixels of black on each side, which are part of task.image_size",
        "0 to 65536",
    ),
    Key(
        "task.channels",
        int | None,
        None,
        "1 (grey) or 3 (RGB), to which images are converted (default: the data set's own)",
        (1, 3),
    ),
    Key("task.split", str, "train", "training split; slices such as `train[:12500]` work"),
    Key("task.reference_split", str, "train", "split that samples are compared with"),
    Key(
        "task.labelled_split",
        str,
        "",
        "split with whose labels the classifier of metrics is trained (default: `split`)",
    ),
    Key("task.flip", bool, False, "mirror images with probability 1/2, drawn anew in each epoch"),
    Key("task.data_dir", str, "", "data folder of tensorflow-datasets (default: its own default)"),
    Key(
        "task.kind",
        str,
        "",
        "network: unet or dit (images, latents), vq or kl (autoencoder), birnn or transformer "
        "(strokes); default: the first",
    ),
    Key(
        "task.regulariser",
        float,
        1.0,
        "autoencoder: weight of the codebook or KL loss; 1e-6 in published KL models",
        "0 to 1e30",
    ),
    Key("task.latents_dir", str, "", "latents: cache folder (default: next to the first stage)"),
    Key(
        "task.latent_scale",
        float | None,
        None,
        "latents: scale factor (default: 1 / standard deviation of the latents)",
        _POSITIVE,
    ),
    Key(
        "task.words",
        tuple[str, ...],
        (),
        "strokes: QuickDraw categories to keep (default: all in the source; without one, cat)",
    ),
    Key(
        "task.representation",
        str,
        "threeseqdel",
        "strokes: offsets between points (threeseqdel) or absolute points (threeseqabs)",
    ),
    Key("task.buckets", int, 5, "strokes: number of length buckets", "1 to 1000"),
    Key("first_stage.path", str, "", "latents: the first stage, a file or the workdir of a run"),
    Key(
        "first_stage.kind",
        str,
        "vq",
        "first stage's type, where the file does not say",
        ("vq", "kl"),
    ),
    Key(
        "diffusion.process",
        str,
        "ddpm",
        "how data become noise: in steps (Ho et al. 2020), along straight paths (rectified flow, "
        "Liu et al. 2022), or by noise levels (Karras et al. 2022); strokes: ddpm",
        PROCESSES,
    ),
    Key(
        "diffusion.times",
        str,
        "logit_normal",
        "flow: how times are drawn in training (Esser et al. 2024; Liu et al. 2022)",
        TIMES,
    ),
    Key(
        "diffusion.sigma_data",
        float,
        0.5,
        "edm: standard deviation of the data, about 1 for latents",
        _POSITIVE,
    ),
    Key("diffusion.steps", int, 1000, "number of diffusion steps T", "2 to 1000000"),
    Key("diffusion.schedule", str, "linear", "noise schedule: linear, scaled_linear, cosine"),
    Key(
        "diffusion.predicts",
        str,
        "eps",
        "what the network predicts: the noise, v (Salimans and Ho 2022) or the data; strokes: eps",
        PREDICTIONS,
    ),
    Key(
        "diffusion.min_snr",
        float | None,
        None,
        "gamma of min-SNR weights of the loss (Hang et al. 2023), 5 in the paper (default: the "
        "plain loss of what is predicted; strokes: None)",
        _POSITIVE,
    ),
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
        "[1e-30, 1000]",
    ),
    Key(
        "optimizer.base_learning_rate",
        float | None,
        None,
        "if set, learning_rate = base_learning_rate * batch_size, as in Latent Diffusion",
        "[1e-30, 1000]",
    ),
    Key(
        "optimizer.schedule",
        str,
        "constant",
        "learning-rate schedule after warm-up; cosine and linear decay to 0",
        LEARNING_RATE_SCHEDULES,
    ),
    Key("optimizer.warmup_steps", int, 0, "linear warm-up steps", _STEPS_OR_0),
    Key("optimizer.b1", float, 0.9, "decay rate of the first moment; momentum for sgd", _DECAY),
    Key("optimizer.b2", float, 0.999, "decay rate of the second moment", _DECAY),
    Key(
        "optimizer.weight_decay",
        float,
        0.0,
        "decoupled weight decay, adamw and lion only",
        "0 to 1000",
    ),
    Key(
        "optimizer.clip_norm",
        float,
        0.0,
        "gradients are clipped to this global norm; 0 disables clipping",
        "0 to 1e30",
    ),
    Key("optimizer.accumulate", int, 1, "gradient accumulation: microbatches per step", _STEPS),
    Key(
        "optimizer.packed",
        bool,
        False,
        "store moments and EMA for active weights only, to save memory; blocks and channels that "
        "move are then trained masked",
    ),
    Key(
        "optimizer.skip_nonfinite",
        int,
        0,
        "number of steps of the whole run that may be skipped because loss or gradient are not "
        "finite; one more ends the run",
        _STEPS_OR_0,
    ),
    Key("ema.decay", float, 0.9999, "EMA decay of the weights, after warm-up", _DECAY),
    Key("sparsity.method", str, "rigl", "sparse training method", METHODS),
    Key(
        "sparsity.level",
        float,
        0.5,
        "sparsity S: fraction of sparsifiable weights that are zero",
        "[0, 1)",
    ),
    Key("sparsity.structure", str, "weight", "unit that is pruned and regrown", STRUCTURES),
    Key("sparsity.block_size", SIZE, 64, "block: channels, or inputs x outputs", _WIDTH),
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
        "fraction of active weights that an update drops, at first; not by gradual and one_shot",
        "[0, 1]",
    ),
    Key(
        "sparsity.drop_schedule",
        str,
        "cosine",
        "schedule of drop_fraction; cosine and linear decay to 0 at `end`",
        DROP_SCHEDULES,
    ),
    Key("sparsity.update_interval", int, 100, "steps between topology updates", _STEPS),
    Key(
        "sparsity.gradient_batches",
        int,
        1,
        "batches, the last ones trained on, that the dense gradient of an update is the mean over",
        "1 to 1000",
    ),
    Key(
        "sparsity.begin",
        int | None,
        None,
        "first step with a topology update (default: update_interval; one_shot: steps / 2)",
        _STEPS_OR_0,
    ),
    Key(
        "sparsity.end",
        int | None,
        None,
        "first step without topology updates (default: 0.75 * steps; one_shot: after one update)",
        _STEPS_OR_0,
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
        "sparsities of layers ((regular expression, sparsity), ...); the first match wins",
    ),
    Key("checkpoint.every", int, 500, "steps between checkpoints; 0: only at the end", _STEPS_OR_0),
    Key("checkpoint.keep", int, 2, "number of checkpoints to keep", _STEPS),
    Key(
        "checkpoint.init_from",
        str,
        "",
        "initial weights: a workdir, a sparse file, hf://OWNER/NAME or published weights",
    ),
    Key("log.every", int, 50, "steps between entries in metrics.jsonl", _STEPS),
    Key("log.tensorboard", bool, True, "also write metrics and pictures for TensorBoard"),
    Key("log.wandb", bool, False, "also send metrics and pictures to Weights & Biases"),
    Key("sample.every", int, 500, "steps between sample grids; 0: only at the end", _STEPS_OR_0),
    Key("sample.count", int, 64, "samples per grid", "1 to 100000"),
    Key(
        "sample.sampler",
        str,
        "ddim",
        "ddpm: ddim, ddpm or dpmpp_2m, which is DPM-Solver++(2M); flow, edm: euler or heun",
        SAMPLERS,
    ),
    Key("sample.steps", int, 50, "number of sampling steps; ddpm takes all"),
    Key(
        "sample.spacing",
        str,
        "leading",
        "ddim, dpmpp_2m: which steps; trailing ones begin at the last diffusion step, karras takes "
        "more of them where there is little noise",
        SPACINGS,
    ),
    Key(
        "sample.eta", float, 0.0, "ddim: 0 is deterministic, 1 adds as much noise as ddpm", "[0, 1]"
    ),
    Key(
        "sample.label",
        int | None,
        None,
        "with model.classes: label of all samples (default: all labels in turn)",
        "0 to 1e6",
    ),
    Key(
        "sample.guidance",
        float,
        1.0,
        "with model.classes: weight of classifier-free guidance (Ho and Salimans 2022); 1 is none",
        "0 to 1000",
    ),
    Key(
        "sample.guidance_interval",
        tuple[float, ...],
        (),
        "times in which guidance acts, from and to (Kynkäänniemi et al. 2024): t / T, t of flow, "
        "or sigma of edm (default: all)",
    ),
    Key(
        "sample.churn",
        float,
        0.0,
        "edm with heun: S_churn of Karras et al. (2022), noise that is added while sampling; 0 is "
        "deterministic",
        "0 to 1e6",
    ),
    Key(
        "sample.clip",
        float | None,
        None,
        "predicted x_0 is clipped to [-clip, clip] (default: no clipping)",
        _POSITIVE,
    ),
    Key(
        "sample.set_alpha_to_one",
        bool | None,
        None,
        "ddim, dpmpp_2m: end at alpha_bar = 1 rather than alpha_bar_0 (default: False; strokes: "
        "True)",
    ),
    Key(
        "sample.noise_weight",
        float,
        1.0,
        "ddpm: factor on the standard deviation of the noise",
        "0 to 1000",
    ),
    Key(
        "sample.lengths",
        tuple[int, ...],
        (),
        "strokes: lengths of samples in points, cycled through (default: drawn from the data)",
    ),
)

BY_PATH = {key.path: key for key in KEYS}
