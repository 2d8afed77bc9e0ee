"""Inside a Slurm job: one process for Lightning, and who answers which signal.

- USR2, before a time limit (or a preemption, where the site sends it): submitit requeues the job and exits. The last
  checkpoint is about a minute old at most and resuming is exact, so nothing is saved first.
- TERM, when Slurm preempts, requeues or cancels the job: nobody. Slurm requeues a job that it preempts when its grace
  time is over, but not one that has ended itself by then; Lightning would end it.
- USR1, at which Lightning would requeue the job: nobody sends it.
"""

import logging
import os
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment

log = logging.getLogger(__name__)


def trainer_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a Trainer gets: `options`, and inside a Slurm job what keeps Lightning from reacting to it."""
    if "SLURM_JOB_ID" not in os.environ:
        return options
    # SLURM_NTASKS is of the allocation; Lightning would wait for as many processes.
    options = {"plugins": [LightningEnvironment()], **options}
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # else a person's own session, where TERM is to end the run
        options["callbacks"] = [*options.get("callbacks", ()), IgnoreTerm()]
    return options


class IgnoreTerm(pl.Callback):
    """Trains on after SIGTERM, until Slurm kills the job."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._note)  # in place of Lightning's own, which it sets before this hook

    on_validation_start = on_train_start  # the first evaluation comes before any training

    @staticmethod
    def _note(signum: int, frame: FrameType | None) -> None:
        log.warning("SIGTERM: training goes on until Slurm ends the job; a requeued one continues from its checkpoint")
