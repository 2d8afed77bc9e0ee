"""Tables and claims as text: CSV for machines, Markdown for GitHub, LaTeX for a paper. The same bytes every time."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cyclical_lr.records import write_atomic
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell
from cyclical_lr.report.statistics import Interval
from cyclical_lr.report.tables import NUMBERS, PHASE
from cyclical_lr.report.verdicts import NOT_RUN, Paper, Verdict

TITLES = {
    "table1": "Table 1: accuracy at the end of training (%)",
    "table2": "Table 2: phases of the CLR run in Figure 1",
    "table3": "Table 3: adaptive methods on CIFAR-10, test accuracy (%)",
    "table4": "Table 4: ResNet, Stochastic Depth and DenseNet, test accuracy (%)",
    "text": "Numbers that the paper gives in its text alone, test accuracy (%)",
    "time_to_target": "Time to target: median over seeds, reached/runs, and the speed-up of A over the row",
}
UNITS = {"iterations": "iterations", "train_seconds": "seconds of training"}
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    ">": r"\textgreater{}",
}


def write_tables(results_dir: Path, paper: Paper, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write tables/<name>.csv, .md and .tex of each table."""
    written = []
    for name, frame in tables.items():
        shown = presented(paper, name, frame)
        csv = frame.to_csv(index=False, lineterminator="\n", float_format="%.8g")
        for ending, text in (("csv", csv), ("md", markdown(TITLES[name], shown)), ("tex", latex(shown))):
            path = results_dir / "tables" / f"{name}.{ending}"
            write_atomic(path, text.encode())
            written.append(path)
    return written


def write_claims(results_dir: Path, paper: Paper, verdicts: Sequence[Verdict]) -> Path:
    """Write claims.md."""
    path = results_dir / "claims.md"
    write_atomic(path, claims_page(paper, verdicts).encode())
    return path


# Tables ---------------------------------------------------------------------------------------------------------------


