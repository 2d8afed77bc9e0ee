"""A study's jobs on this machine, one after another or several at a time, and their progress."""

import io
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cyclical_lr import records
from cyclical_lr.processes import DIVERGED
from cyclical_lr.training.sweep import Job

log = logging.getLogger(__name__)

AT = " {n:,} of {total:,} iterations, {remaining} left"


def one_by_one(jobs: Sequence[Job], train: Callable[[Job], None]) -> dict[str, str]:
    """Run the jobs in this process; by a job's title, why it failed."""
    problems = {}
    with Progress(jobs) as progress:
        for job in jobs:
            try:
                with progress.of(job):
                    train(job)
            except records.ConfigError as error:
                problems[job.title] = str(error)
                log.error("%s: %s", job.title, error)
            except Exception as error:  # the other runs of a study do not depend on this one
                problems[job.title] = f"{type(error).__name__}: {error}"
                log.exception("%s failed", job.title)
    return problems


def in_processes(jobs: Sequence[Job], at_once: int, command: Sequence[str], overrides: Sequence[str]) -> dict[str, str]:
    """Run each job as `command`, its overrides and more, some at a time; by a job's title, why it failed.

    Whatever ends this process, but for SIGKILL, ends the others first.
    """
    children: list[subprocess.Popen[str]] = []
    lock, stopping = threading.Lock(), False

    def work(job: Job) -> None:
        with progress.of(job):
            with lock:
                if stopping:
                    raise RuntimeError("stopped")
                whole = [*command, *job.overrides, *overrides]
                child = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                children.append(child)
            last = ""
            for line in child.stdout or ():
                last = line.rstrip()
                log.info(last)
            if child.wait() not in (0, DIVERGED):
                raise RuntimeError(f"exit code {child.returncode} after {last!r}")

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    problems = {}
    pool = ThreadPoolExecutor(at_once)
    with Progress(jobs) as progress:
        try:
            futures = {pool.submit(work, job): job.title for job in jobs}
            running = set(futures)
            while running:
                # Python handles a signal in its main thread, which must not sleep on where another got it.
                ended, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    if error := future.exception():
                        problems[futures[future]] = str(error)
                        log.error("%s failed: %s", futures[future], error)
        finally:
            with lock:
                stopping = True
                for child in children:
                    child.terminate()
            pool.shutdown(cancel_futures=True)
    return problems


class Progress:
    """How far all runs are, and the time left: a bar in a terminal, elsewhere a line a minute.

    Read from the curves in the runs' folders, which grow with each evaluation, whatever process trains them. What a run
    that has ended did not train is not left to be trained.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.runs = {
            job.title: [(job.runs_dir / records.run_id(one) / "curve.csv", one["iterations"]) for one in job.missing]
            for job in jobs
        }
        self.begun, self.ended, self.lock, self.over = 0, set[str](), threading.Lock(), threading.Event()
        terminal = sys.stderr.isatty()
        runs = [run for job in self.runs.values() for run in job]
        self.bar = tqdm(
            total=sum(iterations for _, iterations in runs),
            initial=self.iterations(),
            desc=f"{len(runs)} run{'s' * (len(runs) > 1)}",
            smoothing=0,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:.0f} %" + (" |{bar}|" if terminal else ",") + AT,
            file=sys.stderr if terminal else io.StringIO(),
        )
        self.every = 1.0 if terminal else 60.0  # seconds
        self.beside = logging_redirect_tqdm() if terminal else nullcontext()  # log lines stand above the bars
        self.thread = threading.Thread(target=self._watch, args=(terminal,), daemon=True)

    def __enter__(self) -> "Progress":
        self.beside.__enter__()
        self.thread.start()
        return self

    def __exit__(self, stopped_by: type[BaseException] | None, *_: object) -> None:
        self.over.set()
        self.thread.join()
        if stopped_by is None:
            self.bar.update(self.iterations() - self.bar.n)
        self.bar.close()
        self.beside.__exit__(None, None, None)

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """While a job is being worked on; says that it begins."""
        with self.lock:
            self.begun += 1
            log.info("[%d/%d] %s", self.begun, len(self.runs), job.title)
        try:
            yield
        finally:
            self.ended.add(job.title)

    def iterations(self) -> int:
        """How many are trained, of those that were missing."""
        return sum(
            iterations if title in self.ended else _last(curve)
            for title, runs in self.runs.items()
            for curve, iterations in runs
        )

    def _watch(self, terminal: bool) -> None:
        while not self.over.wait(self.every):
            if more := self.iterations() - self.bar.n:
                self.bar.update(more)
                if not terminal:
                    log.info(self.bar)


def _last(curve: Path) -> int:
    """The last evaluation's iteration."""
    try:
        return records.read_curve(curve)[-1].iteration
    except (OSError, ValueError, IndexError):  # not begun, or nothing that a run would go on from
        return 0
