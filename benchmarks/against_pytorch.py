"""Train step and DDIM sampling of the Latent Diffusion UNet, here and in PyTorch.

    python -m benchmarks.against_pytorch --torch-python OTHER/bin/python
    python -m benchmarks.against_pytorch --device cuda --model-channels 224 --size 64 --batch 32
        --dtype bfloat16 --steps 20 --ddim-steps 50 --json FILE    (one line: the published size)

The train step is this project's own, dense, under pmap; the one in PyTorch
(benchmarks/unet_torch.py) does the same: mean squared error of the noise, AdamW, EMA. PyTorch
runs as it is and compiled, in either layout of memory; the ratios are those of its fastest. The
processes run in turn, on the same cores or the same accelerator, and wait for the device after
the last step only.

Both begin with the same weights, moved by `models.convert.unet_to_torch`, and compare: `float32`
is the largest difference of the network's outputs in full float32, `as timed` that of what was
timed, its dtype and all, from full float32 here; both as shares of the largest output.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count
from benchmarks.timing import timed
from sparsejax import command_line
from sparsejax.configuration import default_config, resolve
from sparsejax.diffusion.noise_schedules import linear_betas, noise_schedule
from sparsejax.families.denoising import denoising_model
from sparsejax.models.convert import unet_from_torch, unet_to_torch
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.sparsity.masks import dense_masks
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.sampling import make_sampler
from sparsejax.training.state import state_from
from sparsejax.training.steps import make_train_step

DRAWS = 2
OURS = "jax"
# torch.compile takes minutes on a CPU, and convolutions are faster channels last there.
VARIANTS = {
    "cpu": "eager,eager channels_last,compile channels_last",
    "cuda": "eager,eager channels_last,compile,compile channels_last",
}
BUSY = "Other processes use the cores (load {:.1f}): PyTorch's threads wait for each other more \
than XLA's then, and the ratios flatter this side."
NO_TORCH = """\
No PyTorch in {}, and nothing to compare with. Install it,
    pip install torch --index-url https://download.pytorch.org/whl/cpu
(without the option where there is a GPU), here or in another environment whose interpreter
--torch-python names."""


def make_config(settings):
    """Return the resolved config of the benchmark."""
    config = default_config()
    config.batch_size = settings["batch"]
    config.task.image_size = settings["size"]
    config.model.dtype = settings["dtype"]
    config.model.model_channels = settings["model_channels"]
    optimizer = settings["optimizer"]
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = optimizer["rate"]
    config.optimizer.weight_decay = optimizer["decay"]
    config.optimizer.b1, config.optimizer.b2 = optimizer["b1"], optimizer["b2"]
    config.ema.decay = settings["ema_decay"]
    config.sparsity.method = "dense"
    config.sample.steps = settings["ddim_steps"]
    return resolve(config)


def make_model(config):
    """Return the Model: the UNet on examples that are given."""
    return denoising_model(config, config.task.image_size, "image")


def prepare(folder, arguments):
    """Write settings, weights and an input."""
    settings = {
        **{k: getattr(arguments, k) for k in ("model_channels", "size", "batch", "ddim_steps")},
        **{k: getattr(arguments, k) for k in ("dtype", "device")},
        "optimizer": {"rate": 2e-6 * arguments.batch, "decay": 0.01, "b1": 0.9, "b2": 0.999},
        "ema_decay": 0.9999,
        "mode": arguments.compile_mode,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)

    def fill(array):
        """Draw what begins at zero: the network's output would be zero with it."""
        if np.any(array):
            return array
        fan_in = np.prod(array.shape[1:], dtype=int)
        return rng.normal(0, fan_in**-0.5, array.shape).astype(np.float32)

    params = jax.jit(make_model(make_config(settings)).init)(named_key(0, "init"))
    weights = unet_to_torch(params)
    np.savez(folder / "weights.npz", **{name: fill(array) for name, array in weights.items()})
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    np.savez(
        folder / "example.npz",
        x=rng.normal(size=shape).astype(np.float32),
        t=rng.integers(1000, size=arguments.batch),
        alpha_bar=noise_schedule(linear_betas(1000)).alphas_cumprod,
    )


def measure(arguments):
    """Return the seconds of a train step and of a draw, and of their first calls."""
    folder = arguments.worker
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "weights.npz") as arrays:
        params = unet_from_torch(dict(arrays))
    example = dict(np.load(folder / "example.npz"))
    outputs, draw = measure_draws(settings, params, example, arguments.draws)
    np.savez(folder / f"outputs {OURS}.npz", **outputs)
    train = measure_training(settings, params, example, arguments.steps)
    return {
        "first": {"train": train[0], "draw": draw[0]},
        "train": train[1],
        "draw": draw[1],
        "version": f"jax {jax.__version__}",
        "device": jax.devices()[0].device_kind,
    }


