"""Structures compared at equal steps and equal time: budgets, configs, resumption, table."""

import json

import numpy as np
import pytest

from benchmarks import structures, structures_report
from benchmarks.structures import Cell
from sparsejax.errors import ConfigError

TINY = """--config configs/digits.py:sweep --config.steps=4 --config.batch_size=4
--config.sparsity.update_interval=2 --config.model.num_res_blocks=1
--config.model.channel_mult=(1,) --config.model.attention_resolutions=()
--config.optimizer.warmup_steps=1 --config.sample.steps=2 --config.task.split=train[:1500]
--held-out train[1500:] --samples 8 --rounds 1 --levels 0.5 --square 8 --rectangular 4x8"""


def flags_of(*words):
    return structures.parse_flags([*TINY.split(), "--output=unused", *words])


def timed(structure, sparsity, times_dense, **seconds):
    row = {"structure": structure, "sparsity": sparsity, "times_dense": times_dense}
    return row | {"seconds": seconds}


def test_a_structure_gets_the_seconds_that_dense_takes():
    flags = flags_of("--config.steps=300", "--config.sparsity.update_interval=50")
    cell = Cell("square", "rigl", 0.5)
    rows = [timed("dense", 0.0, 1.0, step=0.1), timed("square", 0.5, 2.0, step=0.06, rigl=0.5)]
    programs = structures.Programs(*[None] * 8)._replace(plan=plan_of(flags, cell))
    step, update, longest = structures.step_counts({"rows": rows}, programs, cell, 300)
    updates = [step for step in range(1, 301) if step % 50 == 0 and step < 225]
    assert (step, update) == (0.05, 0.5)
    assert longest == (300 * 0.1 - len(updates) * 0.5) / 0.05
    assert longest * step + len(updates) * update == pytest.approx(30)


def plan_of(flags, cell):
    config = structures.config_of(flags, cell)
    return structures.build_plan(config, structures.build_model(config))


def test_numbers_of_steps_within_one_percent_are_one():
    flags, cell = flags_of("--config.steps=300"), Cell("weights", "magran", 0.5)
    programs = structures.Programs(*[None] * 8)._replace(plan=plan_of(flags, cell))
    for ratio, expected in ((0.995, 300), (0.98, 294), (1.02, 306)):
        rows = [timed("dense", 0.0, 1.0, step=0.1), timed("weights", 0.5, ratio, step=1, magran=0)]
        *_, longest = structures.step_counts({"rows": rows}, programs, cell, 300)
        assert longest == pytest.approx(expected, abs=1)
    assert structures.measurements_of(cell, 300, 300) == {300: ["steps", "time"]}
    assert list(structures.measurements_of(cell, 300, 290).items()) == [
        (290, ["time"]),
        (300, ["steps"]),
    ]
    dense = structures.measurements_of(Cell("dense", "dense", 0.0), 8, 8)
    assert dense == {2: [], 4: [], 6: [], 8: ["steps", "time"]}


def test_cells_name_each_structure_once_and_configs_say_what_they_are():
    flags = flags_of()
    cells = structures.cells_of(flags)
    assert len(cells) == len(set(cells)) == 2 + 5 * 2
    found = {}
    for structure in structures.SPARSE:
        config = structures.config_of(flags, Cell(structure, "rigl", 0.5))
        assert config.optimizer.schedule == "constant"
        sparsity = config.sparsity
        size = sparsity.block_size if sparsity.structure == "block" else None
        found[structure] = (sparsity.structure, size, sparsity.fan_in if size else None)
    assert found == {
        "weights": ("weight", None, None),
        "free": ("block", 8, False),
        "square": ("block", 8, True),
        "rectangular": ("block", (4, 8), True),
        "channels": ("channel", None, None),
    }
    with pytest.raises(ConfigError, match="--structures rows; accepted: channels, square"):
        flags_of("--structures=rows")


