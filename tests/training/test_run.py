"""From config to records: what is run, what is left out, what is written down."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from small_runs import PowerCut, assert_same_bits, checkpoint, checkpoints, curve, cut, train

from cyclical_lr import records
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.records import Record
from cyclical_lr.schedules import Triangular
from cyclical_lr.training import callbacks, module, provenance
from cyclical_lr.training.engine import BLOCKS
from cyclical_lr.training.module import Classifier
from cyclical_lr.training.run import COMMIT, DIRTY

EVERY_ITERATION = "checkpoint_seconds=0"
COLUMNS = (
    *("run_id", "experiment", "label", "seed", "status", "iterations", "test_accuracy", "best_test_accuracy"),
    *("train_seconds", "eval_seconds", "engine", "precision", "device", "threads", "data_sha256", "config_sha256"),
    *("commit", "dirty", "started", "ended", "versions", "segments", "message", "config"),
)


def everything_in(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# One run --------------------------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_at_the_start_every_so_often_and_at_the_end(tmp_path, train):
    (outcome,) = train("iterations=7", "eval_every=3")
    rows = records.read_curve(records.curve_path(tmp_path / "results", outcome.run_id))
    assert [row.iteration for row in rows] == [0, 3, 6, 7]
    schedule = Triangular(base_lr=0.001, max_lr=0.005, stepsize=3)
    assert [row.lr for row in rows] == [float(schedule(row.iteration)) for row in rows]
    assert np.isnan(rows[0].train_loss) and all(np.isfinite(row.train_loss) for row in rows[1:])
    seconds = [row.train_seconds for row in rows]
    assert seconds[0] == 0 and seconds == sorted(set(seconds))
    assert outcome.record.test_accuracy == rows[-1].test_accuracy
    assert outcome.record.best_test_accuracy == max(row.test_accuracy for row in rows)


def test_the_test_loss_and_accuracy_are_those_of_the_network_over_the_whole_test_set(tmp_path, train):
    (outcome,) = train()
    config = outcome.record.config
    network, data = records.build(config["model"]).eval(), records.build({**config["data"], "root": None})
    network.load_state_dict(checkpoint(checkpoints(tmp_path, outcome.run_id)[-1])["network"])
    data.setup()
    x, y = data.test(torch.arange(len(data.test)))
    with torch.no_grad():
        logits = network(x)
    last = records.read_curve(records.curve_path(tmp_path / "results", outcome.run_id))[-1]
    assert last.test_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert last.test_accuracy == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())


def test_the_record_has_every_column_and_the_provenance_of_the_run(tmp_path, train):
    (outcome,) = train("seed=3")
    path = records.record_path(tmp_path / "results", outcome.run_id)
    raw = json.loads(path.read_text())
    assert set(raw) == set(COLUMNS) == set(Record.__dataclass_fields__)
    record = records.read_record(path)
    assert record == outcome.record and outcome.fresh
    assert (record.status, record.message, record.iterations, record.seed) == ("done", "", 12, 3)
    assert (record.precision, record.threads, record.engine) == ("float32", 1, "reference")
    assert record.device == provenance.device_name(torch.device("cpu"))
    assert (record.commit, record.dirty) == (COMMIT, DIRTY)
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert record.started <= record.ended and record.started.endswith("+00:00")
    assert record.train_seconds > 0 and record.eval_seconds > 0
    (segment,) = record.segments
    assert {"commit", "dirty", "device", "iteration"} <= set(segment) and segment["iteration"] == 0


def test_the_record_has_the_checksum_of_its_images_if_they_are_none_of_the_users(train):
    own, ours = train()[0].record, train("data._target_=cyclical_lr.data.cifar.CifarData", "iterations=1")[0].record
    images = ours.config["data"]
    assert ours.data_sha256 == hashlib.sha256((images["train_sha256"] + images["test_sha256"]).encode()).hexdigest()
    assert own.data_sha256 == ""


def test_the_records_config_is_what_its_id_is_made_of(train):
    record = train()[0].record
    assert records.run_id(record.config) == record.run_id == record.config_sha256[:12]
    assert records.config_sha256(record.config) == record.config_sha256
    assert record.config["schedule"]["stepsize"] == 3 and record.config["iterations"] == 12


def test_the_record_names_no_path_and_nothing_of_the_environment(tmp_path, train, monkeypatch):
    monkeypatch.setenv("CYCLICAL_LR_SECRET", "rosebud")
    monkeypatch.setenv("CYCLICAL_LR_DATA", "/somewhere/else")
    (outcome,) = train("data.source=/somewhere/mine")
    text = records.record_path(tmp_path / "results", outcome.run_id).read_text()
    for private in ("rosebud", "/somewhere", str(tmp_path), str(Path.home()), str(Path(__file__).parent)):
        assert private not in text
    assert not {"root", "source"} & set(outcome.record.config["data"])


def test_a_resumed_run_lists_its_segments(train):
    with cut(batch=6), pytest.raises(PowerCut):
        train(EVERY_ITERATION)
    record = train()[0].record
    assert [segment["iteration"] for segment in record.segments] == [0, 6]
    assert all(segment["commit"] == record.commit for segment in record.segments)
    assert record.started <= record.segments[0]["started"] <= record.segments[1]["started"] <= record.ended


def test_the_training_loss_of_a_row_is_the_mean_since_the_row_before(tmp_path, train):
    def losses(run_id):
        rows = records.read_curve(records.curve_path(tmp_path / "results", run_id))
        return {row.iteration: row.train_loss for row in rows if row.iteration}

    record = train("iterations=18")[0].record
    coarse = losses(record.run_id)
    shutil.rmtree(tmp_path / "results")
    shutil.rmtree(tmp_path / "runs")
    each = losses(train("iterations=18", "eval_every=1")[0].run_id)
    assert list(coarse) == [6, 12, 18]
    for end, loss in coarse.items():
        assert loss == pytest.approx(np.mean([each[end - i] for i in range(6)]), rel=1e-5)


def test_compress_runs_the_same_lrs_in_fewer_iterations(tmp_path, train):
    record = train("compress=2", "eval_every=1")[0].record
    rows = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
    whole = Triangular(base_lr=0.001, max_lr=0.005, stepsize=3)
    assert [row.lr for row in rows] == pytest.approx([float(whole(2 * row.iteration)) for row in rows], rel=1e-12)
    assert record.iterations == record.config["iterations"] == 6


def test_bf16_is_recorded_and_labelled_as_such(train):
    forced = ("iterations=2", "trainer=cpu_bf16", "trainer.emulate_bf16=true")
    bf16, float32 = train(*forced)[0].record, train("iterations=2")[0].record
    assert (bf16.precision, float32.precision) == ("bf16", "float32")
    assert bf16.label != float32.label and bf16.run_id != float32.run_id
    assert bf16.status == "done"


def test_an_experiment_that_was_overridden_is_labelled_with_what_was(train):
    record = train("+experiment=cifar10_range_test", "schedule=range_test", "seed=5")[0].record
    assert record.experiment == "cifar10_range_test"
    assert record.label.startswith("cifar10_range_test[") and record.label.endswith("]")
    assert "iterations=12" in record.label and "stepsize=3" in record.label and "seed" not in record.label


def test_evaluation_and_checkpoints_leave_the_run_the_same(tmp_path):
    (first,) = train(tmp_path / "a", "eval_every=12")
    (again,) = train(tmp_path / "b", "eval_every=6", "data.eval_batch_size=50", EVERY_ITERATION)
    assert first.run_id == again.run_id and first.record.label == again.record.label
    ours, theirs = (checkpoint(checkpoints(tmp_path / name, first.run_id)[-1])["network"] for name in "ab")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Done, locked, failed -------------------------------------------------------------------------------------------------


def test_a_repeated_run_says_so_and_changes_nothing(tmp_path, train, caplog):
    (first,) = train()
    before = everything_in(tmp_path)
    with caplog.at_level(logging.INFO):
        (again,) = train()
    assert again.record == first.record and first.fresh and not again.fresh
    assert "already done" in caplog.text
    assert everything_in(tmp_path) == before


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path, train, caplog):
    with cut(batch=6), pytest.raises(PowerCut):
        train(EVERY_ITERATION)
    (folder,) = (tmp_path / "runs").iterdir()
    before = everything_in(tmp_path)
    with FileLock(folder / "lock"), caplog.at_level(logging.INFO):
        (outcome,) = train()
    assert (outcome.run_id, outcome.record, outcome.fresh) == (folder.name, None, False)
    assert "another process" in caplog.text
    assert everything_in(tmp_path) == before
    assert train()[0].record.status == "done"


def test_of_a_group_only_the_locked_run_is_left_alone(tmp_path, train):
    run_id = train("seed=1", "iterations=2")[0].run_id
    shutil.rmtree(tmp_path / "results")
    with FileLock(tmp_path / "runs" / run_id / "lock"):
        outcomes = {outcome.run_id: outcome for outcome in train("seed=[0,1]", "iterations=2")}
    assert outcomes.pop(run_id).record is None
    (other,) = outcomes.values()
    assert other.record.status == "done" and other.record.seed == 0


class OwnNetwork(Cifar10Full):
    pass


def test_what_an_id_does_not_tell_of_a_users_own_network_is_said(train, caplog):
    caplog.set_level(logging.INFO)
    own = ("model._target_=test_run.OwnNetwork", "iterations=1")
    train(*own)
    assert "a class of yours" not in caplog.text
    train(*own)
    assert "does not tell whether the code of a class of yours has changed" in caplog.text


def test_half_written_files_of_a_run_that_was_killed_are_removed(tmp_path, train):
    run_id = train("iterations=2")[0].run_id
    record = records.record_path(tmp_path / "results", run_id)
    record.unlink()
    halves = [
        path.with_name(f".{path.name}.4711.tmp") for path in (record, records.curve_path(tmp_path / "results", run_id))
    ]
    for half in halves:
        half.write_bytes(b"half of it")
    train("iterations=2")
    assert record.exists() and not any(half.exists() for half in halves)


def test_a_failed_run_is_recorded_with_its_message_and_run_again_on_the_next_call(tmp_path, train):
    with cut(batch=8, error=RuntimeError("the cat sat on the cable")), pytest.raises(RuntimeError, match="the cat"):
        train(EVERY_ITERATION)
    (path,) = (tmp_path / "results" / "runs").iterdir()
    failed = records.read_record(path)
    assert failed.status == "failed" and failed.message == "RuntimeError: the cat sat on the cable"
    assert failed.iterations == 7 and len(curve(tmp_path, failed.run_id)) == 2
    (outcome,) = train()
    assert outcome.fresh and outcome.run_id == failed.run_id
    assert outcome.record.status == "done" and outcome.record.message == ""
    assert records.read_record(path) == outcome.record
    assert [segment["iteration"] for segment in outcome.record.segments] == [0, 7]


def test_a_run_whose_device_no_longer_answers_is_recorded_with_what_failed_first(tmp_path, train, monkeypatch):
    stop = Classifier.stop_clock

    def dead(module):
        if module.iteration >= 7:
            raise RuntimeError("the GPU does not answer")
        stop(module)

    monkeypatch.setattr(Classifier, "stop_clock", dead)
    with cut(batch=8, error=RuntimeError("the cat sat on the cable")), pytest.raises(RuntimeError, match="the cat"):
        train()
    (path,) = (tmp_path / "results" / "runs").iterdir()
    assert records.read_record(path).message == "RuntimeError: the cat sat on the cable"


def test_neither_an_evaluation_nor_a_checkpoint_counts_as_training(train, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    validate, save = Classifier.validation_step, callbacks.save_checkpoint

    def slowly(function, seconds):
        def slow(*arguments):
            clock.now += seconds
            return function(*arguments)

        return slow

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Classifier, "validation_step", slowly(validate, 10.0))
    monkeypatch.setattr(callbacks, "save_checkpoint", slowly(save, 1000.0))
    monkeypatch.setattr(module, "reference_step", slowly(module.reference_step, 1.0))
    record = train(EVERY_ITERATION)[0].record
    assert (record.train_seconds, record.eval_seconds % 10) == (12, 0) and record.eval_seconds >= 10 * 2


def test_an_unreadable_record_is_named(tmp_path, train):
    (outcome,) = train("iterations=2")
    records.record_path(tmp_path / "results", outcome.run_id).write_text("{")
    with pytest.raises(ValueError, match=f"{outcome.run_id}.json"):
        train("iterations=2")


# Divergence -----------------------------------------------------------------------------------------------------------


def test_a_diverged_run_is_recorded_with_its_curve_up_to_there_and_not_run_again(tmp_path, train, caplog):
    with caplog.at_level("INFO"):
        (outcome,) = train("schedule.base_lr=1e30", "schedule.max_lr=1e30", "eval_every=1")
    record = outcome.record
    assert re.findall(r"seed 0  (\d+)/12 ", caplog.text)[-1] == str(record.iterations)  # and not a step more
    assert record.status == "diverged" and 0 < record.iterations < 12 and record.train_seconds > 0
    assert re.search(rf"loss is (nan|inf) at iteration {record.iterations}", record.message)
    rows = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
    assert [row.iteration for row in rows] == list(range(record.iterations))
    (again,) = train("schedule.base_lr=1e30", "schedule.max_lr=1e30", "eval_every=1")
    assert not again.fresh and again.record == record


def test_weights_that_overflow_in_the_last_step_count_as_divergence(train):
    record = train("schedule.base_lr=1e38", "schedule.max_lr=1e38", "iterations=1")[0].record
    assert record.status == "diverged"


def test_a_member_that_diverges_leaves_the_others_as_they_would_be_alone(tmp_path, monkeypatch):
    explosive = "model._target_=small_runs.Seed1Explodes"
    good, bad = sorted(train(tmp_path / "group", "seed=[0,1]", explosive), key=lambda outcome: outcome.record.seed)
    assert bad.record.status == "diverged" and bad.record.iterations < 12
    assert good.record.status == "done" and good.record.iterations == 12
    (alone,) = train(tmp_path / "alone", explosive)
    assert alone.run_id == good.run_id
    assert_same_bits(tmp_path / "group", tmp_path / "alone", alone.run_id)
    assert bad.record.iterations % BLOCKS["reference"]  # it was noticed at once, not at the end of the block
    monkeypatch.setitem(BLOCKS, "reference", 1)
    singly = max(train(tmp_path / "singly", "seed=[0,1]", explosive), key=lambda outcome: outcome.record.seed)
    assert (singly.record.iterations, singly.record.message) == (bad.record.iterations, bad.record.message)


# Several seeds in one process -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solo(tmp_path_factory):
    """Runs of seeds 0, 1 and 2, shuffled, each in a process's worth of its own: folder, ids by seed."""
    folder = tmp_path_factory.mktemp("solo")
    return folder, {seed: train(folder, "data.shuffle=true", f"seed={seed}")[0].run_id for seed in range(3)}


