"""The rules of conf/paper/verdicts.yaml, applied to the claims of conf/paper/claims.yaml.

What the YAML leaves open is settled here:

- Every claim is one of: a verdict of its rule; "not run" where a cell has no run at all; "no verdict (n = k)" below the
  number of seeds that the YAML asks for; "measured" for a measurement, which has no verdict.
- A cell with a diverged run cannot be "reproduced": what the rule would have called that is "inconclusive". It can be
  "contradicted" or "not reproduced" by the runs that finished.
- A claim without a verdict takes part in Holm's correction with p = 1, and in that of the claimed direction one with a
  diverged run too. In the correction of the opposite direction of `greater`, the family's other rules take part with
  p = 1, so a family has one size.
- `share`, `bounds` and `cost` have no p-value and take no part in the correction. n of `bounds` counts curves, diverged
  ones among them. n of `cost` counts rounds, which are no seeds: it is never preliminary.
- The interval of a difference has the confidence at which the rule decides: for `number` that of the prediction, for
  `equal` its own, for `greater` 1 - 2 alpha, whose bound is the one-sided test's.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from cyclical_lr import range_test
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell, Results, read_cell
from cyclical_lr.report.cycles import ends_around, ends_before
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.statistics import Interval
from cyclical_lr.report.times import TimeToTarget, measure_times

REPRODUCED, NOT_REPRODUCED, CONTRADICTED = "reproduced", "not reproduced", "contradicted"
INCONCLUSIVE, NOT_RUN, MEASURED = "inconclusive", "not run", "measured"


@dataclass(frozen=True)
class Finding:
    """What a rule says of one or two cells. Differences are in percentage points, A - B or ours - the paper's."""

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
class Ratio:
    """A quotient of two measurements that belong together: of one seed, or of one round of a benchmark."""

    name: str
    value: float
    interval: Interval
    verdict: str  # what the rule says of it alone


@dataclass(frozen=True)
class Verdict:
    """A claim of claims.yaml with our cells, what its rule says, and its controls read at A's iteration."""

    claim: Mapping[str, Any]
    cells: tuple[Cell, ...]
    finding: Finding
    controls: tuple[Cell, ...] = ()
    times: tuple[TimeToTarget, ...] = ()
    ratios: tuple[Ratio, ...] = ()  # `share`: its own, then earlier cycles'; `cost`: one per method and machine
    ceilings: Mapping[str, range_test.Bounds] = field(default_factory=dict)  # `bounds`: by rule for max_lr
    fitting: tuple[Interval, ...] = ()  # `bounds`: where base_lr and max_lr had to lie
    at_ends: tuple[tuple[tuple[Cell, ...], Finding], ...] = ()  # of a claim read in mid-cycle: where cycles end, alone

    @property
    def id(self) -> str:
        return str(self.claim["id"])

    @property
    def remarks(self) -> tuple[str, ...]:
        """Diverged, failed and unmeasured runs, by cell."""
        return tuple(f"{cell.label}: {remark}" for cell in dict.fromkeys(self.cells) for remark in cell.remarks)


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
        measured: dict[str, Any] = {}
        if rule in ("number", "equal", "greater"):
            measured["at_ends"] = _at_cycle_ends(paper, results, claim, ours)
        if rule == "number":
            finding = _alone(paper, claim, ours)
        elif rule == "equal":
            finding = equal(paper, ours[0], ours[1], adjusted[claim["id"]])
        elif rule == "greater":
            finding = greater(paper, ours[0], ours[1], adjusted[claim["id"]], opposite[claim["id"]])
        elif rule == "share":
            finding, ratios = share(paper, ours[0], ours[1])
            for cell in (read_cell(results, ours[0].label, t) for t in ends_before(results, ours[0])):
                earlier = share(paper, cell, ours[1])[1]
                ratios += tuple(replace(ratio, name=f"at {cell.iteration:,}") for ratio in earlier)
            measured["ratios"] = ratios
        elif rule == "bounds":
            curves = range_tests(results, ours[0].label)
            finding, measured["ceilings"], measured["fitting"] = bounds(paper, curves, paper.bounds[claim["row"]])
        elif rule == "cost":
            finding, measured["ratios"] = cost(paper, results.benchmarks, claim["ratio"])
        else:
            measured["times"] = measure_times(paper, results, claim)
            runs = min(cell.runs for cell in ours)
            finding = Finding(MEASURED if runs else NOT_RUN, min(cell.n for cell in ours))
        controls = tuple(read_cell(results, label, ours[0].iteration) for label in claim.get("controls", []))
        out.append(Verdict(claim, ours, finding, controls, **measured))
    return out


