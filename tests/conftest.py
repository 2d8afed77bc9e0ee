"""What every test shares: one thread, and the real data where they are."""

import os
import signal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: its threads only wait on a shared machine
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, and handed on to what a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A shared machine makes any deadline a matter of luck.
settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Bits depend on the number of threads, and test runs share their machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with cifar-10-batches-py/ and perhaps cifar-100-python/, in torchvision's layout."""
    root = Path(os.environ.get("CYCLICAL_LR_DATA") or Path(__file__).parents[1] / "data").expanduser()
    if not (root / "cifar-10-batches-py" / "test_batch").is_file():
        pytest.skip(
            f"needs the real CIFAR-10: no cifar-10-batches-py/ in {root}. Set CYCLICAL_LR_DATA to a folder with it, or "
            f"get it with torchvision.datasets.CIFAR10({str(root)!r}, download=True) (a slow host)"
        )
    return root


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which writing a file past a number of bytes fails, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited
