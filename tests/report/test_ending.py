"""What is printed when a run ends."""

import re
from dataclasses import replace

from small_runs import CONF, REPOSITORY, records_in, train
from test_measured_rules import add_ramp, tent

from cyclical_lr import records
from cyclical_lr.report.collect import collect
from cyclical_lr.report.ending import bounds, suggested_stepsize, summary
from cyclical_lr.report.paper import read_paper
from cyclical_lr.training.config import check, compose_config, describe, plain


def test_the_result_stands_beside_every_number_that_the_paper_has_for_its_experiment(tmp_path):
    record = train(tmp_path)[0].record
    read = 0
    for row in read_paper(CONF / "paper").rows.values():
        for name in filter(None, (row.get("experiment"), row.get("staged"))):
            shown = summary(replace(record, experiment=name, label=name), CONF, tmp_path / "results")
            at = row["iterations"] or 12  # where the paper gives none, it is of a run's end
            beside = f"ours there {record.test_accuracy:.2f} %" if at == 12 else "not reached"
            assert f"  paper  {row['accuracy']} % at {at:,} ({row['where']}); {beside}\n" in shown
            read += 1
    assert read > 60
    assert "paper" not in summary(replace(record, experiment="cifar10_tri2"), CONF, tmp_path / "results")


def test_the_best_evaluation_and_the_minutes_are_told(tmp_path):
    record = replace(train(tmp_path)[0].record, train_seconds=90.0, eval_seconds=6.0)
    curve = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
    records.write_curve(
        records.curve_path(tmp_path / "results", record.run_id), [replace(curve[0], test_accuracy=99.0), *curve[1:]]
    )
    shown = summary(record, CONF, tmp_path / "results")
    assert "(best 99.00 % at 0); 1.5 min of training, 0.1 of evaluation" in shown


def test_a_run_on_the_sample_is_called_a_demo(tmp_path, add_run):
    for name, is_demo in (("cifar10", False), ("cifar10_sample", True)):
        record = add_run(name, 0, {0: 10.0, 25_000: 81.0}, config={"data": {"name": name}})
        assert ("demo" in summary(record, CONF, tmp_path)) == is_demo


def test_the_command_that_a_range_test_prints_is_a_run_between_its_bounds(tmp_path):
    where = [f"results_dir={REPOSITORY}/results", f"runs_dir={tmp_path}"]
    mine, changes = "--config-dir=my_conf", ["seed=[0,1]", "eval_every=200", "solver=torch_sgd"]
    given = [mine, "+experiment=cifar10_range_test", *where, *changes]
    finished = [record for record in records_in(REPOSITORY) if record.label == "cifar10_range_test"]
    printed = bounds(finished, CONF, REPOSITORY / "results", tmp_path, given)
    (command,) = re.findall(r"a run between them: python scripts/run.py (.*)", printed)
    assert command.startswith(f"{mine} ")
    plan = plain(compose_config(CONF, command.split()[1:]))
    check(plan)
    assert plan["solver"]["_target_"].endswith("torch_sgd") and plan["seed"] == 0
    lrs = records.learning_rates(describe(plan, 0))
    assert f"schedule.base_lr={lrs.min():g} schedule.max_lr={lrs.max():g} " in command
    assert "compress=N" not in printed
    assert len(lrs) == 16_001 and lrs[0] == lrs[-1] == lrs.min()


def test_a_range_test_that_ends_before_its_ramp_says_so(tmp_path):
    ramp = ["schedule=range_test", "schedule.base_lr=0", "schedule.max_lr=0.02", "schedule.stepsize=12"]
    for changes, cut in ((["iterations=6"], True), ([], False), (["compress=2", "iterations=12"], False)):
        record = train(tmp_path, *ramp, "eval_every=2", *changes)[0].record
        printed = bounds([record], CONF, tmp_path / "results", tmp_path / "runs", [])
        assert ("rises for 12 iterations, of which this test has the first 6: compress=N" in printed) == cut


def test_a_run_that_did_not_end_well_says_why(tmp_path, add_run):
    record = add_run("mine", 0, {0: 10.0}, status="diverged", message="training loss is nan")
    assert summary(record, CONF, tmp_path).startswith("mine seed 0: diverged (training loss is nan)\n")


def test_of_a_range_tests_own_command_its_ramp_alone_is_left_out(tmp_path, add_run):
    add_ramp(add_run, tent(0, 6), 0)
    (record,) = collect(tmp_path).records.values()
    ramp = ["schedule.max_lr=0.02", "+schedule.x=1", "~schedule.y", "seed=[0,1]", "eval_every=200"]
    given = ["+experiment=cifar10_range_test", *ramp, "iterations=8000", "compress=2", "threads=2"]
    printed = bounds([record], CONF, tmp_path, tmp_path / "runs", given)
    (command,) = [line for line in printed.splitlines() if "a run between them" in line]
    assert command.endswith(
        "scripts/run.py +experiment=cifar10_range_test threads=2 schedule=triangular schedule.base_lr=0.001 "
        "schedule.max_lr=0.006 schedule.stepsize=2000 iterations=16000"
    )


def test_a_range_test_that_failed_is_no_curve(tmp_path, add_run):
    add_ramp(add_run, tent(0, 6), 0)
    add_ramp(add_run, tent(0, 6), 1, until=5, status="failed")
    done, failed = collect(tmp_path).records.values()
    assert bounds([done, failed], CONF, tmp_path, tmp_path / "runs", []).startswith("LR range test, 1 seed,")
    assert bounds([failed], CONF, tmp_path, tmp_path / "runs", []) == "no curve to read bounds from"


def test_a_range_test_that_diverged_was_not_cut_short(tmp_path, add_run):
    add_ramp(add_run, tent(0, 6), 0, until=12, status="diverged", iterations=2500)
    (record,) = collect(tmp_path).records.values()
    printed = bounds([record], CONF, tmp_path, tmp_path / "runs", [])
    assert "Triangular(base_lr=0.001" in printed and "compress=N" not in printed


def test_a_range_test_without_a_curve_or_a_place_for_its_figure_ends_in_words(tmp_path, add_run):
    add_ramp(add_run, tent(0, 6), 0)
    add_ramp(add_run, tent(0, 6), 1, until=0, status="diverged", iterations=0)
    whole, nothing = collect(tmp_path).records.values()
    assert bounds([nothing], CONF, tmp_path, tmp_path / "runs", []).startswith("no curve to read bounds from: curve")
    (tmp_path / "a file").touch()
    printed = bounds([whole], CONF, tmp_path, tmp_path / "a file", [])
    assert "Triangular(base_lr=0.001" in printed and "no figure: cannot write to" in printed


def test_half_of_a_ramp_of_one_iteration_is_one(tmp_path):
    assert [suggested_stepsize("mine", ramp, CONF) for ramp in (1, 2, 9)] == [1, 1, 4]
