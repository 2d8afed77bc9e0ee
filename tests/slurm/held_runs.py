"""A tiny run that waits, or fails, where a test says so."""

import os
import time
from pathlib import Path

import torch
from small_runs import TinyData

STOP = 6


class HeldData(TinyData):
    """Tiny data of which files in the folder `HELD_RUNS` (of the environment) say what happens at iteration `STOP`.

    While there is `hold-SEED` the run waits, having written `held-SEED`; while there is `fail-SEED` it fails.
    """

    def indices(self, seed: int, iteration: int, count: int) -> torch.Tensor:
        if iteration == STOP and "HELD_RUNS" in os.environ:
            folder = Path(os.environ["HELD_RUNS"])
            if (folder / f"fail-{seed}").exists():
                raise RuntimeError("the cat sat on the cable")
            while (folder / f"hold-{seed}").exists():
                (folder / f"held-{seed}").touch()
                time.sleep(0.05)
        return super().indices(seed, iteration, count)
