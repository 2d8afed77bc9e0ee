#!/usr/bin/env python
"""What an iteration costs under each method of Table 3, with a constant LR and with CLR (Sections 1 and 4.1.1).

    python benchmarks/solvers.py                               # on the real CIFAR-10, one thread, five minutes
    python benchmarks/solvers.py --minutes 2 data=cifar10_sample
    python benchmarks/solvers.py trainer=gpu                   # any override of scripts/run.py

Every arm is a network and a solver of its own, trained by the study's own step on a lab card's schedule: the LR of an
iteration comes from the schedule's array, computed before. All in one process: in each round every method trains under
either policy, one right after the other and in turns first, and ratios are taken round by round. Timed is CPU time on a
CPU, where other processes may take the core away, and wall time on a GPU.

Prints ms per iteration, each method's ratio of CLR to the constant LR and of itself to SGD, and leaves the times in
results/benchmarks/, from which scripts/report.py judges the claims with rule `cost` (conf/paper/verdicts.yaml).
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from cyclical_lr.data.cifar import CifarData
from cyclical_lr.records import build, learning_rates, write_atomic
from cyclical_lr.report.statistics import median, median_interval
from cyclical_lr.training import provenance
from cyclical_lr.training.config import compose_config, describe, plain
from cyclical_lr.training.engine import exact_arithmetic, layout, reference_step
from cyclical_lr.training.module import Member
from cyclical_lr.training.run import new_member

REPOSITORY = Path(__file__).resolve().parent.parent
CARDS = {
    "sgd": {"fixed": "cifar10_fixed", "clr": "cifar10_tri_no_drops"},
    **{
        method: {"fixed": f"cifar10_{method}_fixed", "clr": f"cifar10_{method}_tri"}
        for method in ("nesterov", "adam", "rmsprop", "adagrad", "adadelta")
    },
}
CHUNK = {"cpu": 1, "cuda": 100}
"""Iterations at a time: few, so that both policies meet the same state of a shared machine."""
CONFIDENCE = 0.90
Arm = Callable[[int], None]
"""Trains one iteration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to measure, after a round of warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "benchmarks")
    parser.add_argument("overrides", nargs="*", help="of scripts/run.py, such as data=cifar10_sample")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)

    arms, device = make_arms(args.overrides)
    chunk = CHUNK[device.type]
    milliseconds = measure(arms, device, chunk, 60 * args.minutes)
    name = provenance.device_name(device)
    commit, dirty = provenance.commit()
    measured = {
        "device": name,
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if device.type == "cpu" else "wall time",
        "chunk": chunk,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "versions": provenance.versions(),
        "overrides": args.overrides,
        "milliseconds": milliseconds,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = args.out / f"solvers-{slug}-{measured['date']}.json"
    write_atomic(path, (json.dumps(measured, indent=1) + "\n").encode())
    print(f"{name}, {measured['threads']} threads, torch {torch.__version__}, {measured['clock']}")
    print(table(milliseconds, chunk))
    print(f"wrote {path}")


def make_arms(overrides: Sequence[str]) -> tuple[dict[tuple[str, str], Arm], torch.device]:
    """An arm per method and policy, all on one data set and device."""
    arms: dict[tuple[str, str], Arm] = {}
    data = None
    device = torch.device("cpu")
    for method, cards in CARDS.items():
        for policy, card in cards.items():
            plan = plain(compose_config(REPOSITORY / "conf", [f"+experiment={card}", *overrides]))
            if data is None:
                if plan["trainer"]["precision"] != "32-true":
                    sys.exit(f"error: trainer.precision: expected 32-true, got {plan['trainer']['precision']}")
                exact_arithmetic()  # as in a run
                device = torch.device("cuda" if plan["trainer"]["accelerator"] == "gpu" else "cpu")
                data = build(plan["data"])
                data.prepare_data()
                data.setup("fit")
                data.train.to(device)
            config = describe(plan, seed=0)
            member = new_member(plan, config, card)
            form = layout(device, "32-true", member.network)
            member.network.to(device, memory_format=form)  # type: ignore[call-overload]
            lrs = learning_rates(config).tolist()
            arms[method, policy] = partial(iterate, member, data, lrs, device)
    return arms, device


def iterate(member: Member, data: CifarData, lrs: Sequence[float], device: torch.device, t: int) -> None:
    x, y = data.train(data.indices(0, t, 1)[0].to(device))
    x = x.contiguous(memory_format=layout(device, "32-true", member.network))
    reference_step(member.network, member.solver, x, y, lrs[t % (len(lrs) - 1)])


def measure(
    arms: dict[tuple[str, str], Arm], device: torch.device, chunk: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of an iteration by method and policy, one number per round, for as long as asked."""
    times: dict[str, dict[str, list[float]]] = {method: {"fixed": [], "clr": []} for method in CARDS}
    rounds, until = 0, float("inf")
    while time.monotonic() < until:
        for method, cards in CARDS.items():
            for policy in list(cards)[:: 1 if rounds % 2 else -1]:
                start = now(device)
                for t in range(rounds * chunk, (rounds + 1) * chunk):
                    arms[method, policy](t)
                times[method][policy].append(round(1000 * (now(device) - start) / chunk, 4))
        rounds += 1
        if rounds == 1:
            until = time.monotonic() + seconds
    return {method: {policy: row[1:] for policy, row in rows.items()} for method, rows in times.items()}


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def table(milliseconds: dict[str, dict[str, list[float]]], chunk: int) -> str:
    """The medians, and the ratios with their interval and the range of the middle half of the rounds."""

    def ratio(above: list[float], below: list[float]) -> str:
        quotients = np.array(above) / np.array(below)
        low, high = median_interval(quotients, CONFIDENCE)
        quarter, three_quarters = np.quantile(quotients, [0.25, 0.75])
        return f"{median(quotients):.3f} [{low:.3f}, {high:.3f}] {quarter:.3f}-{three_quarters:.3f}"

    rounds = len(milliseconds["sgd"]["fixed"])
    lines = [
        f"{rounds} rounds of {chunk} iterations each; ratios: median [{CONFIDENCE:.0%} interval] middle half of rounds",
        f"{'method':<9} {'fixed ms':>9} {'CLR ms':>9}  {'CLR / fixed':<34} fixed / SGD with CLR",
    ]
    for method, times in milliseconds.items():
        lines.append(
            f"{method:<9} {median(times['fixed']):9.2f} {median(times['clr']):9.2f}  "
            f"{ratio(times['clr'], times['fixed']):<34} {ratio(times['fixed'], milliseconds['sgd']['clr'])}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
