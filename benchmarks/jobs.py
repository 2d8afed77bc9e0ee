#!/usr/bin/env python
"""What `scripts/study.py jobs=2` gains: processes that share the cores, beside one process that has them all.

    python benchmarks/jobs.py               # two processes, cifar10_full on random batches of 100
    python benchmarks/jobs.py --jobs 4

Either side trains the same number of iterations by the study's own step. In turns, round by round: one process with all
cores, then `jobs` processes at once, each with its share. Printed are iterations per second, of all processes together,
and their ratio, round by round.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median

import torch

from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.solvers import caffe_sgd
from cyclical_lr.training import provenance
from cyclical_lr.training.engine import reference_step

ITERATIONS, ROUNDS = 24, 16  # per side and round; the first round warms up


def train(orders: Connection, threads: int) -> None:
    """Train as many iterations as each order says, and answer when they are done; 0 ends it."""
    torch.set_num_threads(threads)
    network = Cifar10Full().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    solver = caffe_sgd(network, weight_decay=0.004)
    x = torch.randn(100, 3, 32, 32).mul(60).to(memory_format=torch.channels_last)
    y = torch.randint(10, (100,))
    while iterations := orders.recv():
        for _ in range(iterations):
            reference_step(network, solver, x, y, 0.001)
        orders.send(iterations)


def seconds(processes: Sequence[Connection]) -> float:
    start = time.perf_counter()
    for process in processes:
        process.send(ITERATIONS // len(processes))
    for process in processes:
        process.recv()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="a divisor of 24")
    jobs = parser.parse_args().jobs
    cores = torch.get_num_threads()
    if not 1 <= jobs <= cores or ITERATIONS % jobs:
        parser.error(f"--jobs {jobs}: expected a divisor of {ITERATIONS} of at most {cores}, torch's number of threads")
    context = multiprocessing.get_context("spawn")  # OpenMP's threads do not survive a fork
    sides: list[list[Connection]] = []
    for count in (1, jobs):
        sides.append([])
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=train, args=(theirs, cores // count), daemon=True).start()
            sides[-1].append(ours)

    rounds = [[seconds(side) for side in sides] for _ in range(ROUNDS)][1:]
    for process in (process for side in sides for process in side):
        process.send(0)
    ratios = sorted(one / many for one, many in rounds)
    print(f"{provenance.device_name(torch.device('cpu'))}, {cores} cores, torch {torch.__version__}")
    print(f"{len(rounds)} rounds of {ITERATIONS} iterations each way, in turns")
    for count, times in zip((1, jobs), zip(*rounds, strict=True), strict=True):
        print(f"{count} x {cores // count} threads  {ITERATIONS / median(times):6.2f} iterations/s (median)")
    print(f"ratio {median(ratios):.3f} (median), {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
