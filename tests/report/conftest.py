"""Runs made up for the report's tests: files as `training` writes them, with accuracies that the test chooses."""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cyclical_lr import records
from cyclical_lr.records import CurveRow, Record
from cyclical_lr.report.paper import Paper, read_paper

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def paper() -> Paper:
    return read_paper(CONF / "paper")


def _sha256(config: Any, name: str) -> str:
    """What a config hashes to; of the name where the config's classes are not there to ask for their defaults."""
    try:
        return records.config_sha256(config)
    except Exception:
        return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def add_run(tmp_path: Path) -> Callable[..., Record]:
    """Write a run's record and curve to tmp_path: `add_run("cifar10_tri2", 0, {0: 10.0, 25_000: 81.0})`."""

    def add(
        label: str, seed: int, accuracies: Mapping[int, float], lrs: Mapping[int, float] = {}, **changes: Any
    ) -> Record:
        curve = [CurveRow(t, lrs.get(t, 0.001), 1.0, 1.0, accuracy, 0.05 * t) for t, accuracy in accuracies.items()]
        config = {
            "model": {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full", "num_classes": 10},
            "schedule": {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.001},
            "solver": {"_target_": "cyclical_lr.solvers.caffe_sgd", "of": label},  # labels differ in what they compute
            "data": {"name": "cifar10"},
            "iterations": 70_000,  # the plan, whatever the curve: runs of one label compute one thing
            **changes.pop("config", {}),
            "seed": seed,
        }
        sha256 = _sha256(config, f"{label} {seed}")
        values: dict[str, Any] = {
            "run_id": sha256[:12],
            "experiment": label.partition("[")[0],
            "label": label,
            "seed": seed,
            "status": "done",
            "iterations": curve[-1].iteration if curve else 0,
            "test_accuracy": curve[-1].test_accuracy if curve else None,
            "best_test_accuracy": max((row.test_accuracy for row in curve), default=None),
            "train_seconds": 1.5,
            "eval_seconds": 0.5,
            "engine": "reference",
            "precision": "float32",
            "device": "a cpu",
            "threads": 2,
            "data_sha256": "d" * 64,
            "config_sha256": sha256,
            "commit": "0" * 40,
            "dirty": False,
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:01:00+00:00",
            "message": "",
            "versions": {"torch": "2.11.0"},
            "segments": [{"iteration": 0}],
            "config": config,
        }
        record = Record(**{**values, **changes})
        records.write_curve(records.curve_path(tmp_path, record.run_id), curve)
        records.write_record(tmp_path, record)
        return record

    return add


@pytest.fixture
def add_caffe_run(tmp_path: Path) -> Callable[..., None]:
    """Write a curve of Caffe itself to tmp_path: `add_caffe_run({0: 10.0, 25_000: 81.0}, "cifar10_tri2-2")`."""

    def add(accuracies: Mapping[int, float], name: str = "cifar10_tri2-1") -> None:
        (tmp_path / "caffe").mkdir(exist_ok=True)
        rows = [CurveRow(t, 0.001, math.nan, 1.0, accuracy, math.nan) for t, accuracy in accuracies.items()]
        records.write_curve(tmp_path / "caffe" / f"{name}.csv", rows)

    return add
