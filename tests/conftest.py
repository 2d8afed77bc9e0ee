"""What every test shares: one thread, and the real data where they are."""

import os
import re
import shutil
import signal
import subprocess

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

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton: its kernels then run on the CPU

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


@pytest.fixture(scope="session")
def committed_results() -> Path:
    """The folder results/, where it has no runs but those that are committed."""
    folder = Path(__file__).parents[1] / "results"
    command = ["git", "-C", str(folder), "status", "--porcelain", "--", "."]
    changed = subprocess.run(command, capture_output=True, text=True).stdout if shutil.which("git") else ""
    if changed:
        pytest.skip(
            f"needs a results/ without runs of your own, has {changed.split()[1]}: scripts/report.py, and commit"
        )
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `CYCLICAL_LR_ALL_TESTS` set, as in .ci/run, a test that lacks anything but a kind of device fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or "CYCLICAL_LR_ALL_TESTS" not in os.environ:
        return
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", ())]
    if lacking := sorted({reason for reason in reasons if not re.search("GPU|CPU|empty parameter set", reason)}):
        reporter.write_line(f"skipped, and should not have been: {'; '.join(lacking)}", red=True)
        session.exitstatus = 1


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
