"""Load files of published weights: nothing in them is executed, everything is checked.

Layouts: CompVis Latent Diffusion (a whole training checkpoint, or one network's state dict) and
Hugging Face diffusers (a file, or a folder with config.json, possibly in shards or in a variant
such as fp16). Formats: safetensors, or PyTorch pickles through `torch.load(weights_only=True)`.

What weights don't show is in config.json, or in the metadata of a file exported by sparsejax.
CompVis's own files have neither. For those, the channels per attention head must be known; every
GroupNorm has 32 groups; and `use_new_attention_order`, which arranges queries, keys and values
differently, must be False, as in all published Latent Diffusion models.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sparsejax.models import convert, diffusers_config, diffusers_layout
from sparsejax.models.arguments import COMPVIS_ARGUMENTS, check_arguments, read_arguments
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.unet import UNet
from sparsejax.types import NumpyArray, Params, PathLike, StateDict, Value

Described = TypeVar("Described")

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
DIFFUSERS_STEM = "diffusion_pytorch_model"
DIFFUSERS_FILES = tuple(f"{DIFFUSERS_STEM}.{suffix}" for suffix in ("safetensors", "bin"))

# A class that CompVis's checkpoints name, as the key of a callback's state.
_LIGHTNING_KEY = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
# Only needed to train an autoencoder: LPIPS and discriminator, EMA, colours of label maps.
_TRAINING_ONLY = ("loss.", "model_ema.", "colorize")


def read_state_dict(path: PathLike) -> StateDict:
    """Read the tensors of a file without executing anything in it.

    Args:
      path: `.safetensors`, or `.ckpt`, `.pt`, `.pth`, `.bin` (these need torch), or the
        `.index.json` of several such files. If there is an entry `state_dict`, it is read.

    Returns:
      `{name: numpy array}`; half precision and bfloat16 become float32.

    Raises:
      ValueError: the file or a shard is missing, damaged, of another kind, without tensors, or a
        pickle that names objects other than tensors; or torch is needed but not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".json":
        arrays = _read_shards(path)
    elif path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        arrays = _read_pickle(path)
    else:
        accepted = ", ".join((".safetensors", *TORCH_SUFFIXES, ".index.json"))
        raise ValueError(f"{path} is not a file of weights; accepted: names ending in {accepted}")
    if not arrays:
        raise ValueError(f"{path} holds no tensors")
    return arrays


def load_unet(
    path: PathLike,
    *,
    ema: bool = True,
    num_head_channels: int | None = None,
    model: UNet | None = None,
) -> Params:
    """Load published weights of Latent Diffusion's UNet.

    Args:
      path: a file with CompVis's training checkpoint (`model.diffusion_model.*`), the state dict
        of its `UNetModel`, or diffusers' `UNet2DModel`; or a folder of diffusers, of the UNet
        or of the whole pipeline.
      ema: whether to load the EMA weights of a training checkpoint, if it has them.
      num_head_channels: channels per attention head, for files in diffusers' layout without a
        config.json next to them.
      model: the `models.unet.UNet` that will run the weights, if known.

    Returns:
      `params` of `models.unet.UNet`, numpy arrays; `check_params` checks their shapes.

    Raises:
      ValueError: see `read_state_dict`; or the layout is unknown, or config.json or the file's
        metadata contradict `num_head_channels` or `model`. Names the file and the tensor or key.

    Examples:
      `params = load_unet("ldm/celeba256/model.ckpt")`
    """
    path = find_weights(path, ("unet",))
    state_dict = read_state_dict(path)
    named = below(state_dict, "model.diffusion_model.")
    if named and ema and below(state_dict, "model_ema."):
        named = _ema_weights(state_dict, named, path)
    named = named or below(state_dict, "diffusion_model.") or state_dict
    if below(named, "down_blocks."):
        head_channels = _head_channels(path, num_head_channels, model)
        return naming(path, diffusers_layout.unet_from_diffusers, named, head_channels)
    if below(named, "input_blocks."):
        if model is not None:
            check_arguments(COMPVIS_ARGUMENTS | read_arguments(path), model, path)
        return naming(path, convert.unet_from_torch, named)
    raise unknown_layout(path, state_dict, "UNet", "input_blocks.*, down_blocks.*")


