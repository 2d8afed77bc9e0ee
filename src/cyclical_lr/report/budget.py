"""Policies under one budget: the paper's, the controls and a user's own, side by side.

A budget is a data set, a network, a batch and a number of iterations. What else differs within one, a row's label says.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cyclical_lr import records
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell, Results, last_iteration, read_cell
from cyclical_lr.report.cycles import mid_cycle
from cyclical_lr.report.paper import Paper

CLR = ("triangular2", "CLR")
"""Policies, as the paper's tables name them, that the others are measured against: the headline, and Table 4's."""
BUDGET = (
    *("section", "iterations", "label", "n", "mean", "low", "high", "best"),
    *("reference", "difference", "difference_low", "difference_high", "remarks"),
)
"""mean, low, high: test accuracy (%) at the end and its interval; difference: the row's minus the reference's."""


def budget_table(paper: Paper, results: Results) -> pd.DataFrame:
    """A section per budget that more than one label had, its labels from the best mean down; columns as `BUDGET`.

    Labels that the paper's tables or claims read at the end of a budget and that go on after it stand there too. The
    reference is the budget's run of the paper's CLR, the one least overridden; a budget without one has no differences.
    Intervals are Welch's, at the confidence of the rule `number`, and not corrected for the number of rows.
    """
    confidence = paper.rule("number")["confidence"]
    clr = {row["experiment"] for row in paper.rows.values() if row.get("policy") in CLR and "experiment" in row}
    by_budget: dict[tuple[str, int], list[str]] = defaultdict(list)
    ends = {
        label: last_iteration(results, label) or runs[0].config["iterations"]
        for label, runs in results.by_label.items()
        if not records.is_range_test(runs[0].config["schedule"])
    }
    for label, end in ends.items():
        by_budget[_setting(results, label), end].append(label)
    read = {(each["experiment"], each["iteration"]) for claim in paper.claims for each in claim["operands"]}
    rows: list[dict[str, Any]] = []
    for (setting, end), labels in sorted(by_budget.items()):
        if len(labels) > 1:
            longer = [label for label, after in ends.items() if after > end and (label, end) in read]
            labels += [label for label in longer if _setting(results, label) == setting]
            ours = [label for label in labels if results.by_label[label][0].experiment in clr]
            reference = min(ours, key=lambda label: (len(label), label), default="")  # the one least overridden
            rows += _rows(results, f"{setting}, {end:,} iterations", labels, reference, confidence, end, ends)
    return pd.DataFrame(rows, columns=list(BUDGET))


def _setting(results: Results, label: str) -> str:
    record = results.by_label[label][0]
    data = record.config["data"]
    batch = f" in batches of {data['batch_size']}" if "batch_size" in data else ""
    foreign = f" of {data['_target_']}" if records.is_foreign(data) else ""
    return f"{data['name']}{foreign}{batch}, {records.short(record.config['model']).removesuffix('()')}"


def _rows(
    results: Results,
    section: str,
    labels: Sequence[str],
    reference: str,
    confidence: float,
    end: int,
    ends: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    clr = read_cell(results, reference, end)

    def best_first(cell: Cell) -> tuple[float, str]:
        return -statistics.mean(cell.values) if cell.n else math.inf, cell.label

    for cell in sorted((read_cell(results, label, end) for label in labels), key=best_first):
        mean, interval = statistics.mean(cell.values), statistics.mean_interval(cell.values, confidence)
        difference, between = math.nan, statistics.UNDEFINED
        if cell.label != reference:
            difference = round(mean - statistics.mean(clr.values), 9)
            between = statistics.difference_interval(cell.values, clr.values, confidence)
        remarks = [*cell.remarks, mid_cycle(results, cell.label, end)]
        if ends[cell.label] > end:
            remarks.append(f"goes on to {ends[cell.label]:,}")
        yield {
            "section": section,
            "iterations": end,
            "label": cell.label,
            "n": cell.n,
            "mean": mean,
            "low": interval.low,
            "high": interval.high,
            "best": statistics.mean(cell.best),
            "reference": reference,
            "difference": difference,
            "difference_low": between.low,
            "difference_high": between.high,
            "remarks": "; ".join(filter(None, remarks)),
        }
