"""docs/configs.md: the table of every config key, written from the schema and the networks.

python -m sparsejax.keys_page > docs/configs.md
"""

from collections.abc import Sequence

import flax.linen as nn

from sparsejax import schema
from sparsejax.families.arguments import network_keys
from sparsejax.families.registry import FAMILIES
from sparsejax.schema import Key, KeyType

_HEAD = """# Config keys

Every key of a config, with its type, default and meaning. Set one on the command line as
`--config.KEY=VALUE`, in a config file as `config.KEY = value`:

```bash
python train.py --config configs/digits.py:static,0.8 --config.steps=500 --config.model.remat=True
```

Tuples are written as in Python, in quotes: `--config.model.channel_mult="(1,2)"`; `None` is a value
where the type says so; a bool may stand alone (`--config.task.flip`, `--noconfig.task.flip`). An
unknown key, or a value of another type, ends the command with one line that names it.

The words after the colon of `--config FILE:WORDS` are explained at the head of the file.

Written by `python -m sparsejax.keys_page`; a test compares.
"""
_NETWORKS = """
## model

Arguments of the network, which follow from `task.name` and `task.kind`. Any of them can be set,
whether or not the config file lists it. `first_stage.model.*` are those of `VQModel` or `KLModel`,
by `first_stage.kind`: they describe a first stage whose file doesn't say itself how it is built.
"""


def keys_page() -> str:
    """Return docs/configs.md."""
    parts = [_HEAD]
    groups: dict[str, list[Key]] = {}
    for key in schema.KEYS:
        group, _, name = key.path.rpartition(".")
        groups.setdefault(group if name else "", []).append(key)
    for group, keys in groups.items():
        parts.append(f"\n## {group or 'The run'}\n\n{_table(keys)}")
    parts.append(_NETWORKS)
    found: dict[type[nn.Module], list[str]] = {}
    for task, family in FAMILIES.items():
        for kind, network in family.networks.items():
            names = f"`task.name={task}`" + (f", `task.kind={kind}`" if kind else "")
            found.setdefault(network, []).append(names)
    for network, places in found.items():
        parts.append(f"\n### {network.__name__}\n\n{' or '.join(places)}\n\n")
        parts.append(_table(network_keys(network)))
    return "".join(parts)


def _table(keys: Sequence[Key]) -> str:
    lines = ["| key | type | default | meaning | accepted |", "| --- | --- | --- | --- | --- |"]
    for key in keys:
        if key.accepted is None or isinstance(key.accepted, str):
            accepted = key.accepted or ""
        else:
            accepted = schema.describe_accepted(key)
        cells = [f"`{key.path}`", _type_name(key.type), f"`{key.default!r}`", key.meaning, accepted]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type_name(type_: KeyType) -> str:
    plain = schema.without_none(type_)
    name = plain.__name__ if isinstance(plain, type) and plain is not tuple else str(plain)
    name = "tuple" if plain is tuple else name
    if plain in (tuple[int, ...], tuple[str, ...]):
        name = str(plain).replace("tuple[", "tuple of ").split(",")[0]
    return f"{name} or None" if schema.is_optional(type_) else name


if __name__ == "__main__":
    print(keys_page(), end="")