def unet_from_diffusers(folder: PathLike) -> tuple[UNet, Params]:
    """Load a UNet of diffusers with the architecture in its config.json.

    Args:
      folder: folder of a `UNet2DModel`, or of a pipeline that has one in `unet`; or a file of
        weights next to its config.json.

    Returns:
      Tuple of the `models.unet.UNet` and its `params`, numpy arrays.

    Raises:
      ValueError: see `load_unet`; or there is no config.json, or `models.unet.UNet` doesn't
        support the network it describes, or the weights don't fit.

    Examples:
      `model, params = unet_from_diffusers("ldm-celebahq-256")`
    """
    path = find_weights(folder, ("unet",))
    config_path = path.with_name("config.json")
    model = UNet(**read_config(config_path, diffusers_config.unet_arguments))
    params = load_unet(path, model=model)
    size = 2 ** (len(model.channel_mult) - 1)
    x = jax.ShapeDtypeStruct((1, size, size, model.in_channels), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.int32)
    check_params(params, jax.eval_shape(model.init, jax.random.key(0), x, t)["params"], path)
    return model, params


def load_autoencoder(path: PathLike, *, model: VQModel | KLModel | None = None) -> Params:
    """Load published weights of a first stage.

    Args:
      path: a file with CompVis's training checkpoint of the diffusion model
        (`first_stage_model.*`) or of the autoencoder, or diffusers' `VQModel` or
        `AutoencoderKL`; or a folder of diffusers, of the autoencoder or of the whole pipeline.
        Entries of the training loss are ignored.
      model: the model of `models.autoencoder` that will run the weights, if known; see
        `load_unet`.

    Returns:
      `params` of a model of `models.autoencoder`, numpy arrays; see `load_unet`.

    Raises:
      ValueError: see `read_state_dict`; or the layout is unknown. Names the file and the tensor.

    Examples:
      `params = load_autoencoder("first_stage_models/vq-f4/model.ckpt")`
    """
    path = find_autoencoder(path)
    state_dict = read_state_dict(path)
    named = below(state_dict, "first_stage_model.") or state_dict
    named = {name: a for name, a in named.items() if not name.startswith(_TRAINING_ONLY)}
    if below(named, "encoder.down_blocks."):
        config_path = path.with_name("config.json")
        if config_path.is_file():
            kind = "vq" if below(named, "quantize.") else "kl"
            _, arguments = read_config(config_path, diffusers_config.autoencoder_arguments, kind)
            if model is not None:
                check_arguments(arguments, model, config_path)
        return naming(path, diffusers_layout.autoencoder_from_diffusers, named)
    if below(named, "encoder.down."):
        if model is not None:
            check_arguments(read_arguments(path), model, path)
        return naming(path, convert.autoencoder_from_torch, named)
    raise unknown_layout(path, state_dict, "autoencoder", "encoder.down.*, encoder.down_blocks.*")


