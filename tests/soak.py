#!/usr/bin/env python
"""Many processes on one study, killed at random moments: no run twice, none lost, no torn file.

    python tests/soak.py --faults 100

Twenty processes work on the same tiny runs, each in an order of its own, some runs as seeds that share a process. This
one kills them with SIGKILL, spread over the whole study, and starts another in the place of each. At the end every run
must have one record, written once and never touched again, with the bits of the run that nobody disturbed: record but
for its clock, curve, last weights and solver. Nothing half-written may be left.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: its threads only wait on a shared machine

import argparse
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from omegaconf import OmegaConf
from small_runs import CONF, Forked, assert_same_bits, checkpoints, records_in, tiny

from cyclical_lr import records
from cyclical_lr.records import Record
from cyclical_lr.training.config import compose_config, describe, plain, seeds
from cyclical_lr.training.run import run

ITERATIONS = 20
LENGTH = (f"iterations={ITERATIONS}", "eval_every=8", "checkpoint_seconds=0")
ARMS = ((), ("data.shuffle=true",), ("model._target_=small_runs.WithDropout",))
AIMS = ("anyone", "working", "writing", "ending")
LATE = 4  # faults behind the study's progress: then several at once, lest it be over before they are
CLOCK = ("train_seconds", "eval_seconds", "started", "ended", "segments")
CHECKOUT = ("commit", "dirty")  # somebody may be editing while this runs
PATIENCE = 3600  # seconds for the whole study, on a machine that may be busy


@dataclass(frozen=True)
class Job:
    """What one call of `run` is given: one run, or several seeds that share a process. `ids` are its runs."""

    plan: dict[str, Any]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a study went through before it was over and found to be right."""

    runs: int
    processes: int  # at once
    faults: int
    torn: int  # of the faults: those that left a half-written file
    continued: int  # segments after the first, over all runs
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.faults} faults (kill -9; {self.torn} left a half-written file) among {self.processes} processes on "
            f"a study of {self.runs} runs: every run has exactly one record, none was trained to its end twice, all "
            f"are bit-identical with the undisturbed runs, nothing half-written is left; runs were continued "
            f"{self.continued} times; {self.seconds:.0f} seconds"
        )


def study(folder: Path, runs: int) -> list[Job]:
    """Jobs of that many runs, whose files go into `folder`: each run alone, and two seeds of each arm together too."""
    out = []
    for number, arm in enumerate(ARMS):
        own = range(len(range(number, runs, len(ARMS))))
        for seed in [*own, [0, 1]] if len(own) > 1 else own:
            plan = plain(compose_config(CONF, tiny(folder, *LENGTH, *arm, f"seed={seed}")))
            out.append(Job(plan, tuple(records.run_id(describe(plan, one)) for one in seeds(plan["seed"]))))
    return out


def work(jobs: list[Job], order: int) -> None:
    """One process: whatever is missing and nobody works on, until nothing is missing. Prints what it trained."""
    results = Path(jobs[0].plan["results_dir"])
    jobs = random.Random(order).sample(jobs, len(jobs))
    while jobs := [job for job in jobs if not all(records.is_over(results, run_id) for run_id in job.ids)]:
        idle = True
        for job in jobs:
            for outcome in run(OmegaConf.create(job.plan), CONF):
                if outcome.fresh:
                    print(outcome.run_id, flush=True)
                    idle = False
        if idle:
            time.sleep(0.3)


# Faults ---------------------------------------------------------------------------------------------------------------