@pytest.fixture
def folder(tmp_path):
    """Results of two seeds: dense, and channels that are better with more steps."""
    machine = {"cpu": "a CPU", "versions": {"jax": "0"}}
    config = {"steps": 10, "batch_size": 4, "sparsity": {"update_interval": 2}}
    config["sparsity"]["drop_fraction"] = 0.5
    settings = {"config": config, "square": "8", "rectangular": "4x16"}
    rows = [timed("dense", 0.0, 1.0, step=0.1), timed("channels", 0.75, 1.6, step=0.06)]
    times = {"settings": settings, "machine": machine, "rows": rows}
    place = tmp_path / "digits"
    place.mkdir()
    (place / "times.json").write_text(json.dumps(times))
    lines = []
    for seed, (structure, steps, budgets, loss) in enumerate(
        [
            ("dense", 10, ["steps", "time"], 0.25),
            ("channels", 10, ["steps"], 0.5),
            ("channels", 15, ["time"], 0.375),
        ]
        * 2
    ):
        seed //= 3
        method = "dense" if structure == "dense" else "rigl"
        row = {"structure": structure, "method": method, "seed": seed, "steps": steps}
        row |= {"sparsity": 0.75 if method == "rigl" else 0.0, "budgets": budgets}
        row |= {"training_seconds": 0.1 * steps, "step_seconds": 0.1, "commit": "c"}
        row |= {"versions": {"jax": "0"}}
        row |= {"active_parameters": 10, "forward_flops": 20}
        row["measures"] = {"training_loss": 9.0, "held_out_loss": loss + 0.125 * seed}
        lines.append(json.dumps(row))
    (place / "results.jsonl").write_text("\n".join(lines) + '\n{"structure": "den')
    return tmp_path


def test_the_table_has_means_and_differences_at_both_budgets(folder, capsys):
    structures_report.main([str(folder)])
    text = (folder / "report.md").read_text()
    header, _, dense, channels = [line for line in text.splitlines() if line.startswith("|")]
    columns = [part.strip() for part in header.split("|")]
    cells = dict(zip(columns, (part.strip() for part in channels.split("|")), strict=True))
    expected = {"network": "channels", "n": "2", "steps in dense's time": "15"}
    expected |= {"times dense": "1.60", "difference to dense": "+0.125 [+0.125, +0.125]"}
    expected["held-out loss, equal steps"] = "0.562 ± 0.088"
    expected["held-out loss, equal time"] = "0.438 ± 0.088"
    assert {name: cells[name] for name in expected} == expected
    assert "| 0.312 ± 0.088 |" in dense
    assert "9.0" not in text  # the training loss
    assert (folder / "quality.png").stat().st_size > 10_000
    assert "report.md, quality.png" in capsys.readouterr().out


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ConfigError, match="has no .*results.jsonl"):
        structures_report.main([str(tmp_path)])


@pytest.mark.slow
@pytest.mark.usefixtures("own_logging")
def test_runs_are_measured_at_both_budgets_and_never_twice(tmp_path):
    words = [*TINY.split(), f"--output={tmp_path}", "--methods=rigl", "--structures=square,free"]
    structures.main([*words, "--seeds=0"])
    first = structures.read_rows(tmp_path / "results.jsonl")
    times = (tmp_path / "times.json").read_bytes()
    structures.main([*words, "--seeds=0,1"])
    rows = structures.read_rows(tmp_path / "results.jsonl")
    assert (tmp_path / "times.json").read_bytes() == times
    assert {row["structure"] for row in rows} == {"dense", "small_dense", "square", "free"}
    assert [row for row in rows if row["seed"] == 0] == first
    for row in rows:
        assert np.isfinite(row["measures"]["held_out_loss"])
        assert np.isfinite(row["measures"]["FD[classifier:digits]@8"])
    with pytest.raises(ConfigError, match="results of other settings"):
        structures.main([*words, "--square=4"])


def test_results_from_before_a_config_key_was_added_are_added_to(tmp_path):
    path = tmp_path / "times.json"
    flags = flags_of()
    settings = structures.settings_of(flags)
    del settings["config"]["optimizer"]["skip_nonfinite"]
    path.write_text(json.dumps({"settings": settings, "rows": []}))
    assert structures.add_times(flags, [], None, None, path)["rows"] == []
    settings["config"]["optimizer"]["skip_nonfinite"] = 1
    path.write_text(json.dumps({"settings": settings, "rows": []}))
    with pytest.raises(ConfigError, match="other settings"):
        structures.add_times(flags, [], None, None, path)
