"""What a person reads when a run ends: the result beside the paper's number, and a range test's bounds."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from cyclical_lr import range_test, records
from cyclical_lr.data.cifar_files import SAMPLE
from cyclical_lr.records import Record
from cyclical_lr.report.paper import experiments_of, read_paper


def summary(record: Record, conf: Path, results: Path, fresh: bool = True) -> str:
    """The result beside the paper's number, and where it was written.

    Args:
        record: of the run, which has ended.
        conf: the folder of config files.
        results: the folder that has the record and its curve.
        fresh: whether it ended just now, and not before.
    """
    curve = records.read_curve(records.curve_path(results, record.run_id))
    best = max(curve, key=lambda row: row.test_accuracy, default=None)
    head = f"{record.label} seed {record.seed}: {record.status}"
    if record.status != "done":
        head += f" ({record.message})"
    lines = [head]
    if best is not None:
        top5 = "" if math.isnan(curve[-1].test_accuracy_top5) else f", top-5 {curve[-1].test_accuracy_top5:.2f} %,"
        lines.append(
            f"  ours   {record.test_accuracy:.2f} %{top5} at {curve[-1].iteration:,} iterations "
            f"(best {best.test_accuracy:.2f} % at {best.iteration:,}); "
            f"{record.train_seconds / 60:.1f} min of training, {record.eval_seconds / 60:.1f} of evaluation"
        )
    if record.config.get("data", {}).get("name") == SAMPLE:
        lines.append("  demo   on the sample of 2,000 images: no published number compares")
    if record.label == record.experiment:  # anything else is not the paper's experiment
        at = {row.iteration: row.test_accuracy for row in curve}
        for number in read_paper(conf / "paper").rows.values():
            if record.experiment not in experiments_of(number):
                continue
            iteration = number["iterations"] or record.config["iterations"]  # where it gives none: the run's end
            ours = at.get(iteration)
            beside = "not reached" if ours is None else f"ours there {ours:.2f} %"
            lines.append(f"  paper  {number['accuracy']} % at {iteration:,} ({number['where']}); {beside}")
    lines.append(f"  {'wrote' if fresh else 'in   '}  {records.record_path(results, record.run_id)}")
    lines.append(f"         {records.curve_path(results, record.run_id)}")
    return "\n".join(lines)


def bounds(finished: Sequence[Record], conf: Path, results: Path, runs: Path, given: Sequence[str]) -> str:
    """What a range test says: bounds, overrides and a command to paste, and where the figure is.

    Args:
        finished: its records, one per seed.
        conf: the folder of config files.
        results: the folder that has the records and their curves.
        runs: the folder of the runs' own folders; the figure goes into the first one's.
        given: the arguments of the test's own command, which the one to paste has too, but for its ramp.
    """
    from cyclical_lr.report import figures  # imported here: matplotlib takes a second

    usable = [record for record in finished if record.status != "failed"]
    if not usable:
        return "no curve to read bounds from"
    try:
        rows = [records.read_curve(records.curve_path(results, record.run_id)) for record in usable]
        curves = [range_test.curve_of(record, curve) for record, curve in zip(usable, rows, strict=True)]
    except (ValueError, OSError) as error:
        return f"no curve to read bounds from: {error}"
    test = usable[0]
    whole = test.config["schedule"]["stepsize"]
    found, stepsize = range_test.find_bounds(curves), suggested_stepsize(test.experiment, whole, conf)
    lines = [range_test.report(curves, stepsize)]
    done = test.iterations * test.config.get("compress", 1)
    if test.status == "done" and done < whole:
        lines.append(
            f"  the LR rises for {whole:,} iterations, of which this test has the first {done:,}: compress=N makes a "
            "test shorter, and leaves it whole"
        )
    if found.usable and test.experiment != "custom":  # four cycles, of which Section 3.2 says that they are enough
        ramp = re.compile(r"[+~]*(schedule\b|seed=|iterations=|eval_every=|compress=)")
        kept = shlex.join(argument for argument in given if not ramp.match(argument))
        between = f"{range_test.overrides(found, stepsize)} iterations={8 * stepsize}"
        lines.append(f"  a run between them: python scripts/run.py {kept} {between}")
    try:
        written = figures.save(figures.range_test(curves, found, test.label), runs / test.run_id, "range_test")
    except OSError as error:
        return "\n".join([*lines, f"  no figure: cannot write to {error.filename or runs} ({error.strerror})"])
    return "\n".join([*lines, *(f"  wrote  {path}" for path in written)])


def suggested_stepsize(experiment: str, ramp: int, conf: Path) -> int:
    """Half a cycle for training after a range test: the paper's for its network, or else half of the test's ramp.

    Figure 1 uses half of Figure 3's ramp, four epochs. Both are in iterations.
    """
    stated = {row["experiment"]: row for row in read_paper(conf / "paper").bounds.values()}
    return int(stated.get(experiment, {}).get("stepsize", max(1, ramp // 2)))
