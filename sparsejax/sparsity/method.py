"""What a method of sparse training is: how its masks are drawn, and how they change."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TypeAlias

from sparsejax.sparsity import masks as masks_lib
from sparsejax.types import Masks, Params, PRNGKey, PyTree, Sparsities

Init: TypeAlias = Callable[[PRNGKey, Params, Sparsities], Masks]
Update: TypeAlias = Callable[..., tuple[Params, Masks]]

_POSITIONAL = ("key", "params", "masks", "gradients", "fraction")
_OPTIONAL = ("step", "density", "progress")


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method of sparse training initializes and updates masks.

    Attributes:
      name: the method's name.
      update: `update(key, params, masks, gradients, fraction, *, step=None, density=None,
        progress=None) -> (params, masks)`: the topology update. `params` are masked on entry and
        on return; `gradients` are dense (not masked), with respect to `probe(key, params, masks)`;
        `fraction` is the drop fraction; `step` is the number of optimizer steps taken, an int32
        scalar; `density` is the density that the caller requests of every layer, floats in the
        structure of `init`'s sparsities: the training loop passes 1 minus those, a loop of your
        own may pass the value of a schedule; `progress` is 0 at the first update of a run and 1 at
        its last, a float scalar. All three are None if the caller passes none, and a function that
        doesn't need them may omit them from its signature.
      init: `init(key, params, sparsities) -> masks`: the first topology. `sparsities` has the
        structure of params, or of the groups of channels.
      probe: `probe(key, params, masks) -> params` at which gradients are taken: `params`
        themselves, except for channels (see `structure.channel`).
      is_dynamic: whether `update` changes anything; otherwise it needn't be called.
      uses_gradients: whether `update` uses the dense gradients, which cost FLOPs.
      uses_fraction: whether `update` uses the drop fraction; otherwise a grid has one run for all.
      changes_density: whether the number of active weights of a layer may change in `update`.
        Costs are then summed over the steps; flat optimizer state, whose shapes are static,
        raises ValueError.

    Raises:
      ValueError: a method changes density but is not dynamic; or `update` has a different
        signature or can't be called.

    Examples:
      SET (Mocanu et al. 2018), by hand: drop the smallest weights, grow at random.

      >>> from sparsejax.sparsity import topology
      >>> def update(key, params, masks, gradients, fraction):
      ...     scores = jax.tree.map(lambda p: jax.random.uniform(key, p.shape), params)
      ...     masks = topology.rewire(params, masks, scores, fraction)
      ...     return masks_lib.apply_masks(params, masks), masks
      >>> Method("set", update).is_dynamic
      True
    """

    name: str
    update: Update
    init: Init = masks_lib.random_masks
    probe: Callable[[PRNGKey, Params, Masks], Params] = lambda key, params, masks: params
    is_dynamic: bool = True
    uses_gradients: bool = False
    uses_fraction: bool = True
    changes_density: bool = False

    def __post_init__(self) -> None:
        if self.changes_density and not self.is_dynamic:
            raise ValueError(f"method {self.name!r} changes density; accepted: is_dynamic=True")
        object.__setattr__(self, "update", _taking_options(self.name, self.update))


def _taking_options(name: str, update: Update) -> Update:
    """Return `update` with all of `_OPTIONAL` accepted, and dropped if it has no such parameter.

    Raises:
      ValueError: it can't be called as the training loop calls it.
    """
    try:
        signature = inspect.signature(update)
        parameters = signature.parameters.values()
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        taken = [key for key in _OPTIONAL if takes_all or key in signature.parameters]
        signature.bind(*_POSITIONAL, **dict.fromkeys(taken))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"update of method {name!r} can't be called: {error}; accepted: update("
            f"{', '.join(_POSITIONAL)}, *, step=None, density=None, progress=None), the last three "
            "of which may be left out"
        ) from error
    if len(taken) == len(_OPTIONAL):
        return update

    @functools.wraps(update)
    def update_ignoring(*args: PyTree, **kwargs: PyTree) -> tuple[Params, Masks]:
        return update(*args, **{k: v for k, v in kwargs.items() if k in taken})

    return update_ignoring
