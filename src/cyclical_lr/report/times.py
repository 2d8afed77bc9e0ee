"""Time to target: the measurement that conf/paper/verdicts.yaml lays down, on the curves of the runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cyclical_lr.records import CurveRow
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Results
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.statistics import Interval


@dataclass(frozen=True)
class TimeToTarget:
    """Times of one cell's seeds to a target accuracy (percent), in one unit; a miss is infinity."""

    label: str
    role: str  # A, B or beside
    target: float
    unit: str  # iterations or train_seconds
    times: tuple[float, ...]  # one per run, finished or diverged
    speed_up: float  # median of this cell over that of A; nan for A itself, where undefined, and of seconds that differ
    interval: Interval

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def reached(self) -> int:
        return sum(math.isfinite(time) for time in self.times)


def measure_times(paper: Paper, results: Results, claim: Mapping[str, Any]) -> tuple[TimeToTarget, ...]:
    """The times of a claim's cells to each target of their network, on the evaluations that all of them have.

    Seconds of machines, engines or layers that differ have no ratio.
    """
    rule = paper.rule("time_to_target")
    shown = [*claim["operands"], *claim.get("beside", [])]
    roles = ["A", "B", *("beside" for _ in shown[2:])]
    curves = [curves_of(results, each["experiment"], each["iteration"]) for each in shown]
    clocks = [clocks_of(results, {shown[0]["experiment"], each["experiment"]}) for each in shown]
    grid = common_grid([curve for cell in curves for curve in cell])
    out = []
    for target in targets(paper, shown[0]["experiment"]):
        for unit in rule["units"]:
            times = [times_to_target(cell, target, unit, grid) for cell in curves]
            for role, each, ours, both in zip(roles, shown, times, clocks, strict=True):
                compared = role != "A" and (unit != "train_seconds" or len(both) == 1)
                a = statistics.median(times[0])
                ratio = statistics.ratio(statistics.median(ours), a) if compared else math.nan
                interval = statistics.UNDEFINED
                if not math.isnan(ratio):
                    interval = statistics.bootstrap_ratio_of_medians(ours, times[0], **rule["bootstrap"])
                out.append(TimeToTarget(each["experiment"], role, target, unit, ours, ratio, interval))
    return tuple(out)


def targets(paper: Paper, experiment: str) -> list[float]:
    """The targets (percent) fixed for the network of an experiment; none where none were."""
    networks = {row.get("experiment"): row["architecture"] for row in paper.rows.values() if "architecture" in row}
    return paper.rule("time_to_target")["targets"].get(networks.get(experiment), [])


def clocks_of(results: Results, labels: Iterable[str]) -> set[tuple[str, ...]]:
    """What the seconds of these labels' runs depend on, each kind once (`Record.clock`)."""
    return {record.clock for label in labels for record in results.by_label.get(label, [])}


def curves_of(results: Results, label: str, until: int) -> list[list[CurveRow]]:
    """The curves of a label's finished and diverged runs, cut after an iteration."""
    return [
        [row for row in results.curves[record.run_id] if row.iteration <= until]
        for record in results.by_label.get(label, [])
        if record.status != "failed"
    ]


def common_grid(curves: Sequence[Sequence[CurveRow]]) -> frozenset[int]:
    """Iterations at which every one of the curves that gets so far was evaluated: a finer grid is no advantage."""
    at = [(max((row.iteration for row in curve), default=-1), {row.iteration for row in curve}) for curve in curves]
    union = set().union(*(iterations for _, iterations in at)) if at else set()
    return frozenset(t for t in union if all(t in iterations or t > last for last, iterations in at))


def times_to_target(
    curves: Sequence[Sequence[CurveRow]], target: float, unit: str, grid: frozenset[int]
) -> tuple[float, ...]:
    """Each curve's time to a target on a grid, in a unit: "iterations" or "train_seconds"."""
    column = {"iterations": "iteration", "train_seconds": "train_seconds"}[unit]
    out = []
    for curve in curves:
        rows = [row for row in curve if row.iteration in grid]
        times, accuracies = [getattr(row, column) for row in rows], [row.test_accuracy for row in rows]
        out.append(statistics.time_to_target(times, accuracies, target))
    return tuple(out)
