"""Runs small enough to be repeated by the dozen, in this process and in processes of their own.

A run here is a run: `scripts/run.py`'s config, the embedded sample, the real network. It is short, and its data are cut
to 40 training images (an epoch is 10 iterations of 4) and 50 test images by a data class of its own, which can also cut
the power: its loaders raise where they are told to.
"""

import hashlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cyclical_lr import records
from cyclical_lr.data.cifar import CifarData
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.records import Record
from cyclical_lr.solvers import param_groups
from cyclical_lr.training.config import compose_config
from cyclical_lr.training.engine import BLOCKS
from cyclical_lr.training.run import Outcome, run

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
SCRIPT = REPOSITORY / "scripts" / "run.py"
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)

EPOCH, CYCLE = 10, 6
SAMPLE = ("data=cifar10_sample", "data.batch_size=4", "data.eval_batch_size=100", "threads=1", "logger=none")
TINY = (*SAMPLE, "data._target_=small_runs.TinyData")
TRIANGLE = ("schedule=triangular", "schedule.base_lr=0.001", "schedule.max_lr=0.005", f"schedule.stepsize={CYCLE // 2}")


def tiny(folder: Path, *overrides: str) -> list[str]:
    """The command line of a tiny triangular run of 12 iterations, whose files go into `folder`."""
    where = [f"results_dir={folder}/results", f"runs_dir={folder}/runs"]
    return [*TINY, *TRIANGLE, "iterations=12", "eval_every=6", *where, *overrides]


def train(folder: Path, *overrides: str) -> list[Outcome]:
    """What `scripts/run.py` does with `tiny(folder, *overrides)`, in this process."""
    return run(compose_config(CONF, tiny(folder, *overrides)), CONF)


# What a run left ------------------------------------------------------------------------------------------------------


def records_in(folder: Path) -> list[Record]:
    """By seed."""
    read = [records.read_record(path) for path in (folder / "results" / "runs").glob("*.json")]
    return sorted(read, key=lambda record: record.seed)


def checkpoints(folder: Path, run_id: str) -> list[Path]:
    return sorted((folder / "runs" / run_id).glob("checkpoint-*.pt"))


