#!/usr/bin/env python
"""How fast a run is, beside the least that it could take and beside what one would write instead.

    python benchmarks/step.py                        # on the real CIFAR-10
    python benchmarks/step.py data=cifar10_sample    # without it
    python benchmarks/step.py trainer=gpu            # any override of scripts/run.py

Five things in one process, in alternation, chunk by chunk, each on a network of its own:

    run     the study's run: Lightning, data, logging, checkpoints
    bare    the same steps in a loop, without all that (both end with the same weights)
    floor   the three convolutions alone, forward and backward, in float32
    plain   the loop that one writes in plain PyTorch, channels last: autograd, pow(-0.75) in the LRN, torch's SGD
    module  a LightningModule with torchvision's CIFAR10, ToTensor, Normalize, a DataLoader with two workers

Printed are ms per iteration, and the run's ratio to each, chunk by chunk.
"""

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cyclical_lr.records import build, learning_rates
from cyclical_lr.training import provenance
from cyclical_lr.training.callbacks import Checkpoints, Curves, Interrupts, Progress
from cyclical_lr.training.config import compose_config, describe, plain
from cyclical_lr.training.engine import BLOCKS, choose_engine, exact_arithmetic, layout, reference_step
from cyclical_lr.training.module import Classifier
from cyclical_lr.training.run import make_trainer, new_member
from cyclical_lr.training.tracking import open_logger

REPOSITORY = Path(__file__).resolve().parent.parent
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
CHUNKS = {"cpu": 13, "cuda": 6}  # the first warms up
Arm = Callable[[int], float]
"""Trains a chunk of iterations from the given one on, and returns the seconds that it took."""


class PlainNet(nn.Module):
    """cifar10_full as one would write it: 89,578 parameters, PyTorch's initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 5, padding=2), nn.Conv2d(32, 32, 5, padding=2)
        self.conv3, self.ip1 = nn.Conv2d(32, 64, 5, padding=2), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)))
        x = self.norm(F.avg_pool2d(F.relu(self.conv2(x)), 3, 2, ceil_mode=True))
        x = F.avg_pool2d(F.relu(self.conv3(x)), 3, 2, ceil_mode=True)
        return self.ip1(x.flatten(1))

    def norm(self, x: Tensor) -> Tensor:
        return x * (1 + 5e-5 * F.avg_pool2d(x * x, 3, stride=1, padding=1)).pow(-0.75)


class PlainModule(pl.LightningModule):
    """The LightningModule that one would write, timed from its fifth batch to its last."""

    WARM_UP = 5

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def on_fit_start(self) -> None:  # torch's defaults, which the study's runs switch off on a GPU
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True

    def on_fit_end(self) -> None:
        exact_arithmetic()

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
        if number + 1 == self.WARM_UP:
            self.since = now(self.device)
        self.timed = number + 1 - self.WARM_UP

    def on_train_epoch_end(self) -> None:
        self.seconds = (now(self.device) - self.since) / self.timed  # a batch; a small set has fewer than asked for

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001, momentum=0.9, weight_decay=0.004)


class Pictures(Dataset[tuple[Tensor, int]]):
    """The training set as torchvision's CIFAR10 hands it out: a PIL image an item, transformed one by one."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels.numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.labels[index]


