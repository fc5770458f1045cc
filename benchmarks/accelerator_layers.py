"""Jobs of benchmarks/accelerator.py on single layers: peaks, and the forms of a product of blocks.

A job is `job(settings, results) -> result`: `results` are those of earlier jobs, by name; a result
is a dictionary whose `summary` is its line in the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compare
from sparsejax.compact.products import by_columns, by_patches
from sparsejax.models.convolutions import convolve
from sparsejax.models.layers import QKVAttention
from sparsejax.models.platform import has_fused_attention
from sparsejax.sparsity.blocks import block_of, fan_in_of

NUMBERS = ("NHWC", "HWIO", "NHWC")
PADS = ((1, 1), (1, 1))


def block(settings):
    """Return the size of blocks, (inputs, outputs)."""
    return (4, 16) if settings.tiny else (32, 112)


def multiples(settings):
    """Return the widths of the UNet's levels, in base channels."""
    return (1,) if settings.tiny else (1, 2, 3, 4)


def time_in_turn(settings, functions, budget=0.3):
    """Return `timing.compare` of functions, once only at tiny sizes."""
    return compare(functions, *((1, 0) if settings.tiny else (5, budget)))


def normal(seed, shape, dtype):
    """Return a random array on the device; zeros would take less power."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def of_peak(flops_per_second, results):
    """Return the share of the measured matrix peak, or None without one."""
    return flops_per_second / results["matrix peak"]["flops"] if "matrix peak" in results else None


def as_text(share):
    """Return a share of the peak for the table."""
    return "of unknown peak" if share is None else f"{share:.2f} of the peak"


def matrix_peak(settings, results):
    """FLOPs a second of square matrix products: the best of several sizes."""
    del results
    sizes = {}
    for size in (256,) if settings.tiny else (4096, 8192, 16384):
        a, b = (normal(seed, (size, size), settings.dtype) for seed in (0, 1))
        product = functools.partial(jax.jit(jnp.matmul), a, b)
        sizes[size] = (
            2 * size**3 / time_in_turn(settings, {"product": product})["product"]["seconds"]
        )
    peak = max(sizes.values())
    return {"flops": peak, "sizes": sizes, "summary": f"{peak / 1e12:.3g} TFLOP/s"}


def with_gradients(layer):
    """Return a compiled function of (x, kernel, cotangent): output and both gradients."""

    def run(x, kernel, cotangent):
        y, pull_back = jax.vjp(layer, x, kernel)
        return y, pull_back(cotangent)

    return jax.jit(run)


def convolution(x, kernel):
    """Run a 3x3 convolution as the UNet does."""
    return convolve(x, kernel, (1, 1), list(PADS), dimension_numbers=NUMBERS)


def convolutions(settings, results):
    """3x3 convolutions at the UNet's widths, forward and with their gradients."""
    rows = []
    for level, multiple in enumerate(multiples(settings)):
        width, side = multiple * settings.model_channels, settings.size >> level
        x = normal(0, (settings.batch, side, side, width), settings.dtype)
        kernel = normal(1, (3, 3, width, width), settings.dtype)
        runs = {
            "forward": functools.partial(jax.jit(convolution), x, kernel),
            "both": functools.partial(with_gradients(convolution), x, kernel, x),
        }
        flops = 2 * x.size * kernel.shape[-1] * 9
        figures = time_in_turn(settings, runs)
        row = {"width": width, "side": side}
        for name, passes in (("forward", 1), ("both", 3)):
            rate = passes * flops / figures[name]["seconds"]
            row[name] = figures[name] | {"flops": rate, "share": of_peak(rate, results)}
        rows.append(row)
    texts = [f"{row['width']}: {as_text(row['both']['share'])}" for row in rows]
    return {"rows": rows, "summary": "with gradients, " + ", ".join(texts)}


