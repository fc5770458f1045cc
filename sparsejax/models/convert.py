"""Convert weights between PyTorch's layout and parameter trees.

Works on flat mappings of names to numpy arrays, without torch. The names are those of CompVis
Latent Diffusion, so the UNet and the autoencoders share one rule.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from sparsejax.types import NumpyArray, Params, PyTree, StateDict

# Attention in CompVis's UNet uses 1x1 Conv1d layers, whose weights have a third axis.
_CONV1D = ("qkv", "proj_out")
# Tables: a module in PyTorch, and in an autoencoder a leaf here.
_TABLES = ("embedding", "label_emb")


def unet_from_torch(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of CompVis's `UNetModel`.

    Args:
      state_dict: `{name: array}` in PyTorch's layout: convolutions OIHW, linear [out, in],
        1x1 attention convolutions [out, in, 1].

    Returns:
      `params` of `models.unet.UNet`: convolutions HWIO, dense [in, out].

    Raises:
      ValueError: an entry is neither a weight nor a bias.

    Examples:
      >>> params = unet_from_torch({"out.2.weight": np.zeros((3, 32, 3, 3))})
      >>> params["out_2"]["kernel"].shape
      (3, 3, 32, 3)
    """
    return _from_torch(state_dict)


def unet_to_torch(params: Params) -> StateDict:
    """Convert parameters, or masks of their shapes, to the layout of CompVis's `UNetModel`.

    Args:
      params: tree of `models.unet.UNet`.

    Returns:
      `{name: array}`, numpy; the inverse of `unet_from_torch`, bit for bit.

    Examples:
      >>> unet_to_torch({"out_2": {"kernel": np.zeros((3, 3, 32, 3))}})["out.2.weight"].shape
      (3, 32, 3, 3)
    """
    return _to_torch(params)


