"""A run's identity and its files."""

import errno
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cyclical_lr import records
from cyclical_lr.records import ConfigError, CurveRow, Record

REPOSITORY = Path(__file__).resolve().parent.parent

CONFIG = {
    "model": {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full", "num_classes": 10, "ceil_mode": True},
    "data": {
        "_target_": "cyclical_lr.data.cifar.CifarData",
        "name": "cifar10",
        "train_sha256": "a",
        "test_sha256": "b",
        "batch_size": 100,
    },
    "solver": {"_target_": "cyclical_lr.solvers.caffe_sgd", "momentum": 0.9, "weight_decay": 0.004},
    "schedule": {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.001},
    "iterations": 100,
    "eval_every": 10,
    "compress": 1,
    "precision": "float32",
    "seed": 0,
}


def with_value(path: str, value: object) -> dict:
    config = json.loads(json.dumps(CONFIG))
    *groups, key = path.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[key] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.ceil_mode", False),
        ("data.train_sha256", "c"),
        ("data.shuffle", True),
        ("data.batch_size", 50),
        ("solver.momentum", 0.8),
        ("schedule.base_lr", 0.002),
        ("iterations", 200),
        ("compress", 2),
        ("precision", "bf16"),
        ("seed", 1),
    ],
)
def test_what_is_computed_changes_the_id(path, value):
    assert records.run_id(with_value(path, value)) != records.run_id(CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.root", "elsewhere"),
        ("data.source", "copy.tar.gz"),
        ("data.eval_batch_size", 7),
        ("data.workers", 3),
        ("eval_every", 20),
        ("threads", 2),
        ("engine", "fast"),
        ("runs_dir", "elsewhere"),
        ("trainer", {"accelerator": "gpu"}),
    ],
)
def test_where_and_how_it_is_computed_leaves_the_id(path, value):
    assert records.run_id(with_value(path, value)) == records.run_id(CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [("model.lrn", "within_channel"), ("data.shuffle", False), ("data.scale", 1), ("solver.multipliers", True)],
)
def test_a_value_at_its_default_leaves_the_id(path, value):
    assert records.run_id(with_value(path, value)) == records.run_id(CONFIG)


def test_the_id_does_not_depend_on_the_order_of_keys_or_on_int_against_float():
    shuffled = dict(reversed(CONFIG.items()))
    shuffled["schedule"] = {"base_lr": 1.0, "_target_": "cyclical_lr.schedules.Fixed"}
    assert records.run_id(shuffled) == records.run_id(with_value("schedule.base_lr", 1))


def test_the_id_is_pinned():
    # Ids name committed evidence: a change here is a change of every id.
    assert records.run_id(CONFIG) == "087d26b0e2e1"


def test_defaults_are_left_out_inside_nested_schedules():
    nested = {
        "_target_": "cyclical_lr.schedules.Drops",
        "schedule": {"_target_": "cyclical_lr.schedules.MultiStep", "base_lr": 0.1, "milestones": [5], "gamma": 0.1},
        "milestones": [3],
    }
    identity = records.identity(with_value("schedule", nested))
    assert "gamma" not in identity["schedule"]["schedule"]


def test_an_unknown_target_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"cyclical_lr\.schedules\.Fixd"):
        records.run_id(with_value("schedule._target_", "cyclical_lr.schedules.Fixd"))


def test_what_a_node_inside_another_refuses_is_named_with_its_place():
    node = {"_target_": "cyclical_lr.schedules.Exp", "base_lr": 0.1, "gamma": -2}
    phases = [{"_target_": "cyclical_lr.schedules.Phase", "start": 0, "schedule": node}]
    with pytest.raises(ConfigError, match=r"^schedule\.gamma: expected .*got -2"):
        records.build(node)
    with pytest.raises(ConfigError, match=r"^schedule\.phases\.0\.schedule\.gamma: expected .*got -2"):
        records.build({"_target_": "cyclical_lr.schedules.Phases", "phases": phases})
    late = {"_target_": "cyclical_lr.schedules.Phase", "start": 7, "schedule": {**node, "gamma": 0.5}}
    with pytest.raises(ConfigError, match=r"^schedule\.phases\.0\.start: expected 0, got 7"):
        records.build({"_target_": "cyclical_lr.schedules.Phases", "phases": [late]})
    with pytest.raises(ConfigError, match=r"^schedule\.phases\.0\.start: expected an integer iteration .*got -1"):
        records.build({"_target_": "cyclical_lr.schedules.Phases", "phases": [{**late, "start": -1}]})


def test_the_label_is_the_experiment_until_something_hashed_is_overridden():
    assert records.label("card", CONFIG, CONFIG) == "card"
    assert records.label("card", with_value("seed", 3), CONFIG) == "card"
    assert records.label("card", with_value("eval_every", 7), CONFIG) == "card"
    assert records.label("card", with_value("schedule.base_lr", 0.002), CONFIG) == "card[schedule.base_lr=0.002]"
    assert records.label("card", with_value("data.shuffle", True), CONFIG) == "card[data.shuffle=True]"
    assert records.label("card", with_value("precision", "bf16"), CONFIG) == "card[precision=bf16]"