def _at_cycle_ends(
    paper: Paper, results: Results, claim: Mapping[str, Any], cells: tuple[Cell, ...]
) -> tuple[tuple[tuple[Cell, ...], Finding], ...]:
    """What the rule alone, uncorrected, says where cycles end before and after, of a claim read in mid-cycle.

    Not of one that sets a run in mid-cycle against itself where a cycle ends.
    """
    around = [ends_around(results, cell.label, cell.iteration) for cell in cells]
    if not any(around) or (len({cell.label for cell in cells}) < len(cells) and not all(around)):
        return ()
    out = []
    for side in range(2):
        moved = tuple(
            read_cell(results, cell.label, ends[side]) if side < len(ends) else cell
            for cell, ends in zip(cells, around, strict=True)
        )
        if moved == cells or min(cell.n for cell in moved) < paper.verdicts["seeds"]["none_below"]:
            continue
        out.append((moved, _alone(paper, claim, moved)))
    return tuple(out)


def _alone(paper: Paper, claim: Mapping[str, Any], cells: tuple[Cell, ...]) -> Finding:
    """What the rule of a claim, `number`, `equal` or `greater`, says of cells without its family's correction."""
    if claim["rule"] == "number":
        row = paper.rows[claim["row"]]
        return number(paper, cells[0], row["accuracy"], row["runs"])
    return (equal if claim["rule"] == "equal" else greater)(paper, cells[0], cells[1])


# The rules ------------------------------------------------------------------------------------------------------------


