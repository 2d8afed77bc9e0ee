"""The block of the README that is generated from results/: what was found, the measured rows, Figure 1."""

import math
from pathlib import Path

import pandas as pd

from cyclical_lr.records import ConfigError, write_atomic
from cyclical_lr.report import headline, headline_tables, wording
from cyclical_lr.report.headline_tables import AlongTheWay
from cyclical_lr.report.report import Report

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def write_readme(readme: Path, block: str) -> Path:
    """Put the block between the markers.

    Raises:
        ConfigError: the file has not one of each marker, in this order.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(
            f"readme: expected a file with {BEGIN} and then {END}, got {readme}; give readme=null for none"
        )
    write_atomic(readme, f"{before}{BEGIN}\n{block}{END}{after}".encode())
    return readme


def block(report: Report) -> str:
    """The Markdown between the markers."""
    figure1 = report.paper.figures[1]
    coverage = f"Rows of the paper that have a run: {', '.join(headline_tables.coverage(report))}."
    parts = [f"**{short}**\n"] if (short := headline.short(report)) else []
    parts += [
        _linked(headline_tables.beside_clr(report)),
        f"{headline.POLICIES}\n",
        "".join(f"- {each}\n" for each in headline.found(report)),
    ]
    parts += [f"{headline.lead(report)} {coverage} {headline.machines(report)}".rstrip() + "\n"]
    parts += [f"{headline.rules(report)}\n"]
    if len(rows := headline_tables.measured_rows(report)):
        parts.append(f"<details>\n<summary>All rows that have a run</summary>\n\n{_rows(rows)}\n</details>\n")
    if along := headline_tables.along_the_way(report.results, figure1):
        parts.append("![Figure 1 redrawn](paper_figures/fig01.png)\n")
        about = (
            "Accuracy (%) along the way, ours at the first evaluation at or after each point of Figure 1 "
            f"(digitised, ±{figure1['uncertainty']:g})"
        )
        points = "\n".join(_points(curve) for curve in along)
        parts.append(f"<details>\n<summary>{about}</summary>\n\n{points}\n</details>\n")
    parts.append(
        "Everything on one page: [`results/report.html`](results/report.html), to be opened in a browser. All tables: "
        "[`results/tables/`](results/tables); every claim with its verdict: [`results/claims.md`](results/claims.md); "
        "all figures: [`paper_figures/`](paper_figures).\n"
    )
    return "\n".join(parts)


def _linked(rows: pd.DataFrame) -> str:
    """A table whose policies link to their lab cards."""
    links = [f"[{row.policy}](conf/experiment/{row.card}.yaml)" for row in rows.itertuples()]
    shown = rows.assign(policy=links).drop(columns="card")
    return wording.pipes(shown.columns, shown.to_numpy().tolist())


def _rows(rows: pd.DataFrame) -> str:
    lines, ours = [], rows.columns[1]
    for row in rows.to_dict("records"):
        experiment = row["run"].partition("[")[0]
        linked = f"[`{row['run']}`](conf/experiment/{experiment}.yaml)"
        table = row["where"].partition(", ")[0]  # or "control"
        said = f"{row['paper']} ({table})" if row["paper"] else "not in the paper"
        verdict = "; ".join(filter(None, [row["verdict"] or table, row["remarks"]]))
        lines.append([linked, row["iterations"], row[ours], row["n"], said, verdict])
    return wording.pipes(["run", "iterations", f"{ours}, %", "n", "the paper, %", "verdict"], lines)


def _points(curve: AlongTheWay) -> str:
    lines = [[f"the paper: {curve.name}", *(f"{accuracy:.1f}" for _, accuracy in curve.points)]]
    lines.append(["ours at", *(f"{iteration:,}" for iteration in curve.at)])
    for name, accuracies in curve.ours.items():
        lines.append([name, *("" if math.isnan(value) else f"{value:.1f}" for value in accuracies)])
    return wording.pipes(["iteration", *(f"{iteration:,}" for iteration, _ in curve.points)], lines)
