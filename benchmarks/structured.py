"""The UNets that the benchmarks of structured sparsity run: config, model, weights and masks."""

import argparse
import json
import pathlib
import statistics

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import count, counts
from benchmarks.timing import machine
from sparsejax import command_line
from sparsejax.configuration import default_config, resolve
from sparsejax.parallel import replicate
from sparsejax.sparsity.costs import active_parameters, forward_flops
from sparsejax.training.plan import build_plan


def block_size(text):
    """Return the size of a block: `64` is a number, `16x64` a pair of inputs and outputs."""
    sides = tuple(map(count, text.split("x")))
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"is {text!r}; accepted: 64, or 16x64: inputs x outputs")
    return sides[0] if len(sides) == 1 else sides


def block_word(size):
    """Return the size of a block as it is written."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def parser(description, module):
    """Return the arguments that these benchmarks share, for the one named `module`."""
    parser = command_line.Parser(description, prog=f"python -m {module}")
    parser.add_argument("--model-channels", type=count, default=128)
    parser.add_argument(
        "--multiples",
        type=counts,
        default=[1, 2, 3, 4],
        help="widths of the levels, in base channels; all but the first have attention",
    )
    parser.add_argument("--size", type=count, default=32, help="height and width of the latents")
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--block", type=block_size, default=64, help="channels, or 16x64: in x out")
    parser.add_argument("--distribution", default="uniform", help="over layers, of blocks")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--models", default="", help="structure:sparsity, with commas between")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--json", help="write the figures there")
    return parser


def models(text):
    """Return `[(structure, level), ...]` of words such as block:0.9."""
    pairs = (word.split(":") for word in text.split(","))
    return [(structure, float(level)) for structure, level in pairs]


def make_config(arguments, structure, level, **changes):
    """Return the resolved config of one model; `dense` is a structure here."""
    config = default_config()
    config.batch_size = arguments.batch
    config.task.image_size = arguments.size
    config.model.model_channels = arguments.model_channels
    config.model.channel_mult = tuple(arguments.multiples)
    levels = len(arguments.multiples)
    config.model.attention_resolutions = tuple(2**level for level in range(1, levels))[::-1]
    config.model.dtype = arguments.dtype
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-2
    config.optimizer.learning_rate = 1e-5
    config.sparsity.method = "dense" if structure == "dense" else "static"
    config.sparsity.structure = "weight" if structure == "dense" else structure
    config.sparsity.level = level
    config.sparsity.distribution = arguments.distribution
    config.sparsity.block_size = arguments.block
    config.sparsity.fan_in = False
    config.update_from_flattened_dict(changes)
    return resolve(config)


def draw_params(model):
    """Return params, host arrays; no weight of a kernel is zero by initialisation."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(path, x):
        if len(x.shape) >= 2:
            fan_in = np.prod(x.shape[:-1])
            return rng.standard_normal(x.shape, np.float32) / np.sqrt(fan_in, dtype=np.float32)
        is_scale = path[-1].key == "scale"
        return np.full(x.shape, float(is_scale), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, params)


def draw_masks(config, model):
    """Return the masks of a model, host arrays."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    plan = build_plan(config, model)
    return jax.device_get(plan.method.init(jax.random.key(1), params, plan.sparsities))


def mask(params, masks):
    """Return params with zeros where masks are False, host arrays."""
    return jax.tree.map(lambda param, mask: np.where(mask, param, np.float32(0)), params, masks)


def placed(make):
    """Return the state that `make()` returns, on all devices; no two copies of it exist at once."""
    leaves, treedef = jax.tree.flatten(make())
    for i in range(len(leaves)):
        leaves[i] = replicate(leaves[i])
    return treedef.unflatten(leaves)


def costs(model, params, masks):
    """Return density, FLOPs, and how many times fewer FLOPs than dense that is."""
    flops = model.layer_flops(params)
    dense, sparse = sum(flops.values()), forward_flops(flops, masks)
    total = sum(x.size for x in jax.tree.leaves(params))
    return {
        "parameters": active_parameters(params, masks),
        "density": active_parameters(params, masks) / total,
        "forward_flops": sparse,
        "bound": dense / sparse,
    }


def report(title, held, arguments, figures, seconds, steps=1):
    """Print the table of a benchmark, and write its figures where `--json` says.

    Args:
      title: what was timed.
      held: heading of the bytes that a model holds.
      arguments: of the command line.
      figures: `{(structure, level): dictionary}` of `costs`, `bytes` and `first`, the seconds of
        the first call; an `error` where there is one. Gets `seconds` and `speedup`.
      seconds: `{(structure, level): [seconds of each round]}`; the first is dense.
      steps: in a round.
    """
    table = Table(
        title=f"{title}: {arguments.model_channels} base channels, {arguments.batch} x "
        f"{arguments.size} x {arguments.size}, blocks of {block_word(arguments.block)}, "
        f"{arguments.distribution}, {arguments.dtype}, {jax.devices()[0].device_kind}"
    )
    headings = ("structure", "S", "density", "ms a step", "times dense", "bound", "of bound")
    for heading in (*headings, "error", held, "compile + first"):
        table.add_column(heading, justify="right")
    dense = next(iter(seconds.values()))
    for (structure, level), f in figures.items():
        ours = seconds[structure, level]
        f["seconds"] = statistics.median(ours) / steps
        f["speedup"] = statistics.median(a / b for a, b in zip(dense, ours, strict=True))
        table.add_row(
            structure,
            f"{level:g}",
            f"{f['density']:.3f}",
            f"{1e3 * f['seconds']:.0f}",
            f"{f['speedup']:.2f}",
            f"{f['bound']:.2f}",
            f"{f['speedup'] / f['bound']:.2f}",
            f"{f['error']:.1e}" if "error" in f else "",
            f"{f['bytes'] / 1e6:.0f} MB",
            f"{f['first']:.0f} s",
        )
    Console(width=120).print(table)
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        rows = [{"structure": name[0], "level": name[1]} | f for name, f in figures.items()]
        result = {"settings": settings, "machine": machine(), "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