def checkpoint(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    return torch.load(io.BytesIO(data[:-32]), weights_only=True)


def curve(folder: Path, run_id: str) -> list[str]:
    """The curve without its clock, each row as text: NaN equals NaN, floats keep all their digits."""
    rows = records.read_curve(records.curve_path(folder / "results", run_id))
    return [str(asdict(replace(row, train_seconds=0.0))) for row in rows]


def assert_same_bits(folder: Path, other: Path, run_id: str) -> None:
    """The final weights, the solver's buffers and the curve in two folders are the same."""
    ours, theirs = (checkpoint(checkpoints(root, run_id)[-1]) for root in (folder, other))
    assert ours["iteration"] == theirs["iteration"]
    assert ours["network"].keys() == theirs["network"].keys()
    for name, value in ours["network"].items():
        assert torch.equal(value, theirs["network"][name]), name
    buffers, others = ours["solver"]["state"], theirs["solver"]["state"]
    assert buffers.keys() == others.keys() and buffers
    for position, state in buffers.items():
        for name, value in state.items():
            assert torch.equal(value, others[position][name]), (position, name)
    assert curve(folder, run_id) == curve(other, run_id)


# What goes wrong ------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Ends a run as SIGKILL does: nothing may be written after it. (Not an Exception, which would be a failed run.)"""


class TinyData(CifarData):
    """40 training and 50 test images, until the power is cut."""

    batch: ClassVar[int | None] = None  # raise instead of serving this iteration's batch
    evaluation: ClassVar[int | None] = None  # raise in mid-evaluation at this iteration
    error: ClassVar[BaseException] = PowerCut()
    served: int | None = None

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train"):
            super().setup(stage)
            for images, count in ((self.train, 4 * EPOCH), (self.test, 50)):
                images.pixels, images.labels = images.pixels[:count], images.labels[:count]

    def indices(self, seed: int, iteration: int, count: int) -> torch.Tensor:
        if iteration == self.batch:
            raise self.error
        self.served = iteration + count
        return super().indices(seed, iteration, count)

    def eval_blocks(self, shard: tuple[int, int] = (0, 1)) -> "DataLoader[torch.Tensor]":
        return DataLoader(_Evaluation(self, shard), batch_size=None)


class _Evaluation(Dataset[torch.Tensor]):
    def __init__(self, data: TinyData, shard: tuple[int, int]) -> None:
        self.data, self.parts = data, torch.arange(len(data.test))[shard[0] :: shard[1]].split(len(data.test) // 2)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: int) -> torch.Tensor:
        if part and self.data.served == self.data.evaluation is not None:
            raise self.data.error
        return self.parts[part]


class Terminated:
    """Blocks that send their own process SIGTERM where they are begun to be read."""

    def __init__(self, blocks: "DataLoader[torch.Tensor]") -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from self.blocks


@contextmanager
def cut(
    *, batch: int | None = None, evaluation: int | None = None, error: BaseException | None = None
) -> Iterator[None]:
    """While this lasts, runs on `TinyData` end with `error` (a `PowerCut`) at that batch or in that evaluation.

    The reference engine takes one iteration at a time, so that there is a checkpoint to be had after each.
    """
    TinyData.batch, TinyData.evaluation, TinyData.error = batch, evaluation, error or PowerCut()
    before, BLOCKS["reference"] = BLOCKS["reference"], 1
    try:
        yield
    finally:
        TinyData.batch = TinyData.evaluation = None
        BLOCKS["reference"] = before


class Seed1Explodes(Cifar10Full):
    """A network that seed 1 draws such that training diverges within a few steps."""

    def __init__(
        self, num_classes: int = 10, ceil_mode: bool = True, lrn: str = "within_channel", init: str = "caffe"
    ) -> None:
        super().__init__(num_classes, ceil_mode, lrn, init)
        if torch.initial_seed() == 1:
            self.ip1.weight.data.mul_(1e30)


class WithDropout(Cifar10Full):
    """A network that draws numbers while it trains."""

    def __init__(
        self,
        num_classes: int = 10,
        ceil_mode: bool = True,
        lrn: str = "within_channel",
        init: str = "caffe",
        chance: Annotated[float, {"at most": 1}] = 0.5,
    ) -> None:
        super().__init__(num_classes, ceil_mode, lrn, init)
        self.norm2 = nn.Sequential(self.norm2, nn.Dropout(chance))


class DropsByCall(Cifar10Full):
    """A network that draws numbers while it trains, of which no layer tells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


def adam(model: nn.Module, momentum: float, weight_decay: float, multipliers: bool) -> torch.optim.Adam:
    """PyTorch's own, which reads its LR on the host."""
    return torch.optim.Adam(param_groups(model, weight_decay, multipliers), betas=(momentum, 0.999))


class Fails(Cifar10Full):
    """A network that does not work."""

    def __init__(
        self, num_classes: int = 10, ceil_mode: bool = True, lrn: str = "within_channel", init: str = "caffe"
    ) -> None:
        super().__init__(num_classes, ceil_mode, lrn, init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the cat sat on the cable")


# Processes of their own -----------------------------------------------------------------------------------------------


class Forked:
    """A call in a new process, forked from one that has done nothing but import: no seconds of imports for each."""

    def __init__(self, output: Path, function: Callable[..., Any], *arguments: Any, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["cyclical_lr.training.run"])
        self.output = output
        output.touch()
        call = partial(_call, str(output), environment, function, *arguments)
        self.process: ForkServerProcess = context.Process(target=call)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ends(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit code (the negative signal number where one ended it) and all that it printed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} seconds: {self.output.read_text()}")
        return self.process.exitcode, self.output.read_text()


def _call(output: str, environment: dict[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "CYCLICAL_LR_"))]:
        del os.environ[name]
    os.environ.update(environment)
    function(*arguments)


def run_script(overrides: list[str]) -> None:
    """`python scripts/run.py OVERRIDES`, as the main module of this process."""
    sys.argv = [str(SCRIPT), *overrides]
    runpy.run_path(str(SCRIPT), run_name="__main__")