def measure_draws(settings, params, example, draws):
    """Return the network's outputs, and the seconds of the first draw and of the others."""
    model = make_model(make_config(settings))
    draw = make_sampler(model, model.frozen(), named_key(0, "samples"), settings["batch"])
    params = jax.device_put(params)
    seconds = timed(lambda: draw(params), 1), timed(lambda: draw(params), draws)
    inputs = params, example["x"], example["t"].astype(np.int32)
    full = make_model(make_config(settings | {"dtype": "float32"}))
    with jax.default_matmul_precision("highest"):
        outputs = {"float32": jax.jit(full.apply)(*inputs)}
    outputs["timed"] = jax.jit(model.apply)(*inputs)
    return outputs, seconds


def measure_training(settings, params, example, steps):
    """Return the seconds of the first train step and of later ones."""
    config = make_config(settings)
    model, optimizer = make_model(config), build_optimizer(config)
    masks = dense_masks(params)
    state = replicate(state_from(jax.tree.map(jnp.asarray, params), masks, optimizer))
    step = data_parallel(
        make_train_step(model, optimizer, ema_limit=config.ema.decay), donate_state=True
    )
    batch = jax.device_put(shard_batch({"image": example["x"]}))
    key = named_key(0, "steps")

    def train():
        nonlocal state
        state, metrics = step(state, batch, key)
        return metrics

    first = timed(train, 1)
    timed(train, 1)
    seconds = timed(train, steps)
    assert np.isfinite(float(train()["loss"])), "the loss is not finite"
    return first, seconds


def run(command, environment):
    """Run a worker; return what it printed last, from JSON, or None if it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def ask(python, code):
    """Return what a line of Python prints in an interpreter; None if it fails."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


def choose_device(wanted, torch_python):
    """Return `cpu` or `cuda`; ends the command where PyTorch or the device are missing."""
    cuda = ask(torch_python, "import torch; print(torch.cuda.is_available())")
    if cuda is None:
        sys.exit(NO_TORCH.format(torch_python))
    if wanted == "cpu":
        return wanted
    backend = ask(sys.executable, "import jax; print(jax.default_backend())")
    found = {"PyTorch": cuda == "True", "JAX": backend == "gpu"}
    if all(found.values()):
        return "cuda"
    missing = " nor ".join(name for name, sees in found.items() if not sees)
    if wanted == "cuda":
        sys.exit(f"--device cuda: no GPU is seen by {missing}")
    if any(found.values()):
        print(f"On the CPU: no GPU is seen by {missing}.", file=sys.stderr)
    return "cpu"


def machine():
    """Return what the figures depend on; the device is left to the workers, one at a time."""
    lines = []
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": core_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def core_count():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measure_in_turn(arguments, folder):
    """Return `{column: figures of each round}`, without the variants that fail."""
    torch_script = pathlib.Path(__file__).with_name("unet_torch.py")
    counts = [f"--steps={arguments.steps}", f"--draws={DRAWS}"]
    theirs = [arguments.torch_python, str(torch_script), str(folder)]
    theirs += [f"--threads={core_count()}"]
    commands = {OURS: [sys.executable, "-m", "benchmarks.against_pytorch", f"--worker={folder}"]}
    commands |= {v: [*theirs, f"--variant={v}"] for v in arguments.variants.split(",")}
    # One GPU for either. Compiled kernels of PyTorch are kept for the later rounds only.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": gpu,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "JAX_PLATFORMS": arguments.device,
    }
    figures = {column: [] for column in commands}
    for _ in range(arguments.rounds):
        for column in list(figures):
            done = run([*commands[column], *counts], environment)
            if done is None and column == OURS:
                sys.exit("the process of this side failed")
            if done is None:
                print(f"{column} failed and is left out", file=sys.stderr)
                del figures[column]
                continue
            figures[column].append(done)
            print(f"{column}: {json.dumps(done)}", file=sys.stderr)
    if len(figures) == 1:
        sys.exit("all of PyTorch's processes failed: nothing to compare")
    return figures


def differences(folder, columns):
    """Return `{column: {what: largest difference from full float32 here, a share}}`."""
    reference = np.load(folder / f"outputs {OURS}.npz")["float32"]

    def difference(column, what):
        output = np.load(folder / f"outputs {column}.npz")[what]
        return float(np.abs(output - reference).max() / np.abs(reference).max())

    return {c: {what: difference(c, what) for what in ("float32", "timed")} for c in columns}


