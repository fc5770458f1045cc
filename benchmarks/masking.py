"""What masks cost in the train step of the digits UNet: dense against masked, interleaved.

    python -m benchmarks.masking [--rounds 30] [--batch 64]

Both run this project's own train step under pmap; they differ in method alone.
"""

import os
import statistics
import time

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count
from configs.digits import get_config
from sparsejax import command_line
from sparsejax.configuration import resolve
from sparsejax.families import build_data, build_model
from sparsejax.parallel import data_parallel, shard_batch
from sparsejax.training.keys import named_key, run_keys
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import create_state
from sparsejax.training.steps import make_train_step

STEPS = 5


def prepare(method, batch):
    """Return a function that takes STEPS train steps and waits for them."""
    config = get_config(method)
    config.batch_size = batch
    config = resolve(config)
    model, optimizer = build_model(config), build_optimizer(config)
    step = data_parallel(make_train_step(model, optimizer, ema_limit=0.99), donate_state=True)
    state = create_state(run_keys(config.seed), model, build_plan(config, model), optimizer)
    examples = shard_batch(next(build_data(config).batches(0, 1)))
    key = named_key(0, "steps")

    def run():
        nonlocal state
        for _ in range(STEPS):
            state, _ = step(state, examples, key)
        jax.block_until_ready(state)

    run()
    return run


def main():
    """Time both in turn and print a table."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.masking")
    parser.add_argument("--rounds", type=count, default=30)
    parser.add_argument("--batch", type=count, default=64)
    arguments = parser.parse_args()
    runs = {method: prepare(method, arguments.batch) for method in ("dense", "rigl")}
    seconds = {method: [] for method in runs}
    for i in range(arguments.rounds):
        for method in list(runs)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            runs[method]()
            seconds[method].append((time.perf_counter() - began) / STEPS)

    table = Table(
        title=f"Train step, batch {arguments.batch}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}"
    )
    for heading in ("", "median ms", "min ms", "max ms"):
        table.add_column(heading)
    for name, label in (("dense", "dense"), ("rigl", "masked, S = 0.75")):
        cells = (f"{1e3 * f(seconds[name]):.1f}" for f in (statistics.median, min, max))
        table.add_row(label, *cells)
    ratios = [m / d for m, d in zip(seconds["rigl"], seconds["dense"], strict=True)]
    cells = (f"{f(ratios):.3f}" for f in (statistics.median, min, max))
    table.add_row("masked / dense", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    command_line.run(main)
