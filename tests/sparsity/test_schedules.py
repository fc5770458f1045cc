import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from sparsejax.sparsity.schedules import UpdateSchedule


def test_updates_are_due_where_the_reference_has_them(golden):
    vectors = golden("sparsity.json")["vectors"]
    case = next(v for v in vectors if v["name"] == "update_steps_jaxpruner")
    inputs = case["inputs"]
    schedule = UpdateSchedule(inputs["update_freq"], inputs["start"], inputs["end"], True)
    assert [schedule.is_due(step) for step in inputs["steps"]] == case["expected"]


def test_updates_fall_on_multiples_of_the_interval_and_count_up_to_the_last_step():
    schedule = UpdateSchedule(10, 15, 41)
    assert [step for step in range(60) if schedule.is_due(step)] == [20, 30, 40]
    assert [schedule.count_due(steps) for steps in (19, 20, 39, 40, 99)] == [0, 1, 2, 3, 3]


def test_no_update_is_due_at_the_end_itself_unless_asked_for():
    steps = (10, 20, 30)
    assert [UpdateSchedule(10, 10, 30).is_due(step) for step in steps] == [True, True, False]
    assert UpdateSchedule(10, 10, 30).count_due(50) == 2
    assert UpdateSchedule(10, 10, 30, includes_end=True).count_due(50) == 3
    assert UpdateSchedule(10, 10, 10).count_due(50) == 0
    for begin, end, steps, includes in itertools.product(
        (0, 1, 9, 10), (0, 5, 30, 31), (0, 29, 30, 50), (False, True)
    ):
        schedule = UpdateSchedule(5, begin, end, includes)
        due = [step for step in range(1, steps + 1) if schedule.is_due(step)]
        assert list(schedule.due(steps)) == due
    assert UpdateSchedule(100, 100, 10**12).count_due(10**11) == 10**9


def test_an_array_of_steps_is_traced():
    schedule = UpdateSchedule(10, 10, 35)
    due = jax.jit(schedule.is_due)(jnp.arange(50))
    assert jnp.flatnonzero(due).tolist() == [10, 20, 30]
    assert schedule.count_due(50) == 3


def test_drop_fraction_of_rigl_is_an_optax_schedule(golden):
    vectors = golden("sparsity.json")["vectors"]
    case = next(v for v in vectors if v["name"] == "drop_fraction_cosine_rigl")
    inputs = case["inputs"]
    schedule = optax.cosine_decay_schedule(inputs["alpha"], inputs["T_end"])
    ours = [float(schedule(step)) for step in inputs["steps"]]
    assert ours == pytest.approx(case["expected"], abs=1e-6)


def test_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="update_interval is 0"):
        UpdateSchedule(0, 0, 10)
