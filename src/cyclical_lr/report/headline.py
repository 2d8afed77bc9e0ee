"""What was found so far, in sentences for the first screen of page and README; its tables are in headline_tables.py.

The paper's headline is that CLR gets in 25,000 iterations to where the fixed policy is after 70,000 (Table 1 rows 1 and
2). The sentences are about what bears on it: Caffe itself, other LRs and policies in CLR's budget, the LR drops.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cyclical_lr.report import arms, markup, statistics, verdicts, wording
from cyclical_lr.report.collect import Cell, Results, last_iteration, read_cell
from cyclical_lr.report.cycles import mid_cycle
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.report import Report
from cyclical_lr.report.times import TimeToTarget
from cyclical_lr.report.verdicts import NOT_RUN, Verdict

EQUAL, TIMES = "table1_tri2_equals_fixed", "table1_tri2_time_to_target"
EXP_RANGE, EXP_RANGE_ABOVE_FIXED = "table1_exp_range", "table1_exp_range_beats_fixed"
AT_CLRS_BUDGET = ("cifar10_fixed_25k", "cifar10_fixed_25k_matched")
"""What CLR is compared with at its own budget: claims `control_tri2_equals_...` and `control_tri2_beats_...`."""
DROPS = {
    "CLR": "control_tri2_needs_drops",
    "`decay`": "control_decay_needs_drops",
    "`exp`": "control_exp_needs_drops",
}
"""Claims whose operands are a policy with the drops at 16,000 and 22,000 and without."""
RANGE_TESTS = {
    "figure3_bounds": "**The LR range test**",
    "control_range_test_half_length": "**The same in half the iterations**, a control",
}
"""Claims with rule `bounds` on CIFAR-10."""
PRECISION = ("precision_tri2", "precision_fixed_25k")
"""Claims whose operands are an experiment in bfloat16 and in float32."""
POLICIES = (
    "LR against iteration (drawn: [schedules](paper_figures/schedules.png)): CLR is triangular2, 0.001 to 0.005 and "
    "back in 4,000 iterations, the amplitude halved with each cycle; both bounds are a tenth from 16,000 on and a "
    "hundredth from 22,000 on (the drops), in cycles of 2,000 and 1,000 (Table 2). fixed: 0.001, with drops at 60,000 "
    "and 65,000. CLR's mean LR: 0.00194, that of its first 16,000. decay: 0.007 to 0.001 in 4,000, then constant. "
    "exp: 0.001, times 0.99994 per iteration. exp_range: 0.001 to 0.006 and back in 4,000, both bounds times 0.99994 "
    "per iteration."
)
"""What the policies of the first table are, as their lab cards have them."""


def lead(report: Report) -> str:
    """How far the study is, in one sentence of Markdown."""
    runs, counts = len(report.results.records), markup.claims_by_verdict(report.verdicts)
    return (
        f"{runs:,} run{'s' * (runs != 1)} so far. Of the paper's {claims(report)}: {markup.tally(counts)}."
        f"{moved(report)}"
    )


def claims(report: Report) -> str:
    """How many claims of the paper's there are."""
    again = {row["staged"] for rows in report.paper.tables.values() for row in rows if "staged" in row}
    readings = sum(
        any(operand["experiment"] in again for operand in claim["operands"])
        for claim in report.paper.claims
        if claim["source"] == "paper"
    )
    count = sum(markup.claims_by_verdict(report.verdicts).values())
    return f"{count} claims ({readings} restate Table 3's for staged schedules, which the paper leaves open)"


def machines(report: Report) -> str:
    """What the runs were made on, in one sentence of Markdown; empty without a run."""
    counts = Counter(record.device.partition(" (")[0] for record in report.results.records.values())
    listed = ", ".join(f"{device} {count:,}" for device, count in counts.most_common())
    each = "each one's device, threads and commit are in `results/runs.csv`"
    return f"Runs by device: {listed}; {each}." if counts else ""


