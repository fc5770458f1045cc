"""Train step and sampling of ChiroDiff's bidirectional GRU, here and in PyTorch, on a CPU.

    python -m benchmarks.chirodiff --torch-python OTHER/bin/python [--method rigl --level 0.5]
    python -m benchmarks.chirodiff --torch-python OTHER/bin/python --check

The published model and optimizer (configs/chirodiff.py) on synthetic scribbles, about as long as
KanjiVG's drawings. The train step is this project's own, under pmap; the one in PyTorch
(benchmarks/chirodiff_torch.py) is that of ChiroDiff: packed sequences, AdamW, clipped gradients,
EMA. Both get the same batches and draw noise themselves; loading of data is left out, and so are
topology updates. Both sample by DDPM: here as always, in groups of like length, each padded to a
bucket's bound; in PyTorch all drawings at once, packed.

PyTorch's derivative of a packed GRU takes time that grows with the square of the length: on a CPU
each step of time fills and adds an array of the whole batch. `torch, padded` packs nothing, so it
computes something else (backwards, the GRU begins in the padding), but bounds what other code in
PyTorch could reach. The processes run in turn, on the same cores; without PyTorch only those of
this project run. `--check` compares the outputs of the two models and measures nothing.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.against_pytorch import ask
from benchmarks.arguments import count, level
from configs.vmnist_chirodiff import get_config
from sparsejax import command_line
from sparsejax.configuration import resolve
from sparsejax.data.strokes import SPACING
from sparsejax.families import build_data, build_model
from sparsejax.models.chirodiff import BiGRUDenoiser
from sparsejax.models.convert import chirodiff_from_torch
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.sparsity.methods import METHODS
from sparsejax.training.keys import named_key, run_keys
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import make_sampler
from sparsejax.training.state import create_state, ema_params_of
from sparsejax.training.steps import make_train_step

LENGTHS = {"mean": 89, "deviation": 18, "least": 30, "most": 165}
BATCHES = 300  # of which the shares of the buckets are taken
NO_TORCH = """\
No PyTorch in {}: only the figures from here follow. To compare, install it,
    pip install torch --index-url https://download.pytorch.org/whl/cpu
