"""Reading results.jsonl: what counts as a row, and what is refused."""

import json

import pytest

from sparsejax.errors import ConfigError
from sparsejax.reports.results import read_results
from tests.reports.test_figures import make_row


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1: no JSON"),
        (json.dumps(make_row(run=["a"], layers=2)), "line 1: run is .*a.*; accepted: text"),
    ],
)
def test_rows_that_are_none_are_refused(line, message, tmp_path):
    (tmp_path / "results.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", value) for value in (None, "0", 1.5, True, 10**400)),
        *(("sparsity", value) for value in (None, "0.5", True, [0.5], 10**400, float("nan"))),
        *(("measures", value) for value in (None, [], 1.0)),
        *(("layers", {"a": value}) for value in (1, [1], [1, 2, 3], [2, 1], [0, 0], [1.0, 2])),
        *(("block_size", value) for value in ("16", [16], {"a": 1})),
        *(
            ("method", []),
            ("structure", ["block"]),
            ("commit", {}),
            ("versions", []),
            ("layers", 3),
        ),
    ],
)
def test_a_value_that_no_row_has_is_named(key, value, tmp_path):
    row = make_row(layers=2) | {key: value}
    (tmp_path / "results.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=f"line 1: {key} is .*; accepted: "):
        read_results(tmp_path)


def test_half_a_surrogate_is_replaced(tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps(make_row(run="a\ud800b", layers=2)))
    assert [row["run"] for row in read_results(tmp_path)] == ["a?b"]


def test_of_a_run_that_is_there_twice_the_last_line_counts(tmp_path):
    lines = [make_row(seed=0, loss=1.0), make_row(seed=1, loss=2.0), make_row(seed=0, loss=3.0)]
    path = tmp_path / "results.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    assert [row["loss"] for row in read_results(path)] == [3.0, 2.0]
    assert read_results(tmp_path) == read_results(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("", "holds no runs"),
        ('{"run": "a"', "line 1: no JSON"),
        ("\n[1]", "line 2: no run, method"),
        ('{"run": "a", "method": "dense", "sparsity": 0, "seed": 0, "steps": 1}', "no measures"),
    ],
)
def test_a_damaged_results_file_is_refused(content, message, tmp_path):
    path = tmp_path / "results.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_results(path)
