"""Memory of the training state, and time of an optimizer step: dense, masked, flat.

    python -m benchmarks.memory [--model-channels 128] [--sparsity 0.9] [--rounds 20] [--json PATH]

The UNet is that of Latent Diffusion, AdamW and EMA; of the published size (224 channels) bytes are
counted without allocating. A step is the whole of what follows the gradient: update of moments,
parameters and EMA. Masked and flat take the same steps; how far they end apart is shown too.
"""

import json
import math
import pathlib
import statistics
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count, level
from benchmarks.timing import interleaved, machine
from configs.latent_diffusion import get_config
from sparsejax import command_line
from sparsejax.configuration import resolve
from sparsejax.families.denoising import denoising_model
from sparsejax.sparsity.flat import static_counts
from sparsejax.sparsity.masks import dense_masks, target_active
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.training.plan import build_plan
from sparsejax.training.state import TrainState, ema_params_of, state_from
from sparsejax.training.steps import apply_gradients

PUBLISHED = 224
LIMIT = 0.9999
OPTIMIZER = sparse_updates(optax.adamw(2.4e-5, weight_decay=1e-2))


def unet(channels, sparsity):
    """Return the abstract params and the layers' sparsities."""
    config = get_config()
    config.model.model_channels = channels
    config.sparsity.level = sparsity
    config = resolve(config)
    model = denoising_model(config, 64, "image")
    params = jax.eval_shape(model.init, jax.random.key(0))
    return params, build_plan(config, model).sparsities


def state_bytes(channels, sparsity):
    """Count the bytes of each part of the three training states, allocating none.

    Returns:
      `{name: {part: bytes}}`.
    """
    params, sparsities = unet(channels, sparsity)
    counts = jax.tree.map(
        lambda p, s: target_active(p.size, s) if s else jnp.asarray(True), params, sparsities
    )
    masks = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape if s else (), bool), params, sparsities
    )
    kinds = {
        "dense": (jax.eval_shape(dense_masks, params), None),
        "masked": (masks, None),
        "flat": (masks, counts),
    }
    return {name: _parts(params, *kind) for name, kind in kinds.items()}


def _parts(params, masks, counts):
    state = jax.eval_shape(lambda p, m: state_from(p, m, OPTIMIZER, counts), params, masks)
    parts = {
        "params": state.params,
        "masks": state.masks,
        "moments": state.opt_state,
        "EMA": state.ema_params,
        "ever active": state.ever_active,
        "indices": state.indices,
    }
    sizes = {
        name: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for name, tree in parts.items()
    }
    return sizes | {"total": sum(sizes.values())}


def take_steps(channels, sparsity, rounds):
    """Time the optimizer step of the masked and the flat state.

    Returns:
      Dictionary: `seconds` of each, `ratio` (median of flat / masked) and `error`, the largest
      difference of a parameter or an EMA at the end, beside the largest parameter.
    """
    shapes, sparsities = unet(channels, sparsity)
    params, gradients = _normal(shapes, 0, 0.05), _normal(shapes, 1, 0.01)
    scores = _normal(shapes, 2, 1.0)
    masks = jax.tree.map(
        lambda x, s: jnp.asarray(x > NormalDist().inv_cdf(s) if s else True), scores, sparsities
    )
    del scores
    counts = {"masked": None, "flat": static_counts(masks)}
    states = {name: state_from(params, masks, OPTIMIZER, c) for name, c in counts.items()}

    def stepper(name):
        def step(moving, gradients, still):
            state = apply_gradients(OPTIMIZER, still._replace(**moving), gradients, LIMIT)
            return {field: getattr(state, field) for field in moving}

        compiled = jax.jit(step, donate_argnums=0)

        def run():
            fields = states[name]._asdict()
            moving = {f: fields.pop(f) for f in ("step", "params", "opt_state", "ema_params")}
            still = TrainState(**fields, **dict.fromkeys(moving))
            moving = jax.block_until_ready(compiled(moving, gradients, still))
            states[name] = still._replace(**moving)

        return run

    seconds = interleaved({name: stepper(name) for name in counts}, rounds)
    leaves = jax.tree.leaves(params)
    pairs = zip(
        *(jax.tree.leaves((state.params, ema_params_of(state))) for state in states.values()),
        strict=True,
    )
    return {
        "weights": sum(x.size for x in leaves),
        "seconds": seconds,
        "ratio": statistics.median(
            p / m for p, m in zip(seconds["flat"], seconds["masked"], strict=True)
        ),
        "error": max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs),
        "largest": max(float(jnp.max(jnp.abs(x))) for x in leaves),
    }


def _normal(shapes, seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.standard_normal(x.shape, np.float32)), shapes
    )


def main():
    """Count, time, and print a table."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.memory")
    parser.add_argument("--model-channels", type=count, default=128)
    parser.add_argument("--sparsity", type=level, default=0.9)
    parser.add_argument("--rounds", type=count, default=20)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    channels, sparsity = arguments.model_channels, arguments.sparsity
    figures = {
        "channels": channels,
        "sparsity": sparsity,
        "bytes": {c: state_bytes(c, sparsity) for c in dict.fromkeys((channels, PUBLISHED))},
        "step": take_steps(channels, sparsity, arguments.rounds),
        "machine": machine(),
    }
    step = figures["step"]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")

    table = Table(
        title=f"Training state in MiB, AdamW and EMA, S = {sparsity}; optimizer step, "
        f"{figures['machine']['device']}",
        caption=f"flat / masked step: {step['ratio']:.3f} (median of {arguments.rounds} rounds); "
        f"largest difference {step['error']:.0e}, of parameters up to {step['largest']:.1f}",
    )
    parts = list(figures["bytes"][channels]["dense"])
    for heading in ("channels", "", *parts, "of dense", "step, ms"):
        table.add_column(heading, justify="right")
    for c, kinds in figures["bytes"].items():
        for name, sizes in kinds.items():
            timed = c == channels and name in step["seconds"]
            table.add_row(
                str(c),
                name,
                *(f"{size / 2**20:,.1f}" for size in sizes.values()),
                f"{sizes['total'] / kinds['dense']['total']:.3f}",
                f"{1e3 * statistics.median(step['seconds'][name]):.0f}" if timed else "-",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    command_line.run(main)