def test_the_label_names_another_schedule_as_a_call_and_a_value_put_back_to_its_default():
    other = {"_target_": "cyclical_lr.schedules.Exp", "base_lr": 0.1, "gamma": 0.5}
    assert records.label("card", with_value("schedule", other), CONFIG) == "card[schedule=Exp(base_lr=0.1,gamma=0.5)]"
    card = with_value("data.shuffle", True)
    assert records.label("card", with_value("data.shuffle", False), card) == "card[data.shuffle=False]"


def test_the_label_has_the_value_that_counts_where_a_key_was_taken_away():
    bounds = {"_target_": "cyclical_lr.schedules.ExpRange", "base_lr": 0.1, "max_lr": 0.2, "stepsize": 5, "gamma": 0.5}
    card = with_value("schedule", {**bounds, "decay": "amplitude"})
    assert records.label("card", with_value("schedule", bounds), card) == "card[schedule.decay=bounds]"


def test_the_label_names_the_item_of_a_list_that_differs():
    def phases(*rates):
        fixed = [{"_target_": "cyclical_lr.schedules.Fixed", "base_lr": rate} for rate in rates]
        phase = "cyclical_lr.schedules.Phase"
        listed = [{"_target_": phase, "start": 5 * i, "schedule": one} for i, one in enumerate(fixed)]
        return with_value("schedule", {"_target_": "cyclical_lr.schedules.Phases", "phases": listed})

    card = phases(0.1, 0.01)
    assert records.label("card", phases(0.1, 0.02), card) == "card[schedule.phases.1.schedule.base_lr=0.02]"
    longer = "card[schedule.phases=[Phase(schedule=Fixed(base_lr=0.1),start=0)]]"
    assert records.label("card", phases(0.1), card) == longer


def test_the_label_names_another_set_by_its_name_and_a_compressed_schedule_by_its_factor():
    other = with_value("data", {**CONFIG["data"], "name": "cifar10_sample", "train_sha256": "c", "test_sha256": "d"})
    assert records.label("card", {**other, "compress": 10, "iterations": 10}, CONFIG) == (
        "card[compress=10,data=cifar10_sample]"
    )
    assert records.label("card", with_value("data.train_sha256", "c"), CONFIG) == "card[data.train_sha256=c]"
    left_open = with_value("data.train_sha256", None)
    assert records.label("card", with_value("data.train_sha256", "c"), left_open) == "card"
    assert records.run_id(with_value("data.train_sha256", "c")) != records.run_id(CONFIG)


def test_runs_without_an_experiment_get_labels_that_differ_when_they_do():
    ours, other = records.label("custom", CONFIG, None), records.label("custom", with_value("iterations", 7), None)
    assert ours.startswith("custom[") and ours != other
    assert records.label("custom", with_value("seed", 5), None) == ours


RECORD = Record(
    run_id="abc",
    experiment="card",
    label="card",
    seed=0,
    status="done",
    iterations=100,
    test_accuracy=12.5,
    best_test_accuracy=13.25,
    train_seconds=1.5,
    eval_seconds=0.5,
    engine="reference",
    precision="float32",
    device="a cpu",
    threads=2,
    data_sha256="d",
    config_sha256="c",
    commit="0" * 40,
    dirty=False,
    started="2026-01-01T00:00:00+00:00",
    ended="2026-01-01T00:00:02+00:00",
    message="",
    versions={"torch": "2"},
    segments=[],
    config=CONFIG,
)
ROWS = [CurveRow(0, 0.001, math.nan, 2.302585092994046, 10.0, 0.0), CurveRow(10, 1 / 3, 2.3, 2.2, 11.0, 0.1)]


def test_a_record_and_a_curve_come_back_as_they_were_written(tmp_path):
    assert records.read_record(records.write_record(tmp_path, RECORD)) == RECORD
    read = records.read_curve(records.write_curve(tmp_path / "c.csv", ROWS))
    assert read[1] == ROWS[1]
    assert math.isnan(read[0].train_loss) and replace(read[0], train_loss=0.0) == replace(ROWS[0], train_loss=0.0)


def test_the_clock_is_of_the_processes_that_trained():
    segments = [{"iteration": at, "device": device} for at, device in ((0, "a cpu"), (60, "another"), (100, "a third"))]
    devices, *_ = replace(RECORD, segments=segments).clock
    assert devices == "a cpu and another"  # the third only wrote the record


CIFAR_HEADER = "iteration,lr,train_loss,test_loss,test_accuracy,train_seconds"


