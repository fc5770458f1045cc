"""Every command of README and docs/ is run in order, made tiny; see documented.py."""

import pytest

from tests.documented import documented
from tests.documented.documents import (
    ALONE,
    DOCUMENTS,
    SCRIPTS,
    commands_of,
    is_part_of_any,
    run_all,
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_is_run_or_stands_in_the_list(document):
    for command in commands_of(document):
        known = documented.reason_not_to_run(command) or documented.tiny_flags(command) is not None
        assert known or is_part_of_any(command, SCRIPTS), (
            f"python {command}: see the head of {documented.__file__}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path not in ALONE], ids=lambda path: path.name
)
def test_every_command_of_a_document_runs(document, shell):
    """In order: documents use what those before them left behind."""
    run_all(document, shell)


def test_no_reason_is_left_over():
    commands = [command for document in DOCUMENTS for command in commands_of(document)]
    given = {documented.reason_not_to_run(command) for command in commands}
    assert {reason for _, reason in documented.NOT_RUN} == given - {None}


def test_a_command_that_nobody_listed_fails(tmp_path):
    log = tmp_path / "log.jsonl"
    assert documented.main(log, "new_program.py", "--flag") == 2
    assert documented.tiny_flags("train.py --config configs/digits.py")
    assert documented.reason_not_to_run("train.py --config configs/digits.py") is None
    line = "-m sparsejax sweep --config configs/digits.py --seeds 3,1 --levels=0.5,0.9"
    assert documented.tiny_flags(line)[-2:] == ["--seeds=3", "--levels=0.5"]
