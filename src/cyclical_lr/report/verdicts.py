"""The rules of conf/paper/verdicts.yaml, applied to the claims of conf/paper/claims.yaml.

What the YAML leaves open is settled here:

- Every claim is one of: a verdict of its rule; "not run" where a cell has no run at all; "no verdict (n = k)" below the
  number of seeds that the YAML asks for; "measured" for a measurement, which has no verdict.
- A cell with a diverged run cannot be "reproduced": what the rule would have called that is "inconclusive".
- A claim without a verdict, or with a diverged run, takes part in Holm's correction with p = 1. In the correction of
  the opposite direction of `greater`, the family's other rules take part with p = 1 too, so a family has one size.
- The interval of a difference has the confidence at which the rule decides: for `number` that of the prediction, for
  `equal` its own, for `greater` 1 - 2 alpha, whose bound is the one-sided test's.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cyclical_lr.records import ConfigError, CurveRow
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell, Results, read_cell
from cyclical_lr.report.statistics import Interval

REPRODUCED, NOT_REPRODUCED, CONTRADICTED = "reproduced", "not reproduced", "contradicted"
INCONCLUSIVE, NOT_RUN, MEASURED = "inconclusive", "not run", "measured"
PAPER_FILES = ("table1", "table2", "table3", "table4", "text")
OPERANDS = {"number": 1, "equal": 2, "greater": 2, "time_to_target": 2}


@dataclass(frozen=True)
class Paper:
    """conf/paper as data: tables by file name, claims in their order, and the rules of verdicts.yaml."""

    tables: Mapping[str, list[dict[str, Any]]]
    claims: list[dict[str, Any]]
    awaiting_rule: list[dict[str, Any]]
    verdicts: Mapping[str, Any]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of all tables by id, each with the `table` that it is in."""
        return {row["id"]: {**row, "table": table} for table, rows in self.tables.items() for row in rows}

    def rule(self, name: str) -> Mapping[str, Any]:
        return self.verdicts["rules"][name]


@dataclass(frozen=True)
class Finding:
    """What a rule says of one or two cells. Differences are in percentage points, A - B or the paper - ours."""

    verdict: str
    n: int  # the smaller one where two cells are compared
    preliminary: bool = False
    difference: float = math.nan
    interval: Interval = statistics.UNDEFINED  # of the difference
    confidence: float = math.nan  # of that interval
    prediction: Interval | None = None  # `number`: where the paper's value is expected
    p: float | None = None  # `equal`, `greater`: what "reproduced" rests on
    p_adjusted: float | None = None
    p_opposite: float | None = None  # `greater`: what "contradicted" rests on
    p_opposite_adjusted: float | None = None

    @property
    def text(self) -> str:
        """The verdict as it is printed everywhere."""
        return f"{self.verdict} (preliminary)" if self.preliminary else self.verdict


@dataclass(frozen=True)
class TimeToTarget:
    """Times of one cell's seeds to a target accuracy (percent), in one unit; a miss is infinity."""

    label: str
    role: str  # A, B or beside
    target: float
    unit: str  # iterations or train_seconds
    times: tuple[float, ...]  # one per run, finished or diverged
    speed_up: float  # median of this cell over the median of A; nan where undefined, and for A itself
    interval: Interval

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def reached(self) -> int:
        return sum(math.isfinite(time) for time in self.times)


@dataclass(frozen=True)
class Verdict:
    """A claim of claims.yaml with our cells, what its rule says, and its controls read at A's iteration."""

    claim: Mapping[str, Any]
    cells: tuple[Cell, ...]
    finding: Finding
    controls: tuple[Cell, ...] = ()
    times: tuple[TimeToTarget, ...] = ()

    @property
    def id(self) -> str:
        return str(self.claim["id"])

    @property
    def remarks(self) -> tuple[str, ...]:
        """Diverged, failed and unmeasured runs, by cell."""
        return tuple(f"{cell.label}: {remark}" for cell in dict.fromkeys(self.cells) for remark in cell.remarks)


def read_paper(folder: Path) -> Paper:
    """Read conf/paper.

    Raises:
        ConfigError: a claim names a rule or row that is not there, or has the wrong number of operands.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names = (*PAPER_FILES, "claims", "verdicts")
    files = {name: yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), loader) for name in names}
    claims = files["claims"]
    paper = Paper(
        tables={name: files[name]["rows"] for name in PAPER_FILES},
        claims=claims["claims"],
        awaiting_rule=claims.get("awaiting_rule", []),
        verdicts=files["verdicts"],
    )
    for claim in paper.claims:
        where, rule = f"{folder / 'claims.yaml'}: {claim.get('id')}", claim.get("rule")
        if rule not in OPERANDS or rule not in paper.verdicts["rules"]:
            raise ConfigError(f"{where}.rule: expected one of {', '.join(OPERANDS)}, got {rule!r}")
        if len(claim["operands"]) != OPERANDS[rule]:
            raise ConfigError(f"{where}.operands: {rule} compares {OPERANDS[rule]}, got {len(claim['operands'])}")
        if rule == "number":
            row = paper.rows.get(str(claim.get("row")))
            if row is None or row["table"] not in paper.rule(rule)["runs"]:
                known = ", ".join(paper.rule(rule)["runs"])
                raise ConfigError(f"{where}.row: expected the id of a row of {known}, got {claim.get('row')!r}")
    return paper


def decide(paper: Paper, results: Results) -> list[Verdict]:
    """A verdict for each claim, in the order of claims.yaml."""
    cells = {
        claim["id"]: tuple(read_cell(results, each["experiment"], each["iteration"]) for each in claim["operands"])
        for claim in paper.claims
    }
    adjusted, opposite = _corrected(paper, cells)
    out = []
    for claim in paper.claims:
        ours, rule = cells[claim["id"]], claim["rule"]
        times: tuple[TimeToTarget, ...] = ()
        if rule == "number":
            row = paper.rows[claim["row"]]
            finding = number(paper, ours[0], row["accuracy"], row["table"])
        elif rule == "equal":
            finding = equal(paper, ours[0], ours[1], adjusted[claim["id"]])
        elif rule == "greater":
            finding = greater(paper, ours[0], ours[1], adjusted[claim["id"]], opposite[claim["id"]])
        else:
            times = measure_times(paper, results, claim)
            runs = min(cell.runs for cell in ours)
            finding = Finding(MEASURED if runs else NOT_RUN, min(cell.n for cell in ours))
        at = claim["operands"][0]["iteration"]
        controls = tuple(read_cell(results, label, at) for label in claim.get("controls", []))
        out.append(Verdict(claim, ours, finding, controls, times))
    return out


# The rules ------------------------------------------------------------------------------------------------------------


def number(paper: Paper, cell: Cell, value: float, table: str) -> Finding:
    """Does the paper's number (percent) from a table fit what this implementation produces?"""
    rule = paper.rule("number")
    if none := _no_verdict(paper, cell):
        return none
    confidence, runs = rule["confidence"], rule["runs"][table]
    plain = statistics.prediction_interval(cell.values, runs, confidence)
    prediction = statistics.prediction_interval(cell.values, runs, confidence, rule["floor"])
    if prediction.half_width > rule["inconclusive"] + statistics.ROUNDING:
        verdict = INCONCLUSIVE
    else:
        verdict = REPRODUCED if prediction.holds(value) else NOT_REPRODUCED
    return _finding(
        paper,
        verdict,
        (cell,),
        difference=value - statistics.mean(cell.values),
        interval=Interval(value - plain.high, value - plain.low),
        confidence=confidence,
        prediction=prediction,
    )


def equal(paper: Paper, a: Cell, b: Cell, p_adjusted: float | None = None) -> Finding:
    """Are A and B the same to within the margin? `p_adjusted` is the p-value corrected in its family; None: alone."""
    rule = paper.rule("equal")
    if none := _no_verdict(paper, a, b):
        return none
    p = statistics.tost(a.values, b.values, rule["margin"])
    interval = statistics.difference_interval(a.values, b.values, rule["interval"])
    p_adjusted = p if p_adjusted is None else p_adjusted
    verdict = INCONCLUSIVE
    if p_adjusted <= rule["alpha"]:
        verdict = REPRODUCED
    elif max(interval.low, -interval.high) > rule["margin"] + statistics.ROUNDING:
        verdict = NOT_REPRODUCED
    difference = statistics.mean(a.values) - statistics.mean(b.values)
    return _finding(
        paper,
        verdict,
        (a, b),
        difference=difference,
        interval=interval,
        confidence=rule["interval"],
        p=p,
        p_adjusted=p_adjusted,
    )


