"""From the files in results/ to runs, curves and cells: the only place where the report reads evidence.

A file that cannot be used is named with its reason and left out, never silently: half-written ones, foreign ones,
records without a curve or at odds with it, and runs that carry the label of a cell but compute something else. What a
run is writing this moment is no problem: it is there the next time.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd

from cyclical_lr import records
from cyclical_lr.records import ConfigError, CurveRow, Record

COLUMNS = (
    *("run_id", "experiment", "label", "seed", "status", "iterations", "test_accuracy", "best_test_accuracy"),
    *("train_seconds", "eval_seconds", "engine", "precision", "device", "threads", "data_sha256", "config_sha256"),
    *("commit", "dirty", "started", "ended", "message", "segments"),
)
"""Columns of runs.csv; a column version.<package> per package follows. `segments` is their number."""
TYPES: dict[str, tuple[type, ...]] = {
    name: get_args(hint) if get_origin(hint) is UnionType else (get_origin(hint) or hint,)
    for name, hint in get_type_hints(Record).items()
}
"""What each field of a record is made of."""
SETTLED = 10.0
"""Seconds after which half a result is what an interrupted run left, and no longer what a run is writing."""


@dataclass(frozen=True)
class Results:
    """What a results folder holds.

    Attributes:
        records: by run id, in the order of `runs`.
        curves: by run id, a row per evaluation.
        problems: a sentence for every file that was left out; empty where all is well.
        benchmarks: what benchmarks/solvers.py measured, in the order of their files' names.
        caffe: by experiment, each run of Caffe itself under its LRs: test accuracy (%) by iteration.
    """

    records: Mapping[str, Record]
    curves: Mapping[str, list[CurveRow]]
    problems: tuple[str, ...]
    benchmarks: tuple[Mapping[str, Any], ...] = ()
    caffe: Mapping[str, Sequence[Mapping[int, float]]] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run, by experiment, label and seed; columns as `COLUMNS`, then versions."""
        versions = sorted({package for record in self.records.values() for package in record.versions})
        rows = [
            {**{name: getattr(record, name) for name in COLUMNS[:-1]}, "segments": len(record.segments)}
            | {f"version.{package}": record.versions.get(package) for package in versions}
            for record in self.records.values()
        ]
        return pd.DataFrame(rows, columns=[*COLUMNS, *(f"version.{package}" for package in versions)])

    @cached_property
    def by_label(self) -> dict[str, list[Record]]:
        """The records of each label, by seed."""
        out: dict[str, list[Record]] = defaultdict(list)
        for record in self.records.values():
            out[record.label].append(record)
        return dict(out)


@dataclass(frozen=True)
class Cell:
    """The seeds of one label, read at one iteration: test accuracies in percent, one per finished run that has one.

    A diverged or failed run gives no value, whatever its curve had before; it is counted.
    """

    label: str
    iteration: int
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    best: tuple[float, ...] = field(default=(), repr=False)  # the best evaluation of each seed up to the iteration
    diverged: int = 0
    failed: int = 0
    unmeasured: tuple[int, ...] = ()  # seeds of finished runs without an evaluation at exactly this iteration

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def runs(self) -> int:
        """All runs, with those that give no value."""
        return self.n + self.diverged + self.failed + len(self.unmeasured)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know beside the numbers; empty where there is nothing."""
        out = [f"{count} {status}" for count, status in ((self.diverged, "diverged"), (self.failed, "failed")) if count]
        if self.unmeasured:
            seeds = ", ".join(map(str, self.unmeasured))
            out.append(f"not evaluated at {self.iteration:,}: seed{'s' * (len(self.unmeasured) > 1)} {seeds}")
        return tuple(out)


def read_cell(results: Results, label: str, iteration: int) -> Cell:
    """The cell of a label at an iteration; empty where the label has no run."""
    runs = results.by_label.get(label, [])
    seeds, values, best, unmeasured = [], [], [], []
    for record in runs:
        if record.status != "done":
            continue
        until = [row for row in results.curves[record.run_id] if row.iteration <= iteration]
        if until and until[-1].iteration == iteration:
            seeds.append(record.seed)
            values.append(until[-1].test_accuracy)
            best.append(max(row.test_accuracy for row in until))
        else:
            unmeasured.append(record.seed)
    return Cell(
        label=label,
        iteration=iteration,
        seeds=tuple(seeds),
        values=tuple(values),
        best=tuple(best),
        diverged=sum(record.status == "diverged" for record in runs),
        failed=sum(record.status == "failed" for record in runs),
        unmeasured=tuple(unmeasured),
    )


def last_iteration(results: Results, label: str) -> int | None:
    """The iteration at which a label's finished runs end; None without one."""
    ends = [record.iterations for record in results.by_label.get(label, []) if record.status == "done"]
    return max(ends, default=None)