def test_a_list_of_seeds_is_that_many_runs(tmp_path, train, solo):
    folder, ids = solo
    outcomes = train("data.shuffle=true", "seed=[0,1]")
    assert {outcome.record.seed: outcome.run_id for outcome in outcomes} == {0: ids[0], 1: ids[1]}
    assert len({outcome.record.label for outcome in outcomes}) == 1
    for outcome in outcomes:
        assert_same_bits(tmp_path, folder, outcome.run_id)
        alone = records.read_record(records.record_path(folder / "results", outcome.run_id))
        assert outcome.record.config == alone.config and outcome.record.label == alone.label
        assert outcome.record.test_accuracy == alone.test_accuracy
        assert len(list((tmp_path / "runs" / outcome.run_id).glob("checkpoint-*.pt"))) == 1
    assert curve(tmp_path, ids[0]) != curve(tmp_path, ids[1])


def test_a_group_resumes_from_a_mixture_of_done_cut_and_new(tmp_path, train, solo):
    folder, ids = solo
    train("data.shuffle=true", "seed=0")
    done = records.record_path(tmp_path / "results", ids[0]).read_bytes()
    with cut(batch=8), pytest.raises(PowerCut):
        train("data.shuffle=true", "seed=1", EVERY_ITERATION)
    outcomes = {outcome.record.seed: outcome for outcome in train("data.shuffle=true", "seed=[0,1,2]")}
    assert {seed: outcome.fresh for seed, outcome in outcomes.items()} == {0: False, 1: True, 2: True}
    assert [segment["iteration"] for segment in outcomes[1].record.segments] == [0, 7]
    assert records.record_path(tmp_path / "results", ids[0]).read_bytes() == done
    for seed, run_id in ids.items():
        assert outcomes[seed].run_id == run_id
        assert_same_bits(tmp_path, folder, run_id)


