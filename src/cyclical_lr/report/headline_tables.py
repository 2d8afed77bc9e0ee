"""The tables of the first screen of page and README: CLR beside other policies, what has a run, Figure 1's points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cyclical_lr.report import markup, statistics, tables, wording
from cyclical_lr.report.collect import Results, read_cell
from cyclical_lr.report.cycles import ends_around
from cyclical_lr.report.headline import AT_CLRS_BUDGET, EQUAL, EXP_RANGE, difference
from cyclical_lr.report.paper import Paper, experiments_of
from cyclical_lr.report.report import Report
from cyclical_lr.report.verdicts import CONTRADICTED, NOT_REPRODUCED, NOT_RUN, REPRODUCED, Verdict

# CLR beside other policies --------------------------------------------------------------------------------------------

COMPARED = {
    "CLR": ["table1_tri2"],
    "fixed": ["table1_fixed", EQUAL],
    "fixed with CLR's drops": ["control_tri2_beats_fixed_25k", "control_tri2_equals_fixed_25k"],
    "the same at CLR's mean LR": ["control_tri2_beats_fixed_25k_matched", "control_tri2_equals_fixed_25k_matched"],
    "decay": ["table1_decay", "table1_tri2_beats_decay"],
    "decay with CLR's drops": ["control_tri2_beats_decay_drops", "control_tri2_equals_decay_drops"],
    "exp": ["table1_exp", "table1_tri2_beats_exp"],
    "exp with CLR's drops": ["control_tri2_beats_exp_drops"],
    "exp_range": [EXP_RANGE],
}
"""Policies of Table 1 on CIFAR-10 and their controls, each with claims: on its number, that CLR is better or equal."""


def beside_clr(report: Report) -> pd.DataFrame:
    """Where each policy ends, what the paper says, and CLR's lead over it; a row each, as strings."""
    paper, by_id = report.paper, {verdict.id: verdict for verdict in report.verdicts}
    confidence, equal = paper.rule("number")["confidence"], paper.rule("equal")
    rows = []
    for policy, claims in COMPARED.items():
        said = [by_id[claim] for claim in claims]
        number = next((verdict for verdict in said if verdict.claim["rule"] == "number"), None)
        compared = [verdict for verdict in said if verdict is not number]
        cell = said[0].cells[-1]
        mean, ends = statistics.mean(cell.values), statistics.mean_interval(cell.values, confidence)
        lead, shown = "", ""
        middle = " (mid-cycle)" if ends_around(report.results, cell.label, cell.iteration) else ""
        if compared and all(each.n for each in compared[0].cells):
            lead = difference(paper, compared[0])
            shown = _in_words(compared, equal["margin"])
        rows.append(
            {
                "policy": policy,
                "card": cell.label,
                "iterations": f"{cell.iteration:,}{middle}",
                f"ours [{100 * confidence:g} %], %": wording.mean(mean, ends, cell.n) or NOT_RUN,
                "n": ", ".join([str(cell.n), *cell.remarks]),
                "the paper, % (what would fit)": _paper_number(paper, number) if number else "",
                "verdict": number.finding.text if number else "",
                f"CLR's lead [{100 * equal['interval']:g} %], points": lead,
                "CLR is": shown,
            }
        )
    return pd.DataFrame(rows)


def _paper_number(paper: Paper, verdict: Verdict) -> str:
    """The paper's number, and between what it had to lie to be reproduced: the verdict hangs on that, and that on n."""
    quoted, fitting = wording.quoted(paper.rows[verdict.claim["row"]]["accuracy"]), verdict.finding.prediction
    return quoted if fitting is None else f"{quoted} ({fitting.low:.2f} to {fitting.high:.2f})"


def _in_words(compared: Sequence[Verdict], margin: float) -> str:
    """What the first of these claims that shows anything shows."""
    words = {
        ("greater", REPRODUCED): "better",
        ("greater", CONTRADICTED): "worse",
        ("equal", REPRODUCED): f"equal to within ±{margin:g}",
        ("equal", NOT_REPRODUCED): "not equal",
    }
    for verdict in compared:
        if said := words.get((verdict.claim["rule"], verdict.finding.verdict)):
            if said == "not equal":
                said += ", CLR lower" if verdict.finding.difference < 0 else ", CLR higher"
            return f"{said} (preliminary)" if verdict.finding.preliminary else said
    return compared[0].finding.text


