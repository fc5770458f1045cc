"""DDIM sampling of UNets without what is inactive, against dense: time, bound by FLOPs, error.

    python -m benchmarks.sparse_sampling                               # 128 base channels
    python -m benchmarks.sparse_sampling --model-channels 256 --batch 2
    python -m benchmarks.sparse_sampling --model-channels 224 --block 32 --batch 2
    python -m benchmarks.sparse_sampling --dtype bfloat16 --size 64 --batch 32 --json FILE

All models draw in turn, from the same noise. `weight` is single weights: masked, computed with
zeros. The bound is the ratio of FLOPs; the error is the largest difference of the samples from
those of the masked dense network at the same weights, as a share of the largest value.
"""

import functools
import time

import jax
import numpy as np

from benchmarks import structured
from benchmarks.arguments import count
from benchmarks.timing import interleaved
from sparsejax import command_line
from sparsejax.compact.states import without_inactive
from sparsejax.families import build_model
from sparsejax.training.keys import named_key
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import make_sampler

MODELS = "weight:0.9,block:0.75,block:0.9,channel:0.5,channel:0.75"


def prepare(arguments, structure, level, params, dense_sampler):
    """Return a function that draws a batch, and a dictionary of figures.

    Args:
      arguments: of the command line.
      structure: `dense`, `weight`, `block` or `channel`.
      level: sparsity.
      params: of the dense network.
      dense_sampler: draws with any weights of the dense network; None to make it.
    """
    config = structured.make_config(
        arguments, structure, level, **{"sample.steps": arguments.ddim_steps}
    )
    model = build_model(config)
    masks = structured.draw_masks(config, model)
    params = jax.device_put(structured.mask(params, masks))
    figures = structured.costs(model, params, masks)
    network = build_plan(config, model).compact(masks)
    small_model, small = without_inactive(network, model, params, masks)
    figures["bytes"] = sum(x.nbytes for x in jax.tree.leaves(small))
    sampler = dense_sampler
    if small is not params or dense_sampler is None:
        sampler = make_sampler(
            small_model, small_model.frozen(), named_key(0, "samples"), arguments.batch
        )
    began = time.perf_counter()
    drawn = sampler(small)
    figures["first"] = time.perf_counter() - began
    if small is not params:
        expected = dense_sampler(params)
        figures["error"] = float(np.abs(drawn - expected).max() / np.abs(expected).max())
    return sampler, small, figures


def main():
    """Draw with all models in turn and print a table."""
    parser = structured.parser(__doc__, "benchmarks.sparse_sampling")
    parser.add_argument("--ddim-steps", type=count, default=5)
    arguments = parser.parse_args()
    try:
        names = [("dense", 0.0), *structured.models(arguments.models or MODELS)]
    except ValueError:
        parser.error(f"--models {arguments.models}: accepted: structure:S with commas between")
    functions, figures = {}, {}
    params = structured.draw_params(build_model(structured.make_config(arguments, *names[0])))
    dense_sampler = None
    for name in names:
        sampler, small, figures[name] = prepare(arguments, *name, params, dense_sampler)
        dense_sampler = dense_sampler or sampler
        functions[name] = functools.partial(sampler, small)
    seconds = interleaved(functions, arguments.rounds)
    title = f"DDIM, {arguments.ddim_steps} steps"
    structured.report(title, "weights", arguments, figures, seconds, arguments.ddim_steps)


if __name__ == "__main__":
    command_line.run(main)
