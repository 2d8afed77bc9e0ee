"""A run's identity, its record and its curve: all that training and report share.

A run is identified by what it computes: model, data with their checksums, solver, schedule, iterations, precision and
seed. Its record is one JSON file and its curve one CSV file, each written whole or not at all, by that run alone.
"""

import csv
import hashlib
import inspect
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from cyclical_lr.schedules import Compressed

HASHED = ("model", "data", "solver", "schedule", "lr_sha256", "iterations", "compress", "precision", "seed")
"""Keys of a run's config that its id is made of; `lr_sha256` where the schedule is not this package's."""
WHEREABOUTS = ("root", "source", "eval_batch_size", "workers")
"""Keys of `data` that say where the images come from or how they are read and evaluated, not what they are."""
DEFAULTS = {"compress": 1, "precision": "float32"}
"""Values that an identity leaves out, so that a key added later changes no id."""
STATUSES = ("done", "diverged", "failed")
PACKAGE = "cyclical_lr."


class ConfigError(ValueError):
    """A user's input that cannot be used: the message names the key, the value, what was expected and the remedy."""


# Identity -------------------------------------------------------------------------------------------------------------


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run computes, with every value that stands at its default left out.

    Args:
        config: plain containers with the keys of `HASHED`; nodes with `_target_` are calls of that class or function,
            whose signature tells the defaults.
    Returns:
        plain containers in canonical form (integral floats as int, tuples as lists).
    """
    out = {key: config[key] for key in HASHED if key in config and config[key] != DEFAULTS.get(key)}
    out["data"] = {key: value for key, value in config["data"].items() if key not in WHEREABOUTS}
    return _canonical(out)


def config_sha256(config: Mapping[str, Any]) -> str:
    """SHA-256 of the run's identity, as hexadecimal digits."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(config: Mapping[str, Any]) -> str:
    """The first 12 digits of `config_sha256`: the run's name everywhere."""
    return config_sha256(config)[:12]


def label(experiment: str, config: Mapping[str, Any], card: Mapping[str, Any] | None) -> str:
    """The experiment's name, plus what was overridden of it in brackets. A cell of a table is one label.

    Args:
        experiment: name of the experiment file, or "custom" without one.
        config: the run's.
        card: the experiment's own config without any override, or None where there is no experiment file.
    """
    if card is None:
        return f"{experiment}[{run_id({**config, 'seed': 0})}]"
    ours, theirs = ({k: v for k, v in identity(c).items() if k != "seed"} for c in (config, card))
    left_open = tuple(f"data.{key}=" for key, value in card["data"].items() if value is None)  # to what the folder has
    for each in (ours, theirs):
        if is_foreign(each["data"]):  # a set that need not keep to the checksums of the card's
            kept = [
                key for key in each["data"] if not key.endswith("_sha256") or each["data"][key] != card["data"].get(key)
            ]
            each["data"] = {key: each["data"][key] for key in kept}
    changes = [change for change in _differences("", ours, theirs, config) if not change.startswith(left_open)]
    if ours["data"]["name"] != theirs["data"]["name"]:  # the rest of another set goes without saying
        implied = (
            *(f"data.{split}_{what}=" for split in ("train", "test") for what in ("sha256", "images")),
            "data.checksum=",
            "data.num_classes=",
            "model.num_classes=",
        )
        changes = [change.replace("data.name=", "data=") for change in changes if not change.startswith(implied)]
    changes = [change for change in changes if not change.startswith("lr_sha256=")]  # goes with the schedule
    if ours["iterations"] * ours.get("compress", 1) == theirs["iterations"] * theirs.get("compress", 1):
        changes = [change for change in changes if not change.startswith("iterations=")]
    return f"{experiment}[{','.join(changes)}]" if changes else experiment


def _differences(path: str, ours: Any, theirs: Any, full: Any) -> Iterator[str]:
    """Paths at which two identities differ, with our value; `full` is our config, which has the defaults too."""
    if ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get("_target_") == theirs.get("_target_"):
        defaults = _defaults(ours["_target_"]) if "_target_" in ours else DEFAULTS
        for key in sorted(ours.keys() | theirs.keys()):
            below = f"{path}.{key}" if path else key
            yield from _differences(below, ours.get(key), theirs.get(key), full.get(key, defaults.get(key)))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) and isinstance(ours[0], dict):
        for position, items in enumerate(zip(ours, theirs, full, strict=True)):
            yield from _differences(f"{path}.{position}", *items)
    else:
        yield f"{path}={_short(_canonical(full) if ours is None else ours)}"