class Study:
    """Processes that work on the jobs in `folder`, and what has been seen of them."""

    def __init__(self, folder: Path, jobs: list[Job], processes: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.jobs = folder, jobs
        self.ids = sorted({run_id for job in jobs for run_id in job.ids})
        self.written: dict[str, tuple[int, int]] = {}  # by run: inode and time of its record when it was first seen
        self.all: list[Forked] = []
        self.killed: list[Forked] = []
        self.alive = [self.start() for _ in range(processes)]

    def start(self) -> Forked:
        output = self.folder / f"process-{len(self.all)}.txt"
        self.all.append(Forked(output, work, self.jobs, len(self.all)))
        return self.all[-1]

    def progress(self) -> float:
        """The part of all iterations that records and checkpoints hold."""
        done = 0
        for run_id in self.ids:
            record = records.record_path(self.folder / "results", run_id)
            if record.exists():
                self.written.setdefault(run_id, identity(record))
                done += ITERATIONS
            elif saved := checkpoints(self.folder, run_id):
                done += int(saved[-1].stem.rpartition("-")[2])
        return done / (ITERATIONS * len(self.ids))

    def half_written(self) -> Iterator[tuple[int, str]]:
        """Process and name of each file that is being written, or was by a process that is no more."""
        for path in [*self.folder.glob("runs/*/.*.tmp"), *self.folder.glob("results/*/.*.tmp")]:
            yield int(path.name.split(".")[-2]), path.name

    def writers(self, name: str = "") -> list[Forked]:
        """The processes that are writing a file with `name` in its name."""
        writers = {pid for pid, file in self.half_written() if name in file}
        return [process for process in self.alive if process.pid in writers]

    def await_writer(self, name: str = "", seconds: float = 30) -> Forked | None:
        """One of them; None where there is none for that long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.writers(name):
                return found[0]
            time.sleep(0.002)
        return None

    def send(self, number: int) -> None:
        """A signal to everyone who is not over."""
        for process in self.alive:
            with suppress(ProcessLookupError):
                if process.process.is_alive():
                    os.kill(process.pid, number)

    def hold(self, seconds: float) -> list[Forked]:
        """Let everyone stand still at a moment when some are writing; returns these, none if no such moment came."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.send(signal.SIGSTOP)
            if writers := self.writers():
                return writers
            self.send(signal.SIGCONT)
            time.sleep(0.002)
        return []

    def aim(self, chance: random.Random) -> Forked:
        """A process to be killed now.

        In turn: anyone, who may be starting or waiting; one that works, as the files that it writes tell, hit in a
        moment, or at once, or about when the record is due.
        """
        aim = AIMS[len(self.killed) % len(AIMS)]
        victim = None
        if aim == "ending":
            victim = self.await_writer(f"-{ITERATIONS:09d}", seconds=1)
        elif aim == "writing":
            victim = next(iter(self.hold(seconds=5)), None)
        if aim != "anyone" and victim is None:
            victim = self.await_writer()
        if aim != "writing":
            time.sleep(chance.uniform(0, 0.05 if aim == "ending" else 0.2))
        return victim or chance.choice(self.alive)

    def kill(self, victims: list[Forked]) -> int:
        """Kill processes and start others, let go who is held; how many of them left a half-written file."""
        for victim in victims:
            victim.process.kill()
        for victim in victims:
            victim.process.join()
        left = {pid for pid, _ in self.half_written()}
        for victim in victims:
            if victim.process.exitcode == -signal.SIGKILL:  # or it was quicker, and had nothing left to do
                self.killed.append(victim)
            self.alive[self.alive.index(victim)] = self.start()
        self.send(signal.SIGCONT)
        return sum(victim.pid in left for victim in victims)

    def check(self, undisturbed: Path) -> int:
        """Compare with the runs in the folder `undisturbed`; returns how often runs were continued."""
        for process in self.all:
            allowed = -signal.SIGKILL if process in self.killed else 0
            assert process.process.exitcode == allowed, process.output.read_text()
        trained = Counter(line for process in self.all for line in process.output.read_text().split())
        assert all(trained[run_id] <= 1 for run_id in self.ids), trained
        results = {path.relative_to(self.folder / "results") for path in (self.folder / "results").rglob("*.*")}
        expected = {Path("runs", f"{run_id}.json") for run_id in self.ids}
        assert results == expected | {Path("curves", f"{run_id}.csv") for run_id in self.ids}
        ours, theirs = ({r.run_id: but_for_its_clock(r) for r in records_in(f)} for f in (self.folder, undisturbed))
        assert ours == theirs and sorted(ours) == self.ids
        for run_id in self.ids:
            record = records.record_path(self.folder / "results", run_id)
            assert identity(record) == self.written.get(run_id, identity(record)), f"{record} was written again"
            assert_same_bits(self.folder, undisturbed, run_id)
            left = {path.name for path in (self.folder / "runs" / run_id).iterdir()}
            kept = {path.name for path in checkpoints(self.folder, run_id)}
            assert len(kept) <= 2 and left == {"lock", "curve.csv"} | kept, left
        return sum(len(record.segments) - 1 for record in records_in(self.folder))


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def but_for_its_clock(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in CLOCK + CHECKOUT}


def soak(folder: Path, runs: int, faults: int, processes: int, seed: int = 0) -> Outcome:
    """Put a study through that many faults, and check what is left of it.

    Raises:
        AssertionError: something was lost, torn, done twice or is different; or the study was over before.
    """
    straight = Study(folder / "undisturbed", study(folder / "undisturbed", runs), processes=1)
    code, output = straight.alive[0].ends(PATIENCE)
    assert code == 0, output
    started, chance, torn = time.monotonic(), random.Random(seed), 0
    disturbed = Study(folder / "disturbed", study(folder / "disturbed", runs), processes)
    try:
        while len(disturbed.killed) < faults and (done := disturbed.progress()) < 1:
            assert time.monotonic() - started < PATIENCE, f"{len(disturbed.killed)} faults, {done:.0%} of the study"
            due = min(faults, int(done * faults / 0.7) + 1) - len(disturbed.killed)
            if due >= LATE:
                chance.shuffle(disturbed.alive)
                victims = dict.fromkeys(disturbed.hold(seconds=1) + disturbed.alive)
                torn += disturbed.kill(list(victims)[: min(due, 1 + processes // 2)])
            elif due:
                torn += disturbed.kill([disturbed.aim(chance)])
            else:
                time.sleep(0.005)
        for process in disturbed.alive:
            process.ends(PATIENCE)
    finally:
        for process in disturbed.alive:
            process.process.kill()
    seconds = time.monotonic() - started
    continued = disturbed.check(straight.folder)
    assert len(disturbed.killed) == faults, f"the study was over after {len(disturbed.killed)} faults: give more runs"
    return Outcome(len(disturbed.ids), processes, faults, torn, continued, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--runs", type=int, help="default: a third of the faults, at least 12")
    parser.add_argument("--processes", type=int, default=20, help="at once; default: 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    arguments = parser.parse_args()
    runs = arguments.runs or max(12, arguments.faults // 3)
    folder = Path(mkdtemp(prefix="soak-"))
    print(f"{arguments.processes} processes, {runs} runs, {arguments.faults} faults in {folder}")
    print(soak(folder, runs, arguments.faults, arguments.processes, arguments.seed))
    shutil.rmtree(folder)  # kept where something went wrong


if __name__ == "__main__":
    main()
