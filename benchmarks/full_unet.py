"""One training step and one DDIM step of the published UNet, 274 M parameters, dense and RigL.

    python -m benchmarks.full_unet                       # batch 1, float32: two CPU cores, 24 GB
    python -m benchmarks.full_unet --dtype bfloat16 --batches 16,32,64,128 --steps 10

Each method and batch size runs in a process of its own, so that peak memory is its own. On an
accelerator the table adds images a second, and the share of the device's peak that the step
reaches: the peak is that of a large matrix product, measured here in the same dtype.
"""

import argparse
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count, counts, level
from sparsejax import command_line
from sparsejax.configuration import default_config, resolve
from sparsejax.families.denoising import denoising_model
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.sparsity.methods import METHODS
from sparsejax.training.keys import named_key, run_keys
from sparsejax.training.memory import peak_memory
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import make_sampler
from sparsejax.training.state import create_state, ema_params_of
from sparsejax.training.steps import make_topology_update, make_train_step


def timed(function):
    """Return what `function()` returns, once ready, and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - began


def measure(arguments):
    """Run one method and batch size; return a dictionary of figures."""
    config = default_config()
    config.batch_size = arguments.batch
    size = config.task.image_size = arguments.size
    config.model.model_channels = arguments.model_channels
    config.model.dtype = arguments.dtype
    config.model.remat = arguments.remat
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-6 * arguments.batch
    config.sparsity.method = arguments.method
    config.sparsity.level = arguments.sparsity
    config.sample.steps = 1
    config = resolve(config)
    model = denoising_model(config, size, "image")
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    state = replicate(create_state(run_keys(config.seed), model, plan, optimizer))
    flops = sum(model.layer_flops(state.params).values())

    latents = np.random.default_rng(0).normal(size=(arguments.batch, size, size, 3))
    batch = shard_batch({"image": latents.astype(np.float32)})
    key = named_key(0, "steps")
    step = data_parallel(
        make_train_step(model, optimizer, ema_limit=config.ema.decay), donate_state=True
    )
    figures = {"flops": flops}
    (state, _), figures["step_first"] = timed(lambda: step(state, batch, key))
    seconds = []
    for _ in range(arguments.steps):
        (state, metrics), taken = timed(lambda state=state: step(state, batch, key))
        seconds.append(taken)
    assert np.isfinite(float(metrics["loss"])), "the loss is not finite"
    figures["step"] = float(np.median(seconds))
    if plan.method.is_dynamic:
        update = data_parallel(
            make_topology_update(
                model,
                optimizer,
                plan.method,
                plan.drop_fraction,
            ),
            donate_state=True,
        )
        keys = (key, named_key(0, "topology"))
        (state, _), figures["update_first"] = timed(lambda: update(state, batch, keys))
        (state, _), figures["update"] = timed(lambda: update(state, batch, keys))
    figures["training_memory"] = peak_memory()
    draw = make_sampler(model, model.frozen(), named_key(0, "samples"), arguments.batch)
    _, figures["sample_first"] = timed(lambda: draw(ema_params_of(state)))
    _, figures["sample"] = timed(lambda: draw(ema_params_of(state)))
    if jax.default_backend() != "cpu":
        figures["peak_flops"] = matmul_peak(arguments.dtype)
    return figures


def matmul_peak(dtype, size=8192, repeats=20):
    """Return the FLOPs a second of a square matrix product."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    began = time.perf_counter()
    for _ in range(repeats):
        out = product(a)
    jax.block_until_ready(out)
    return 2 * size**3 * repeats / (time.perf_counter() - began)


def main():
    """Measure each method and batch in a process of its own, and print a table."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.full_unet")
    parser.add_argument("--methods", default="dense,rigl")
    parser.add_argument("--batches", type=counts, default="1", help="such as 16,32")
    parser.add_argument("--model-channels", type=count, default=224, help="224: the published UNet")
    parser.add_argument("--size", type=count, default=64, help="height and width of the latents")
    parser.add_argument("--sparsity", type=level, default=0.5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--steps", type=count, default=2, help="timed steps after the first")
    parser.add_argument("--method", choices=tuple(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=count, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments)))
        return

    table = Table(
        title=f"UNet of {arguments.model_channels} base channels, {arguments.size} x "
        f"{arguments.size}, {arguments.dtype}, remat {arguments.remat}, "
        f"S = {arguments.sparsity}"
    )
    headings = ("method", "batch", "compile + first step", "step", "images/s", "of matmul peak")
    for heading in (*headings, "update", "DDIM step", "peak memory, training"):
        table.add_column(heading)
    has_failed = False
    for method in arguments.methods.split(","):
        for batch in arguments.batches:
            command = [sys.executable, "-m", "benchmarks.full_unet", *sys.argv[1:]]
            command += [f"--method={method}", f"--batch={batch}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                has_failed = True
                table.add_row(method, str(batch), f"failed: exit status {done.returncode}")
                continue
            f = json.loads(done.stdout.splitlines()[-1])
            rate = batch / f["step"]
            share = 3 * f["flops"] * rate / f["peak_flops"] if "peak_flops" in f else None
            table.add_row(
                method,
                str(batch),
                f"{f['step_first']:.1f} s",
                f"{f['step']:.3f} s",
                f"{rate:.2f}",
                f"{share:.2f}" if share else "-",
                f"{f['update']:.2f} s" if "update" in f else "-",
                f"{f['sample']:.3f} s",
                f"{f['training_memory'] / 2**30:.1f} GiB",
            )
    Console(width=140).print(table)
    sys.exit(has_failed)


if __name__ == "__main__":
    command_line.run(main)
