"""Costs of a sparse model: active parameters, forward FLOPs, training FLOPs.

FLOPs are theoretical, as in the literature: two for each multiply-add of a layer, times the layer's
density. They include neither the cost of masking nor the efficiency of the hardware.
"""

from sparsejax.sparsity.masks import summarize
from sparsejax.sparsity.methods import get_method
from sparsejax.types import LayerFlops, Masks, Params


def active_parameters(params: Params, masks: Masks) -> int:
    """Count the active parameters, including biases and other dense leaves.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      masks: masks of `params`.

    Returns:
      int.
    """
    return summarize(params, masks).total.active


def forward_flops(layer_flops: LayerFlops, masks: Masks) -> float:
    """Return the FLOPs of one forward pass with these masks.

    Args:
      layer_flops: `{path: FLOPs of the dense layer}`, paths joined by slashes as in
        `down/conv/kernel`; entries whose path has no mask (attention products) count in full.
      masks: masks; a 0-d mask counts as density one.

    Returns:
      float, in the units of `layer_flops`.

    Examples:
      >>> import jax.numpy as jnp
      >>> forward_flops({"kernel": 100.0, "attention": 8.0}, {"kernel": jnp.eye(2) > 0})
      58.0
    """
    density = {name: layer.density for name, layer in summarize(masks, masks).layers.items()}
    return float(sum(flops * density.get(name, 1.0) for name, flops in layer_flops.items()))


def training_flops(method: str, f_sparse: float, f_dense: float, update_interval: int) -> float:
    """Return the mean training FLOPs of one example in one step, by the paper's formula.

    Backward costs twice the forward pass. RigL needs the dense gradient of the weights at
    every topology update: (3 f_S dT + 2 f_S + f_D) / (dT + 1) (Evci et al. 2020,
    appendix H). Static and MagRan cost 3 f_S, dense 3 f_D.

    Args:
      method: name of a method: `dense`, `static`, `rigl`, `magran`, or one that you registered.
      f_sparse: FLOPs of one sparse forward pass (their mean over steps if the density changes).
      f_dense: FLOPs of one dense forward pass.
      update_interval: optimizer steps between topology updates (dT).

    Returns:
      float, in the units of the forward FLOPs.

    Raises:
      ValueError: unknown method.

    Examples:
      >>> training_flops("rigl", 1.0, 4.0, 99)
      3.03
    """
    of = get_method(method)
    if of.name == "dense":
        return 3.0 * f_dense
    if not of.uses_gradients:
        return 3.0 * f_sparse
    update = 2.0 * f_sparse + f_dense
    return (3.0 * f_sparse * update_interval + update) / (update_interval + 1)


def run_flops(method: str, f_sparse: float, f_dense: float, steps: int, updates: int) -> float:
    """Return the training FLOPs of one example over a run, from the updates actually made.

    Every step costs three sparse passes; each update that uses gradients (RigL's) adds a forward
    and a backward pass whose weight gradient is dense: 2 f_S + f_D.

    If a method changes density, sum this over the periods of constant density, each with the
    update that ends it.

    Args:
      method: name of a method: `dense`, `static`, `rigl`, `magran`, or one that you registered.
      f_sparse: FLOPs of one sparse forward pass.
      f_dense: FLOPs of one dense forward pass.
      steps: optimizer steps taken.
      updates: topology updates made, each counted as often as it has batches in its gradient.

    Returns:
      float: FLOPs of `steps` steps for a batch of one; multiply by the batch size.

    Raises:
      ValueError: unknown method.
    """
    of = get_method(method)
    if of.name == "dense":
        return 3.0 * f_dense * steps
    update = (2.0 * f_sparse + f_dense) if of.uses_gradients else 0.0
    return 3.0 * f_sparse * steps + update * updates
