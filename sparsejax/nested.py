"""Nested dictionaries as flat ones with one path per leaf, and back."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Mapping[str, Any]  # nested dictionaries
Leaf: TypeAlias = Any  # anything but a dictionary, or an empty dictionary
Flat: TypeAlias = dict[str, Any]  # `{path: leaf}`
Path: TypeAlias = tuple[str, ...]


def leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    """Yield the leaves of nested dictionaries, each with the tuple of keys that leads to it.

    Args:
      tree: nested dictionaries; an empty one below others is a leaf.
      path: keys to start all paths with.

    Examples:
      >>> list(leaves({"a": {"b": 1, "c": {}}}))
      [(('a', 'b'), 1), (('a', 'c'), {})]
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def flatten(tree: Tree, separator: str = "/") -> Flat:
    """Return `{path: leaf}`, keys joined by the separator.

    Examples:
      >>> flatten({"model": {"hidden": 96}, "seed": 0}, ".")
      {'model.hidden': 96, 'seed': 0}
    """
    return {separator.join(map(str, path)): leaf for path, leaf in leaves(tree)}


def nest(flat: Flat, separator: str = "/") -> Tree:
    """Return the nested dictionaries of a flat one: the inverse of `flatten`.

    Raises:
      ValueError: a path continues below a leaf.

    Examples:
      >>> nest({"conv/kernel": 1, "conv/bias": 2})
      {'conv': {'bias': 2, 'kernel': 1}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in sorted(flat.items()):
        *parents, last = path.split(separator)
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path} lies below another leaf")
        node[last] = leaf
    return tree
