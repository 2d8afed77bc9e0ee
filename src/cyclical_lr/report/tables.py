"""Tables 1 to 4 with ours beside the paper's numbers, the numbers of its running text, cost, and time to target.

Policies under one budget are in `budget.py`.

Each is a DataFrame of plain values; `markup.py` turns it into text. Sections of a table, in this order:

    paper        the paper's rows, float32; a row without runs says "not run"
    bf16         the same row in bfloat16, beside it, never pooled with it and without a verdict
    controls     (Table 1) what this study runs beside the paper's rows, at the iterations that claims name
    other runs   every other label of the same experiments, and in Table 1 those of experiments that stand in no table:
                 a user's own schedules show up here without any code; not range tests, whose end is no accuracy
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cyclical_lr.records import PACKAGE, is_range_test
from cyclical_lr.report import statistics, wording
from cyclical_lr.report.budget import budget_table
from cyclical_lr.report.collect import Cell, Results, last_iteration, read_cell
from cyclical_lr.report.cycles import mid_cycle
from cyclical_lr.report.paper import Paper, experiments_of
from cyclical_lr.report.times import TimeToTarget, clocks_of, common_grid, curves_of, times_to_target
from cyclical_lr.report.verdicts import NOT_RUN, Verdict, number

DESCRIBED_BY = {
    "table1": ("dataset", "architecture", "policy"),
    "table3": ("lr_type", "bounds", "policy"),
    "table4": ("dataset", "architecture", "policy", "bounds"),
    "text": ("dataset", "architecture", "policy", "bounds"),
}
"""The columns of the paper's rows by which a reader knows them."""
NUMBERS = (
    *("iterations", "label", "n", "mean", "low", "high", "best"),
    *("paper", "difference", "difference_low", "difference_high", "verdict", "remarks"),
)
"""mean, low, high: ours and its interval; best: mean of the best up to there; difference: ours minus the paper's."""
PHASE = ("base_lr", "max_lr", "stepsize", "start", "max_iter")
TIMES = (
    *("claim", "label", "role", "unit", "target", "runs", "reached", "median", "speed_up", "low", "high"),
    "remarks",
)
"""speed_up: this row's median over that of the claim's A; low, high: its bootstrap interval. A miss is inf."""
RATIOS = ("clr_over_fixed", "adaptive_over_sgd")
"""What the claims on cost compare (conf/paper/verdicts.yaml, `cost`)."""
COSTS = (
    "device",
    "method",
    "rounds",
    "fixed",
    "clr",
    *(f"{ratio}{end}" for ratio in RATIOS for end in ("", "_low", "_high")),
)
"""fixed, clr: median milliseconds of an iteration at a constant LR and under CLR."""


def make_tables(paper: Paper, results: Results, verdicts: Sequence[Verdict]) -> dict[str, pd.DataFrame]:
    """All tables by file name: table1 to table4, text, budget, cost, time_to_target."""
    out = {name: accuracy_table(paper, results, name) for name in DESCRIBED_BY}
    out["table2"] = phases_table(paper, results)
    out["budget"] = budget_table(paper, results)
    out["cost"] = cost_table(results, verdicts)
    out["time_to_target"] = times_table(paper, results, verdicts)
    return dict(sorted(out.items()))


# Tables 1, 3, 4 and the text ------------------------------------------------------------------------------------------


def accuracy_table(paper: Paper, results: Results, table: str) -> pd.DataFrame:
    """Test accuracies in percent: section, what describes a row, then `NUMBERS`."""
    rows = [*_paper_rows(paper, results, table)]
    if table == "table1":
        rows += _control_rows(paper, results)
    shown = _in_tables(paper) | {label for label, _ in _controls(paper)}
    rows += _other_rows(paper, results, table, shown)
    frame = pd.DataFrame(rows, columns=["section", *DESCRIBED_BY[table], *NUMBERS])
    return frame.astype({"iterations": "Int64"})


def _paper_rows(paper: Paper, results: Results, table: str) -> Iterator[dict[str, Any]]:
    for row in paper.tables[table]:
        known = {name: _bounds(row[name]) if name == "bounds" else row[name] for name in DESCRIBED_BY[table]}
        for reading in ("experiment", "staged"):
            if reading not in row:
                continue
            described = {**known, "policy": f"{row['policy']}, staged"} if reading == "staged" else known
            for section, label in (("paper", row[reading]), ("bf16", f"{row[reading]}[precision=bf16]")):
                if section == "bf16" and label not in results.by_label:
                    continue
                iteration = row["iterations"] or last_iteration(results, label)
                cell = read_cell(results, label, iteration or 0)
                out = {"section": section, **described, **_ours(paper, results, cell), "iterations": iteration}
                out |= {"paper": row["accuracy"], "difference": out["mean"] - row["accuracy"]}
                found = number(paper, cell, row["accuracy"], row["runs"])
                out |= {"difference_low": found.interval.low, "difference_high": found.interval.high}
                out["verdict"] = found.text if section == "paper" else f"no verdict ({section})"
                yield out