def number(paper: Paper, cell: Cell, value: float, runs: int) -> Finding:
    """Does the paper's number (percent), of so many runs, fit what this implementation produces?"""
    rule = paper.rule("number")
    if none := _no_verdict(paper, cell):
        return none
    confidence = rule["confidence"]
    prediction = statistics.prediction_interval(cell.values, runs, confidence, rule["floor"])
    if prediction.half_width > rule["inconclusive"] + statistics.ROUNDING:
        verdict = INCONCLUSIVE
    else:
        verdict = REPRODUCED if prediction.holds(value) else NOT_REPRODUCED
    return _finding(
        paper,
        verdict,
        (cell,),
        difference=statistics.mean(cell.values) - value,
        interval=Interval(prediction.low - value, prediction.high - value),
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


def share(paper: Paper, a: Cell, b: Cell) -> tuple[Finding, tuple[Ratio, ...]]:
    """Has A most of what B has learnt? Seed by seed, A's rise above chance over B's."""
    rule = paper.rule("share")
    if none := _no_verdict(paper, a, b):
        return none, ()
    later = dict(zip(b.seeds, b.values, strict=True))
    pairs = [(value, later[seed]) for seed, value in zip(a.seeds, a.values, strict=True) if seed in later]
    shares = [(early - rule["chance"]) / (late - rule["chance"]) for early, late in pairs if late > rule["chance"]]
    if len(shares) < paper.verdicts["seeds"]["none_below"]:
        return _too_few(len(shares)), ()
    interval = statistics.mean_interval(shares, rule["interval"])
    verdict = _within(interval, rule["least"], math.inf)
    if len(shares) < len(pairs) and verdict == REPRODUCED:  # a seed that has learnt nothing has no share
        verdict = INCONCLUSIVE
    ratio = Ratio("share of the rise", statistics.mean(shares), interval, verdict)
    return _finding(paper, verdict, (a, b), len(shares)), (ratio,)


def range_tests(results: Results, label: str) -> list[range_test.Curve]:
    """The curves of a label's range tests; one that diverged is a curve too, with its end, if it got past its start."""
    runs = [(record, results.curves[record.run_id]) for record in results.by_label.get(label, [])]
    return [range_test.curve_of(record, rows) for record, rows in runs if record.status != "failed" and len(rows) > 1]


def bounds(
    paper: Paper, curves: Sequence[range_test.Curve], row: Mapping[str, Any]
) -> tuple[Finding, dict[str, range_test.Bounds], tuple[Interval, ...]]:
    """Do our range tests show the base_lr and the max_lr that the paper read off its own?"""
    rule, n = paper.rule("bounds"), len(curves)
    if not n:
        return Finding(NOT_RUN, n), {}, ()
    if n < paper.verdicts["seeds"]["none_below"]:
        return _too_few(n), {}, ()
    found = {name: range_test.find_bounds(curves, rule["base_rule"], name) for name in rule["max_rules"]}
    base = next(iter(found.values())).base
    floors = [reading.lr for reading in base.readings if reading.lr is not None]
    ceilings = [each.max_lr for each in found.values() if each.max_lr is not None]
    slack = max(b - a for curve in curves for a, b in pairwise(curve.lr))
    fitting: tuple[Interval, ...] = ()
    if base.lr is not None and ceilings:
        fitting = tuple(Interval(max(0.0, min(each) - slack), max(each) + slack) for each in (floors, ceilings))
    fits = bool(fitting) and fitting[0].holds(row["base_lr"]) and fitting[1].holds(row["max_lr"])
    preliminary = n < paper.verdicts["seeds"]["preliminary_below"]
    return Finding(REPRODUCED if fits else NOT_REPRODUCED, n, preliminary), found, fitting


def cost(paper: Paper, benchmarks: Sequence[Mapping[str, Any]], ratio: str) -> tuple[Finding, tuple[Ratio, ...]]:
    """Are the times of an iteration, round by round, in the ratio that is claimed, for every method and machine?"""
    rule = paper.rule("cost")
    ratios, rounds = [], []
    for benchmark in benchmarks:
        for method, times in benchmark["milliseconds"].items():
            if ratio == "clr_over_fixed":
                above, below = times["clr"], times["fixed"]
            elif method in rule["adaptive"]:
                above, below = times["fixed"], benchmark["milliseconds"]["sgd"]["clr"]
            else:
                continue
            quotients = [a / b for a, b in zip(above, below, strict=True)]
            interval = statistics.median_interval(quotients, rule["interval"])
            verdict = _within(interval, *rule["limits"][ratio])
            name = f"{method} on {benchmark['device']}"
            ratios.append(Ratio(name, statistics.median(quotients), interval, verdict))
            rounds.append(len(quotients))
    if not ratios:
        return Finding(NOT_RUN, 0), ()
    verdicts = {each.verdict for each in ratios}
    verdict = next(each for each in (NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED) if each in verdicts)
    return Finding(verdict, min(rounds)), tuple(ratios)


def _within(interval: Interval, low: float, high: float) -> str:
    if interval.low >= low and interval.high <= high:
        return REPRODUCED
    return NOT_REPRODUCED if interval.high < low or interval.low > high else INCONCLUSIVE


def _no_verdict(paper: Paper, *cells: Cell) -> Finding | None:
    n = min(cell.n for cell in cells)
    if not all(cell.runs for cell in cells):
        return Finding(NOT_RUN, n)
    if n < paper.verdicts["seeds"]["none_below"]:
        return _too_few(n)
    return None


def _too_few(n: int) -> Finding:
    return Finding(f"no verdict (n = {n})", n)


def _finding(paper: Paper, verdict: str, cells: Sequence[Cell], n: int | None = None, **numbers: Any) -> Finding:
    n = min(cell.n for cell in cells) if n is None else n
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
        alone = [_alone(paper, claim, cells[claim["id"]]) for claim in claims]
        diverged = [any(cell.diverged for cell in cells[name]) for name in ids]
        p = [1.0 if found.p is None or bad else found.p for found, bad in zip(alone, diverged, strict=True)]
        p_opposite = [1.0 if found.p_opposite is None else found.p_opposite for found in alone]
        adjusted |= dict(zip(ids, statistics.holm(p).tolist(), strict=True))
        opposite |= dict(zip(ids, statistics.holm(p_opposite).tolist(), strict=True))
    return adjusted, opposite