def autoencoder_from_torch(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of CompVis's `VQModelInterface`, `VQModel` or `AutoencoderKL`.

    Args:
      state_dict: `{name: array}` in PyTorch's layout, without entries of the training loss.

    Returns:
      `params` of `models.autoencoder`: convolutions HWIO, codes [codes, dim] unchanged.

    Raises:
      ValueError: an entry is neither a weight nor a bias.

    Examples:
      >>> name = "encoder.down.1.block.0.nin_shortcut.weight"
      >>> params = autoencoder_from_torch({name: np.zeros((64, 32, 1, 1))})
      >>> params["encoder"]["down_1"]["block_0"]["nin_shortcut"]["kernel"].shape
      (1, 1, 32, 64)
    """
    return _from_torch(state_dict)


def autoencoder_to_torch(params: Params) -> StateDict:
    """Convert parameters to the layout of CompVis's autoencoders.

    Args:
      params: tree of a model of `models.autoencoder`.

    Returns:
      `{name: array}`, numpy; the inverse of `autoencoder_from_torch`, bit for bit.

    Examples:
      >>> list(autoencoder_to_torch({"quantize": {"embedding": np.zeros((64, 3))}}))
      ['quantize.embedding.weight']
    """
    return _to_torch(params)


def chirodiff_from_torch(state_dict: Mapping[str, NumpyArray]) -> PyTree:
    """Convert the state dict of a ChiroDiff denoiser, bidirectional GRU or Transformer.

    Args:
      state_dict: `{name: array}` in PyTorch's layout: linear [out, in], gates r, z, n. Entries
        whose names end in `pe_proj_W` or `seq_proj_W`, the fixed random matrices, may be added:
        PyTorch keeps them outside the state dict.

    Returns:
      Variables of `models.chirodiff`: `params`, and `constants` (needed with random Fourier
      features) if `state_dict` has them.

    Raises:
      ValueError: an entry is neither a weight nor a bias.

    Examples:
      >>> gru = {"model.rnn.weight_hh_l0_reverse": np.zeros((288, 96))}
      >>> variables = chirodiff_from_torch(gru)
      >>> variables["params"]["rnn_l0"]["backward_hh"]["kernel"].shape
      (96, 288)
    """
    constants, weights = {}, {}
    for name, array in state_dict.items():
        constant = re.search(r"(pe|seq)_proj_W$", name)
        if constant:
            constants[constant[0]] = np.asarray(array)
        else:
            weights[_chirodiff_name(name)] = array
    variables = {"params": _from_torch(weights)}
    return variables | ({"constants": constants} if constants else {})


def _chirodiff_name(name: str) -> str:
    """Rename to fit the shared rule: kind last, one module per GRU kernel.

    `model.rnn.weight_ih_l0_reverse` -> `rnn_l0.backward_ih.weight`, `self_attn.in_proj_weight` ->
    `self_attn_in_proj.weight`.
    """
    name = name.removeprefix("model.")
    gru = re.fullmatch(r"rnn\.(weight|bias)_(ih|hh)_l(\d+)(_reverse)?", name)
    if gru:
        kind, what, layer, reverse = gru.groups()
        return f"rnn_l{layer}.{'backward' if reverse else 'forward'}_{what}.{kind}"
    name = name.replace("transformer.layers", "transformer_layers")
    name = re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", name)
    return name.replace("self_attn.", "self_attn_")


def _from_torch(state_dict: Mapping[str, NumpyArray]) -> Params:
    params: Params = {}
    for name, array in state_dict.items():
        *modules, kind = name.split(".")
        if kind not in ("weight", "bias"):
            raise ValueError(f"state dict entry {name!r}; accepted: names ending in weight or bias")
        leaf, value = leaf_from_torch(modules[-1] if modules else "", kind, np.asarray(array))
        if leaf == "embedding" and modules[-1] == leaf:
            modules.pop()
        node = params
        for module in _join_numbers(modules):
            node = node.setdefault(module, {})
        node[leaf] = value
    return params


def _join_numbers(modules: list[str]) -> list[str]:
    """Join numbers to the preceding name: [in_layers, 2] -> [in_layers_2]."""
    joined: list[str] = []
    for module in modules:
        if module.isdigit() and joined:
            joined[-1] += f"_{module}"
        else:
            joined.append(module)
    return joined


def leaf_from_torch(module: str, kind: str, array: NumpyArray) -> tuple[str, NumpyArray]:
    """Convert one tensor from PyTorch's layout.

    Args:
      module: name of the tensor's module.
      kind: `weight` or `bias`.
      array: numpy array in PyTorch's layout.

    Returns:
      The leaf's name (`kernel`, `scale`, `embedding` or `bias`), and its array.
    """
    if module in _TABLES:
        return "embedding", array
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


def _to_torch(params: Params) -> StateDict:
    state_dict = {}
    for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        *modules, leaf = (entry.key for entry in path)
        if leaf == "embedding" and modules[-1] not in _TABLES:
            modules.append(leaf)
        kind = "bias" if leaf == "bias" else "weight"
        name = ".".join([*_split_numbers(modules), kind])
        state_dict[name] = leaf_to_torch(modules[-1], leaf, np.asarray(value))
    return state_dict


def _split_numbers(modules: list[str]) -> list[str]:
    """Undo `_join_numbers`: [in_layers_2] -> [in_layers.2].

    In the middle of an autoencoder, the reference itself has the names block_1, attn_1 and block_2.
    """
    parents = [None, *modules]
    return [
        module if parent == "mid" else re.sub(r"_(\d+)", r".\1", module)
        for parent, module in zip(parents, modules, strict=False)
    ]


def leaf_to_torch(module: str, leaf: str, array: NumpyArray) -> NumpyArray:
    """Convert one array to PyTorch's layout, the inverse of `leaf_from_torch`.

    Args:
      module: name of the leaf's module; attention convolutions get a third axis.
      leaf: name of the leaf, such as `kernel`.
      array: numpy array.
    """
    if leaf != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None] if module in _CONV1D else array.T