def _control_rows(paper: Paper, results: Results) -> Iterator[dict[str, Any]]:
    for label, iteration in _controls(paper):
        yield {"section": "controls", **_ours(paper, results, read_cell(results, label, iteration))}


def _controls(paper: Paper) -> list[tuple[str, int]]:
    """Label and iteration of all that claims compare, or name as controls, and no table has, in the claims' order.

    Not the range tests: what is read off them is no accuracy.
    """
    in_tables = _in_tables(paper)
    claims = [claim for claim in paper.claims if claim["rule"] != "bounds"]
    shown = [each for claim in claims for each in [*claim["operands"], *claim.get("beside", [])]]
    cells = dict.fromkeys((each["experiment"], each["iteration"]) for each in shown)
    order = list(dict.fromkeys(label for label, _ in cells))
    for claim in claims:  # a control that is compared with nothing, where the claim's A is read
        for label in claim.get("controls", []):
            if label not in order:
                cells[label, claim["operands"][0]["iteration"]] = None
                order.append(label)
    controls = [cell for cell in cells if cell[0] not in in_tables]
    return sorted(controls, key=lambda cell: (order.index(cell[0]), cell[1]))


def _other_rows(paper: Paper, results: Results, table: str, shown: set[str]) -> Iterator[dict[str, Any]]:
    here, anywhere = _experiments(paper, table), _experiments(paper, *DESCRIBED_BY)
    for label, runs in sorted(results.by_label.items()):
        experiment = runs[0].experiment
        if is_range_test(runs[0].config["schedule"]):
            continue
        if label in shown or not (experiment in here or (table == "table1" and experiment not in anywhere)):
            continue
        end = last_iteration(results, label)
        named = {row["iterations"] for row in paper.tables[table] if experiment in experiments_of(row)}
        cells = [read_cell(results, label, iteration) for iteration in sorted(named - {None, end})]
        for cell in cells:
            if cell.n:
                yield {"section": "other runs", **_ours(paper, results, cell)}
        yield {"section": "other runs", **_ours(paper, results, read_cell(results, label, end or 0)), "iterations": end}


def _ours(paper: Paper, results: Results, cell: Cell) -> dict[str, Any]:
    interval = statistics.mean_interval(cell.values, paper.rule("number")["confidence"])
    return {
        "iterations": cell.iteration,
        "label": cell.label,
        "n": cell.n,
        "mean": statistics.mean(cell.values),
        "low": interval.low,
        "high": interval.high,
        "best": statistics.mean(cell.best),
        "paper": math.nan,
        "difference": math.nan,
        "difference_low": math.nan,
        "difference_high": math.nan,
        "verdict": "" if cell.runs else NOT_RUN,
        "remarks": "; ".join(filter(None, [*cell.remarks, mid_cycle(results, cell.label, cell.iteration)])),
    }


def _in_tables(paper: Paper) -> set[str]:
    """The labels that the paper's rows have, in float32 and in bfloat16."""
    return {label for name in DESCRIBED_BY for row in paper.tables[name] for label in _labels(row)}


def _experiments(paper: Paper, *tables: str) -> set[str]:
    return {experiment for table in tables for row in paper.tables[table] for experiment in experiments_of(row)}


def _labels(row: Mapping[str, Any]) -> list[str]:
    return [label for experiment in experiments_of(row) for label in (experiment, f"{experiment}[precision=bf16]")]


def _bounds(bounds: Sequence[float] | None) -> str:
    return " - ".join(f"{bound:g}" for bound in dict.fromkeys(bounds or []))


# Table 2 --------------------------------------------------------------------------------------------------------------