def moved(report: Report) -> str:
    """How the tally would change if claims that are read in mid-cycle were read where cycles end."""
    counts: Counter[str] = Counter()
    for verdict in report.verdicts:
        there = {finding.verdict for _, finding in verdict.at_ends}
        if verdict.claim["source"] == "paper" and len(there) == 1 and there != {verdict.finding.verdict}:
            counts[f"{verdict.finding.text} would be {there.pop()}"] += 1
    changes = ", ".join(f"{count} {change}" for change, count in sorted(counts.items()))
    return f" Of those read in mid-cycle, at a stepsize chosen here, {changes} where cycles end." if changes else ""


def rules(report: Report) -> str:
    """What intervals and verdicts mean, in Markdown, by the numbers of the rules."""
    paper = report.paper
    number, equal, seeds = paper.rule("number"), paper.rule("equal"), paper.verdicts["seeds"]
    level, alpha = f"{100 * number['confidence']:g} %", f"{equal['alpha']:g}"
    return (
        "n counts seeds. A seed draws the initial weights; the order of the images (unless shuffled) and the test set "
        "are fixed, so that intervals cover initialisation and rounding alone. The rules are in "
        "`conf/paper/verdicts.yaml`, whose header names later changes. A number of the paper is reproduced if it lies "
        f"within the {level} prediction interval for a new run of ours, or for the mean of as many as it stands for "
        f"(at least ±{number['floor']:g} points; inconclusive if wider than ±{number['inconclusive']:g}). That widens "
        "with our seeds' spread and with fewer seeds: reproduced says that the number is not refuted, not that it is "
        f"near. Equal means to within ±{equal['margin']:g} points by two one-sided tests, better is one such test, "
        f"both at p ≤ {alpha} after Holm's correction over the claim's family, including claims not run, each "
        "direction by itself; seeds are not paired. Contradicted (or worse): the opposite passes that test. "
        "Not reproduced (or not equal) rests on the interval alone, uncorrected. Measured: numbers without a verdict. "
        f"Fewer than {seeds['none_below']} seeds give no verdict, fewer than {seeds['preliminary_below']} a "
        "preliminary one."
    )


def short(report: Report) -> str:
    """The answer in one sentence: CLR beside the fixed policy in its budget, at its mean LR, and in the long run."""
    claims = [f"control_tri2_equals_{control.removeprefix('cifar10_')}" for control in AT_CLRS_BUDGET] + [EQUAL]
    by_id = {verdict.id: verdict for verdict in report.verdicts}
    if not all(_all_run(by_id[claim]) for claim in claims):
        return ""
    leads = []
    for claim in claims:
        clr, fixed = (statistics.mean(cell.values) for cell in by_id[claim].cells)
        n = min(cell.n for cell in by_id[claim].cells)
        few = f" (n = {n} there)" if n < report.paper.verdicts["seeds"]["preliminary_below"] else ""
        leads.append((f"{wording.number(abs(clr - fixed))} points {'above' if clr >= fixed else 'below'}", few))
    (budget, few), (matched, few_matched), (whole, few_whole) = leads
    end, theirs = statistics.mean(by_id[EQUAL].cells[0].values), report.paper.rows["table1_cifar10_triangular2"]
    same = by_id[claims[1]].finding.verdict == verdicts.REPRODUCED
    equal = f" (equal to within ±{report.paper.rule('equal')['margin']:g})" if same else ""
    return (
        f"In short: on CIFAR-10 with Caffe's cifar10_full, CLR ends after 25,000 iterations at {wording.number(end)} % "
        f"test accuracy (the paper: {theirs['accuracy']:g}), "
        f"{budget} the fixed policy with the same budget and drops{few}, {matched} that policy at CLR's mean "
        f"LR{equal}{few_matched}, and {whole} the fixed policy after its 70,000 iterations{few_whole}."
    )