def check_params(
    params: Params,
    expected: Params,
    path: PathLike,
    to_names: Callable[[Params], StateDict] = convert.unet_to_torch,
) -> None:
    """Raise ValueError unless parameters fit a model.

    Args:
      params: tree of arrays.
      expected: the model's own parameters; `jax.eval_shape` of its `init` is enough.
      path: file that `params` come from.
      to_names: maps a tree to `{name: array}` for the message (default: CompVis's names of UNets
        and autoencoders).

    Raises:
      ValueError: tensors are missing, not in the model, or of another shape; names the file and
        the tensors.
    """
    # Broadcast zeros have the right shapes but take no memory.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), expected)
    theirs = {name: array.shape for name, array in to_names(params).items()}
    ours = {name: array.shape for name, array in to_names(zeros).items()}
    shapes = [
        f"{name} {theirs[name]} for {ours[name]}"
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    kinds = {"missing": missing, "not in the model": extra, "of another shape": shapes}
    problems = [_list_few(kind, names) for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"{path} doesn't fit the model: {'; '.join(problems)}")


def read_config(path: PathLike, describe: Callable[..., Described], *others: Value) -> Described:
    """Return `describe(content, *others)` for the content of a JSON file.

    Args:
      path: config.json.
      describe: function of `diffusers_config`.
      *others: its other arguments.

    Raises:
      ValueError: the file is missing or not JSON, or `describe` raises it; names the path.
    """
    return naming(path, describe, _read_json(pathlib.Path(path)), *others)


def _read_json(path: pathlib.Path) -> Value:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not JSON: {error}") from error


def find_autoencoder(path: PathLike) -> pathlib.Path:
    """Return the file with a first stage's weights: `path`, or a file in the folder `path`.

    Raises:
      ValueError: `path` is a folder without such a file.
    """
    return find_weights(path, ("vqvae", "vae"))


def _list_few(kind: str, names: Sequence[str], few: int = 3) -> str:
    more = ", ..." if len(names) > few else ""
    return f"{len(names)} {kind} ({', '.join(names[:few])}{more})"


def _is_file_name(value: Value) -> bool:
    return isinstance(value, str) and pathlib.Path(value).name == value


def _read_shards(path: pathlib.Path) -> StateDict:
    """Return the tensors of all files named in an index; they must be in its folder."""
    index = _read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
        raise ValueError(
            f"{path} is not an index of weights: its weight_map doesn't name files next to it"
        )
    arrays: StateDict = {}
    for file in sorted(set(places.values())):
        shard = path.with_name(file)
        read = read_state_dict(shard)
        missing = [name for name, place in places.items() if place == file and name not in read]
        if missing:
            raise ValueError(f"{shard} is not a shard of {path}: {_list_few('missing', missing)}")
        arrays |= {name: array for name, array in read.items() if places.get(name) == file}
    return arrays


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    return {name: _widen(array) for name, array in arrays.items()}


def _widen(array: NumpyArray) -> NumpyArray:
    """Convert narrower floats to float32: numpy's own, and bfloat16, which numpy sees as void."""
    narrow = array.dtype.itemsize < 4 and jax.dtypes.issubdtype(array.dtype, np.floating)
    return array.astype(np.float32) if narrow else array


def _read_pickle(path: pathlib.Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: reading {path.suffix} files needs PyTorch: pip install 'sparsejax[torch]'. "
            "The same weights as .safetensors need nothing more"
        ) from error
    try:
        # A stand-in for a class that the file names; it is never called.
        with torch.serialization.safe_globals([(_LightningKey, _LIGHTNING_KEY)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the exception depends on where the file is damaged
        raise _unreadable(path, error) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {k: v.detach() for k, v in content.items() if isinstance(v, torch.Tensor)}
    narrow = (torch.float16, torch.bfloat16)
    return {k: (v.float() if v.dtype in narrow else v).numpy() for k, v in tensors.items()}


class _LightningKey:
    """Stands for the class `_LIGHTNING_KEY` in files."""


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    """Return the ValueError for a pickle that names code objects, or for a damaged file."""
    refused = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
    if refused is None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return ValueError(f"{path} is damaged or not a PyTorch file: {reason}")
    return ValueError(
        f"{path} holds pickled code objects besides tensors: {refused[1]}. It was refused, and "
        "nothing in it was executed. If, and only if, you trust its source, save its tensors "
        "alone, where the code that it needs is installed: "
        "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE); a training "
        "checkpoint of DiT's authors has ['ema'] in place of ['state_dict']"
    )


def find_weights(path: PathLike, folders: Sequence[str]) -> pathlib.Path:
    """Return the file of weights at `path`, which may be a folder of diffusers.

    Args:
      path: file or folder.
      folders: names of the folders in a pipeline to look in, too.

    Raises:
      ValueError: there is no such file.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if not path.is_dir():
        return path
    for folder in (path, *(path / name for name in folders)):
        found = _weights_in(folder)
        if found:
            return found
    raise ValueError(
        f"folder {path} holds no {' or '.join(DIFFUSERS_FILES)}, nor does a folder "
        f"{' or '.join(folders)} in it"
    )


def _weights_in(folder: pathlib.Path) -> pathlib.Path | None:
    """Return a folder's weights or index: full precision if there is one, else its only variant."""
    for name in DIFFUSERS_FILES:
        for file in (folder / name, folder / f"{name}.index.json"):
            if file.is_file():
                return file
    variants: dict[str, pathlib.Path] = {}
    for suffix in ("safetensors", "bin"):
        for place in (rf"\.(\w+)\.{suffix}", rf"\.{suffix}\.index\.(\w+)\.json"):
            for file in sorted(folder.glob(f"{DIFFUSERS_STEM}*")):
                found = re.fullmatch(re.escape(DIFFUSERS_STEM) + place, file.name)
                if found:
                    variants.setdefault(found[1], file)
    if len(variants) > 1:
        files = ", ".join(file.name for file in variants.values())
        raise ValueError(f"folder {folder} holds several variants of weights; name one of {files}")
    return next(iter(variants.values()), None)


def below(state_dict: Mapping[str, NumpyArray], prefix: str) -> StateDict:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def _ema_weights(
    state_dict: Mapping[str, NumpyArray], named: StateDict, path: pathlib.Path
) -> StateDict:
    """Return the EMA of each weight; CompVis's LitEma stores names without dots."""
    keys = {name: "model_ema." + f"diffusion_model.{name}".replace(".", "") for name in named}
    missing = [key for key in keys.values() if key not in state_dict]
    if missing:
        raise ValueError(f"{path} lacks EMA weights: {_list_few('missing', missing)}")
    return {name: state_dict[key] for name, key in keys.items()}


def _head_channels(path: pathlib.Path, given: int | None, model: UNet | None) -> int:
    """Return the channels per attention head from config.json, or as given if there is none.

    Checks config.json, also against the model that will run the weights.
    """
    config_path = path.with_name("config.json")
    given = given if model is None else model.num_head_channels
    config = _read_json(config_path) if config_path.is_file() else {}
    arguments = naming(config_path, diffusers_config.unet_arguments, config)
    if given is None and "attention_head_dim" not in config:
        raise ValueError(
            f"{path} is in diffusers' layout, which doesn't tell the channels of an attention "
            "head, and no config.json beside it does; give num_head_channels"
        )
    if given is not None and not config:
        return given
    if model is not None:
        check_arguments(arguments, model, config_path)
    stated = arguments["num_head_channels"]
    if given not in (None, stated):
        raise ValueError(f"{config_path}: attention_head_dim is {stated}; accepted: {given}")
    return stated


def naming(path: PathLike, convert_names: Callable[..., Described], *arguments: Value) -> Described:
    """Return `convert_names(*arguments)`; its errors name the file.

    Args:
      path: of the file that the arguments were read from.
      convert_names: function that raises ValueError for what it can't convert.
      *arguments: of the function.

    Raises:
      ValueError: the function raised it.
    """
    try:
        return convert_names(*arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def unknown_layout(
    path: pathlib.Path, state_dict: Mapping[str, NumpyArray], kind: str, accepted: str
) -> ValueError:
    """Return the error for a file whose tensors aren't those of a kind of network.

    Args:
      path: of the file.
      state_dict: its tensors by name.
      kind: what it should hold, such as `UNet`.
      accepted: names of the tensors of known layouts.
    """
    found = ", ".join(sorted({name.split(".")[0] for name in state_dict})[:5])
    return ValueError(f"{path} holds no {kind}; accepted: tensors {accepted}; found: {found}")
