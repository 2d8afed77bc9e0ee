"""From files to runs, curves and cells; whatever cannot be used is named."""

import json
import os
import time
from dataclasses import fields

import pandas as pd
import pytest

from cyclical_lr import records
from cyclical_lr.records import Record
from cyclical_lr.report.collect import COLUMNS, SETTLED, collect, last_iteration, read_cell, write_runs

CURVE = {0: 10.0, 1000: 70.0, 2000: 75.5, 3000: 74.0}


def rewritten(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_an_absent_or_empty_folder_holds_nothing(tmp_path):
    for folder in (tmp_path / "absent", tmp_path):
        results = collect(folder)
        assert len(results.records) == len(results.curves) == len(results.runs) == len(results.problems) == 0
        assert list(results.runs.columns) == list(COLUMNS)


def test_runs_have_the_columns_of_the_design_and_a_version_per_package(tmp_path, add_run):
    add_run("b", 0, CURVE, versions={"torch": "2.11.0", "numpy": "2.4.0"})
    add_run("a", 1, CURVE, segments=[{"iteration": 0}, {"iteration": 1000}])
    runs = collect(tmp_path).runs
    assert list(runs.columns) == [*COLUMNS, "version.numpy", "version.torch"]
    assert " ".join(COLUMNS[:20]) == (
        "run_id experiment label seed status iterations test_accuracy best_test_accuracy train_seconds eval_seconds "
        "engine precision device threads data_sha256 config_sha256 commit dirty started ended"
    )
    assert set(COLUMNS) == {field.name for field in fields(Record)} - {"config", "versions"}
    assert runs["label"].tolist() == ["a", "b"]
    assert runs["segments"].tolist() == [2, 1]
    assert runs["test_accuracy"].tolist() == [74.0, 74.0] and runs["best_test_accuracy"].tolist() == [75.5, 75.5]
    assert runs["version.numpy"].isna().tolist() == [True, False]


def test_runs_are_in_order_of_experiment_label_and_seed_whatever_their_ids(tmp_path, add_run):
    for label, seed in [("b", 10), ("b", 2), ("a[x=1]", 0), ("a", 3), ("a", 1)]:
        add_run(label, seed, CURVE)
    runs = collect(tmp_path).runs
    assert runs["label"].tolist() == ["a", "a", "a[x=1]", "b", "b"]
    assert runs["seed"].tolist() == [1, 3, 0, 2, 10]


def test_runs_csv_has_the_same_bytes_every_time_and_every_digit(tmp_path, add_run):
    add_run("a", 0, {0: 10.0, 1000: 100 / 3})
    add_run("a", 1, {}, status="diverged", message='loss is "nan", says\nthe run', versions={})
    first = write_runs(tmp_path, collect(tmp_path)).read_bytes()
    assert write_runs(tmp_path, collect(tmp_path)).read_bytes() == first
    read = pd.read_csv(tmp_path / "runs.csv")
    assert read["test_accuracy"][0] == 100 / 3 and pd.isna(read["test_accuracy"][1])
    assert read["message"][1] == 'loss is "nan", says\nthe run'
    assert b"\r" not in first


def test_a_curve_comes_with_its_run(tmp_path, add_run):
    record = add_run("a", 0, CURVE)
    results = collect(tmp_path)
    assert results.problems == ()
    assert results.records == {record.run_id: record}
    assert {row.iteration: row.test_accuracy for row in results.curves[record.run_id]} == CURVE


# ---- Files that cannot be used ---------------------------------------------------------------------------------------


def aged(path):
    """As if the file had been written a while ago."""
    then = time.time() - 2 * SETTLED
    os.utime(path, (then, then))


@pytest.fixture
def beside_a_good_run(tmp_path, add_run):
    """A good run, a run to spoil, and a check that only the good one was read and the other was named with a reason."""
    good, bad = add_run("good", 0, CURVE), add_run("bad", 0, CURVE)

    def check(named, reason):
        results = collect(tmp_path)
        assert list(results.records) == list(results.curves) == [good.run_id]
        (problem,) = results.problems
        assert str(named) in problem and reason in problem, problem

    return records.record_path(tmp_path, bad.run_id), records.curve_path(tmp_path, bad.run_id), check


@pytest.mark.parametrize("text", ["", '{"run_id": "ab', "[1, 2]", "{}", "null", "\x00\x01"])
def test_a_half_written_or_foreign_record_is_named(beside_a_good_run, text):
    record, _, check = beside_a_good_run
    record.write_text(text)
    check(record, "is not a run's record")


def test_bytes_that_are_no_text_are_named(beside_a_good_run):
    record, _, check = beside_a_good_run
    record.write_bytes(b"\xff\xfe\x00")
    check(record, "is not a run's record")


NETWORK = {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full"}
EDITED = {"model": NETWORK, "data": {"name": "cifar10"}, "schedule": {}, "solver": {}, "iterations": 5, "seed": 0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": "0"}, "seed is '0', expected int"),
        ({"seed": True}, "seed is True, expected int"),
        ({"dirty": 0}, "dirty is 0, expected bool"),
        ({"test_accuracy": "74"}, "test_accuracy is '74', expected float or NoneType"),
        ({"config": []}, "config is [], expected dict"),
        ({"segments": {}}, "segments is {}, expected list"),
        ({"status": "finished"}, "status 'finished' is not one of done, diverged, failed"),
        ({"extra": 1}, "extra"),
        ({"run_id": "another"}, "is not the record that its name says"),
        ({"config_sha256": "f" * 64}, "is not the record that its name says"),
        ({"config": {}}, "its config lacks one of model, data, schedule, iterations"),
        ({"config": {"model": {}, "data": {}, "schedule": {}, "iterations": 5}}, "its config lacks data.name"),
        ({"config": EDITED}, "its config is not the one that it was named for"),
        ({"config": {**EDITED, "compress": "ten"}}, "its compress is no number"),
        ({"config": {**EDITED, "model": {}}}, "its config lacks model._target_"),
        ({"config": {**EDITED, "solver": {"_target_": 1e30}}}, "or one is no name"),
        ({"segments": [{}]}, "a segment lacks its iteration"),
        ({"segments": [True]}, "a segment lacks its iteration"),
        ({"versions": {"torch": []}}, "a version is no text"),
    ],
)
def test_a_record_against_the_schema_is_named(beside_a_good_run, changes, reason):
    record, _, check = beside_a_good_run
    rewritten(record, **changes)
    check(record, reason)


def test_a_whole_number_is_a_fine_accuracy(tmp_path, add_run):
    record = add_run("a", 0, {0: 10.0, 1000: 74.0})
    rewritten(records.record_path(tmp_path, record.run_id), test_accuracy=74, best_test_accuracy=74)
    assert collect(tmp_path).problems == ()


def test_a_record_without_a_curve_is_named(beside_a_good_run):
    record, curve, check = beside_a_good_run
    curve.unlink()
    check(record, f"has no curve: {curve} is missing")


def test_a_curve_without_a_record_is_named(beside_a_good_run):
    record, curve, check = beside_a_good_run
    record.unlink()
    aged(curve)
    check(curve, f"belongs to no record: {record} is missing")


HEADER = "iteration,lr,train_loss,test_loss,test_accuracy,train_seconds\n"
TOP5 = HEADER.replace("\n", ",test_accuracy_top5\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a run's curve"),
        ("a,b\n", "is not a run's curve"),
        (HEADER + "0,0.1,,2.3,10.0\n", "is not a run's curve"),
        (HEADER + "\n", "is not a run's curve"),
        (HEADER + "0,0.1,,2.3,10.0,0\n1000,0.1,1,1,70.0,1\n2000,0.1,1,1,75.5,2\n", "is not the curve of its record"),
        (HEADER + "0,0.1,,2.3,10.0,0\n1000,0.1,1,1,75.5,1\n2000,0.1,1,1,74.0,2\n", "it ends before iteration 3000"),
        (HEADER + "0,0.1,,2.3,10.0,0\n3000,0.1,1,1,75.5,1\n3000,0.1,1,1,74.0,2\n", "its iterations do not rise"),
        (HEADER + "0,0.1,,2.3,75.5,0\n1000,0.1,1,1,101,1\n3000,0.1,1,1,74.0,2\n", "outside 0 to 100"),
        (HEADER + "0,0.1,,2.3,75.5,0\n1000,0.1,1,1,,1\n3000,0.1,1,1,74.0,2\n", "outside 0 to 100"),
        (TOP5 + "0,0.1,,2.3,75.5,0,\n1000,0.1,1,1,70,1,101\n3000,0.1,1,1,74.0,2,80\n", "outside 0 to 100"),
    ],
)
def test_a_curve_that_is_half_written_foreign_or_at_odds_with_its_record_is_named(beside_a_good_run, text, reason):
    _, curve, check = beside_a_good_run
    curve.write_text(text)
    check(curve, reason)


