"""Data parallelism: one run in several processes, its ranks, each with its share of every batch.

torchrun or srun starts the ranks, never Lightning (`join`). Rank 0 alone touches the run's files, decides, and reports;
the others do as it says (`first`). Outside a group of ranks the functions here do nothing: a process is rank 0 of 1.

The mean of the ranks' gradients is the gradient of the whole batch, as in Caffe's P2PSync (parallel.cpp), except that
there each GPU has a whole batch. As there, BatchNorm sees a rank's own share, and evaluations take rank 0's averages.
"""

import atexit
import os
import re
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from cyclical_lr.processes import cores
from cyclical_lr.records import ConfigError

T = TypeVar("T")


def join() -> None:
    """Make this process one of the ranks that torchrun or srun started, once.

    Raises:
        ConfigError: it was not started as one.
    """
    if distributed.is_initialized():
        return
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():  # torchrun sets them
        os.environ.update(_environment_of_srun())
    if int(os.environ["WORLD_SIZE"]) > 1:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)


def _environment_of_srun() -> dict[str, str]:
    """What torchrun would have set, from what srun sets."""
    given = os.environ
    # SLURM_NTASKS is of the allocation: a batch script has it too, in its one process.
    if int(given.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        raise ConfigError(
            "trainer.strategy=ddp: expected ranks started by torchrun or srun, found this process alone. Lightning "
            "would start the others by the same command line, and with -m each would run the whole sweep again. "
            "Use torchrun --nproc_per_node 2 scripts/run.py ..., or srun --ntasks 2 --kill-on-bad-exit python "
            "scripts/run.py ..., or cluster=slurm hydra.launcher.tasks_per_node=2; for one device, trainer=gpu or cpu"
        )
    port = 20000 + (31 * int(given["SLURM_JOB_ID"]) + int(given["SLURM_STEP_ID"])) % 10000
    per_node = given.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 2(x3),1
    sharing = max(map(int, re.findall(r"(?:^|,)(\d+)", per_node)))
    if own := given.get("SLURM_CPUS_PER_TASK"):  # Slurm may have bound a rank to its own cores, which none shares then
        sharing = max(1, cores() // int(own))
    return {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(sharing),  # read where the cores are shared out: data/imagenet.py
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(given["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": given.get("MASTER_PORT", str(port)),  # the same for all of the step, another for its neighbours
    }


def rank() -> int:
    """Of this process, from 0; 0 without DDP."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """How many there are; 1 without DDP."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def check_shares(batch_size: int, test_images: int) -> None:
    """Refuse what cannot be shared out.

    Raises:
        ConfigError: a batch does not divide by the number of ranks, or a rank would have nothing to evaluate.
    """
    if batch_size % ranks():
        raise ConfigError(f"data.batch_size: expected a multiple of the {ranks()} ranks, got {batch_size}")
    if test_images < ranks():
        raise ConfigError(f"data.name: expected a test image for each of the {ranks()} ranks, got {test_images} in all")


# Between the ranks: all of them must call these, in the same order ----------------------------------------------------


def first(decide: Callable[[], T]) -> T:
    """What `decide` returns, or raises, on rank 0; the others do not call it."""
    if ranks() == 1:
        return decide()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:  # the others would wait for ever
            answer[1] = error
    distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if ranks() > 1:
        distributed.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over the ranks, in place."""
    return all_reduce_sum(values).div_(ranks()) if ranks() > 1 else values


def broadcast_buffers(network: nn.Module) -> None:
    """Give every rank the buffers of rank 0's network: BatchNorm's averages."""
    if ranks() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


# Lightning ------------------------------------------------------------------------------------------------------------


def trainer_options(accelerator: str) -> dict[str, Any]:
    """What makes a Trainer one of the ranks; empty where there is only one."""
    if ranks() == 1:
        return {}
    # Slurm may show each rank its own GPU alone.
    gpus = [int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count())]
    return {
        "strategy": DDPStrategy(broadcast_buffers=False),  # among the buffers are the images
        "devices": gpus if accelerator == "gpu" else 1,
        "num_nodes": ranks(),
        "plugins": [Ranks()],
        "use_distributed_sampler": False,
    }


class Ranks(LightningEnvironment):
    """The group of `join`. To Lightning each rank is a node with one device, wherever they are."""

    creates_processes_externally = True

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return rank()

    def teardown(self) -> None:
        """The original forgets the ranks."""


class EndAtTerm(pl.Callback):
    """Ends a rank at SIGTERM. Lightning would have the ranks talk about it, wherever each of them is."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # in place of Lightning's own, which it sets before this hook

    on_validation_start = on_train_start  # the first evaluation comes before any training
