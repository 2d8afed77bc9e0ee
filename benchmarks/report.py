#!/usr/bin/env python
"""What the report costs: 1,000 synthetic records of 70 evaluations each, from files to page.

    python benchmarks/report.py
    python benchmarks/report.py 5000

The runs are spread over every experiment that the claims name, so that every claim is decided and every table full.
Nothing is trained: accuracies rise along a curve with noise. The report is one thread, so its CPU seconds are what the
clock of an idle machine would show: they are held against the limits, with an exit status of 1 for a miss. Importing
the package, a few seconds, is not in them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cyclical_lr import records
from cyclical_lr.records import CurveRow, Record
from cyclical_lr.report import collect, gallery, markup, page, readme
from cyclical_lr.report.paper import read_paper
from cyclical_lr.report.report import Report, make_report

REPOSITORY = Path(__file__).resolve().parent.parent
EVALUATIONS, EVERY = 70, 1000
READING, WHOLE = 3.0, 20.0
"""CPU seconds from files to runs.csv, and for the whole report."""
PAGE = 5_000_000
"""Bytes of report.html."""


def write_runs(folder: Path, experiments: list[str], count: int) -> None:
    rng = np.random.default_rng(0)
    iterations = np.arange(0, EVALUATIONS * EVERY + 1, EVERY)
    for number in range(count):
        experiment, seed = experiments[number % len(experiments)], number // len(experiments)
        rise = 82 - 72 * np.exp(-iterations / 6000) + rng.normal(0, 0.3, len(iterations))
        accuracies = np.clip(rise, 0, 100).round(2).tolist()
        curve = [
            CurveRow(int(t), 0.02 * int(t) / int(iterations[-1]), 1.0, 1.0, accuracy, 0.05 * int(t))
            for t, accuracy in zip(iterations, accuracies, strict=True)
        ]
        computed = config(experiment, seed)
        sha256 = records.config_sha256(computed)
        record = Record(
            run_id=sha256[:12],
            experiment=experiment,
            label=experiment,
            seed=seed,
            status="done",
            iterations=int(iterations[-1]),
            test_accuracy=accuracies[-1],
            best_test_accuracy=max(accuracies),
            train_seconds=3500.0,
            eval_seconds=70.0,
            engine="reference",
            precision="float32",
            device="none",
            threads=2,
            data_sha256="0" * 64,
            config_sha256=sha256,
            commit="0" * 40,
            dirty=False,
            started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T01:00:00+00:00",
            message="",
            versions={"torch": "2.11.0", "numpy": "2.4.0"},
            segments=[],
            config=computed,
        )
        records.write_curve(records.curve_path(folder, record.run_id), curve)
        records.write_record(folder, record)


def config(experiment: str, seed: int) -> dict[str, Any]:
    return {
        "model": {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full", "num_classes": 10},
        "data": {"_target_": "cyclical_lr.data.cifar.CifarData", "name": "cifar10", "batch_size": 100},
        "solver": {"_target_": "cyclical_lr.solvers.caffe_sgd", "momentum": 0.9, "of": experiment},
        "schedule": {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.001},
        "iterations": EVALUATIONS * EVERY,
        "eval_every": EVERY,
        "compress": 1,
        "precision": "float32",
        "seed": seed,
    }


def timed(what: str, part: Callable[[], Any]) -> tuple[Any, float]:
    """What the part returns, and its CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    out = part()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{what:24}{cpu:7.2f} s of CPU, {seconds:7.2f} s by the clock", flush=True)
    return out, cpu


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    paper = read_paper(REPOSITORY / "conf" / "paper")
    named = {operand["experiment"] for claim in paper.claims for operand in claim["operands"]}
    with tempfile.TemporaryDirectory() as folder:
        results_dir = Path(folder)
        write_runs(results_dir, sorted(named), count)
        print(f"{count} runs of {EVALUATIONS} evaluations, {len(named)} experiments, {os.cpu_count()} cores")

        def read() -> collect.Results:
            results = collect.collect(results_dir)
            collect.write_runs(results_dir, results)
            return results

        def decide() -> Report:
            report = make_report(paper, results)
            markup.write_tables(results_dir, paper, report.tables)
            markup.write_claims(results_dir, paper, results, report.verdicts)
            return report

        def draw() -> list[Path]:
            written, _ = gallery.draw_all(list(gallery.FIGURES), report, REPOSITORY / "conf", results_dir / "figures")
            return written

        def publish() -> Path:
            readme.block(report)
            pictures = page.pictures(gallery.FIGURES.values(), results_dir / "figures")
            return page.write_page(results_dir / "report.html", REPOSITORY, report, pictures)

        results, reading = timed("collect and runs.csv", read)
        assert len(results.records) == count and not results.problems, results.problems
        report, deciding = timed("tables and verdicts", decide)
        files, drawing = timed("figures", draw)
        written, publishing = timed("page and README's block", publish)
        whole, size = reading + deciding + drawing + publishing, written.stat().st_size
        print(f"{len(files) // 2} figures, a page of {size / 1e6:.2f} MB; {whole:.2f} s of CPU in all")
    kept = reading <= READING and whole <= WHOLE and size < PAGE
    print(f"limits ({READING:g} s for runs.csv, {WHOLE:g} s in all, {PAGE / 1e6:g} MB) {'kept' if kept else 'MISSED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
