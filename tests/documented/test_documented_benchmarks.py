"""The documents that need no others, in a process of their own."""

import pytest

from tests.documented.documents import ALONE, run_all


@pytest.mark.slow
@pytest.mark.parametrize("document", ALONE, ids=lambda path: path.name)
def test_every_command_of_a_document_runs(document, shell):
    run_all(document, shell)