# Reading --------------------------------------------------------------------------------------------------------------


def collect(results_dir: Path) -> Results:
    """Read every record and curve of a results folder. A folder that is not there holds nothing."""
    found: dict[str, Record] = {}
    curves: dict[str, list[CurveRow]] = {}
    problems = []
    for path in _files(results_dir / "runs"):
        try:
            if path.suffix != ".json":
                raise ValueError(f"{path} is not a run's record: records are named <run_id>.json")
            record = _checked_record(path)
            curves[record.run_id] = _checked_curve(records.curve_path(results_dir, record.run_id), record)
            found[record.run_id] = record
        except FileNotFoundError as error:
            problems.append(f"{path} has no curve: {error.filename} is missing")
        except (ValueError, OSError) as error:
            problems.append(str(error))
    named = {path.stem for path in _files(results_dir / "runs")}
    for path in _files(results_dir / "curves"):
        if path.suffix != ".csv":
            problems.append(f"{path} is not a run's curve: curves are named <run_id>.csv")
        elif path.stem not in named and not _under_way(path):
            problems.append(f"{path} belongs to no record: {records.record_path(results_dir, path.stem)} is missing")
    for record, reason in list(_strangers(found)):
        problems.append(f"{records.record_path(results_dir, record.run_id)} is left out: {reason}")
        del found[record.run_id], curves[record.run_id]
    ordered = sorted(found.values(), key=lambda record: (record.experiment, record.label, record.seed, record.run_id))
    benchmarks = []
    for path in _files(results_dir / "benchmarks"):
        try:
            benchmarks.append(_checked_benchmark(path))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    caffe: dict[str, list[Mapping[int, float]]] = defaultdict(list)
    for path in _files(results_dir / "caffe"):
        try:
            experiment, _, seed = path.stem.rpartition("-")
            if path.suffix != ".csv" or not experiment or not seed.isdecimal():
                raise ValueError(f"{path} is not a curve of Caffe's: those are named <experiment>-<random_seed>.csv")
            accuracies = {row.iteration: row.test_accuracy for row in _rows(path)}
            caffe[experiment].append(accuracies)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return Results({record.run_id: record for record in ordered}, curves, tuple(problems), tuple(benchmarks), caffe)


def write_runs(results_dir: Path, results: Results) -> Path:
    """Write runs.csv: the same bytes for the same records, floats with all their digits."""
    path = results_dir / "runs.csv"
    records.write_atomic(path, results.runs.to_csv(index=False, lineterminator="\n").encode())
    return path


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in files if path.suffix != ".tmp" or not _under_way(path)]


def _under_way(path: Path) -> bool:
    """Whether half a result may still be a run's that is writing it: its file is new, or gone since it was listed."""
    try:
        return time.time() - path.stat().st_mtime < SETTLED
    except FileNotFoundError:
        return True


def _checked_record(path: Path) -> Record:
    record = records.read_record(path)
    for name, types in TYPES.items():
        value = getattr(record, name)
        # A bool is an int to Python and an int is a float to JSON; neither is meant by the other here.
        fits = type(value) in types or (float in types and type(value) is int)
        if not fits:
            expected = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{path} is not a run's record: {name} is {value!r}, expected {expected}")
    numbered = all(isinstance(part, Mapping) and type(part.get("iteration")) is int for part in record.segments)
    if not numbered or not all(type(version) is str for version in record.versions.values()):
        raise ValueError(f"{path} is not a run's record: a segment lacks its iteration, or a version is no text")
    if not record.run_id == path.stem == record.config_sha256[: len(record.run_id)]:
        raise ValueError(
            f"{path} is not the record that its name says: run_id is {record.run_id!r} and config_sha256 begins with "
            f"{record.config_sha256[:12]!r}"
        )
    _check_config(path, record)
    return record


