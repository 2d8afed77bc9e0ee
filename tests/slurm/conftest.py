"""One Slurm for all of these tests, which are skipped where none can be started."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_slurm import Slurm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a Slurm where none can be started."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "squeue") if shutil.which(name) is None]
    if os.geteuid() != 0:
        reason = "needs root, to start a Slurm of its own"
    elif absent:
        reason = f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    elif find_spec("submitit") is None:
        reason = "submitit is not installed: pip install -e '.[slurm]'"
    else:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