def summarize(figures):
    """Return medians of the rounds, and for `train` and `draw` PyTorch's fastest and its ratio."""
    summary = {"seconds": {}, "fastest": {}, "ratio": {}}
    for what in ("train", "draw"):
        times = {c: [f[what] for f in rounds] for c, rounds in figures.items()}
        medians = {c: statistics.median(values) for c, values in times.items()}
        fastest = min((c for c in medians if c != OURS), key=medians.get)
        pairs = zip(times[fastest], times[OURS], strict=True)
        summary["seconds"][what], summary["fastest"][what] = medians, fastest
        summary["ratio"][what] = [theirs / own for theirs, own in pairs]
    return summary


def with_spread(values):
    """Return the median, and behind it the least and the most if there are more."""
    median, least, most = (f"{f(values):.2f}" for f in (statistics.median, min, max))
    return f"{median} ({least}-{most})" if len(values) > 1 else median


def report(arguments, figures, summary, errors):
    """Print the table."""
    versions = ", ".join(dict.fromkeys(f[0]["version"] for f in figures.values()))
    where = f"{core_count()} cores" if arguments.device == "cpu" else figures[OURS][0]["device"]
    table = Table(
        title=f"Latent Diffusion UNet, {arguments.model_channels} channels, {arguments.size} x "
        f"{arguments.size}, batch {arguments.batch}, {arguments.dtype}; {versions}, {where}; "
        f"median of {arguments.rounds} rounds; first calls include compilation"
    )
    for heading in ("", *figures, "PyTorch's fastest / jax"):
        table.add_column(heading)
    labels = {"train": "train step", "draw": f"DDIM, {arguments.ddim_steps} steps"}
    for what, label in labels.items():
        cells = [f"{1e3 * seconds:.0f} ms" for seconds in summary["seconds"][what].values()]
        table.add_row(label, *cells, with_spread(summary["ratio"][what]))
    for what, label in labels.items():
        firsts = [rounds[0]["first"][what] for rounds in figures.values()]
        table.add_row(f"first {label}", *(f"{seconds:.1f} s" for seconds in firsts))
    for what, label in {"float32": "float32", "timed": "as timed"}.items():
        cells = [f"{errors[column][what]:.1e}" for column in figures]
        table.add_row(f"difference, {label}", *cells)
    Console(width=140).print(table)


def main():
    """Measure in turn, each in a process of its own, and print a table."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.against_pytorch")
    parser.add_argument("--model-channels", type=count, default=128)
    parser.add_argument("--size", type=count, default=16, help="of the latents, a multiple of 8")
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=count, default=3, help="processes of each column")
    parser.add_argument("--steps", type=count, default=5, help="timed train steps of a process")
    parser.add_argument("--ddim-steps", type=count, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where both see it")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--variants", help=f"columns of PyTorch; {VARIANTS['cuda']}")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here too")
    parser.add_argument("--draws", type=count, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    if arguments.worker:
        print(json.dumps(measure(arguments)))
        return

    jax.config.update("jax_platforms", "cpu")  # the accelerator is the workers'
    arguments.device = choose_device(arguments.device, arguments.torch_python)
    arguments.variants = arguments.variants or VARIANTS[arguments.device]
    described = machine()
    if arguments.device == "cpu" and described["load"] > 0.5 * described["cores"]:
        print(BUSY.format(described["load"]), file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, arguments)
        figures = measure_in_turn(arguments, folder)
        errors = differences(folder, figures)
    summary = summarize(figures)
    report(arguments, figures, summary, errors)
    if arguments.json:
        packages = ("jax", "jaxlib", "flax", "optax", "numpy")
        versions = {package: importlib.metadata.version(package) for package in packages}
        theirs = next(rounds for column, rounds in figures.items() if column != OURS)
        versions["torch"] = theirs[0]["version"].removeprefix("torch ")
        hidden = ("json", "worker", "draws", "torch_python")
        settings = {k: v for k, v in vars(arguments).items() if k not in hidden}
        record = {"settings": settings, "machine": described, "versions": versions}
        record["machine"]["device"] = figures[OURS][0]["device"]
        record |= {"rounds": figures, "summary": summary, "differences": errors}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    if max(error["float32"] for error in errors.values()) > 1e-3:
        sys.exit("the two networks differ in float32")


if __name__ == "__main__":
    command_line.run(main)