def test_a_group_that_is_cut_resumes_as_a_group(tmp_path, train, solo):
    folder, _ = solo
    with cut(batch=6), pytest.raises(PowerCut):
        train("data.shuffle=true", "seed=[0,1]", EVERY_ITERATION)
    for outcome in train("data.shuffle=true", "seed=[0,1]"):
        assert outcome.record.segments[1]["iteration"] == 6
        assert_same_bits(tmp_path, folder, outcome.run_id)


@pytest.mark.parametrize("network", ["WithDropout", "DropsByCall"])
def test_a_network_that_draws_numbers_draws_the_same_alone_in_a_group_and_continued(tmp_path, network):
    dropout = f"model._target_=small_runs.{network}"
    with cut(batch=8), pytest.raises(PowerCut):
        train(tmp_path / "group", dropout, "seed=[0,1]", EVERY_ITERATION)
    for outcome in train(tmp_path / "group", dropout, "seed=[0,1]"):
        assert outcome.record.segments[1]["iteration"] == 7
        train(tmp_path / "alone", dropout, f"seed={outcome.record.seed}")
        assert_same_bits(tmp_path / "group", tmp_path / "alone", outcome.run_id)


@pytest.mark.parametrize("unmeasured", [0, 1])
def test_members_cut_before_and_after_the_last_evaluation_both_end_with_a_whole_curve(
    tmp_path, train, solo, unmeasured
):
    # As when a process is killed between the two last checkpoints of a group: one has the last row, one lacks it.
    folder, ids = solo
    train("data.shuffle=true", f"seed={1 - unmeasured}")
    shutil.rmtree(tmp_path / "results")
    with cut(evaluation=12), pytest.raises(PowerCut):
        train("data.shuffle=true", f"seed={unmeasured}", EVERY_ITERATION)
    assert len(train("data.shuffle=true", "seed=[0,1]")) == 2
    for seed in (0, 1):
        assert_same_bits(tmp_path, folder, ids[seed])