def is_range_test(schedule: Mapping[str, Any]) -> bool:
    """Whether a config's schedule is the LR range test's, which ends where its LR is highest."""
    return schedule.get("_target_") == f"{PACKAGE}schedules.RangeTest"


def short(node: Any) -> str:
    """A node of a config for a reader: its class or function with what does not stand at the default, as in labels.

    With all its arguments where that is not, or no longer, this package's.
    """
    try:
        return _short(node if is_foreign(node) else _canonical(node))
    except ConfigError:
        return _short(node)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        named = [f"{k}={_short(v)}" for k, v in sorted(value.items()) if k not in ("_target_", "_partial_")]
        target = value["_target_"]
        name = target.rpartition(".")[2] if target.startswith(PACKAGE) else target  # a name means one class
        return f"{name}({','.join(named)})"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_short(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    return str(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        defaults = _defaults(value["_target_"]) if "_target_" in value else {}
        items = {str(key): _canonical(item) for key, item in value.items() if key != "_convert_"}
        return {key: item for key, item in items.items() if key not in defaults or item != _canonical(defaults[key])}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _defaults(target: str) -> dict[str, Any]:
    parameters = inspect.signature(locate(target)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def locate(target: str) -> Any:
    """The class or function at a dotted path.

    Raises:
        ConfigError: there is none.
    """
    try:
        found = resolve_name(str(target))
        if not callable(found):
            raise TypeError(f"it is {found!r}, no class or function")
        inspect.signature(found)  # without one, nothing can be said of its arguments
        return found
    except Exception as error:  # a module can raise anything while it is imported
        raise ConfigError(
            f"_target_: nothing to use at {target!r} ({type(error).__name__}: {error}); give a dotted path, and for "
            "a module in the working directory start the command with PYTHONPATH=."
        ) from error


def build(node: Mapping[str, Any], *arguments: Any) -> Any:
    """Call a node's `_target_` with the node's values, after `arguments`: for a solver, the network.

    Raises:
        ConfigError: it refuses them.
    """
    try:
        return instantiate(dict(node), *arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, TypeError) and "required" in str(cause):  # not the arguments that it has to have
            hint = "give it in the config, or on the command line, with a plus if the config has no such key"
            raise ConfigError(f"{node['_target_']}: {cause}; {hint}") from error
        target = re.search(r"target '([^']+)'", str(error))  # the node's, or one's inside it
        if target and not target[1].startswith(PACKAGE):  # its errors name no key
            given = " from the network" if arguments else ""
            raise ConfigError(f"{target[1]}: it cannot be built{given} ({cause!r})") from error
        if isinstance(cause, (ValueError, TypeError)):
            raise ConfigError(_with_full_key(str(cause), error)) from error
        raise


def _with_full_key(message: str, error: InstantiationException) -> str:
    """`schedule.base_lr: ...` as it is, or of a node inside the schedule `schedule.phases.0.schedule.base_lr: ...`."""
    inside = re.search(r"full_key: (\S+)$", str(error))
    key, colon, rest = message.partition(": ")
    if inside:
        path = re.sub(r"(?<=[^\W\d])(\d+)$", r".\1", inside[1])  # of a list's item itself Hydra says phases0
        key = re.sub(r"^(\w+)\.", rf"\1.{path}.", key)
    return re.sub(r"\[(\d+)\]", r".\1", key) + colon + rest  # as Hydra spells a list's items on the command line


# Learning rates -------------------------------------------------------------------------------------------------------


def learning_rates(config: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The LR at every iteration of a run and at its end: float64 [iterations + 1].

    Raises:
        ConfigError: the schedule cannot be built, or is not a function from iterations to learning rates.
    """
    node, iterations = config["schedule"], np.arange(config["iterations"] + 1)
    name, target = _short(node), locate(node["_target_"])
    if "LRScheduler" in (base.__name__ for base in getattr(target, "__mro__", ())):  # torch's
        raise ConfigError(
            f"schedule: expected a function of the iteration, got {node['_target_']}, which steps an optimizer; "
            "torch's cosine, cosine_restarts, one_cycle, multistep and exp are here by these names, any f(t) will do"
        )
    try:
        schedule = build(node)
    except ConfigError as error:
        if not inspect.isclass(target):
            hint = "a function of the iteration needs schedule._partial_=true"
            raise ConfigError(f"schedule: {error}; {hint}") from error
        if str(error).startswith("schedule"):
            raise
        raise ConfigError(f"schedule: {error}") from error
    if not callable(schedule):
        raise ConfigError(f"schedule: expected {name} to be called with the iteration, got {schedule!r}")
    if config["compress"] > 1:
        schedule = Compressed(schedule, config["compress"])
    middle = slice(len(iterations) // 4, -(len(iterations) // 4) or None)
    try:
        raw = schedule(iterations.copy())
        given = [np.asarray(raw), np.asarray(schedule(iterations[middle].copy()))]
        rates, alone = (np.real(lrs).astype(np.float64) for lrs in given)
    except Exception as error:  # a schedule can be anyone's
        raise ConfigError(f"schedule: {name} {_where_it_raises(schedule, iterations)}: {error!r}") from error
    if any(map(np.iscomplexobj, given)):
        raise ConfigError(f"schedule: expected real LRs, got complex numbers from {name}")
    if rates.shape != iterations.shape:
        got = f"an array of shape {list(rates.shape)}" if rates.ndim else f"one {type(raw).__name__}"
        raise ConfigError(
            f"schedule: expected {name} to give an LR for each of an array of {len(iterations)} iterations, got {got}; "
            "a constant is np.full(t.shape, lr)"
        )
    if (wrong := ~(np.isfinite(rates) & (rates >= 0))).any():
        t = int(wrong.argmax())
        raise ConfigError(f"schedule: expected finite LRs of at least 0, got {rates[t]} at iteration {t} of {name}")
    if alone.shape != rates[middle].shape or not np.allclose(alone, rates[middle], rtol=1e-9, atol=0):
        raise ConfigError(
            f"schedule: {name} gives iterations other LRs when some of them are asked for alone; expected a function "
            "of the iteration itself: without state, without chance, without the length of the array"
        )
    return rates


def _where_it_raises(schedule: Any, iterations: np.ndarray[Any, Any]) -> str:
    for t in iterations.tolist():
        try:
            schedule(t)
        except Exception:
            return f"raises at iteration {t}"
    return "takes one iteration but no array of them, such as np.arange(10); use np.where for if, np.minimum for min"


def lr_sha256(config: Mapping[str, Any]) -> dict[str, str]:
    """What identifies a schedule from elsewhere beside its name and arguments: its LRs, since its code may change.

    Returns:
        an entry for a run's config; empty where the schedule is all this package's. SHA-256 of little-endian float32,
        which hides the last bits in which machines differ.
    """
    if not is_foreign(config["schedule"]):
        return {}
    return {"lr_sha256": hashlib.sha256(learning_rates(config).astype("<f4").tobytes()).hexdigest()}


def is_foreign(node: Any) -> bool:
    """Whether a config names a class or function that is not this package's."""
    if isinstance(node, Mapping):
        return not str(node.get("_target_", PACKAGE)).startswith(PACKAGE) or any(map(is_foreign, node.values()))
    return isinstance(node, list) and any(map(is_foreign, node))


# Record ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One run's row. Accuracies are in percent on the test set, durations in seconds, times in UTC (ISO 8601)."""

    run_id: str
    experiment: str
    label: str
    seed: int
    status: str  # one of STATUSES
    iterations: int  # done; fewer than config["iterations"] where the run diverged or failed
    test_accuracy: float | None  # at the last evaluation
    best_test_accuracy: float | None
    train_seconds: float  # without evaluation and checkpoints
    eval_seconds: float
    engine: str
    precision: str
    device: str
    threads: int
    data_sha256: str
    config_sha256: str
    commit: str
    dirty: bool
    started: str
    ended: str
    message: str  # why it diverged or failed; empty otherwise
    versions: dict[str, str]
    segments: list[dict[str, Any]]  # one per process that worked on the run: commit, dirty, device, from iteration
    config: dict[str, Any]

    @property
    def clock(self) -> tuple[str, ...]:
        """What its seconds depend on: devices, threads, engines, layers, and how many runs shared the process.

        All of what the processes that trained a part of it had, since each of them measured its seconds.
        """
        last = {
            "device": self.device,
            "threads": self.threads,
            "engine": self.engine,
            "kernels": self.versions.get("kernels", "torch"),  # older than the compiled layers
            "together": 1,
        }
        ends = [*(segment["iteration"] for segment in self.segments[1:]), self.iterations]
        trained = [one for one, end in zip(self.segments, ends, strict=False) if one["iteration"] < end]
        segments = trained or self.segments or [last]
        return tuple(
            " and ".join(sorted({str(segment.get(key, value)) for segment in segments} - {"none"}))
            for key, value in last.items()
        )


@dataclass(frozen=True)
class CurveRow:
    """One evaluation. `lr` is the LR of the step that follows, for weights (lr_mult 1)."""

    iteration: int
    lr: float
    train_loss: float  # mean over the iterations since the last row; NaN at iteration 0
    test_loss: float
    test_accuracy: float
    train_seconds: float
    test_accuracy_top5: float = math.nan  # measured on ImageNet alone


REMEDY = "put back what was there, or remove it, and the run is done again"


def record_path(results_dir: Path, run_id: str) -> Path:
    """Where a run's record is, or will be."""
    return results_dir / "runs" / f"{run_id}.json"


def curve_path(results_dir: Path, run_id: str) -> Path:
    """Where a run's curve is, or will be."""
    return results_dir / "curves" / f"{run_id}.csv"


def write_record(results_dir: Path, record: Record) -> Path:
    """Write the record, whole or not at all."""
    path = record_path(results_dir, record.run_id)
    write_atomic(path, (json.dumps(asdict(record), indent=1, allow_nan=False) + "\n").encode())
    return path


def is_over(results_dir: Path, run_id: str) -> bool:
    """Whether the run has ended for good: done or diverged, with its curve. A failed one is worth another try.

    Raises:
        ConfigError: the record or the curve is damaged; the message names the file.
    """
    path, curve = record_path(results_dir, run_id), curve_path(results_dir, run_id)
    if not path.exists() or not curve.exists() or (record := read_record(path)).status == "failed":
        return False
    try:
        check_curve(curve, record, read_curve(curve))
    except ValueError as error:
        raise ConfigError(f"{error}; {REMEDY}") from error
    return True


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ConfigError: the file is not a record, or is incomplete; the message names the file.
    """
    try:
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict):
            raise ValueError(f"it holds a {type(raw).__name__}")
        try:
            record = Record(**raw)
        except TypeError as error:  # a field missing or unknown; one added later has a default
            raise ValueError(str(error)) from error
        if record.status not in STATUSES:
            raise ValueError(f"status {record.status!r} is not one of {', '.join(STATUSES)}")
    except ValueError as error:
        raise ConfigError(f"{path} is not a run's record: {error}; {REMEDY}") from error
    except PermissionError as error:
        remedy = "make it readable, or give another results_dir=..."
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    return record


def write_curve(path: Path, rows: list[CurveRow]) -> Path:
    """Write a curve, whole or not at all; floats keep all their digits. A top-5 column is only there if measured."""
    columns = _columns(top5=any(not math.isnan(row.test_accuracy_top5) for row in rows))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (getattr(row, name) for name in columns)
        writer.writerow("" if math.isnan(value) else repr(value) for value in values)
    write_atomic(path, text.getvalue().encode())
    return path


def read_curve(path: Path) -> list[CurveRow]:
    """Read a curve.

    Raises:
        ValueError: the file is not a curve; the message names it.
    """
    try:
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if header not in (_columns(top5=False), _columns(top5=True)):
            raise ValueError(f"its first line is {','.join(header)}")
        if any(len(row) != len(header) for row in rows):
            raise ValueError("a row has more or fewer values than its first line")
        return [CurveRow(int(row[0]), *(float(value or "nan") for value in row[1:])) for row in rows]
    except (ValueError, TypeError, IndexError, csv.Error) as error:
        raise ValueError(f"{path} is not a run's curve: {error}") from error
    except PermissionError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def check_curve(path: Path, record: Record, curve: Sequence[CurveRow]) -> None:
    """Refuse a curve, read from `path`, that is not the whole one of a record.

    Raises:
        ValueError: the message names the file.
    """
    accuracies = [row.test_accuracy for row in curve]
    ends = (accuracies[-1] if curve else None, max(accuracies, default=None))
    if ends != (record.test_accuracy, record.best_test_accuracy):
        raise ValueError(
            f"{path} is not the curve of its record: it ends at, and has at best, {ends} %, the record says "
            f"{(record.test_accuracy, record.best_test_accuracy)}"
        )
    if record.status == "done" and (not curve or curve[-1].iteration != record.iterations):
        raise ValueError(f"{path} is half a curve: its run is done, but it ends before iteration {record.iterations}")


def _columns(top5: bool) -> list[str]:
    return [field.name for field in fields(CurveRow) if top5 or field.name != "test_accuracy_top5"]


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was: written beside, synced, renamed.

    Raises:
        OSError: as the system gives it (disk full, read-only); the file before stays intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what `write_atomic` left of files `name`... when it was killed; nobody may be writing them now."""
    for leftover in folder.glob(f".{name}*.tmp"):
        leftover.unlink(missing_ok=True)