def test_a_curve_of_caffe_itself_is_read_and_a_bad_one_named(tmp_path):
    (tmp_path / "caffe").mkdir()
    header = "iteration,lr,train_loss,test_loss,test_accuracy,train_seconds"
    (tmp_path / "caffe" / "good-1.csv").write_text(f"{header}\n0,0.001,,2.3,10.0,\n1000,0.003,,1.4,50.5,\n")
    (tmp_path / "caffe" / "good-2.csv").write_text(f"{header}\n0,0.001,,2.3,11.0,\n")
    (tmp_path / "caffe" / "nameless.csv").write_text(f"{header}\n0,0.001,,2.3,11.0,\n")
    (tmp_path / "caffe" / "back-1.csv").write_text(f"{header}\n1000,0.001,,2.3,10.0,\n0,0.003,,1.4,50.5,\n")
    (tmp_path / "caffe" / "foreign-1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "caffe" / "per_cent-1.csv").write_text(f"{header}\n0,0.001,,2.3,1000.0,\n")
    results = collect(tmp_path)
    assert results.caffe == {"good": [{0: 10.0, 1000: 50.5}, {0: 11.0}]}
    assert [problem.split(" is not")[0].split("/")[-1] for problem in results.problems] == [
        *("back-1.csv", "foreign-1.csv", "nameless.csv", "per_cent-1.csv")
    ]


@pytest.mark.parametrize(
    ("folder", "name"), [("runs", ".abc.json.17.tmp"), ("runs", "notes.txt"), ("curves", ".abc.csv.17.tmp")]
)
def test_foreign_files_and_those_of_an_interrupted_write_are_named(tmp_path, add_run, folder, name):
    add_run("good", 0, CURVE)
    (tmp_path / folder / name).write_text("{}")
    aged(tmp_path / folder / name)
    results = collect(tmp_path)
    assert len(results.records) == 1
    (problem,) = results.problems
    assert str(tmp_path / folder / name) in problem


def test_what_a_run_is_writing_this_moment_is_no_problem(tmp_path, add_run):
    add_run("good", 0, CURVE)
    ending = add_run("ending", 0, CURVE)
    record = records.record_path(tmp_path, ending.run_id)  # its curve is written first
    record.rename(record.with_name(f".{record.name}.17.tmp"))
    results = collect(tmp_path)
    assert (len(results.records), results.problems) == (1, ())


@pytest.mark.parametrize("day", ["2025-12-31", "2026-01-02"])
def test_of_runs_that_compute_something_else_under_one_label_the_newest_are_kept(tmp_path, add_run, day):
    three = [add_run("a", seed, CURVE) for seed in range(3)]
    config = {**three[0].config, "schedule": {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.002}, "seed": 3}
    one = [add_run("a", 3, CURVE, config=config, started=f"{day}T00:00:00+00:00")]
    kept, others = (three, one) if day < "2026" else (one, three)
    results = collect(tmp_path)
    assert set(results.records) == set(results.curves) == {record.run_id for record in kept}
    assert len(results.problems) == len(others)
    for record, problem in zip(sorted(others, key=lambda record: record.run_id), sorted(results.problems), strict=True):
        assert record.run_id in problem and f"computes something else than the newer {len(kept)} of label a" in problem
        assert "needs, before it runs, a card under a name of its own, or a results_dir" in problem


def test_a_default_that_is_written_out_does_not_make_a_run_another(tmp_path, add_run):
    config = add_run("a", 0, CURVE).config
    add_run("a", 1, CURVE, config={**config, "model": {**config["model"], "ceil_mode": True}, "seed": 1})
    results = collect(tmp_path)
    assert results.problems == () and len(results.records) == 2


def test_a_seed_that_a_label_has_twice_counts_once(tmp_path, add_run):
    foreign = {"model": {"_target_": "elsewhere.Network"}}  # of which nobody here can say what it hashes to
    add_run("a", 0, CURVE, config=foreign)
    add_run("a", 0, CURVE, config=foreign, run_id="f" * 12, config_sha256="f" * 64)
    results = collect(tmp_path)
    assert len(results.records) == 1 and "has another run with seed 0" in results.problems[0]


# ---- Cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_seeds_of_one_label_at_exactly_one_iteration(tmp_path, add_run):
    add_run("a", 1, CURVE)
    add_run("a", 0, {**CURVE, 2000: 76.0})
    add_run("a[precision=bf16]", 0, {**CURVE, 2000: 20.0}, precision="bf16")
    results = collect(tmp_path)
    cell = read_cell(results, "a", 2000)
    assert (cell.seeds, cell.values, cell.best, cell.n, cell.remarks) == ((0, 1), (76.0, 75.5), (76.0, 75.5), 2, ())
    assert read_cell(results, "a[precision=bf16]", 2000).values == (20.0,)
    assert read_cell(results, "a", 3000).values == (74.0, 74.0)
    assert read_cell(results, "a", 3000).best == (76.0, 75.5)
    assert read_cell(results, "absent", 2000).runs == 0
    assert (last_iteration(results, "a"), last_iteration(results, "absent")) == (3000, None)


def test_a_missing_evaluation_is_not_measured_and_names_its_seeds(tmp_path, add_run):
    add_run("a", 0, CURVE)
    add_run("a", 5, {0: 10.0, 1500: 70.0, 3000: 74.0})
    cell = read_cell(collect(tmp_path), "a", 2000)
    assert (cell.seeds, cell.unmeasured, cell.n, cell.runs) == ((0,), (5,), 1, 2)
    assert cell.remarks == ("not evaluated at 2,000: seed 5",)


def test_diverged_and_failed_runs_are_counted_and_give_no_value(tmp_path, add_run):
    add_run("a", 0, CURVE)
    add_run("a", 1, CURVE, status="diverged", message="training loss is nan at iteration 3100", iterations=3100)
    add_run("a", 2, CURVE, status="failed")
    add_run("a", 3, {}, status="diverged")
    cell = read_cell(collect(tmp_path), "a", 1000)
    assert (cell.seeds, cell.values, cell.diverged, cell.failed, cell.runs) == ((0,), (70.0,), 2, 1, 4)
    assert cell.remarks == ("2 diverged", "1 failed")


def test_a_range_test_whose_lrs_do_not_rise_is_named_and_left_out(tmp_path, add_run):
    ramp = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.001, "stepsize": 1000}
    rising = {iteration: min(1e-6 * iteration, 0.001) for iteration in CURVE}  # past the ramp it stays where it is
    left_out = add_run("cifar10_range_test", 0, CURVE, config={"schedule": ramp})
    kept = add_run("cifar10_range_test", 1, CURVE, rising, config={"schedule": ramp})
    results = collect(tmp_path)
    assert list(results.records) == [kept.run_id]
    (problem,) = results.problems
    assert left_out.run_id in problem and "its LRs do not rise" in problem