def presented(paper: Paper, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A table as strings, with numbers rounded and joined for a reader; the first column is the section."""
    ours = f"ours [{100 * paper.rule('number')['confidence']:g} % interval]"
    if name == "time_to_target":
        return _presented_times(frame)
    rows = []
    for row in frame.to_dict("records"):
        if name == "table2":
            out = {"section": row["section"], "phase": str(row["phase"])}
            out |= {column: f"{row[column]:g}" for column in PHASE}
            out["run"] = row["verdict"]
            out[f"accuracy at max_iter, {ours}"] = _mean(row["mean"], Interval(row["low"], row["high"]), row["n"])
            out["n"] = str(row["n"])
        else:
            described = [column for column in frame.columns if column not in (*NUMBERS, "section")]
            out = {"section": row["section"]}
            out |= {column: "" if pd.isna(row[column]) else str(row[column]) for column in described}
            out["iterations"] = "end" if pd.isna(row["iterations"]) else f"{row['iterations']:,}"
            out["run"] = row["label"]
            out[ours] = _mean(row["mean"], Interval(row["low"], row["high"]), row["n"])
            out["n"] = str(row["n"])
            out["best so far"] = _number(row["best"])
            out["paper"] = _quoted(row["paper"])
            interval = Interval(row["difference_low"], row["difference_high"])
            out["paper - ours"] = _difference(row["difference"], interval)
            out["verdict"] = row["verdict"]
        out["remarks"] = row["remarks"]
        rows.append(out)
    return pd.DataFrame(rows)


def _presented_times(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    order = ["claim", "label", "role", "unit", "remarks"]
    for keys, group in frame.groupby(order, sort=False):
        claim, label, role, unit, remarks = map(str, keys)
        out = {"section": claim or "other runs", "run": label, "role": role, "unit": UNITS[unit]}
        for row in group.to_dict("records"):
            text = NOT_RUN
            if row["runs"]:
                text = f"{_time(row['median'])} ({row['reached']}/{row['runs']})"
                if role in ("B", "beside"):
                    text += f"; {_speed_up(row['speed_up'], Interval(row['low'], row['high']))}"
            out[f"{row['target']:g} %"] = text
        rows.append({**out, "remarks": remarks})
    return pd.DataFrame(rows)


def markdown(title: str, shown: pd.DataFrame) -> str:
    """A Markdown page: a table per section."""
    parts = [f"# {title}\n"]
    for section, rows in shown.groupby("section", sort=False) if len(shown) else ():
        rows = _without_empty(rows.drop(columns="section"))
        parts.append(f"## {section}\n\n{_pipes(rows.columns, rows.to_numpy().tolist())}")
    return "\n".join(parts)


def _pipes(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(text).replace("|", "\\|") for text in line) + " |\n" for line in lines)


def latex(shown: pd.DataFrame) -> str:
    """A tabular for booktabs, with the sections one below the other."""
    body = _without_empty(shown.drop(columns="section")) if len(shown) else shown
    columns = list(body.columns)
    lines = [f"\\begin{{tabular}}{{{'l' * len(columns)}}}", "\\toprule", _ampersands(columns)]
    for section, rows in shown.groupby("section", sort=False) if len(shown) else ():
        lines += ["\\midrule", f"\\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{_escaped(str(section))}}}}} \\\\"]
        lines += [_ampersands(row) for row in rows[columns].to_numpy().tolist()]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _ampersands(row: Iterable[str]) -> str:
    # An empty group keeps a first cell that begins with a bracket from being read as an option of the line before.
    return "{}" + " & ".join(map(_escaped, row)) + " \\\\"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _without_empty(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[:, [bool((rows[column].fillna("") != "").any()) for column in rows.columns]].fillna("")


# Claims ---------------------------------------------------------------------------------------------------------------


def claims_page(paper: Paper, verdicts: Sequence[Verdict]) -> str:
    """Every claim in one line, by family: the claim, our numbers, the verdict, the controls."""
    seeds = paper.verdicts["seeds"]
    counts = Counter(verdict.finding.text for verdict in verdicts if verdict.claim["source"] == "paper")
    parts = [
        "# Claims\n",
        "Rules: `conf/paper/verdicts.yaml`, fixed before any result. Accuracies are means over seeds, in percent, at "
        f"the iteration that the claim names. Fewer than {seeds['none_below']} seeds give no verdict, fewer than "
        f"{seeds['preliminary_below']} a preliminary one. Intervals are at the confidence at which the rule decides; p "
        "is corrected by Holm within the family.\n",
        "Of the paper's claims: " + ", ".join(f"{count} {text}" for text, count in sorted(counts.items())) + ".\n",
    ]
    by_control = _control_claims(verdicts)
    for family in dict.fromkeys(verdict.claim["family"] for verdict in verdicts):
        rows = [
            [
                f"`{verdict.id}`: {' '.join(verdict.claim['text'].split())} ({verdict.claim['place']})",
                _our_numbers(paper, verdict),
                f"**{verdict.finding.text}**",
                _controls_say(verdict, by_control),
            ]
            for verdict in verdicts
            if verdict.claim["family"] == family
        ]
        parts.append(f"## {family}\n\n{_pipes(['claim', 'ours', 'verdict', 'controls'], rows)}")
    if paper.awaiting_rule:
        rows = [[f"`{each['id']}`: {each['text']} ({each['place']})", "no rule yet"] for each in paper.awaiting_rule]
        parts.append(f"## Without a rule\n\n{_pipes(['claim', 'verdict'], rows)}")
    return "\n".join(parts)


def _our_numbers(paper: Paper, verdict: Verdict) -> str:
    found, rule = verdict.finding, verdict.claim["rule"]
    if found.verdict == NOT_RUN:
        return "; ".join(_cell(cell) for cell in verdict.cells)
    if rule == "number":
        (cell,), value = verdict.cells, paper.rows[verdict.claim["row"]]["accuracy"]
        text = f"{_cell(cell)}; paper {_quoted(value)}"
        if found.prediction is not None:
            text += f", expected within {_interval(found.prediction)}"
            text += f"; paper - ours {_difference(found.difference, found.interval)}"
        return text
    if rule == "time_to_target":
        ratios = [time for time in verdict.times if time.role == "B" and time.unit == "iterations"]
        speed_ups = [f"{time.target:g} % {_speed_up(time.speed_up, time.interval)}" for time in ratios]
        return "; ".join([f"speed-up in iterations: {', '.join(speed_ups)}", *verdict.remarks])
    text = "; ".join(_cell(cell) for cell in verdict.cells)
    if found.p is not None:
        text += f"; difference {_difference(found.difference, found.interval)} ({found.confidence:.0%})"
        text += f"; p {_p(found.p)}, Holm {_p(found.p_adjusted)}"
    if found.p_opposite is not None:
        text += f"; opposite p {_p(found.p_opposite)}, Holm {_p(found.p_opposite_adjusted)}"
    return text


def _control_claims(verdicts: Sequence[Verdict]) -> list[tuple[frozenset[str], Verdict]]:
    return [
        (frozenset(cell.label for cell in verdict.cells), verdict)
        for verdict in verdicts
        if verdict.claim["source"] == "control" and len(verdict.cells) > 1 and not verdict.times
    ]


def _controls_say(verdict: Verdict, by_control: Sequence[tuple[frozenset[str], Verdict]]) -> str:
    """The controls at A's iteration, and the verdicts of control claims that set one of them against a cell of ours."""
    ours, controls = {cell.label for cell in verdict.cells}, {cell.label for cell in verdict.controls}
    parts = [_cell(cell) for cell in verdict.controls]
    for labels, claim in by_control:
        if labels & controls and labels <= ours | controls and labels & ours:
            parts.append(f"`{claim.id}` {claim.finding.text}")
    return "; ".join(parts)


def _cell(cell: Cell) -> str:
    if not cell.runs:
        return f"{cell.label} {NOT_RUN}"
    value = _number(statistics.mean(cell.values)) or "not measured"
    return f"{cell.label} {value} at {cell.iteration:,} ({', '.join([f'n = {cell.n}', *cell.remarks])})"


# Numbers --------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _quoted(value: float) -> str:
    """A number of the paper, with the decimals that it has there."""
    return "" if math.isnan(value) else f"{value:.{1 if round(value, 1) == value else 2}f}"


def _interval(interval: Interval, form: Callable[[float], str] = "{:.2f}".format) -> str:
    return f"[{form(interval.low)}, {form(interval.high)}]"


def _mean(mean: float, interval: Interval, n: int) -> str:
    if n == 0:
        return ""
    return _number(mean) + (f" {_interval(interval)}" if n > 1 else " (no interval)")


def _difference(difference: float, interval: Interval) -> str:
    if math.isnan(difference):
        return ""
    text = f"{difference:+.2f}"
    return f"{text} {_interval(interval, '{:+.2f}'.format)}" if all(map(math.isfinite, interval)) else text


def _speed_up(ratio: float, interval: Interval) -> str:
    if math.isnan(ratio):
        return "undefined"
    if math.isinf(ratio):
        return "infinite"
    return f"x{ratio:.2f}" + ("" if math.isnan(interval.low) else f" {_interval(interval)}")


def _time(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f}"


def _p(value: Any) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"
