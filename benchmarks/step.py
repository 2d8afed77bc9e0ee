#!/usr/bin/env python
"""What Lightning, data, logging and checkpoints cost: the study's run against the same steps in a bare loop.

    python benchmarks/step.py                        # on the real CIFAR-10
    python benchmarks/step.py data=cifar10_sample    # without it

Both sides run in one process, in alternation: the run goes on for a chunk of iterations, then the bare loop does the
same number on a network of its own. Printed are ms per iteration, and the ratio chunk by chunk.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from cyclical_lr.records import build, learning_rates
from cyclical_lr.training import provenance
from cyclical_lr.training.callbacks import Checkpoints, Curves, Progress
from cyclical_lr.training.config import compose_config, describe, plain
from cyclical_lr.training.engine import reference_step
from cyclical_lr.training.module import Classifier
from cyclical_lr.training.run import make_trainer, new_member
from cyclical_lr.training.tracking import open_logger

REPOSITORY = Path(__file__).resolve().parent.parent
CHUNK, CHUNKS = 25, 21  # the first chunk warms up


class Alternate(pl.Callback):
    """After each chunk of the run, times the same number of iterations of `other`."""

    def __init__(self, other: Callable[[int], None]) -> None:
        self.other = other
        self.run_seconds: list[float] = []
        self.other_seconds: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Classifier)
        if module.iteration % CHUNK == 0:
            start = time.perf_counter()
            self.other(module.iteration - CHUNK)
            end = time.perf_counter()
            self.run_seconds.append(start - self._since)
            self.other_seconds.append(end - start)
            self._since = time.perf_counter()


def main() -> None:
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY))
    iterations = CHUNK * CHUNKS
    overrides = ["+experiment=cifar10_tri2", f"iterations={iterations}", f"eval_every={iterations}", *sys.argv[1:]]
    plan = plain(compose_config(REPOSITORY / "conf", overrides))
    config = describe(plan, seed=0)
    lrs = learning_rates(config)
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    ours, bare = new_member(plan, config, "run"), new_member(plan, config, "bare loop")

    def bare_loop(first: int) -> None:
        for iteration in range(first, first + CHUNK):
            x, y = data.train(data.indices(0, iteration, 1)[0])
            reference_step(bare.network, bare.solver, x, y, lrs[iteration])

    with tempfile.TemporaryDirectory() as folder:
        folders = {ours.run_id: Path(folder)}
        logger = open_logger(Path(folder), ours.run_id, "benchmark", config, **plan["logger"])
        alternate = Alternate(bare_loop)
        callbacks = [
            Curves(folders, {ours.run_id: logger} if logger else {}),
            Progress("run", iterations),
            Checkpoints(folders, plan["checkpoint_seconds"]),
            alternate,
        ]
        trainer = make_trainer(**plan["trainer"], max_epochs=1, callbacks=callbacks, default_root_dir=folder)
        blocks = data.train_blocks([0], 0, iterations, iterations)
        trainer.fit(Classifier([ours], data.train, data.test, lrs), blocks)

    same = all(map(torch.equal, ours.network.state_dict().values(), bare.network.state_dict().values()))
    pairs = list(zip(alternate.run_seconds, alternate.other_seconds, strict=True))[1:]
    ratios = sorted(run / other for run, other in pairs)
    print(
        f"{provenance.device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{len(pairs)} chunks of {CHUNK} iterations each way, alternating; both ended with the same weights: {same}")
    print(f"run        {1000 * median(run for run, _ in pairs) / CHUNK:7.2f} ms per iteration (median)")
    print(f"bare loop  {1000 * median(other for _, other in pairs) / CHUNK:7.2f} ms per iteration (median)")
    print(f"ratio      {median(ratios):7.3f} (median), {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