def _check_config(path: Path, record: Record) -> None:
    """Refuse a config that lacks what the report reads, or that is not what the run's name stands for."""
    config, groups = record.config, ("model", "data", "schedule")
    if not all(isinstance(config.get(group), Mapping) for group in groups) or type(config.get("iterations")) is not int:
        raise ValueError(f"{path} is not a run's record: its config lacks one of {', '.join(groups)}, iterations")
    if "name" not in config["data"] or type(config.get("compress", 1)) is not int:
        raise ValueError(f"{path} is not a run's record: its config lacks data.name, or its compress is no number")
    targets = {group: node.get("_target_", "") for group, node in config.items() if isinstance(node, Mapping)}
    if not targets["model"] or not all(type(target) is str for target in targets.values()):
        raise ValueError(f"{path} is not a run's record: its config lacks model._target_, or one is no name: {targets}")
    if records.is_foreign(config):  # a record may come from anywhere: nothing that it names is imported
        return
    try:
        sha256 = records.config_sha256(config)
    except ConfigError:  # it names a class that is no more
        return
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a run's record: its config is damaged ({error!r})") from error
    if sha256 != record.config_sha256:
        raise ValueError(f"{path} is left out: its config is not the one that it was named for; it has been edited")


def _checked_curve(path: Path, record: Record) -> list[CurveRow]:
    curve = _rows(path)
    if any(before.lr >= after.lr for before, after in pairwise(_ramp(record, curve))):
        raise ValueError(f"{path} is not a range test's curve: its LRs do not rise")
    records.check_curve(path, record, curve)
    return curve


def _rows(path: Path) -> list[CurveRow]:
    curve = records.read_curve(path)
    if any(before.iteration >= after.iteration for before, after in pairwise(curve)):
        raise ValueError(f"{path} is not a run's curve: its iterations do not rise")
    measured = [row.test_accuracy_top5 for row in curve if not math.isnan(row.test_accuracy_top5)]
    if not all(0 <= accuracy <= 100 for accuracy in [row.test_accuracy for row in curve] + measured):
        raise ValueError(f"{path} is not a run's curve: it has an accuracy outside 0 to 100 %")
    return curve


def _ramp(record: Record, curve: list[CurveRow]) -> list[CurveRow]:
    """The evaluations of a range test at which its LR still rises; none of other runs."""
    schedule = record.config["schedule"]
    end = schedule.get("stepsize")
    if not records.is_range_test(schedule) or type(end) is not int:
        return []
    return [row for row in curve if row.iteration * record.config.get("compress", 1) <= end]


def _checked_benchmark(path: Path) -> Mapping[str, Any]:
    """Device and, per method and LR policy (fixed, clr), milliseconds of an iteration in each round."""
    try:
        benchmark = json.loads(path.read_text(encoding="utf-8"))
        times = benchmark["milliseconds"]
        rows = [times[method][policy] for method in times for policy in ("fixed", "clr")]
        if "sgd" not in times or len({len(row) for row in rows}) != 1 or not all(x > 0 for row in rows for x in row):
            raise ValueError("expected positive times of sgd and other methods, in as many rounds each")
        str(benchmark["device"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of benchmarks/solvers.py: {error!r}") from error
    return benchmark


# A cell is one thing --------------------------------------------------------------------------------------------------


def _strangers(found: Mapping[str, Record]) -> Iterator[tuple[Record, str]]:
    """Runs that share a label with newer runs that compute something else, and seeds that a label has twice.

    A label says what was overridden of a lab card; a card, or a schedule's code, that was edited between two runs gives
    two things one name.
    """
    by_label: dict[str, list[Record]] = defaultdict(list)
    for run_id in sorted(found):
        by_label[found[run_id].label].append(found[run_id])
    for label, runs in sorted(by_label.items()):
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in runs:
            groups[_identity(record)].append(record)
        kept = max(groups.values(), key=lambda group: max(record.started for record in group))
        for group in groups.values():
            if group is not kept:
                for record in group:
                    newer = f"it computes something else than the newer {len(kept)} of label {label}"
                    remedy = (
                        "to have this instead, move the newer away (their files in runs/); what is changed needs, "
                        "before it runs, a card under a name of its own, or a results_dir"
                    )
                    yield record, f"{newer}; {remedy}"
        seeds: set[int] = set()
        for record in kept:
            if record.seed in seeds:
                yield record, f"label {label} has another run with seed {record.seed}"
            seeds.add(record.seed)


def _identity(record: Record) -> str:
    """What a run computes, whatever its seed."""
    computed = {key: value for key, value in record.config.items() if key in records.HASHED}
    if not records.is_foreign(record.config):  # a record may come from anywhere: nothing that it names is imported
        with suppress(ConfigError, KeyError, TypeError, AttributeError):  # names a class that is no more
            computed = records.identity(record.config)
    return json.dumps({key: value for key, value in computed.items() if key != "seed"}, sort_keys=True)