def phases_table(paper: Paper, results: Results) -> pd.DataFrame:
    """The phases of the paper's triangular2 run beside those that ours ran, and our accuracy where each ends."""
    label = next(row["experiment"] for row in paper.tables["table1"] if row["id"] == "table1_cifar10_triangular2")
    runs = results.by_label.get(label, [])
    ours = _phases(runs[0].config) if runs else []  # all runs of a label have the same schedule
    rows = []
    for position, row in enumerate(paper.tables["table2"]):
        phase = {name: row[name] for name in PHASE}
        ran = ours[position] if position < len(ours) else {}
        verdict = NOT_RUN if not runs else "same" if ran == phase else "differs"
        cell = _ours(paper, results, read_cell(results, label, row["max_iter"]))
        rows.append(
            {"section": "paper", "phase": position + 1, **phase}
            | {f"ours_{name}": ran.get(name, math.nan) for name in PHASE}
            | {name: cell[name] for name in ("label", "n", "mean", "low", "high", "best")}
            | {"verdict": verdict, "remarks": cell["remarks"]}
        )
    return pd.DataFrame(rows)


def _phases(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table 2's columns from a run's config; empty where its schedule has no phases."""
    phases = config["schedule"].get("phases", [])
    ends = [phase["start"] for phase in phases[1:]] + [config["iterations"]]
    return [
        {name: phase["schedule"].get(name, math.nan) for name in PHASE[:3]} | {"start": phase["start"], "max_iter": end}
        for phase, end in zip(phases, ends, strict=False)
    ]


# Cost -----------------------------------------------------------------------------------------------------------------


def cost_table(results: Results, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """What an iteration takes by method on each machine that benchmarks/solvers.py ran on, and the claims' ratios."""
    ratios = {
        (verdict.claim["ratio"], ratio.name): ratio
        for verdict in verdicts
        if verdict.claim["rule"] == "cost"
        for ratio in verdict.ratios
    }
    rows = []
    for benchmark in results.benchmarks:
        for method, times in benchmark["milliseconds"].items():
            row = {"device": benchmark["device"], "method": method, "rounds": len(times["fixed"])}
            row |= {policy: statistics.median(times[policy]) for policy in ("fixed", "clr")}
            for name in RATIOS:
                if ratio := ratios.get((name, f"{method} on {benchmark['device']}")):
                    row |= {name: ratio.value, f"{name}_low": ratio.interval.low, f"{name}_high": ratio.interval.high}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COSTS))


# Time to target -------------------------------------------------------------------------------------------------------


def times_table(paper: Paper, results: Results, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Median times to each target: those of the claims, then every other label on a network that has targets.

    A claim's cells share one grid of evaluations; another label stands on its own, which `remarks` gives.
    """
    rows = []
    for verdict in verdicts:
        if verdict.times:
            clocks = _clocks(results, [time.label for time in verdict.times])
            rows += [_time_row(verdict.id, time, clocks) for time in verdict.times]
    shown = {row["label"] for row in rows}
    rule = paper.rule("time_to_target")
    for label, runs in sorted(results.by_label.items()):
        model = runs[0].config["model"]["_target_"]
        curves = curves_of(results, label, max(record.iterations for record in runs))
        if label in shown or not curves or is_range_test(runs[0].config["schedule"]):
            continue
        grid = common_grid(curves)
        evaluated = sorted(grid)
        spacing = f"evaluated every {evaluated[1] - evaluated[0]:,}" if len(evaluated) > 1 else ""
        remarks = {
            "iterations": spacing,
            "train_seconds": "; ".join(filter(None, [spacing, _clocks(results, [label])])),
        }
        network = next((name for name in rule["targets"] if model.startswith(f"{PACKAGE}models.{name}.")), "")
        for target in rule["targets"].get(network, []):
            for unit in rule["units"]:
                ours = times_to_target(curves, target, unit, grid)
                time = TimeToTarget(label, "other run", target, unit, ours, math.nan, statistics.UNDEFINED)
                rows.append(_time_row("", time, remarks[unit]))
    return pd.DataFrame(rows, columns=list(TIMES))


def _time_row(claim: str, time: TimeToTarget, remarks: str) -> dict[str, Any]:
    return {
        "claim": claim,
        "label": time.label,
        "role": time.role,
        "unit": time.unit,
        "target": time.target,
        "runs": len(time.times),
        "reached": time.reached,
        "median": time.median,
        "speed_up": time.speed_up,
        "low": time.interval.low,
        "high": time.interval.high,
        "remarks": remarks if time.unit == "train_seconds" or time.role == "other run" else "",
    }


def _clocks(results: Results, labels: Sequence[str]) -> str:
    """A warning where seconds do not compare."""
    runs = [record for label in dict.fromkeys(labels) for record in results.by_label.get(label, [])]
    kinds = len(clocks_of(results, labels))
    said = f"seconds from {kinds} kinds of device, threads, engine or layers, which do not compare" if kinds > 1 else ""
    return ", ".join(filter(None, [said, wording.paces(runs)]))