here, or in another environment whose interpreter --torch-python names."""


def scribble(rng, length):
    """Return a line of smooth loops, [points, 3], of `length` points once it is preprocessed."""
    along = np.linspace(0, 40, 1000)[:, None, None]
    waves = np.sin(along * rng.uniform(0.5, 2, (4, 2)) + rng.uniform(0, 2 * np.pi, (4, 2)))
    line = waves.sum(axis=1)
    line -= line[0]
    way = np.append(0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
    radius = np.maximum.accumulate(np.hypot(*line.T))
    # The preprocessing spaces points by the radius, and the model doesn't see the first.
    end = 1 + np.argmax(way[1:] >= SPACING * (length + 1) * radius[1:])
    points = np.zeros((end + 1, 3))
    points[:, :2] = line[: end + 1]
    points[-1, 2] = 1
    return points


def make_config(arguments, folder, method, lengths=()):
    """Return the resolved config of the benchmark, on the drawings in a folder."""
    config = get_config(method if method == "dense" else f"{method},{arguments.level}")
    config.batch_size = arguments.batch
    config.model.layers = arguments.layers
    config.model.hidden = arguments.hidden
    config.diffusion.steps = arguments.diffusion_steps
    config.task.buckets = arguments.buckets
    config.task.source = str(folder / "scribbles.npz")
    config.task.reference_split = "train"
    config.task.data_dir = str(folder / "prepared")
    config.sample.lengths = tuple(lengths)
    return resolve(config)


def prepare(arguments, folder):
    """Write drawings, one batch of each bucket and the settings of the model; return settings."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(LENGTHS["mean"], LENGTHS["deviation"], arguments.drawings)
    wanted = np.clip(np.round(wanted), LENGTHS["least"], LENGTHS["most"]).astype(int)
    drawings = [scribble(rng, length) for length in wanted]
    np.savez(
        folder / "scribbles.npz",
        points=np.concatenate(drawings),
        offsets=np.cumsum([0, *map(len, drawings)]),
        split=np.zeros(arguments.drawings, int),
    )
    config = make_config(arguments, folder, "dense")
    data = build_data(config)
    batches, counts = {}, collections.Counter()
    for batch in data.batches(0, BATCHES):
        length = batch["points"].shape[1]
        counts[length] += 1
        batches.setdefault(length, batch)
    for length, batch in batches.items():
        np.savez(folder / f"batch_{length}.npz", **batch)
    lengths = np.asarray(data.facts()["lengths"])
    optimizer = ("learning_rate", "weight_decay", "b1", "b2", "clip_norm")
    settings = {
        "batch_size": config.batch_size,
        "steps": config.diffusion.steps,
        **{key: config.model[key] for key in ("layers", "hidden", "pe_dim")},
        **{key: config.optimizer[key] for key in optimizer},
        "ema_decay": config.ema.decay,
        "noise_weight": config.sample.noise_weight,
        "shares": {str(length): counts[length] / BATCHES for length in sorted(counts)},
        "sample_lengths": rng.choice(lengths, arguments.samples).tolist(),
        "lengths": [float(lengths.mean()), *np.percentile(lengths, [5, 95]).tolist()],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return settings


def timed(function):
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def measure(arguments):
    """Return the median seconds of a train step of each bucket, and of drawing the samples.

    `first` holds the seconds of their first calls, most of them for compilation.
    """
    folder = arguments.worker
    settings = json.loads((folder / "settings.json").read_text())
    lengths = settings["sample_lengths"]
    config = make_config(arguments, folder, arguments.method, lengths)
    model = build_model(config, build_data(config).facts())
    optimizer = build_optimizer(config)
    state = replicate(
        create_state(run_keys(config.seed), model, build_plan(config, model), optimizer)
    )
    step = data_parallel(
        make_train_step(model, optimizer, ema_limit=config.ema.decay), donate_state=True
    )
    key = named_key(config.seed, "steps")
    batches = {n: shard_batch(dict(np.load(folder / f"batch_{n}.npz"))) for n in settings["shares"]}

    def train(batch):
        nonlocal state
        state, metrics = step(state, batch, key)
        return metrics

    def rounds(count):
        seconds = [[timed(lambda b=b: train(b)) for b in batches.values()] for _ in range(count)]
        medians = map(statistics.median, zip(*seconds, strict=True))
        return dict(zip(batches, medians, strict=True))

    first = rounds(1)
    rounds(1)
    seconds = rounds(arguments.steps)
    draw = make_sampler(model, model.frozen(), named_key(config.seed, "samples"), len(lengths))
    drawn = [timed(lambda: draw(ema_params_of(state))) for _ in range(arguments.draws + 1)]
    first["sample"] = drawn[0]
    sample = statistics.median(drawn[1:])
    return {"train": seconds, "sample": sample, "first": first, "version": f"jax {jax.__version__}"}


def check(arguments, folder):
    """Compare the outputs of both models with the weights and the input that PyTorch wrote."""
    example = dict(np.load(folder / "example.npz"))
    weights = {
        name.removeprefix("weights/"): value
        for name, value in example.items()
        if name.startswith("weights/")
    }
    config = make_config(arguments, folder, "dense")
    model = BiGRUDenoiser(
        **config.model.to_dict(),
        steps=config.diffusion.steps,
        representation=config.task.representation,
    )
    lengths = example["lengths"]
    eps = model.apply(chirodiff_from_torch(weights), example["noisy"], example["t"], lengths)
    valid = np.arange(eps.shape[1]) < lengths[:, None]
    return np.abs(eps - example["eps"])[valid].max()


def run(command):
    """Run a worker and return what it printed last, from JSON."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(settings, figures):
    """Return `{row: seconds of each round}`: of each bucket, of the mean step, of a drawing."""
    shares = settings["shares"]
    mean = [sum(f["train"][n] * share for n, share in shares.items()) for f in figures]
    buckets = {n: [f["train"][n] for f in figures] for n in shares}
    sample = [f["sample"] / len(settings["sample_lengths"]) for f in figures]
    return buckets | {"train": mean, "sample": sample}


def with_spread(values, digits, factor=1):
    """Return the median of the rounds, and behind it the least and the most if there are more."""
    median, least, most = (
        f"{factor * f(values):.{digits}f}" for f in (statistics.median, min, max)
    )
    return f"{median} ({least}-{most})" if len(values) > 1 else median


def parse():
    """Return the arguments of the command line."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.chirodiff")
    parser.add_argument("--rounds", type=count, default=3, help="processes of each library")
    parser.add_argument("--steps", type=count, default=5, help="timed steps of each bucket")
    parser.add_argument("--draws", type=count, default=2, help="timed draws of the samples")
    parser.add_argument("--threads", type=count, help="cores to run on; all")
    parser.add_argument("--batch", type=count, default=128, help="128: the published batch")
    parser.add_argument("--layers", type=count, default=3, help="3: the published GRU")
    parser.add_argument("--hidden", type=count, default=96, help="96: the published GRU")
    parser.add_argument("--diffusion-steps", type=count, default=100)
    parser.add_argument("--drawings", type=count, default=2000, help="of the training set")
    parser.add_argument("--buckets", type=count, default=5, help="padded lengths of batches")
    parser.add_argument("--samples", type=count, default=64, help="drawings of a draw")
    parser.add_argument("--method", choices=tuple(METHODS), default="dense")
    parser.add_argument("--level", type=level, default=0.5, help="sparsity; not with dense")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Measure in turn, each in a process of its own, and print a table."""
    arguments = parse()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if arguments.worker:
        print(json.dumps(measure(arguments)))
        return

    # The workers inherit the cores; both libraries start as many threads as there are.
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    python = shutil.which(arguments.torch_python)
    has_torch = python is not None and ask(python, "import torch") is not None
    if not has_torch:
        print(NO_TORCH.format(arguments.torch_python))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        settings = prepare(arguments, folder)
        torch_script = str(pathlib.Path(__file__).with_name("chirodiff_torch.py"))
        torch_command = [arguments.torch_python, torch_script, name, f"--threads={len(cores)}"]
        if arguments.check:
            if has_torch:
                subprocess.run([*torch_command, "--check"], check=True)
                largest = check(arguments, folder)
                print(f"largest difference of the outputs: {largest:.1e}")
                assert largest < 1e-4, "the two models differ"
            return
        ours = [sys.executable, "-m", "benchmarks.chirodiff", *sys.argv[1:]]
        commands = {"jax": [*ours, f"--worker={name}"]}
        if has_torch:
            commands |= {"torch": torch_command, "torch, padded": [*torch_command, "--padded"]}
        counts = [f"--steps={arguments.steps}", f"--draws={arguments.draws}"]
        figures = {worker: [] for worker in commands}
        for _ in range(arguments.rounds):
            for worker, command in commands.items():
                figures[worker].append(run([*command, *counts]))
                now = {key: with_spread(v, 4) for key, v in rows(settings, figures[worker]).items()}
                print(worker, now, "seconds", file=sys.stderr)
    report(arguments, settings, figures, len(cores))


def report(arguments, settings, figures, cores):
    """Print the table."""
    sparse = "dense" if arguments.method == "dense" else f"{arguments.method} {arguments.level}"
    versions = ", ".join(dict.fromkeys(f[0]["version"] for f in figures.values()))
    mean, low, high = settings["lengths"]
    table = Table(
        title=f"ChiroDiff, bidirectional GRU {settings['layers']} x {settings['hidden']}, T = "
        f"{settings['steps']}, {sparse}; {versions}, {cores} cores; {mean:.0f} points on average, "
        f"{low:.0f} to {high:.0f} in 90 %; ms a train step of {settings['batch_size']}, by padded "
        f"length, and a drawing of {arguments.samples}; median of {arguments.rounds} rounds "
        "(least-most)"
    )
    times = {worker: rows(settings, f) for worker, f in figures.items()}
    ours, *others = times
    for heading in ("", *times, *(f"{other} / {ours}" for other in others), "first call, s"):
        table.add_column(heading)
    first = {key: [f["first"][key] for f in figures[ours]] for key in figures[ours][0]["first"]}
    labels = {n: f"{n} points, {100 * p:.0f} %" for n, p in settings["shares"].items()}
    labels |= {"train": "mean step", "sample": "one drawing"}
    for key, label in labels.items():
        digits = 1 if key == "sample" else 0
        cells = [with_spread(t[key], digits, 1e3) for t in times.values()]
        for other in others:
            pairs = zip(times[other][key], times[ours][key], strict=True)
            cells.append(with_spread([theirs / own for theirs, own in pairs], 2))
        table.add_row(label, *cells, with_spread(first[key], 0) if key in first else "")
    Console(width=140).print(table)


if __name__ == "__main__":
    command_line.run(main)
