#!/usr/bin/env python
"""`make gpu-check`: whether the fast engine is right and fast on this GPU, in under ten minutes.

    python benchmarks/gpu_check.py                        # on the real CIFAR-10
    python benchmarks/gpu_check.py data=cifar10_sample    # without it

Runs the tests of the engine on the GPU (fast equals reference, resume, seeds together) and measures the targets (in
`main`), each with its lowest and highest, how many hours each ImageNet card takes there, and which kernels an iteration
spends its time in. What fails is written down, and the rest goes on.
The outcome goes to benchmarks/results/<device>.json. Commit that file: engine=auto takes the fast engine on devices for
which one with "fast_equals_reference": true is committed, and the reference elsewhere. Where the equality could not be
checked (no data, no time left, a step that fails) an earlier file stays as it was.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from step import Pictures, PlainModule, measure, now  # type: ignore[import-not-found]  # beside this file
from torch.utils.data import DataLoader
from torchvision import transforms

from cyclical_lr.records import ConfigError, Record, build, learning_rates, write_atomic
from cyclical_lr.training import provenance
from cyclical_lr.training.config import compose_config, describe, plain
from cyclical_lr.training.engine import (
    BLOCKS,
    FastEngine,
    check_file,
    code_of_a_step,
    exact_arithmetic,
    layout,
    reference_step,
)
from cyclical_lr.training.module import Classifier
from cyclical_lr.training.run import make_trainer, new_member, run

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
TESTS = ("tests/training/test_engine.py", "tests/training/test_fast_runs.py", "tests/test_gpu_kernels.py")
TABLE_4 = ("resnet", "sd", "densenet")
TESTING = 240
"""Seconds that the tests may take."""
KERNELS = {
    "": ["+experiment=cifar10_tri2", "trainer=gpu"],
    " of DenseNet in bf16": ["+experiment=cifar10_densenet_lr01", "trainer=gpu_bf16"],
}
"""What is run to see which kernels an iteration spends its time in: the overrides, by name."""
IMAGENET = ("imagenet_alexnet_tri2", "imagenet_googlenet_tri2")
"""One card of each network; what is measured are images per second, which all cards of a network share."""


def main(overrides: list[str]) -> int:
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        print(f"error: expected a CUDA GPU that {built}, can use, found none", file=sys.stderr)
        return 2
    device, (commit, dirty) = torch.device("cuda"), provenance.commit()
    fast = [*overrides, "trainer=gpu", "engine=fast", "logger=none"]
    try:
        build(plain(compose_config(CONF, ["+experiment=cifar10_tri2", *fast]))["data"]).prepare_data()
        passed = tests_pass()
        taken, chunk, equal = measure(fast)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("error: the fast engine could not be checked, and nothing was written", file=sys.stderr)
        return 2
    outcome: dict[str, Any] = {
        "device": provenance.device_name(device),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "fast_equals_reference": passed and equal,
        "code": code_of_a_step(),
        "measured": {},
        "imagenet": {},
        "kernels": {},
        "versions": provenance.versions(),
    }
    file = check_file(device)

    def keep(what: str, name: str, measure: Callable[[], Any]) -> None:
        """In the file at once: what follows may be stopped."""
        try:
            outcome[what][name] = measure()
        except Exception as error:
            outcome[what][name] = {"failed": f"{type(error).__name__}: {error}"}
        write_atomic(file, (json.dumps(outcome, indent=1) + "\n").encode())

    def ratios(above: str, below: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(taken[above], taken[below], strict=True)])

    def seconds(*more: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            where = [f"results_dir={folder}/results", f"runs_dir={folder}/runs"]
            outcomes = run(compose_config(CONF, ["+experiment=cifar10_tri2", *fast, *where, *more]), CONF)
        records = [outcome.record for outcome in outcomes if isinstance(outcome.record, Record)]
        training, evaluation = (max(getattr(r, f"{what}_seconds") for r in records) for what in ("train", "eval"))
        return {"value": round(training + evaluation, 3), "evaluation": evaluation}

    def eight_beside_one() -> dict[str, float]:
        few = "compress=20"
        pairs = [(seconds(few, f"seed={list(range(8))}"), seconds(few)) for _ in range(3)]
        return spread([eight["value"] / one["value"] for eight, one in pairs])

    def milliseconds() -> dict[str, float]:
        return {arm: round(1000 * median(seconds) / chunk, 3) for arm, seconds in taken.items()}

    def images_per_second(card: str) -> dict[str, float]:
        ours, usual = zip(*images_per_second_of(f"cifar10_{card}_lr01", overrides, device), strict=True)
        return {**spread([a / b for a, b in zip(ours, usual, strict=True)]), "run": round(median(ours), 1)}

    measures: dict[str, Callable[[], dict[str, float]]] = {
        "milliseconds of an iteration": milliseconds,
        **{f"run / {other} (time)": partial(ratios, "run", other) for other in ("bare", "floor", "plain")},
        "run / DataLoader module (it/s), at least 10": partial(ratios, "module", "run"),
        "cifar10_tri2, 25,000 iterations with evaluation (s), under 10": seconds,
        "the same in bf16 (s)": partial(seconds, "trainer=gpu_bf16"),
        "eight seeds together / one (time), under 2": eight_beside_one,
        **{
            f"{card}: bf16 run / float32 DataLoader module (images/s), at least 3": partial(images_per_second, card)
            for card in TABLE_4
        },
    }
    for name, measured in measures.items():
        keep("measured", name, measured)
    for name in IMAGENET:
        keep("imagenet", name, partial(imagenet_hours, name, device))
    for what, options in KERNELS.items():
        keep("kernels", f"microseconds of an iteration{what}", partial(kernels, [*options, *overrides], device))
    print(json.dumps(outcome, indent=1))
    print(f"wrote {file}")
    return int(not outcome["fast_equals_reference"])


def tests_pass() -> bool:
    """Whether they do.

    Raises:
        TimeoutExpired, CalledProcessError: they took too long, or pytest did not get through them.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu_kernels", *TESTS]
    ended = subprocess.run(command, cwd=REPOSITORY, check=False, timeout=TESTING)
    if ended.returncode not in (0, 1):
        ended.check_returncode()
    return ended.returncode == 0


def spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(of(values), 3) for name, of in (("value", median), ("lowest", min), ("highest", max))}


def kernels(overrides: list[str], device: torch.device, most: int = 15) -> dict[str, float]:
    """The kernels in which the steps of a run spend most of a device's time: microseconds of an iteration."""
    plan = plain(compose_config(CONF, overrides))
    config = describe(plan, seed=0)
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    member, block, lrs = new_member(plan, config, "run"), BLOCKS["fast"], learning_rates(config)
    module = Classifier([member], data.train, data.test, lrs).to(device)
    module.lay_out(layout(device, plan["trainer"]["precision"], member.network))
    exact_arithmetic()
    total = torch.zeros((), dtype=torch.float64, device=device)
    engine = FastEngine([member.network], [member.solver], partial(module.batch, data.train), lrs.tolist(), [total])
    indices = data.indices(0, 0, 2 * block)[None].to(device)
    mixed = plan["trainer"]["precision"] == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):  # as Lightning's
        engine(0, indices[:, :block])
        with torch.profiler.profile() as profile:
            engine(block, indices[:, block:])
            now(device)
    on_gpu = device.type == "cuda"
    spent = {
        row.key: row.self_device_time_total if on_gpu else row.self_cpu_time_total for row in profile.key_averages()
    }
    top = sorted(spent, key=lambda name: -spent[name])[:most]
    return {"all": round(sum(spent.values()) / block, 1), **{name: round(spent[name] / block, 1) for name in top}}


def images_per_second_of(
    experiment: str, overrides: list[str], device: torch.device, blocks: int = 5, batches: int = 60, rounds: int = 3
) -> list[tuple[float, float]]:
    """Table 4's recipe: our run in bf16 and the usual float32 one with a DataLoader, alternating.

    Args:
        blocks: of iterations that our run goes through, of which the first, with its warm-up, is not timed.
        batches: that the usual one goes through, likewise.
    """
    iterations, first = blocks * BLOCKS["fast"], BLOCKS["fast"]
    options = ["trainer=gpu_bf16", *overrides, "logger=none", f"iterations={iterations}", "data.holdout=0"]
    plan = plain(compose_config(CONF, [f"+experiment={experiment}", *options]))
    config = describe(plan, seed=0)
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    augmented = [transforms.ToPILImage(), transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    pictures = Pictures(data.train.pixels, data.train.labels)
    pictures.transform.transforms[:1] = augmented
    loader = DataLoader(
        pictures, data.batch_size, shuffle=True, num_workers=min(8, os.cpu_count() or 1), persistent_workers=True
    )
    usual = PlainModule(build(plan["model"]))
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"enable_progress_bar": False, "max_epochs": 1, "default_root_dir": folder}
        for _ in range(rounds):
            member, lrs = new_member(plan, config, "run"), learning_rates(config)
            module = Classifier([member], data.train, data.test, lrs, engine="fast")
            clock = Clock(first)
            trainer = make_trainer(**plan["trainer"], **quiet, callbacks=[clock])
            trainer.fit(module, data.train_blocks([0], 0, iterations, iterations, first))
            silent: dict[str, Any] = {"enable_model_summary": False, "logger": False, "enable_checkpointing": False}
            silent |= {"accelerator": device.type, "devices": 1, "limit_train_batches": batches}
            pl.Trainer(**quiet, **silent).fit(usual, loader)
            rates.append((data.batch_size * (iterations - first) / clock.seconds, data.batch_size / usual.seconds))
    return rates


def imagenet_hours(
    experiment: str, device: torch.device, batch_size: int | None = None, iterations: int = 20
) -> dict[str, dict[str, float]]:
    """Images per second that the device trains, and the hours of the whole card without evaluations, by precision.

    Of random pixels in the device's memory. Images have to come as fast: that is benchmarks/imagenet_input.py's.
    """
    plan = plain(compose_config(CONF, [f"+experiment={experiment}", "data.root=null"]))
    batch = batch_size or plan["data"]["batch_size"]
    side = {"alexnet": 227, "googlenet": 224}[experiment.split("_")[1]]
    x = torch.randn(batch, 3, side, side, device=device)
    y = torch.randint(plan["data"]["num_classes"], (batch,), device=device)
    out: dict[str, dict[str, float]] = {}
    exact_arithmetic()
    for precision, lightnings in (("float32", "32-true"), ("bf16", "bf16-mixed")):
        network = build(plan["model"])
        form = layout(device, lightnings, network)
        network = network.to(device).to(memory_format=form).train()
        solver = build(plan["solver"], network)
        x = x.contiguous(memory_format=form)
        for iteration in range(-PlainModule.WARM_UP, iterations):
            if iteration == 0:
                start = now(device)
            # Anew each time, as it keeps its copies of the weights.
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                reference_step(network, solver, x, y, 1e-4)
        rate = batch * iterations / (now(device) - start)
        hours = plan["iterations"] * plan["data"]["batch_size"] / rate / 3600
        out[precision] = {"images_per_second": round(rate, 3), "hours": round(hours, 1)}
    return out


class Clock(pl.Callback):
    """Seconds of a run from an iteration on, at a block's end, to its last."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Classifier)
        if module.iteration == self.first:
            self.since = now(module.device)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds = now(module.device) - self.since


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