def found(report: Report) -> list[str]:
    """What was found, in Markdown: a sentence or two each, which begin with their topic."""
    paper, results = report.paper, report.results
    by_id = {verdict.id: verdict for verdict in report.verdicts}
    sentences = [_caffe(paper, results), _constant(paper, results), _later(results), _drops(paper, results, by_id)]
    sentences += [_exp_range(report, by_id), _times(by_id[TIMES].times)]
    sentences += [_bounds(paper, by_id[name], what) for name, what in RANGE_TESTS.items() if by_id[name].ceilings]
    sentences += [_precision(paper, by_id[name]) for name in PRECISION if _all_run(by_id[name])]
    sentences.append(_mistakes(results))
    sentences += [_cost(paper, verdict) for verdict in report.verdicts if verdict.claim["rule"] == "cost"]
    return [sentence for sentence in sentences if sentence]


def _caffe(paper: Paper, results: Results) -> str:
    """Where runs of Caffe itself end, and where a new run of the port is expected to; CLR's first."""
    ends = []
    for label in sorted(results.caffe, key=lambda label: label != arms.FAITHFUL):
        end = last_iteration(results, label)
        if end is None or not (accuracies := [run[end] for run in results.caffe[label] if end in run]):
            continue
        text = f"at {' and '.join(map(wording.number, accuracies))} % under the LRs of `{label}`"
        expected = verdicts.number(paper, read_cell(results, label, end), accuracies[0], runs=1).prediction
        if expected is not None:
            text += f" (a new run of the port is expected within {wording.interval(expected)})"
        ends.append(text)
    return f"**Caffe itself** ends {', '.join(ends)}." if ends else ""


def difference(paper: Paper, verdict: Verdict) -> str:
    """The first cell's mean less the second's, in points, with the interval at which equality is decided."""
    a, b = verdict.cells
    ends = statistics.difference_interval(a.values, b.values, paper.rule("equal")["interval"])
    return wording.difference(statistics.mean(a.values) - statistics.mean(b.values), ends)


def _lead(paper: Paper, verdict: Verdict) -> str:
    """The difference with its n."""
    n = min(cell.n for cell in verdict.cells)
    interval = f"{100 * paper.rule('equal')['interval']:g} % interval" if n > 1 else "no interval"
    return f"{difference(paper, verdict)} points (n = {n}, {interval})"


def _constant(paper: Paper, results: Results) -> str:
    """Where the fixed policy ends in CLR's budget at each other LR that was run."""
    labels = sorted(arms.constant_lrs(results.by_label).items())
    cells = {f"at {lr:g}": read_cell(results, label, arms.END) for lr, label in labels}
    said = _ends(results, "**Other constant LRs** with CLR's budget and drops (`+study=constant_lr`, in %)", cells)
    clr = read_cell(results, arms.FAITHFUL, arms.END)
    if not (clr.n and said):
        return said
    margin = paper.rule("equal")["margin"]
    every = [*cells.values(), *(read_cell(results, label, arms.END) for label in AT_CLRS_BUDGET)]
    means = [statistics.mean(cell.values) for cell in every if cell.n]
    near = sum(abs(mean - statistics.mean(clr.values)) <= margin for mean in means)
    return (
        f"{said} That CLR spares the search for an LR, the paper's promise, is judged by no rule: of these and those "
        f"of the controls in the first table, {near} of {len(means)} LRs come within {margin:g} points of it."
    )


def _later(results: Results) -> str:
    """Where later policies end in CLR's budget."""
    cells = {f"by {name}": read_cell(results, label, end) for label, end, name in arms.LATER_POLICIES["Later"]}
    return _ends(results, "**Later policies** in CLR's budget (`+study=modern`, in %)", cells)


def _ends(results: Results, what: str, cells: Mapping[str, Cell]) -> str:
    """The means of those that have a run, beside CLR's; empty where none has."""
    run = {name: cell for name, cell in cells.items() if cell.n}
    if not run:
        return ""
    clr = read_cell(results, arms.FAITHFUL, arms.END)
    beside = f"; CLR {wording.number(statistics.mean(clr.values))}" if clr.n else ""
    alike = len({cell.n for cell in run.values()}) == 1
    ends = []
    for name, cell in run.items():
        remarks = cell.remarks if alike else [f"n = {cell.n}", *cell.remarks]
        ends.append(f"{wording.number(statistics.mean(cell.values))} {name}{_brackets(remarks)}")
    more = "" if alike else "; why n differs: [DEVIATIONS.md](DEVIATIONS.md#what-took-more-than-one-try)"
    return f"{what}: {', '.join(ends)}{f' ({_seeds(list(run.values()))}{beside})' if alike else beside}{more}."


