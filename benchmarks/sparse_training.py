"""Train steps of Static-DM through networks without what is inactive, against dense.

    python -m benchmarks.sparse_training
    python -m benchmarks.sparse_training --dtype bfloat16 --size 64 --batch 32 --json FILE

Forward and backward pass, AdamW and EMA, this project's own step under pmap; all models take
steps in turn. `weight` is single weights: masked, computed with zeros. The bound is the ratio of
FLOPs; the error is the largest relative difference of loss and gradient norm, over the first two
steps, from those of the masked dense network.
"""

import time

import jax
import numpy as np

from benchmarks import structured
from benchmarks.timing import interleaved
from sparsejax.compact.states import compact_model, shrink_state
from sparsejax.families import build_model
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import named_key, state_from
from sparsejax.training.steps import make_train_step

MODELS = "weight:0.9,block:0.75,block:0.9,channel:0.5"


def make_step(config, model):
    """Return the compiled train step."""
    optimizer = build_optimizer(config)
    return data_parallel(make_train_step(model, optimizer, ema_limit=0.9999), donate_state=True)


def make_run(step, state, arguments):
    """Return a function that takes a step and returns its metrics, and first figures."""
    state = replicate(state)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    latents = np.random.default_rng(1).standard_normal(shape, np.float32)
    batch, key = shard_batch({"image": latents}), named_key(0, "steps")

    def run():
        nonlocal state
        state, metrics = step(state, batch, key)
        return jax.block_until_ready(metrics)

    began = time.perf_counter()
    first = run()
    figures = {"first": time.perf_counter() - began}
    figures["metrics"] = [[float(m["loss"]), float(m["grad_norm"])] for m in (first, run())]
    figures["bytes"] = sum(x.nbytes for x in jax.tree.leaves(state))
    return run, figures


def prepare(arguments, structure, level, params, masked_step):
    """Return a function that takes a step of one model, and figures."""
    config = structured.make_config(arguments, structure, level)
    model = build_model(config)
    masks = structured.draw_masks(config, model)
    params = structured.mask(params, masks)
    costs = structured.costs(model, params, masks)
    optimizer = build_optimizer(config)
    if structure == "dense":
        state = state_from(params, jax.tree.map(jax.numpy.asarray, masks), optimizer)
        run, figures = make_run(make_step(config, model), state, arguments)
        return run, costs | figures
    # Masks of full shape everywhere: one program for all masked networks.
    full = jax.tree.map(lambda m, p: jax.numpy.broadcast_to(m, p.shape), masks, params)
    run, expected = make_run(masked_step, state_from(params, full, optimizer), arguments)
    if structure == "weight":
        return run, costs | expected
    del run, full
    network = build_plan(config, model).compact(masks)
    state = state_from(params, jax.tree.map(jax.numpy.asarray, masks), optimizer)
    indices = jax.jit(network.trees.indices)(masks)
    state, model = shrink_state(network, state), compact_model(network, model, indices)
    run, figures = make_run(make_step(config, model), state, arguments)
    wrong = np.max(np.abs(np.divide(figures["metrics"], expected["metrics"]) - 1))
    return run, costs | figures | {"error": float(wrong)}


def main():
    """Take steps of all models in turn and print a table."""
    arguments = structured.parser(__doc__).parse_args()
    names = [("dense", 0.0), *structured.models(arguments.models or MODELS)]
    dense = structured.make_config(arguments, *names[0])
    model = build_model(dense)
    params, masked_step = structured.draw_params(model), make_step(dense, model)
    functions, figures = {}, {}
    for name in names:
        functions[name], figures[name] = prepare(arguments, *name, params, masked_step)
    seconds = interleaved(functions, arguments.rounds)
    structured.report("Train step", "state", arguments, figures, seconds)


if __name__ == "__main__":
    main()
