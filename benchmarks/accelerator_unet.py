"""Jobs of benchmarks/accelerator.py on the whole UNet: steps, sampling, topology updates.

See benchmarks/accelerator_layers.py for what a job is. Everything that is compared is timed in turn
with the dense network, which is compiled once.
"""

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import structured
from benchmarks.accelerator_layers import (
    as_text,
    block,
    multiples,
    of_peak,
    time_in_turn,
)
from sparsejax.compact.states import shrink_state, without_inactive
from sparsejax.families import build_model
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.training.keys import named_key
from sparsejax.training.memory import peak_memory
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import make_sampler
from sparsejax.training.state import state_from
from sparsejax.training.steps import make_topology_update, make_train_step

DENSE = ("dense", 0.0)


class Network(NamedTuple):
    """A network to time; `params` are masked host arrays, `compact` is None if it is masked."""

    config: object
    model: object
    plan: object
    params: object
    masks: object
    compact: object


def on_host():
    """Compile and run on the CPU; accelerators compile many small operations slowly."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def make_config(settings, structure, sparsity):
    """Return the resolved config of a network trained with RigL."""
    size = block(settings) if structure == "block" else 64
    arguments = argparse.Namespace(
        **settings._asdict(), block=size, distribution="uniform", multiples=multiples(settings)
    )
    changes = {"sample.steps": 2 if settings.tiny else 10}
    if structure != "dense":
        changes["sparsity.method"] = "rigl"
    if structure == "block":
        changes["sparsity.fan_in"] = True
    if settings.tiny:
        changes["model.num_res_blocks"] = 1
    return structured.make_config(arguments, structure, sparsity, **changes)


@functools.cache
def whole_params(settings):
    """Return the params of the dense network, host arrays."""
    with on_host():
        return structured.draw_params(build_model(make_config(settings, *DENSE)))


def build(settings, structure, sparsity):
    """Return the Network of a structure."""
    config = make_config(settings, structure, sparsity)
    model = build_model(config)
    with on_host():
        plan = build_plan(config, model)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        draw = jax.jit(lambda key: plan.method.init(key, shapes, plan.sparsities))
        masks = jax.device_get(draw(jax.random.key(1)))
        ours = plan.compact(masks) if structure in ("block", "channel") else None
    params = structured.mask(whole_params(settings), masks)
    return Network(config, model, plan, params, masks, ours)


def repeating(ours, function, keys):
    """Return a function that changes a state of a Network again and again; returns metrics."""
    optimizer = build_optimizer(ours.config)
    with on_host():
        arrays = jax.tree.map(jnp.asarray, (ours.params, ours.masks))
        state = state_from(*arrays, optimizer)
        state = shrink_state(ours.compact, state) if ours.compact else state
        state = jax.device_get(state)
    size = ours.config.task.image_size
    latents = np.random.default_rng(1).standard_normal(
        (ours.config.batch_size, size, size, 3), np.float32
    )
    state, batch = replicate(state), jax.device_put(shard_batch({"image": latents}))
    compiled = data_parallel(function(optimizer), donate_state=True)

    def run():
        nonlocal state
        state, metrics = compiled(state, batch, keys)
        return metrics

    return run


def train_steps(ours):
    """Return a function that takes a train step of a Network and returns its metrics."""

    def function(optimizer):
        limit = ours.config.ema.decay
        return make_train_step(ours.model, optimizer, ema_limit=limit, network=ours.compact)

    return repeating(ours, function, named_key(0, "steps"))


def updates(ours):
    """Return a function that changes the topology of a Network and returns metrics."""

    def function(optimizer):
        return make_topology_update(
            ours.model,
            optimizer,
            ours.plan.method,
            ours.plan.drop_fraction,
            density=jax.tree.map(lambda sparsity: 1.0 - sparsity, ours.plan.sparsities),
            trees=ours.compact.trees if ours.compact else None,
        )

    return repeating(ours, function, (named_key(0, "steps"), named_key(0, "topology")))


@functools.cache
def dense_steps(settings):
    """Return the function that takes dense train steps, kept for all jobs."""
    return train_steps(build(settings, *DENSE))


def check_loss(metrics):
    """Raise FloatingPointError if the loss of a step isn't finite."""
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")


def dense_step(settings, results):
    """The dense train step: images a second, and its share of the matrix peak."""
    run = dense_steps(settings)
    figures = time_in_turn(settings, {"dense": run}, budget=1)["dense"]
    check_loss(run())
    model = build_model(make_config(settings, *DENSE))
    flops = sum(model.layer_flops(jax.eval_shape(model.init, jax.random.key(0))).values())
    rate = settings.batch / figures["seconds"]
    share = of_peak(3 * flops * rate / jax.device_count(), results)
    text = f"{1e3 * figures['seconds']:.4g} ms, {rate:.4g} images/s, {as_text(share)}"
    return figures | {
        "images_per_second": rate,
        "forward_flops_per_image": flops,
        "share": share,
        "peak_memory": peak_memory(),
        "summary": f"{text}, compiled in {figures['compile']:.0f} s",
    }


def described(ours, figures, name):
    """Return the figures of a network that was timed in turn with the dense one."""
    costs = structured.costs(ours.model, ours.params, ours.masks)
    f = figures[name]
    if "failed" in f:
        raise RuntimeError(f["failed"])
    text = f"{1e3 * f['seconds']:.4g} ms, {f['ratio']:.2f} times dense (bound {costs['bound']:.2f})"
    return {
        "figures": figures,
        **costs,
        "summary": f"{text}, compiled in {f['compile']:.0f} s",
    }


def compact_step(structure, sparsity, settings, results):
    """The train step of a compact network, in turn with the dense one."""
    del results
    ours = build(settings, structure, sparsity)
    run = train_steps(ours)
    figures = time_in_turn(settings, {"dense": dense_steps(settings), "compact": run}, budget=1)
    result = described(ours, figures, "compact")
    check_loss(run())
    return result


def draws(ours, settings):
    """Return a function that draws a batch with DDIM."""
    model, params = ours.model, ours.params
    with on_host():
        model, params = without_inactive(ours.compact, model, params, ours.masks)
        params = jax.device_get(params)
    sampler = make_sampler(model, model.frozen(), named_key(0, "samples"), settings.batch)
    return functools.partial(sampler, replicate(params))


@functools.cache
def dense_draws(settings):
    """Return the function that samples with the dense network, kept for all jobs."""
    return draws(build(settings, *DENSE), settings)


def sampling(structure, sparsity, settings, results):
    """DDIM sampling with a compact network, in turn with the dense one; seconds are of a draw."""
    del results
    ours = build(settings, structure, sparsity)
    runs = {"dense": dense_draws(settings), "compact": draws(ours, settings)}
    result = described(ours, time_in_turn(settings, runs), "compact")
    return result | {"ddim_steps": ours.config.sample.steps}


def topology(structure, sparsity, settings, results):
    """RigL's topology update, in turn with dense train steps."""
    del results
    ours = build(settings, structure, sparsity)
    runs = {"dense step": dense_steps(settings), "update": updates(ours)}
    figures = time_in_turn(settings, runs, budget=1)
    result = described(ours, figures, "update")
    f = figures["update"]
    text = f"{1e3 * f['seconds']:.4g} ms, as long as {1 / f['ratio']:.2f} dense steps"
    return result | {"summary": f"{text}, compiled in {f['compile']:.0f} s"}