def _mistakes(results: Results) -> str:
    """What CLR loses where one of Caffe's details is missed, from the mean of the faithful port.

    Seeds are not paired: rounding alone parts two runs of one seed more than half as far as two seeds (DEVIATIONS.md).
    """
    (faithful, end, _), *others = [row for rows in arms.MISTAKES.values() for row in rows]
    port = read_cell(results, faithful, end)
    cells = [(read_cell(results, label, end), name) for label, _, name in others]
    changes, shown = [], []
    for cell, name in cells:
        if cell.n and port.n:
            change = statistics.mean(cell.values) - statistics.mean(port.values)
            changes.append(f"{name} {change:+.2f}{_brackets(cell.remarks)}")
            shown.append(cell)
        elif cell.diverged:
            changes.append(f"{name} diverges")
    if not changes:
        return ""
    seeds = f" ({_seeds(shown)}, from the mean of the port's {port.n})" if shown else ""
    spread = max(port.values, default=0.0) - min(port.values, default=0.0)
    chance = f" The port's own seeds span {wording.number(spread)} points." if port.n > 1 else ""
    return f"**Caffe's details** got wrong, one or several at a time, in points: {', '.join(changes)}{seeds}.{chance}"


def _brackets(remarks: Sequence[str]) -> str:
    return f" ({', '.join(remarks)})" if remarks else ""


def _seeds(cells: Sequence[Cell]) -> str:
    """How many there are of each."""
    fewest, most = min((cell.n for cell in cells), default=0), max((cell.n for cell in cells), default=0)
    return f"n = {most}{' each' * (len(cells) > 1)}" if fewest == most else f"n = {fewest} to {most}"


def _drops(paper: Paper, results: Results, by_id: Mapping[str, Verdict]) -> str:
    """What each policy gains from the drops, with the claim's verdict; CLR and its controls before the first."""
    gains = []
    for policy, claim in DROPS.items():
        verdict = by_id[claim]
        gain = f"{_lead(paper, verdict)}: {verdict.finding.text}" if _all_run(verdict) else NOT_RUN
        gains.append(f"to {policy} {gain}")
    text = f"**LR drops** add at 25,000 (claims of this study's own): {'; '.join(gains)}."
    drop = paper.tables["table2"][0]["max_iter"]
    before = [read_cell(results, label, drop) for label in (arms.FAITHFUL, *AT_CLRS_BUDGET)]
    shown = [f"{wording.number(statistics.mean(cell.values))} (`{cell.label}`)" for cell in before if cell.n]
    return f"{text} Before the first, at {drop:,}: {', '.join(shown)} %." if shown else text


def _exp_range(report: Report, by_id: Mapping[str, Verdict]) -> str:
    """Where in a cycle the paper's best row is read, and how it stands to the fixed policy."""
    (cell,), above = by_id[EXP_RANGE].cells, by_id[EXP_RANGE_ABOVE_FIXED]
    said = []
    if where := mid_cycle(report.results, cell.label, cell.iteration):
        said.append(f"at the stepsize chosen here {cell.iteration:,}, where the paper reads it, is {where}")
    if _all_run(above):
        said.append(
            "that it is above the fixed policy at 70,000, as the order of the paper's rows has it: "
            f"{above.finding.text}{markup.at_cycle_ends(above)}"
        )
    return f"**exp_range**: {'; '.join(said)}." if said else ""


