"""Layouts of the states in older checkpoints, and how to convert them."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from sparsejax.sparsity.transforms import FlatState

Tree: TypeAlias = dict[str, Any]  # `TrainState._asdict()`: the fields that a checkpoint holds


def find_layout(example: Tree, leaves: int) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Return the layout of a checkpoint, recognized by its number of arrays.

    Args:
      example: the state that is expected today.
      leaves: number of arrays in the checkpoint.

    Returns:
      Tuple of the tree to restore, with the leaves of `example`, and a function that converts what
      was restored to today's layout. Today's layout itself if none has that number of arrays.
    """
    for layout, convert in _layouts(example):
        if len(jax.tree.leaves(layout)) == leaves:
            return layout, convert
    return example, lambda tree: tree


def _layouts(example: Tree) -> Iterator[tuple[Tree, Callable[[Tree], Tree]]]:
    yield example, lambda tree: tree

    # Older: a whole state without indices...
    without = {name: tree for name, tree in example.items() if name != "indices"}
    whole = jax.tree.map(lambda _: np.array(True), example["indices"])
    yield without, lambda tree: tree | {"indices": whole}

    # ... and a flat one, with indices and EMA in the optimizer's state.
    held = FlatState(
        example["opt_state"], example["indices"], example["ema_params"], example["step"]
    )

    def take_out(tree: Tree) -> Tree:
        held = tree["opt_state"]
        parts = {"opt_state": held.inner, "ema_params": held.ema, "indices": held.indices}
        return tree | parts

    yield without | {"opt_state": held, "ema_params": ()}, take_out
