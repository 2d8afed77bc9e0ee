"""Tables and claims as text: CSV for machines, Markdown for GitHub. The same bytes every time."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cyclical_lr.range_test import Bounds
from cyclical_lr.records import write_atomic
from cyclical_lr.report import latex, wording
from cyclical_lr.report.collect import Results
from cyclical_lr.report.cycles import mid_cycle
from cyclical_lr.report.paper import FAMILIES, NOT_THE_PAPERS, OWN_FAMILIES, Paper
from cyclical_lr.report.statistics import Interval
from cyclical_lr.report.tables import NUMBERS, PHASE, RATIOS
from cyclical_lr.report.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    MEASURED,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Verdict,
)

TITLES = {
    "table1": "Table 1: accuracy at the end of training (%)",
    "table2": "Table 2: phases of the CLR run in Figure 1",
    "table3": "Table 3: adaptive methods on CIFAR-10, test accuracy (%)",
    "table4": "Table 4: ResNet, Stochastic Depth and DenseNet, test accuracy (%)",
    "text": "Numbers that the paper gives in its text alone, test accuracy (%)",
    "budget": "Under one budget: test accuracy at the end (%), best first, and the difference to the paper's CLR there",
    "cost": "What an iteration of cifar10_full costs, by method (milliseconds of CPU time, medians; ratios: medians of "
    "each round's own)",
    "time_to_target": "Time to target: median over seeds, reached/runs, and the speed-up of A over the row "
    "[nominal 95 % bootstrap interval; an undefined ratio counts as 0 for its lower end, as infinite for its upper]",
}
UNITS = {"iterations": "iterations", "train_seconds": "seconds of training"}


def write_tables(results_dir: Path, paper: Paper, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write tables/<name>.csv, .md and .tex of each table; Table 1's controls have a .tex of their own."""
    texts = {}
    for name, frame in tables.items():
        shown = presented(paper, name, frame)
        texts[f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n", float_format="%.8g")
        texts[f"{name}.md"] = markdown(TITLES[name], shown)
        texts |= latex.files(name, TITLES[name], shown)
    for name, text in texts.items():
        write_atomic(results_dir / "tables" / name, text.encode())
    return [results_dir / "tables" / name for name in texts]


def write_claims(results_dir: Path, paper: Paper, results: Results, verdicts: Sequence[Verdict]) -> Path:
    """Write claims.md."""
    path = results_dir / "claims.md"
    write_atomic(path, claims_page(paper, results, verdicts).encode())
    return path


# Tables ---------------------------------------------------------------------------------------------------------------


def presented(paper: Paper, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A table as strings, with numbers rounded and joined for a reader; the first column is the section."""
    confidence = f"{100 * paper.rule('number')['confidence']:g} %"
    ours = f"ours [{confidence} interval]"
    if name == "time_to_target":
        return _presented_times(frame)
    if name == "budget":
        return _presented_budgets(frame, ours, f"less CLR's [{confidence} interval]")
    if name == "cost":
        return _presented_costs(frame, f"[{100 * paper.rule('cost')['interval']:g} % interval]")
    rows = []
    for row in frame.to_dict("records"):
        if name == "table2":
            out = {"section": row["section"], "phase": str(row["phase"])}
            out |= {column: f"{row[column]:,g}" for column in PHASE}
            out["in our runs"] = row["verdict"]
            ends = Interval(row["low"], row["high"])
            out[f"accuracy at max_iter, {ours}"] = wording.mean(row["mean"], ends, row["n"])
            out["n"] = str(row["n"])
        else:
            described = [column for column in frame.columns if column not in (*NUMBERS, "section")]
            out = {"section": row["section"]}
            out |= {column: "" if pd.isna(row[column]) else str(row[column]) for column in described}
            out["iterations"] = "end" if pd.isna(row["iterations"]) else f"{row['iterations']:,}"
            out["run"] = row["label"]
            out[ours] = wording.mean(row["mean"], Interval(row["low"], row["high"]), row["n"])
            out["n"] = str(row["n"])
            out["paper"] = wording.quoted(row["paper"])
            out["verdict"] = row["verdict"]
            interval = Interval(row["difference_low"], row["difference_high"])
            out[f"ours less the paper's [{confidence} prediction]"] = wording.difference(row["difference"], interval)
            out["best so far"] = wording.number(row["best"])
        out["remarks"] = row["remarks"]
        rows.append(out)
    return pd.DataFrame(rows)


def _presented_budgets(frame: pd.DataFrame, ours: str, lead: str) -> pd.DataFrame:
    rows = []
    for row in frame.to_dict("records"):
        out = {"section": row["section"], "run": row["label"]}
        out[ours] = wording.mean(row["mean"], Interval(row["low"], row["high"]), row["n"])
        out["n"] = str(row["n"])
        out["best so far"] = wording.number(row["best"])
        ends = Interval(row["difference_low"], row["difference_high"])
        is_reference = row["label"] == row["reference"]
        out[lead] = "the reference" if is_reference else wording.difference(row["difference"], ends)
        rows.append({**out, "remarks": row["remarks"]})
    return pd.DataFrame(rows, columns=["section", "run", ours, "n", "best so far", lead, "remarks"])


def _presented_costs(frame: pd.DataFrame, confidence: str) -> pd.DataFrame:
    titles = dict(zip(RATIOS, (f"CLR / constant {confidence}", f"constant / SGD with CLR {confidence}"), strict=True))
    rows = []
    for row in frame.to_dict("records"):
        out = {"section": row["device"], "method": row["method"], "rounds": str(row["rounds"])}
        out |= {"constant LR": wording.number(row["fixed"]), "CLR": wording.number(row["clr"])}
        for name, title in titles.items():
            ends = Interval(row[f"{name}_low"], row[f"{name}_high"])
            known = not math.isnan(row[name])
            out[title] = f"{row[name]:.4f} {wording.interval(ends, '{:.4f}'.format)}" if known else ""
        rows.append(out)
    return pd.DataFrame(rows, columns=["section", "method", "rounds", "constant LR", "CLR", *titles.values()])


def _presented_times(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    order = ["claim", "label", "role", "unit", "remarks"]
    for keys, group in frame.groupby(order, sort=False):
        claim, label, role, unit, remarks = map(str, keys)
        out = {"section": claim or "other runs", "run": label, "role": role, "unit": UNITS[unit]}
        for row in group.to_dict("records"):
            text = NOT_RUN
            if row["runs"]:
                text = f"{wording.time(row['median'], row['reached'])} ({row['reached']}/{row['runs']})"
                if role in ("B", "beside") and not (unit == "train_seconds" and math.isnan(row["speed_up"])):
                    text += f"; {wording.speed_up(row['speed_up'], Interval(row['low'], row['high']))}"
            out[f"{row['target']:g} %"] = text
        rows.append({**out, "remarks": remarks})
    return pd.DataFrame(rows).fillna("")  # networks have targets of their own


def markdown(title: str, shown: pd.DataFrame) -> str:
    """A Markdown page: a table per section."""
    parts = [f"# {title}\n"]
    for section, rows in shown.groupby("section", sort=False) if len(shown) else ():
        rows = _without_empty(rows.drop(columns="section"))
        parts.append(f"## {section}\n\n{wording.pipes(rows.columns, rows.to_numpy().tolist())}")
    return "\n".join(parts)


def _without_empty(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[:, [bool((rows[column].fillna("") != "").any()) for column in rows.columns]].fillna("")


# Claims ---------------------------------------------------------------------------------------------------------------


ORDER = (REPRODUCED, NOT_REPRODUCED, CONTRADICTED, INCONCLUSIVE, "no verdict", MEASURED, NOT_RUN)
"""Of verdicts, where they are counted; a preliminary one follows its own kind."""


def claims_by_verdict(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many of the paper's own claims have each verdict."""

    def place(text: str) -> tuple[int, str]:
        return next(number for number, kind in enumerate(ORDER) if text.startswith(kind)), text

    counts = Counter(verdict.finding.text for verdict in verdicts if verdict.claim["source"] == "paper")
    return {text: counts[text] for text in sorted(counts, key=place)}


def tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {text}" for text, count in counts.items())


def claims_page(paper: Paper, results: Results, verdicts: Sequence[Verdict]) -> str:
    """Every claim in one line, by family: the claim, our numbers, the verdict, the controls."""
    parts = [
        "# Claims\n",
        f"{how_decided(paper, '../')} The last column has runs and claims of this study that bear on the paper's.\n",
        f"Of the paper's claims: {tally(claims_by_verdict(verdicts))}.\n",
    ]
    by_control = control_claims(verdicts)
    for family in dict.fromkeys(verdict.claim["family"] for verdict in verdicts):
        rows = [
            [
                " ".join(f"`{verdict.id}`: {claim['text']} ({claim['place']}) {claim.get('note', '')}".split()),
                our_numbers(paper, results, verdict),
                f"**{verdict.finding.text}**",
                "; ".join(f"`{other}` {said}" if other else said for other, said in controls_say(verdict, by_control)),
            ]
            for verdict, claim in ((verdict, verdict.claim) for verdict in verdicts)
            if claim["family"] == family
        ]
        parts.append(f"## {FAMILIES.get(family, family)}\n")
        if family in OWN_FAMILIES:
            parts.append(f"{NOT_THE_PAPERS}\n")
        parts.append(wording.pipes(["claim", "ours", "verdict", "controls"], rows))
    return "\n".join(parts)


def how_decided(paper: Paper, root: str = "") -> str:
    """What the numbers beside a claim are, and which of them decides it, in Markdown; `root` leads to conf/."""
    seeds, confidence = paper.verdicts["seeds"], paper.rule("time_to_target")["bootstrap"]["confidence"]
    return (
        f"Rules: [conf/paper/verdicts.yaml]({root}conf/paper/verdicts.yaml), fixed before any result that they "
        "decide, with the exceptions that its header names. Accuracies are means over seeds, in percent, at the "
        f"iteration that the claim names. Fewer than {seeds['none_below']} seeds give no verdict, fewer than "
        f"{seeds['preliminary_below']} a preliminary one. The interval of a number is the prediction's and decides "
        "it. Others have the confidence that stands beside them and are not corrected for the family, so one may "
        "exclude 0 although the verdict is “inconclusive”: what is greater or equal is decided by Holm’s p. p is of "
        "the claim, “opposite p” of its reverse, and “Holm” either of them after correction within the family; “not "
        "reproduced” rests on the interval alone. Intervals of speed-ups are bootstrapped over seeds (nominally "
        f"{confidence:.0%}; in simulations 92 to 100 % with five seeds a side, 81 to 97 with three); a "
        "speed-up of A over another run is 0 where A's median never gets there, infinite where the other's never does, "
        "undefined where neither does. A and B are a claim's first and second run."
    )


def our_numbers(paper: Paper, results: Results, verdict: Verdict) -> str:
    """What a verdict rests on; of a cell that is read in mid-cycle, what it has where cycles end."""
    found, rule = verdict.finding, verdict.claim["rule"]
    cells = [wording.cell(cell, mid_cycle(results, cell.label, cell.iteration)) for cell in verdict.cells]
    if found.verdict == NOT_RUN:
        return "; ".join(cells)
    if rule == "number":
        text = f"{cells[0]}; paper {wording.quoted(paper.rows[verdict.claim['row']]['accuracy'])}"
        if found.prediction is not None:
            text += f", expected within {wording.interval(found.prediction)}"
            if found.verdict == INCONCLUSIVE:
                text += f" (wider than ±{paper.rule(rule)['inconclusive']:g}: too wide for a verdict)"
            text += f"; ours less the paper's {wording.difference(found.difference, found.interval)}"
        return text + at_cycle_ends(verdict)
    if rule == "time_to_target":
        ratios = [time for time in verdict.times if time.role == "B" and time.unit == "iterations"]
        speed_ups = [f"{time.target:g} % {wording.speed_up(time.speed_up, time.interval)}" for time in ratios]
        runs = " and ".join(str(cell.n) for cell in verdict.cells)
        return "; ".join([f"speed-up in iterations: {', '.join(speed_ups)} (n = {runs})", *verdict.remarks])
    if rule == "bounds":
        said = [_bounds_found(name, each) for name, each in verdict.ceilings.items()]
        if verdict.fitting:
            base, ceiling = (f"{each.low:.6g} to {each.high:.6g}" for each in verdict.fitting)
            said.append(f"a base_lr of {base} and a max_lr of {ceiling} would fit")
        return "; ".join([*said, *verdict.remarks, f"n = {found.n}"])
    text = "; ".join(cells)
    if verdict.ratios:
        form = ("{:.4f}" if rule == "cost" else "{:.3f}").format
        on: dict[str, list[str]] = defaultdict(list)  # a machine is named once
        for each in verdict.ratios:
            name, _, machine = each.name.partition(" on ")
            on[machine].append(f"{name} {form(each.value)} {wording.interval(each.interval, form)}")
        named = [f"{f'on {machine}: ' * bool(machine)}{', '.join(said)}" for machine, said in on.items()]
        text = "; ".join([*filter(None, [text]), *named]) + f" ({paper.rule(rule)['interval']:.0%})"
    if found.p is not None:
        text += f"; difference {wording.difference(found.difference, found.interval)} ({found.confidence:.0%})"
        text += f"; p {wording.p(found.p)}, Holm {wording.p(found.p_adjusted)}"
    if found.p_opposite is not None:
        text += f"; opposite p {wording.p(found.p_opposite)}, Holm {wording.p(found.p_opposite_adjusted)}"
    return text + at_cycle_ends(verdict)


def at_cycle_ends(verdict: Verdict) -> str:
    """What the rule says of a claim read in mid-cycle where cycles end; empty where it isn't."""
    said = []
    for cells, finding in verdict.at_ends:
        moved = [cell.iteration for cell, before in zip(cells, verdict.cells, strict=True) if cell != before]
        said.append(f"{finding.verdict} at {' and '.join(f'{t:,}' for t in dict.fromkeys(moved))}")
    return f"; where cycles end, uncorrected: {', '.join(said)}" if said else ""


def _bounds_found(rule: str, bounds: Bounds) -> str:
    lrs = ["none" if lr is None else f"{lr:.6g}" for lr in (bounds.base_lr, bounds.max_lr)]
    return f"base_lr {lrs[0]}, max_lr {lrs[1]} by {rule}"


def control_claims(verdicts: Sequence[Verdict]) -> list[tuple[frozenset[str], Verdict]]:
    return [
        (frozenset(cell.label for cell in verdict.cells), verdict)
        for verdict in verdicts
        if verdict.claim["source"] == "control" and len(verdict.cells) > 1 and not verdict.times
    ]


def controls_say(verdict: Verdict, by_control: Sequence[tuple[frozenset[str], Verdict]]) -> list[tuple[str, str]]:
    """The controls at A's iteration, and the verdicts of control claims that set one of them against a cell of ours.

    Returns:
        the claim's id, empty for a control itself, and what is said of it.
    """
    ours, controls = {cell.label for cell in verdict.cells}, {cell.label for cell in verdict.controls}
    parts = [("", wording.cell(cell)) for cell in verdict.controls]
    for labels, claim in by_control:
        if labels & controls and labels <= ours | controls and labels & ours:
            parts.append((claim.id, claim.finding.text))
    return parts
