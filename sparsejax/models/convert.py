"""Published weights in PyTorch's layout to parameter trees.

Works on flat mappings of names to numpy arrays; torch itself is not needed.
"""

import numpy as np


def unet_from_torch(state_dict):
    """Convert the state dict of CompVis's `UNetModel`.

    Args:
      state_dict: `{name: array}` in PyTorch's layout: convolutions OIHW, linear [out, in],
        1x1 attention convolutions [out, in, 1].

    Returns:
      `params` of `models.unet.UNet`: convolutions HWIO, dense [in, out].

    Raises:
      ValueError: an entry is no weight or bias.

    Example:
      >>> params = unet_from_torch({"out.2.weight": np.zeros((3, 32, 3, 3))})
      >>> params["out_2"]["kernel"].shape
      (3, 3, 32, 3)
    """
    params = {}
    for name, array in state_dict.items():
        *modules, kind = name.split(".")
        if kind not in ("weight", "bias"):
            raise ValueError(f"state dict entry {name!r}; accepted: names ending in weight or bias")
        node = params
        for module in _join_numbers(modules):
            node = node.setdefault(module, {})
        leaf, value = _convert_leaf(kind, np.asarray(array))
        node[leaf] = value
    return params


def _join_numbers(modules):
    """Join numbers to the name before them: [in_layers, 2] -> [in_layers_2]."""
    joined = []
    for module in modules:
        if module.isdigit() and joined:
            joined[-1] += f"_{module}"
        else:
            joined.append(module)
    return joined


def _convert_leaf(kind, array):
    match kind, array.ndim:
        case "weight", 4:
            return "kernel", array.transpose(2, 3, 1, 0)
        case "weight", 3:
            return "kernel", array[:, :, 0].T
        case "weight", 2:
            return "kernel", array.T
        case "weight", 1:
            return "scale", array
    return "bias", array