def test_a_curve_has_a_top_5_column_only_where_it_was_measured(tmp_path):
    path = records.write_curve(tmp_path / "c.csv", ROWS)
    assert path.read_text() == (
        f"{CIFAR_HEADER}\n0,0.001,,2.302585092994046,10.0,0.0\n10,0.3333333333333333,2.3,2.2,11.0,0.1\n"
    )
    path = records.write_curve(tmp_path / "c.csv", [ROWS[0], replace(ROWS[1], test_accuracy_top5=1 / 3)])
    header, first, second = path.read_text().splitlines()
    assert header == f"{CIFAR_HEADER},test_accuracy_top5"
    assert first.endswith(",0.0,") and second.endswith(",0.1,0.3333333333333333")
    read = records.read_curve(path)
    assert math.isnan(read[0].test_accuracy_top5) and read[1].test_accuracy_top5 == 1 / 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run_id": "abc"}'])
def test_what_is_not_a_record_is_named(tmp_path, text):
    (tmp_path / "foreign.json").write_text(text)
    with pytest.raises(ValueError, match=r"foreign\.json"):
        records.read_record(tmp_path / "foreign.json")


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,b\n1,2\n", f"{CIFAR_HEADER}\n1\n", f"{CIFAR_HEADER}\n0,0.1,,2.3,10.0,0,50.0\n"),
        f"{CIFAR_HEADER},test_accuracy_top5\n0,0.1,,2.3,10.0,0\n",
    ],
)
def test_what_is_not_a_curve_is_named(tmp_path, text):
    (tmp_path / "foreign.csv").write_text(text)
    with pytest.raises(ValueError, match=r"foreign\.csv"):
        records.read_curve(tmp_path / "foreign.csv")


def test_a_file_that_cannot_be_read_is_named_with_a_remedy(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", refuses)
    monkeypatch.setattr(Path, "open", refuses)
    with pytest.raises(ConfigError, match=r"r\.json: cannot be read \(Permission denied\); make it readable, or give"):
        records.read_record(tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"c\.csv: cannot be read \(Permission denied\)"):
        records.read_curve(tmp_path / "c.csv")


def test_an_empty_curve_has_no_first_line(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="its first line is "):
        records.read_curve(tmp_path / "empty.csv")


def test_a_full_disk_leaves_the_file_before_intact_and_nothing_beside_it(tmp_path, full_disk):
    path = tmp_path / "record.json"
    records.write_atomic(path, b"before")
    with full_disk(10), pytest.raises(OSError, match="too large"):
        records.write_atomic(path, b"after, and longer than the disk takes")
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_committed_records_still_hash_to_their_names(committed_results):
    paths = sorted((committed_results / "runs").glob("*.json"))
    assert paths
    for path in paths:
        record = records.read_record(path)
        assert records.run_id(record.config) == record.run_id == path.stem
        assert records.config_sha256(record.config) == record.config_sha256
        assert records.curve_path(REPOSITORY / "results", record.run_id).exists()
        assert not record.dirty, f"{path.name} comes from a dirty checkout"


def test_a_readers_name_of_a_class_from_elsewhere_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("anything = dict")
    monkeypatch.syspath_prepend(tmp_path)
    assert records.short({"_target_": "trap_module.anything", "depth": 9}) == "trap_module.anything(depth=9)"
    assert "trap_module" not in sys.modules
    assert records.short(CONFIG["model"]) == "Cifar10Full()"


def test_the_label_does_not_depend_on_the_order_in_which_a_schedules_arguments_are_given():
    other = {"gamma": 0.5, "base_lr": 0.1, "_target_": "cyclical_lr.schedules.Exp"}
    assert records.label("card", with_value("schedule", other), CONFIG) == "card[schedule=Exp(base_lr=0.1,gamma=0.5)]"


def test_what_goes_with_another_set_is_not_in_the_label():
    data = {"name": "cifar100", "num_classes": 100, "checksum": "as_set", "train_sha256": "c", "test_sha256": "d"}
    data |= {"train_images": 5, "test_images": 5}
    other = {**CONFIG, "data": {**CONFIG["data"], **data}, "model": {**CONFIG["model"], "num_classes": 100}}
    assert records.label("card", other, CONFIG) == "card[data=cifar100]"


def test_the_clock_leaves_out_layers_that_have_not_run_and_knows_records_older_than_its_keys():
    segments = [{"iteration": 0, "kernels": "none"}, {"iteration": 60, "kernels": "compiled"}]
    assert replace(RECORD, segments=segments).clock[3] == "compiled"
    now = {"iteration": 0, "device": "a cpu", "threads": 2, "engine": "reference", "kernels": "torch", "together": 1}
    assert replace(RECORD, segments=[{"iteration": 0}]).clock == replace(RECORD, segments=[now]).clock


def test_a_target_may_be_a_method_of_a_class():
    assert records.build({"_target_": "collections.OrderedDict.fromkeys"}, "ab") == {"a": None, "b": None}