class Alternate(pl.Callback):
    """After each chunk of the run, times the same iterations of the others."""

    def __init__(self, chunk: int, others: dict[str, Arm]) -> None:
        self.chunk, self.others = chunk, others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("run", *others)}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = now(module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Classifier)
        if module.iteration % self.chunk == 0:
            self.seconds["run"].append(now(module.device) - self._since)
            for name, other in self.others.items():
                self.seconds[name].append(other(module.iteration - self.chunk))
            self._since = now(module.device)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(overrides: list[str]) -> tuple[dict[str, list[float]], int, bool]:
    """Seconds per chunk of each arm, the iterations of a chunk, and whether run and bare ended with equal weights."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric).*")
    overrides = ["+experiment=cifar10_tri2", *overrides]
    on_gpu = plain(compose_config(REPOSITORY / "conf", overrides))["trainer"]["accelerator"] == "gpu"
    chunk = 400 if on_gpu else 10  # whole blocks, and less than an epoch
    device = torch.device("cuda" if on_gpu else "cpu")
    iterations = chunk * CHUNKS[device.type]
    overrides += [f"iterations={iterations}", f"eval_every={iterations}"]
    plan = plain(compose_config(REPOSITORY / "conf", overrides))
    config = describe(plan, seed=0)
    lrs = learning_rates(config)
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    pictures = Pictures(data.train.pixels, data.train.labels)
    ours, same = new_member(plan, config, "run"), new_member(plan, config, "bare")
    ours.segments.append({})  # of which a checkpoint tells
    form = layout(device, plan["trainer"]["precision"], ours.network)
    same.network.to(device, memory_format=form)  # type: ignore[call-overload]

    def timed(step: Callable[[int], object]) -> Arm:
        def arm(first: int) -> float:
            start = now(device)
            for iteration in range(first, first + chunk):
                step(iteration)
            return now(device) - start

        return arm

    def batch(iteration: int) -> tuple[Tensor, Tensor]:
        return data.train(data.indices(0, iteration, 1)[0].to(device))

    network = PlainNet().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=0.004)

    def plain_step(iteration: int) -> None:
        x, y = batch(iteration)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    plain_arm = timed(plain_step)
    only = PlainNet().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    convolutions = [
        (conv, random(x, device), random(y, device))
        for conv, x, y in zip((only.conv1, only.conv2, only.conv3), *CONVOLVED, strict=True)
    ]

    def floor_step(_: int) -> None:
        for number, (module, x, upstream) in enumerate(convolutions):
            module(x.requires_grad_(number > 0)).backward(upstream)
            module.weight.grad = module.bias.grad = x.grad = None

    mixed = plan["trainer"]["precision"] == "bf16-mixed"

    def bare_step(t: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            x, y = batch(t)
            reference_step(same.network, same.solver, x.contiguous(memory_format=form), y, lrs[t])

    module = PlainModule(PlainNet())
    loader = DataLoader(pictures, plan["data"]["batch_size"], shuffle=True, num_workers=2, persistent_workers=True)

    def module_arm(first: int) -> float:
        batches = chunk + module.WARM_UP
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        options |= {"enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 1}
        pl.Trainer(accelerator=device.type, devices=1, limit_train_batches=batches, **options).fit(module, loader)
        time.sleep(1)  # while the workers fetch on until their queues are full: not in the others' time
        plain_arm(first)  # nor is the processor's awakening: like every other arm, the run comes after one at work
        return module.seconds * chunk

    others = {"bare": timed(bare_step), "floor": timed(floor_step), "plain": plain_arm, "module": module_arm}
    with tempfile.TemporaryDirectory() as folder:
        folders = {ours.run_id: Path(folder)}
        logger = open_logger(Path(folder), ours.run_id, "benchmark", config, **plan["logger"])
        alternate = Alternate(chunk, others)
        callbacks = [
            Curves(folders, {ours.run_id: logger} if logger else {}),
            Progress("run", iterations),
            Checkpoints(folders, plan["checkpoint_seconds"]),
            Interrupts(),
            alternate,
        ]
        trainer = make_trainer(**plan["trainer"], max_epochs=1, callbacks=callbacks, default_root_dir=folder)
        engine = choose_engine(plan["engine"], [ours.solver], data.train, device)
        blocks = data.train_blocks([0], 0, iterations, iterations, BLOCKS[engine])
        trainer.fit(Classifier([ours], data.train, data.test, lrs, engine), blocks)

    equal = all(
        torch.equal(a.cpu(), b.cpu())
        for a, b in zip(ours.network.state_dict().values(), same.network.state_dict().values(), strict=True)
    )
    return {name: seconds[1:] for name, seconds in alternate.seconds.items()}, chunk, equal


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    seconds, chunk, equal = measure(sys.argv[1:])
    device = torch.device("cuda" if any(given.startswith("trainer=gpu") for given in sys.argv) else "cpu")
    print(f"{provenance.device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{CHUNKS[device.type] - 1} chunks of {chunk} iterations each, alternating; "
        f"run and bare ended with equal weights: {equal}"
    )
    for name, taken in seconds.items():
        ratios = sorted(run / other for run, other in zip(seconds["run"], taken, strict=True))
        beside = f"  run / {name} {median(ratios):6.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})" if name != "run" else ""
        print(f"{name:<7} {1000 * median(taken) / chunk:8.2f} ms per iteration{beside}")


CONVOLVED = (
    [(100, 3, 32, 32), (100, 32, 16, 16), (100, 32, 8, 8)],  # what goes in
    [(100, 32, 32, 32), (100, 32, 16, 16), (100, 64, 8, 8)],  # what comes out
)


def random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