def _bounds(paper: Paper, verdict: Verdict, what: str) -> str:
    """What the rules read off a range test, from the lowest max_lr to the highest, beside the paper's bounds."""
    found, said = verdict.ceilings.values(), paper.bounds[verdict.claim["row"]]
    ceilings = sorted(bounds.max_lr for bounds in found if bounds.max_lr is not None)
    base_lr = next(iter(found)).base_lr
    span = " to ".join(dict.fromkeys(f"{lr:.6g}" for lr in ceilings[:1] + ceilings[-1:])) or "none"
    silent = [name for name, bounds in verdict.ceilings.items() if bounds.max_lr is None]
    none = f"none by {' and '.join(silent)}; " if silent and ceilings else ""
    fitting = "".join(f"; a max_lr of {each.low:.6g} to {each.high:.6g} would fit" for each in verdict.fitting[1:])
    return (
        f"{what} (`{verdict.cells[0].label}`, n = {verdict.finding.n}) points to a base_lr of "
        f"{'none' if base_lr is None else f'{base_lr:.6g}'} and a max_lr of {span} by rule "
        f"({none}the paper: {said['base_lr']:g} and {said['max_lr']:g}): {verdict.finding.text}{fitting}."
    )


def _precision(paper: Paper, verdict: Verdict) -> str:
    """What a run in bfloat16 ends at, beside float32."""
    low, high = verdict.cells
    mean = wording.number(statistics.mean(low.values))
    return (
        f"**In bfloat16** `{high.label}` ends at {mean} %, {_lead(paper, verdict)} from float32"
        f"{_brackets([*low.remarks, *(f'in float32 {remark}' for remark in high.remarks)])}. "
        f"That they are equal to within ±{paper.rule('equal')['margin']:g}, a claim of this study's own: "
        f"{verdict.finding.text}."
    )


def _all_run(verdict: Verdict) -> bool:
    """Whether each of a claim's cells has a finished run."""
    return all(cell.n for cell in verdict.cells)


def _cost(paper: Paper, verdict: Verdict) -> str:
    """A claim about the time of an iteration, with its verdict and the ratios over methods and machines."""
    text = f"**Cost**: “{verdict.claim['text'].strip().rstrip('.')}”: {verdict.finding.text}."
    if not verdict.ratios:
        return text
    measured, each = [ratio.value for ratio in verdict.ratios], Counter(ratio.verdict for ratio in verdict.ratios)
    tally = ", ".join(f"{count} {name}" for name, count in sorted(each.items()))
    ratios = f"Ratios of CPU time {min(measured):.3f} to {max(measured):.3f} on cifar10_full"
    none = paper.rule("cost")["limits"]["clr_over_fixed"]
    if verdict.claim["ratio"] != "clr_over_fixed" and all(none[0] <= each <= none[1] for each in measured):
        ratios += f", within the {none[0]:g} to {none[1]:g} that the claim on CLR's cost takes for none"
    return f"{text} {ratios}; by method and machine: {tally}."


def _times(times: Sequence[TimeToTarget]) -> str:
    """The times to the highest target that CLR's median reaches, and to the next one where it is reached by others."""
    shown = [time for time in times if time.unit == "iterations" and time.times]
    reached = [time.target for time in shown if time.role == "A" and math.isfinite(time.median)]
    if not reached:
        return ""
    text = f"**Iterations** to {max(reached):g} %, the highest target that most CLR runs reach (medians): "
    text += f"{_medians(shown, max(reached))}."
    above = [time.target for time in shown if time.target > max(reached) and math.isfinite(time.median)]
    return f"{text} To {min(above):g} %: {_medians(shown, min(above))}." if above else text


def _medians(times: Sequence[TimeToTarget], target: float) -> str:
    said = []
    for time in (time for time in times if time.target == target):
        reached = f"{time.reached} of {len(time.times)} runs"
        if time.role == "B" and time.speed_up > 0:  # nan and 0 say what the medians say
            reached += f"; CLR's speed-up {wording.speed_up(time.speed_up, time.interval)}"
            if time.interval.low == 0:
                reached += ", whose lower end 0 means that CLR's median may never get there"
        said.append(f"`{time.label}` {wording.time(time.median, time.reached)} ({reached})")
    return ", ".join(said)
