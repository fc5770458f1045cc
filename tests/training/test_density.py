"""A method that changes density: what it costs is summed over what each step had."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing, comparison
from sparsejax.sparsity import flat, methods, transforms
from sparsejax.sparsity.masks import apply_masks, path_name
from sparsejax.sparsity.selection import select_top
from sparsejax.training import loop, runs
from sparsejax.training.init_from import same_masks
from sparsejax.training.plan import build_plan
from tests.training.tiny import small_config

BEGIN, END = 2, 9
CHANGES = {
    "steps": 12,
    "sparsity.method": "cubic",
    "sparsity.update_interval": 2,
    "sparsity.begin": BEGIN,
    "sparsity.end": END,
    "checkpoint.every": 2,
    "checkpoint.keep": 10,
    "log.every": 100,
}


def cubic(structure):
    """Gradual magnitude pruning from dense (Zhu & Gupta 2017, equation 1)."""
    del structure

    def init(key, params, sparsities):
        del key
        return jax.tree.map(
            lambda p, s: jnp.ones(p.shape, bool) if s else jnp.asarray(True), params, sparsities
        )

    def update(key, params, masks, gradients, fraction, *, step=None, density=None):
        del key, gradients, fraction
        rest = 1 - jnp.clip((step - BEGIN) / (END - 1 - BEGIN), 0.0, 1.0)

        def prune(param, mask, final):
            sparsity = (1 - final) * (1 - rest**3)
            count = param.size - jnp.int32(sparsity * param.size)
            return select_top(jnp.abs(param), count, candidates=mask) if mask.ndim else mask

        masks = jax.tree.map(prune, params, masks, density)
        return apply_masks(params, masks), masks

    return methods.Method("cubic", update, init, changes_density=True)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "cubic", cubic)
        yield


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, _registered):
    """A finished run, a checkpoint after every topology update."""
    workdir = tmp_path_factory.mktemp("cubic") / "whole"
    assert loop.train(small_config(**CHANGES), workdir)
    return workdir


def masks_after(workdir, step):
    """What the checkpoint of a step holds, read by orbax alone."""
    with ocp.CheckpointManager((workdir / "checkpoints").resolve()) as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        return manager.restore(step, args=args)["state"]["masks"]


def forward_flops(layer_flops, masks):
    """FLOPs of a forward pass, by numpy."""
    density = {
        path_name(path): float(np.mean(mask))
        for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    }
    return sum(flops * density.get(name, 1.0) for name, flops in layer_flops.items())


def costs_of(workdir, steps=None):
    config = runs.read_config(workdir)
    model, state = runs.load_state(workdir)
    lines = runs.read_metrics_until(workdir, int(state.step))
    plan = build_plan(config, model)
    return closing.run_costs(config, model, plan, state.params, state.masks, steps, lines)


def test_costs_are_summed_over_the_density_of_each_step(pruned):
    """Against a sum by hand: dense for two steps, then what the checkpoints hold."""
    config = runs.read_config(pruned)
    model, state = runs.load_state(pruned)
    layer_flops = model.layer_flops(state.params)
    dense = float(sum(layer_flops.values()))
    after = {s: forward_flops(layer_flops, masks_after(pruned, s)) for s in (2, 4, 6, 8)}
    by_step = [dense] * 2 + [after[2]] * 2 + [after[4]] * 2 + [after[6]] * 2 + [after[8]] * 4
    assert after[2] == dense  # at `begin` nothing is pruned yet
    assert dense > after[4] > after[6] > after[8]
    costs = costs_of(pruned)
    expected = 3 * sum(by_step) * config.batch_size
    assert costs["training_flops_run"] == pytest.approx(expected, rel=1e-12)
    assert costs["training_flops_formula"] == pytest.approx(expected, rel=1e-12)
    assert costs["forward_flops"] == pytest.approx(after[8], rel=1e-12)
    assert costs["density"] == pytest.approx(1 - config.sparsity.level, abs=1e-3)
    assert costs["training_flops_dense"] == 3 * dense * 12 * config.batch_size


def test_costs_survive_a_kill(pruned, tmp_path, capsys):
    """Killed after step 10, before a line of metrics was written; then resumed.

    The resumed run prints no density, which it doesn't keep.
    """
    killed = tmp_path / "killed"
    shutil.copytree(pruned, killed)
    (killed / "metrics.jsonl").unlink()
    shutil.rmtree(killed / "checkpoints" / "12")
    whole = costs_of(pruned)["training_flops_run"]
    now = 2 * 3 * costs_of(pruned)["forward_flops"] * small_config().batch_size
    assert costs_of(killed, 10)["training_flops_run"] == pytest.approx(whole - now, rel=1e-12)
    capsys.readouterr()
    assert loop.train(small_config(**CHANGES), killed)
    assert "step 12/12" in (printed := capsys.readouterr().out)
    assert "density" not in printed
    assert costs_of(killed) == costs_of(pruned)


def test_costs_of_a_run_that_lost_its_metrics_are_refused(pruned):
    config = runs.read_config(pruned)
    model, state = runs.load_state(pruned)
    with pytest.raises(ConfigError, match="metrics.jsonl doesn't hold the topology update of st"):
        closing.run_costs(config, model, build_plan(config, model), state.params, state.masks)


def test_packed_state_refuses_the_method_by_name(tmp_path):
    config = small_config(**CHANGES, **{"optimizer.packed": True})
    with pytest.raises(ConfigError, match="optimizer.packed is True; accepted: False with spars"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masks_of_another_density_are_not_moved_into_packed_state():
    params, eye = {"kernel": jnp.ones((3, 3))}, {"kernel": jnp.eye(3, dtype=bool)}
    optimizer = transforms.packed(optax.adam(0.1), flat.static_counts(eye))
    state = optimizer.init(params, masks=eye)
    fewer = {"kernel": eye["kernel"].at[0, 0].set(False)}
    with pytest.raises(ValueError, match="kernel has 2 active weights; accepted: 3"):
        transforms.reset_inactive(optimizer, state, params, fewer)


def test_masks_of_such_a_run_are_not_taken_over(pruned):
    ours, other = resolve(small_config(**CHANGES)).sparsity, runs.read_config(pruned).sparsity
    rigl = resolve(small_config()).sparsity
    assert not same_masks(ours, other)
    assert not same_masks(rigl, other)
    assert same_masks(rigl, rigl)


def test_a_run_of_a_method_that_is_not_registered_is_refused_in_a_line(pruned, tmp_path):
    """As by evaluate.py, which knows no methods but this project's; the weights can be used."""
    runs.save_sparse_run(pruned, tmp_path / "file")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(methods.METHODS, "cubic")
        for read in (
            runs.load_run,
            runs.read_config,
            lambda p: comparison.evaluate_runs([p], tmp_path),
        ):
            with pytest.raises(ConfigError, match="is 'cubic', which is not registered") as error:
                read(pruned)
            assert str(pruned / "config.json") in str(error.value)
            assert "\n" not in str(error.value)
        other, _, _ = runs.read_sparse_run(tmp_path / "file")
        assert not same_masks(resolve(small_config()).sparsity, other.sparsity)


def test_every_update_writes_what_the_steps_before_it_cost(pruned):
    lines = runs.read_metrics_until(pruned, 12)
    assert [line["step"] for line in lines if "forward_flops_before" in line] == [2, 4, 6, 8]
