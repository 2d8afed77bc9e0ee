"""How numbers, cells and differences are worded, the same in every table, claim, page and README."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from cyclical_lr.records import Record
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell
from cyclical_lr.report.statistics import Interval
from cyclical_lr.report.verdicts import NOT_RUN


def caffe(name: str, runs: int) -> str:
    """Runs of Caffe itself beside the port's of that name."""
    return f"{name}, Caffe itself (n = {runs})"


def number(value: float) -> str:
    """Two decimals; empty for nan."""
    return "" if math.isnan(value) else f"{value:.2f}"


def quoted(value: float) -> str:
    """A number of the paper, with the decimals that it has there."""
    return "" if math.isnan(value) else f"{value:.{1 if round(value, 1) == value else 2}f}"


def interval(ends: Interval, form: Callable[[float], str] = "{:.2f}".format) -> str:
    return f"[{form(ends.low)}, {form(ends.high)}]"


def mean(value: float, ends: Interval, n: int) -> str:
    """A mean over n seeds with its interval; empty for n = 0."""
    if n == 0:
        return ""
    return number(value) + (f" {interval(ends)}" if n > 1 else " (no interval)")


def difference(value: float, ends: Interval) -> str:
    """A difference with its sign, and its interval where there is one; empty for nan."""
    if math.isnan(value):
        return ""
    text = f"{value:+.2f}"
    return f"{text} {interval(ends, '{:+.2f}'.format)}" if all(map(math.isfinite, ends)) else text


def speed_up(ratio: float, ends: Interval) -> str:
    """B's time over A's; A is what is asked about."""
    if math.isnan(ratio):
        return "undefined"
    value = "infinite" if math.isinf(ratio) else f"x{ratio:.2f}" if ratio > 0 else "x0 (not reached by the median of A)"
    return value if math.isnan(ends.low) else f"{value} {interval(ends)}"


def time(median: float, reached: int) -> str:
    """Iterations or seconds, the median over runs of which so many got there."""
    return f"{median:,.0f}" if math.isfinite(median) else "no median" if reached else "never"


def p(value: Any) -> str:
    """A p-value with its sign of relation."""
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def runs(experiments: Iterable[str], seeds: int, *overrides: str) -> str:
    """The command that runs these with as many seeds."""
    chosen = [f"+experiment={','.join(experiments)}", f"'seed=range({seeds})'", *overrides]
    return f"python scripts/run.py -m {' '.join(chosen)}"


def studies(names: Iterable[str], seeds: int) -> str:
    """The commands that run these studies with as many seeds, a line each."""
    return "\n".join(f"python scripts/study.py +study={name} seeds={seeds}" for name in names)


def paces(records: Iterable[Record]) -> str:
    """How much the time of an iteration differs between runs, where load or pauses are a fifth of it or more."""
    milliseconds = [1000 * record.train_seconds / record.iterations for record in records if record.iterations]
    if not milliseconds or max(milliseconds) < 1.2 * min(milliseconds):
        return ""
    return f"{min(milliseconds):.0f} to {max(milliseconds):.0f} ms an iteration"


def cell(ours: Cell, *more: str) -> str:
    """A cell in one phrase: label, mean, iteration, n, what went wrong, and more to know of it."""
    if not ours.runs:
        return f"{ours.label} {NOT_RUN}"
    value = number(statistics.mean(ours.values)) or "not measured"
    said = ", ".join([f"n = {ours.n}", *ours.remarks, *filter(None, more)])
    return f"{ours.label} {value} at {ours.iteration:,} ({said})"


def pipes(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(text).replace("|", "\\|") for text in line) + " |\n" for line in lines)