def test_the_ramp_of_a_compressed_range_test_ends_as_much_earlier(tmp_path, add_run):
    ramp = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.001, "stepsize": 4000}
    held = {iteration: min(1e-6 * iteration, 0.001) for iteration in CURVE}  # four times as fast, up to 1,000
    add_run("cifar10_range_test", 0, CURVE, held, config={"schedule": ramp, "compress": 4})
    assert collect(tmp_path).problems == ()


def test_the_last_iteration_of_a_label_is_the_furthest_of_its_finished_runs(tmp_path, add_run):
    add_run("a", 0, {0: 10.0, 2000: 75.5})
    add_run("a", 1, {0: 10.0, 3000: 74.0})
    add_run("a", 2, {0: 10.0, 4000: 74.0}, status="diverged")
    add_run("b", 0, {0: 10.0, 1000: 70.0}, status="diverged")
    results = collect(tmp_path)
    assert (last_iteration(results, "a"), last_iteration(results, "b")) == (3000, None)


def test_a_run_whose_class_is_no_more_is_still_read(tmp_path, add_run):
    record = add_run("a", 0, {0: 10.0}, config={"solver": {"_target_": "cyclical_lr.solvers.gone"}})
    assert list(collect(tmp_path).records) == [record.run_id]


def test_a_range_test_of_a_network_from_elsewhere_without_a_length_is_no_reason_to_stop(tmp_path, add_run):
    schedule = {"_target_": "cyclical_lr.schedules.RangeTest"}
    add_run("a", 0, {0: 10.0}, config={"model": {"_target_": "elsewhere.Network"}, "schedule": schedule})
    assert collect(tmp_path).problems == ()


@pytest.mark.parametrize("accuracy", [0.0, 100.0])
def test_none_and_all_right_are_accuracies(tmp_path, add_run, accuracy):
    add_run("a", 0, {0: accuracy, 1000: accuracy})
    assert collect(tmp_path).problems == ()


def test_a_curve_of_caffes_is_a_csv(tmp_path):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "good-1.txt").write_text(HEADER + "0,0.001,,2.3,10.0,\n")
    results = collect(tmp_path)
    assert results.caffe == {} and "good-1.txt is not a curve of Caffe's" in results.problems[0]
