import pytest

from sparsejax.evaluation.closing import close_run
from sparsejax.training import loop
from tests.families.first_stage import first_stage_config, second_stage_config, write_blobs


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """The source of images, and the workdirs of two finished, closed runs: the two stages."""
    folder = tmp_path_factory.mktemp("stages")
    source, first, second = folder / "blobs.npz", folder / "first", folder / "second"
    write_blobs(source)
    for workdir, config in (
        (first, first_stage_config(source)),
        (second, second_stage_config(source, first)),
    ):
        assert loop.train(config, workdir)
        close_run(workdir)
    return source, first, second