def grouped(x, kernel, index, strides=(1, 1), padding=((0, 0), (0, 0))):
    """Run the product as one gather and one grouped convolution."""
    if kernel.ndim == 3:
        y = grouped(x.reshape(-1, 1, 1, x.shape[-1]), kernel[:, None, None], index)
        return y.reshape(*x.shape[:-1], -1)
    (count, active), (_, *taps, width, outputs) = index.shape, kernel.shape
    blocks = x.reshape(*x.shape[:-1], -1, width // active)
    taken = jnp.take(blocks, index.reshape(-1), axis=-2, mode="clip")
    return jax.lax.conv_general_dilated(
        taken.reshape(*x.shape[:-1], count * width),
        jnp.moveaxis(kernel, 0, -2).reshape(*taps, width, count * outputs),
        strides,
        padding,
        dimension_numbers=NUMBERS,
        feature_group_count=count,
    )


FORMS = {
    "loop of convolutions": by_columns,
    "product of patches": by_patches,
    "grouped convolution": grouped,
}


def expand(kernel, index, width):
    """Return the kernel [3, 3, width, outputs] of blocks, host array."""
    (count, active), (*_, inputs, outputs) = index.shape, kernel.shape
    inputs //= active
    full = np.zeros((*kernel.shape[1:3], width, count * outputs), np.float32)
    for j, row in enumerate(index):
        for place, i in enumerate(row):
            part = kernel[j, :, :, place * inputs : (place + 1) * inputs]
            full[:, :, i * inputs : (i + 1) * inputs, j * outputs : (j + 1) * outputs] = part
    return full


def block_layers(sparsity, settings, results):
    """3x3 layers of the first and the last level by each form, against dense convolutions."""
    del results
    places = sorted({0, len(multiples(settings)) - 1})
    layers = [
        block_layer(settings, sparsity, multiples(settings)[place], settings.size >> place)
        for place in places
    ]
    texts = [f"{layer['width']}: {fastest(layer['both'])}" for layer in layers]
    return {"layers": layers, "summary": "with gradients, times dense: " + ", ".join(texts)}


def fastest(figures):
    """Return the name of the fastest form and how many times as fast as dense it is."""
    ratios = {name: figures[name].get("ratio", 0) for name in FORMS}
    name = max(ratios, key=ratios.get)
    return f"{name} {ratios[name]:.2f}"


def block_layer(settings, sparsity, multiple, side):
    """Return the figures of a layer by each form, forward and with gradients."""
    width = multiple * settings.model_channels
    shape, rng = (3, 3, width, width), np.random.default_rng(2)
    active = fan_in_of(shape, block(settings), sparsity)
    if active is None:
        raise ValueError(f"{width} channels don't divide into blocks of {block(settings)}")
    inputs, outputs = block_of(shape, block(settings))
    pick = functools.partial(rng.choice, width // inputs, active, replace=False)
    index = np.stack([np.sort(pick()) for _ in range(width // outputs)]).astype(np.int32)
    kernel = rng.standard_normal((len(index), 3, 3, active * inputs, outputs), np.float32)
    full = jnp.asarray(expand(kernel, index, width), settings.dtype)
    x = normal(0, (settings.batch, side, side, width), settings.dtype)
    kernel, index = jnp.asarray(kernel, settings.dtype), jnp.asarray(index)

    def of_kernel(form):
        return lambda x, kernel, index, cotangent: with_gradients(
            lambda x, kernel: form(x, kernel, index, (1, 1), PADS)
        )(x, kernel, cotangent)

    forward = {"dense": functools.partial(jax.jit(convolution), x, full)}
    both = {"dense": functools.partial(with_gradients(convolution), x, full, x)}
    for name, form in FORMS.items():
        run = functools.partial(form, strides=(1, 1), padding=PADS)
        forward[name] = functools.partial(jax.jit(run), x, kernel, index)
        both[name] = functools.partial(jax.jit(of_kernel(form)), x, kernel, index, x)
    figures = {
        "forward": time_in_turn(settings, forward),
        "both": time_in_turn(settings, both),
    }
    outputs = {
        name: run() for name, run in forward.items() if "seconds" in figures["forward"][name]
    }
    expected = outputs.pop("dense")
    differences = {name: difference(y, expected) for name, y in outputs.items()}
    density = active * inputs / width
    return {"width": width, "side": side, "density": density, "differences": differences} | figures


def difference(y, expected):
    """Return the largest difference of two arrays, relative to the largest number."""
    y, expected = (np.asarray(a.astype(jnp.float32)) for a in (y, expected))
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def attend(qkv):
    """Run attention as the UNet does."""
    return QKVAttention().apply({}, qkv)


def attend_in_memory(qkv):
    """Run attention with its weights in memory, as XLA compiles it."""
    q, k, v = (qkv[..., i, :] for i in range(3))
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def attention(settings, results):
    """The UNet's largest attention layer with its gradient, against one that stores its weights."""
    del results
    heads, side = 2 * settings.model_channels // 32, settings.size // 2
    qkv = normal(0, (settings.batch, side * side, heads, 3, 32), settings.dtype)
    cotangent = normal(1, (*qkv.shape[:3], 32), settings.dtype)

    def with_gradient(function):
        def run(qkv, cotangent):
            y, pull_back = jax.vjp(function, qkv)
            return y, *pull_back(cotangent)

        return functools.partial(jax.jit(run), qkv, cotangent)

    runs = {"in memory": with_gradient(attend_in_memory), "here": with_gradient(attend)}
    figures = time_in_turn(settings, runs)
    pairs = zip(runs["here"](), runs["in memory"](), strict=True)
    names = ("output", "gradient")
    differences = {name: difference(*pair) for name, pair in zip(names, pairs, strict=True)}
    f, fused = figures["here"], has_fused_attention(qkv.dtype, 32)
    text = f"{1e3 * f['seconds']:.3g} ms, {f['ratio']:.2f} times as fast as with weights in memory"
    return {
        "figures": figures,
        "differences": differences,
        "fused": fused,
        "summary": text if fused else f"{text} (not fused here)",
    }
