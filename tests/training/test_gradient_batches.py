"""RigL's gradient as the mean over several batches: in the loop, in the costs, in the config."""

import jax
import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation.costs import run_costs
from sparsejax.sparsity.methods import get_method
from sparsejax.training import load_run, loop
from sparsejax.training.plan import build_plan
from tests.training.tiny import build, small_config

CHANGES = {"sparsity.end": 12, "checkpoint.every": 4, "log.every": 4}
CHANGES |= {"optimizer.schedule": "constant", "sparsity.gradient_batches": 3}


def trained(workdir, *steps, **changes):
    """The masks of a run that is interrupted at some steps."""
    for count in steps:
        assert loop.train(small_config(**CHANGES | changes | {"steps": count}), workdir)
    return jax.device_get(load_run(workdir)[2])


@pytest.mark.slow
def test_a_resumed_run_reads_the_batches_again_that_it_took_before(tmp_path):
    """The update of step 5 needs those of steps 3 and 4, before the interruption."""
    whole, parts = trained(tmp_path / "whole", 12), trained(tmp_path / "parts", 4, 12)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    one = trained(tmp_path / "one", 12, **{"sparsity.gradient_batches": 1})
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(one), strict=True)
    assert any((ours != theirs).any() for ours, theirs in pairs)


@pytest.mark.parametrize("method", ["rigl", "magran"])
def test_each_batch_of_an_update_costs_a_dense_gradient_if_the_method_uses_it(method):
    found = []
    for batches in (1, 4):
        changes = {"sparsity.gradient_batches": batches, "sparsity.method": method}
        config = resolve(small_config(**changes))
        model, _ = build(config)
        params = jax.eval_shape(model.init, jax.random.key(0))
        plan = build_plan(config, model)
        masks = plan.method.init(jax.random.key(0), params, plan.sparsities)
        found.append(run_costs(config, model, plan, params, masks))
    one, four = found
    gradient = 2 * one["forward_flops"] + one["forward_flops_dense"]
    updates = plan.updates.count_due(config.steps) if get_method(method).uses_gradients else 0
    more = four["training_flops_run"] - one["training_flops_run"]
    assert more == pytest.approx(3 * updates * gradient * config.batch_size)
    assert four["training_flops_formula"] == one["training_flops_formula"]


def test_steps_that_may_be_skipped_have_no_place_in_a_mean():
    changes = {"sparsity.gradient_batches": 2, "optimizer.skip_nonfinite": 1}
    message = "^config.sparsity.gradient_batches is 2; accepted: 1 with optimizer.skip_nonfinite"
    with pytest.raises(ConfigError, match=message):
        resolve(small_config(**changes))
