"""What the tests of data share: a synthetic CIFAR-10, and the embedded sample."""

from pathlib import Path

import pytest
from small_cifar import BASE, configured, write_set

from cyclical_lr.data.cifar import CifarData


@pytest.fixture
def copy(tmp_path) -> tuple[Path, dict]:
    """A synthetic CIFAR-10 in a root of its own, and the arguments that declare it."""
    folder = tmp_path / "elsewhere" / BASE["cifar10"]
    return folder, write_set(folder)


@pytest.fixture(scope="session")
def sample() -> CifarData:
    return configured("cifar10_sample")