# What has a run -------------------------------------------------------------------------------------------------------


def measured_rows(report: Report) -> pd.DataFrame:
    """The rows of all tables that have a run, as strings: run, ours, n, paper, verdict, where, iterations, remarks."""
    rows: list[dict[str, Any]] = []
    for name in tables.DESCRIBED_BY:
        shown = markup.presented(report.paper, name, report.tables[name])
        ours = next((column for column in shown.columns if column.startswith("ours")), "ours")
        for row in shown.to_dict("records"):
            if row["section"] == "other runs" or row["verdict"] == NOT_RUN:
                continue
            section = {"paper": "", "controls": "control"}.get(row["section"], row["section"])
            place = section if section == "control" else ", ".join(filter(None, [_place(name), section]))
            rows.append({"run": row["run"], **{column: row[column] for column in (ours, "n", "paper", "verdict")}})
            rows[-1] |= {"where": place, "iterations": row["iterations"], "remarks": row["remarks"]}
    return pd.DataFrame(rows)


def coverage(report: Report) -> list[str]:
    """How many of the paper's rows have a run, by table."""
    out = []
    for name in tables.DESCRIBED_BY:
        rows = report.tables[name][report.tables[name]["section"] == "paper"]
        run = set(rows["label"][rows["verdict"] != NOT_RUN])
        readings = list(filter(None, map(experiments_of, report.paper.tables[name])))
        out.append(f"{_place(name)}: {sum(not run.isdisjoint(labels) for labels in readings)} of {len(readings)}")
    return out


def _place(table: str) -> str:
    return table.replace("table", "Table ")


# Figure 1 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlongTheWay:
    """A digitised curve of Figure 1 and ours at the first evaluation at or after each of its points.

    Attributes:
        points: iteration and accuracy (%) as the paper has them.
        at: our iteration for each point.
        ours: by what is compared ("label (n = k)"), an accuracy (%) per point; nan where there is none.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    at: tuple[int, ...]
    ours: Mapping[str, tuple[float, ...]]


def along_the_way(results: Results, figure1: Mapping[str, Any]) -> list[AlongTheWay]:
    """The digitised curves of Figure 1 whose experiment has a finished run; CLR's with its controls beside it."""
    out = []
    for curve in figure1["curves"]:
        evaluated = _evaluated(results, curve["experiment"])
        points = [
            (p["iteration"], p["accuracy"]) for p in curve["points"] if p["iteration"] <= max(evaluated, default=-1)
        ]
        if not points:
            continue
        at = [min(t for t in evaluated if t >= iteration) for iteration, _ in points]
        labels = [curve["experiment"], *(AT_CLRS_BUDGET if curve["experiment"] == "cifar10_tri2" else [])]
        ours = dict(_values(results, label, at) for label in labels if _evaluated(results, label))
        for label in labels:
            if runs := results.caffe.get(label):
                means = (statistics.mean([run[t] for run in runs if t in run]) for t in at)
                ours[wording.caffe(label, len(runs))] = tuple(means)
        out.append(AlongTheWay(curve["label"], tuple(points), tuple(at), ours))
    return out


def _values(results: Results, label: str, at: Sequence[int]) -> tuple[str, tuple[float, ...]]:
    cells = [read_cell(results, label, iteration) for iteration in at]
    return f"{label} (n = {max(cell.n for cell in cells)})", tuple(statistics.mean(cell.values) for cell in cells)


def _evaluated(results: Results, label: str) -> set[int]:
    """Iterations at which every finished run of a label was evaluated."""
    curves = [
        {row.iteration for row in results.curves[record.run_id]}
        for record in results.by_label.get(label, [])
        if record.status == "done"
    ]
    return set.intersection(*curves) if curves else set()
