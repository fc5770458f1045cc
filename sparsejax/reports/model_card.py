"""The model card of a trained model: README.md of its repository on the Hugging Face Hub."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparsejax.quantities import quantity
from sparsejax.reports.plots import LayerCounts, layer_name
from sparsejax.reports.results import JSON, headed, metric_of

FILL_IN = "licence: fill in"

_PAPER = """@article{sparse_to_sparse_diffusion,
  title   = {Sparse-to-Sparse Training of Diffusion Models},
  author  = {Cardoso Oliveira, I. and Mocanu, D. C. and Leiva, L. A.},
  journal = {Transactions on Machine Learning Research},
  year    = {2025},
  url     = {https://arxiv.org/abs/2504.21380}
}"""


class Source(NamedTuple):
    """A data set whose licence is known.

    Attributes:
      title: what it is called.
      licence: as the Hub abbreviates it.
      owner: whose it is, and the licence in words.
      hub_name: of the data set on the Hub, if it is there.
    """

    title: str
    licence: str
    owner: str
    hub_name: str = ""


SOURCES = {
    "digits": Source(
        "Optical Recognition of Handwritten Digits, as scikit-learn ships them",
        "cc-by-4.0",
        "E. Alpaydin and C. Kaynak, UCI, 1998, CC BY 4.0",
    ),
    "kanjivg": Source("KanjiVG", "cc-by-sa-3.0", "(c) Ulrich Apel, CC BY-SA 3.0"),
    "quickdraw_strokes": Source("Quick, Draw!", "cc-by-4.0", "(c) Google, CC BY 4.0"),
    "vmnist": Source(
        "the digits of MNIST as pen strokes",
        "cc-by-sa-3.0",
        "MNIST is (c) Yann LeCun and Corinna Cortes, CC BY-SA 3.0",
        "ylecun/mnist",
    ),
}


class Described(NamedTuple):
    """What a card says.

    Attributes:
      name: of the run.
      config: resolved config of the run.
      costs: as `evaluation.costs.run_costs` counts them.
      changes_density: whether the method changes the density during training.
      layers: counts by path of the weights, in the order of execution.
      measures: `{name: number}` of results.jsonl; empty if the run isn't evaluated.
      data: how much there is at `config.task.source`, as `training.facts.describe_data` says it.
      weights: `EMA weights`, or `weights of the last step`.
      sizes: bytes of the file, and of the same weights without sparsity.
      pictures: names of picture files beside the card.
    """

    name: str
    config: Mapping[str, JSON]
    costs: Mapping[str, JSON]
    changes_density: bool
    layers: Mapping[str, LayerCounts]
    measures: Mapping[str, float]
    data: str
    weights: str
    sizes: tuple[int, int]
    pictures: Sequence[str]


def model_card(model: Described) -> str:
    """Return the card as Markdown, headed by the metadata that the Hub reads (YAML)."""
    parts = [
        _front_matter(model),
        f"# {model.name}",
        _summary(model),
        *_shown(model, "samples.png", "Samples"),
        *_shown(model, "samples.gif", "Samples, point by point"),
        "## Use it",
        _use(model),
        "## Data",
        _data(model.config["task"], model.data),
        "## Costs",
        _costs(model),
        *_shown(model, "layers.png", "Density of each layer"),
        _layers(model),
        *(("## Figures", _figures(model.measures)) if model.measures else ()),
        "## Training",
        _training(model.config),
        *_shown(model, "curves.png", "Training loss, and weights replaced"),
        "## Citation",
        f"```bibtex\n{_PAPER}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Described) -> str:
    """Return the metadata; JSON strings and lists are YAML too."""
    task, source = model.config["task"], SOURCES.get(model.config["task"]["dataset"])
    is_labelled = model.config["model"].get("classes")
    tags = ["sparsejax", "jax", "flax", "diffusion", "sparse-training", model.costs["method"]]
    lines = [
        f"license: {source.licence}" if source else f"license: other  # {FILL_IN}",
        *([] if source else ["license_name: fill-in"]),
        "library_name: sparsejax",
        *([] if is_labelled else ["pipeline_tag: unconditional-image-generation"]),
        f"tags: {json.dumps([*tags, task['name']])}",
        *([f"datasets: {json.dumps([source.hub_name])}"] if source and source.hub_name else []),
    ]
    return "\n".join(["---", *lines, "---"])


def _shown(model: Described, file: str, caption: str) -> list[str]:
    return [f"![{caption}]({file})"] if file in model.pictures else []


def _summary(model: Described) -> str:
    costs = model.costs
    if costs["method"] == "dense":
        how = ", dense, as a baseline"
    else:
        unit = {"weight": "", "block": " of blocks", "channel": " of channels"}
        kind = unit.get(model.config["sparsity"]["structure"], "")
        when = "sparse from the first step to the last"
        if model.changes_density:
            when = "with a density that changed during training"
        how = (
            f", {when}: method `{costs['method']}`, "
            f"sparsity{kind} {costs['sparsity']:g} ({costs['actual_sparsity']:.4f} of the weights "
            "that can be sparse are zero)"
        )
    classes = model.config["model"].get("classes", 0)
    labels = ""
    if classes:
        labels = f" Samples have {classes:,} labels, from 0: `--label N` draws those of one."
    return (
        f"A diffusion model of the task `{model.config['task']['name']}`, trained with "
        f"sparsejax{how}; {costs['steps']:,} steps, {model.weights}.{labels}"
    )


def _use(model: Described) -> str:
    stage = ', first_stage="PATH"' if model.config["task"]["name"] == "latents" else ""
    flag = " --first-stage PATH" if stage else ""
    needs = (
        "\n\nIt makes latents; PATH is the first stage that it was trained with, a file or a "
        "diffusers folder, which isn't part of this repository."
    )
    return f"""Install sparsejax from a clone of its repository, or from a wheel of it; it isn't on
PyPI. FOLDER is a folder with the files of this model, or `hf://OWNER/NAME` if they are on the Hub
(which takes `pip install huggingface_hub`).

```bash
python -m sparsejax sample --run FOLDER --count 64 --grid{flag}
```

```python
import jax
import sparsejax

run = sparsejax.load("FOLDER"{stage})
samples = run.sample(jax.random.key(0), 16)
pictures = run.model.to_images(samples)  # uint8 [16, height, width, channels]
```

`run.params` and `run.masks` are the weights and which of them are active. The weights are stored
without zeros, so other libraries can't read `model.safetensors` as it is; the ten lines of numpy in
sparsejax's docs/sharing.md can.{needs if stage else ""}"""


def _data(task: Mapping[str, JSON], amount: str) -> str:
    source = SOURCES.get(task["dataset"])
    if source:
        return (
            f"{source.title}: {source.owner}. The licence of this repository is set to that of "
            "the data."
        )
    content = f": {amount}" if amount else ""
    origin = f" (`{task['source']}`{content})" if task["source"] else ""
    size = f", at {task['image_size']} x {task['image_size']} pixels" if task["image_size"] else ""
    held_out = ""
    if task["held_out"]:
        held_out = (
            f"; about {task['held_out']:.0%} of the images were held out, unless a split of their "
            "own was"
        )
    return (
        f"`{task['dataset']}`{origin}, split `{task['split']}`{size}{held_out}.\n\n"
        f"**{FILL_IN.capitalize()}.** Say whose data these are and under which licence, and set "
        "`license` at the top of this file, before you publish the model."
    )


def _costs(model: Described) -> str:
    costs = model.costs
    rows = {
        "parameters": (costs["parameters"], costs["active_parameters"]),
        "FLOPs, one forward pass": (costs["forward_flops_dense"], costs["forward_flops"]),
        "FLOPs, one sample": (costs["sampling_flops_dense"], costs["sampling_flops"]),
        "FLOPs, training": (costs["training_flops_dense"], costs["training_flops_run"]),
        "bytes of the weights": model.sizes[::-1],
    }
    body = [
        [name, quantity(dense), quantity(ours), f"{ours / dense:.3f}"]
        for name, (dense, ours) in rows.items()
    ]
    table = _table(["", "dense", "this model", "ratio"], body)
    return f"{table}\n\nFLOPs count two per multiply-add, and only active weights."


def _layers(model: Described) -> str:
    body = [
        [f"`{layer_name(name)}`", f"{one.weights:,}", f"{one.active:,}", f"{one.density:.3f}"]
        for name, one in model.layers.items()
    ]
    table = _table(["layer", "weights", "active", "density"], body)
    return f"<details><summary>Density by layer</summary>\n\n{table}\n\n</details>"


def _figures(measures: Mapping[str, float]) -> str:
    table = _table(
        ["measure", "value"], [[headed(name), f"{value:.4g}"] for name, value in measures.items()]
    )
    if not any(metric_of(name) == "FD" for name in measures):
        return table
    return (
        f"{table}\n\nFD is a Fréchet distance in the features that its name gives, not those of "
        "Inception: it is no FID, and comparable only with other values of the same name."
    )


def _training(config: Mapping[str, JSON]) -> str:
    return (
        f"{config['steps']:,} steps with batches of {config['batch_size']}, "
        f"`{config['optimizer']['name']}`, seed {config['seed']}. `config.json` holds every key of "
        "the config; of paths, only the last part."
    )


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    ends = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ends, *body))