def greater(
    paper: Paper, a: Cell, b: Cell, p_adjusted: float | None = None, p_opposite_adjusted: float | None = None
) -> Finding:
    """Is A's mean above B's? The adjusted p-values are corrected in their family; None: alone."""
    alpha = paper.rule("greater")["alpha"]
    if none := _no_verdict(paper, a, b):
        return none
    p, p_opposite = statistics.welch_greater(a.values, b.values), statistics.welch_greater(b.values, a.values)
    p_adjusted = p if p_adjusted is None else p_adjusted
    p_opposite_adjusted = p_opposite if p_opposite_adjusted is None else p_opposite_adjusted
    verdict = INCONCLUSIVE
    if p_adjusted <= alpha:
        verdict = REPRODUCED
    elif p_opposite_adjusted <= alpha:
        verdict = CONTRADICTED
    return _finding(
        paper,
        verdict,
        (a, b),
        difference=statistics.mean(a.values) - statistics.mean(b.values),
        interval=statistics.difference_interval(a.values, b.values, 1 - 2 * alpha),
        confidence=1 - 2 * alpha,
        p=p,
        p_adjusted=p_adjusted,
        p_opposite=p_opposite,
        p_opposite_adjusted=p_opposite_adjusted,
    )


def _no_verdict(paper: Paper, *cells: Cell) -> Finding | None:
    n = min(cell.n for cell in cells)
    if not all(cell.runs for cell in cells):
        return Finding(NOT_RUN, n)
    if n < paper.verdicts["seeds"]["none_below"]:
        return Finding(f"no verdict (n = {n})", n)
    return None


def _finding(paper: Paper, verdict: str, cells: Sequence[Cell], **numbers: Any) -> Finding:
    n = min(cell.n for cell in cells)
    if verdict == REPRODUCED and any(cell.diverged for cell in cells):
        verdict = INCONCLUSIVE
    return Finding(verdict, n, preliminary=n < paper.verdicts["seeds"]["preliminary_below"], **numbers)


def _corrected(paper: Paper, cells: Mapping[str, tuple[Cell, ...]]) -> tuple[dict[str, float], dict[str, float]]:
    """Holm's correction within each family: p-values by claim, of the claimed direction and of the opposite one."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for claim in paper.claims:
        if claim["rule"] in paper.verdicts["holm"]["applies_to"]:
            families[claim[paper.verdicts["holm"]["within"]]].append(claim)
    adjusted: dict[str, float] = {}
    opposite: dict[str, float] = {}
    for claims in families.values():
        ids = [claim["id"] for claim in claims]
        rules = [equal if claim["rule"] == "equal" else greater for claim in claims]
        alone = [rule(paper, cells[name][0], cells[name][1]) for rule, name in zip(rules, ids, strict=True)]
        diverged = [any(cell.diverged for cell in cells[name]) for name in ids]
        p = [1.0 if found.p is None or bad else found.p for found, bad in zip(alone, diverged, strict=True)]
        p_opposite = [1.0 if found.p_opposite is None else found.p_opposite for found in alone]
        adjusted |= dict(zip(ids, statistics.holm(p).tolist(), strict=True))
        opposite |= dict(zip(ids, statistics.holm(p_opposite).tolist(), strict=True))
    return adjusted, opposite


# Time to target -------------------------------------------------------------------------------------------------------


def measure_times(paper: Paper, results: Results, claim: Mapping[str, Any]) -> tuple[TimeToTarget, ...]:
    """The times of a claim's cells to each target of their network, on the evaluations that all of them have."""
    rule = paper.rule("time_to_target")
    shown = [*claim["operands"], *claim.get("beside", [])]
    roles = ["A", "B", *("beside" for _ in shown[2:])]
    curves = [curves_of(results, each["experiment"], each["iteration"]) for each in shown]
    grid = common_grid([curve for cell in curves for curve in cell])
    out = []
    for target in targets(paper, shown[0]["experiment"]):
        for unit in rule["units"]:
            times = [times_to_target(cell, target, unit, grid) for cell in curves]
            for role, each, ours in zip(roles, shown, times, strict=True):
                a = statistics.median(times[0])
                ratio = statistics.ratio(statistics.median(ours), a) if role != "A" else math.nan
                interval = statistics.UNDEFINED
                if not math.isnan(ratio):
                    interval = statistics.bootstrap_ratio_of_medians(ours, times[0], **rule["bootstrap"])
                out.append(TimeToTarget(each["experiment"], role, target, unit, ours, ratio, interval))
    return tuple(out)


def targets(paper: Paper, experiment: str) -> list[float]:
    """The targets (percent) fixed for the network of an experiment; none where none were."""
    networks = {row.get("experiment"): row["architecture"] for row in paper.rows.values() if "architecture" in row}
    return paper.rule("time_to_target")["targets"].get(networks.get(experiment), [])


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
