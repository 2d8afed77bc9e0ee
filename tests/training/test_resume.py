"""A run that was cut and continued is the run that was not: the same bits, wherever it was cut."""

import hashlib
import io
import itertools
import logging
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from small_runs import (
    Forked,
    PowerCut,
    assert_same_bits,
    checkpoint,
    checkpoints,
    cut,
    records_in,
    run_script,
    tiny,
    train,
)

from cyclical_lr import records, solvers
from cyclical_lr.training import module
from cyclical_lr.training import run as training_run
from cyclical_lr.training.callbacks import Interrupts, restore_checkpoint, save_checkpoint
from cyclical_lr.training.module import Classifier, Member

LONG = ("iterations=26", "eval_every=8")  # 2.6 epochs of 10, 4.3 cycles of 6
EVERY_ITERATION = "checkpoint_seconds=0"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of an unbroken run with these overrides, and its id; each is run once."""
    known = {}

    def find(*overrides: str) -> tuple[Path, str]:
        if overrides not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            known[overrides] = folder, train(folder, *overrides)[0].run_id
        return known[overrides]

    return find


def continued_at(outcome):
    return [segment["iteration"] for segment in outcome.record.segments]


def rewrite(path, **changed):
    file = io.BytesIO()
    torch.save(checkpoint(path) | changed, file)
    path.write_bytes(file.getvalue() + hashlib.sha256(file.getvalue()).digest())


SHUFFLED, OTHER_SOLVER = ("data.shuffle=true",), ("solver=torch_sgd", "solver.nesterov=true")


@pytest.mark.parametrize(
    ("where", "resumed", "overrides"),
    [
        pytest.param({"batch": 0}, 0, (), id="before the first step"),
        pytest.param({"batch": 5}, 4, (), id="mid-epoch, mid-cycle, before the first evaluation"),
        pytest.param({"batch": 15}, 14, (), id="mid-epoch and mid-cycle, in the second of each"),
        pytest.param({"batch": 15}, 14, SHUFFLED, id="mid-epoch of a shuffled second epoch"),
        pytest.param({"batch": 15}, 14, OTHER_SOLVER, id="with another solver's buffers"),
        pytest.param({"batch": 21}, 20, SHUFFLED, id="at the end of a shuffled epoch"),
        pytest.param({"batch": 16}, 16, (), id="at an evaluation that no checkpoint has"),
        pytest.param({"evaluation": 8}, 8, (), id="in an evaluation"),
        pytest.param({"evaluation": 26}, 26, (), id="in the last evaluation"),
    ],
)
def test_a_cut_run_ends_with_the_bits_of_an_unbroken_one(tmp_path, train, unbroken, where, resumed, overrides):
    straight, run_id = unbroken(*LONG, *overrides)
    with cut(**where), pytest.raises(PowerCut):
        train(*LONG, *overrides, EVERY_ITERATION)
    assert records_in(tmp_path) == []
    (outcome,) = train(*LONG, *overrides)
    assert outcome.run_id == run_id and outcome.record.status == "done"
    # That the cut was where the test's name says; a run that began again from nothing would prove nothing.
    assert continued_at(outcome)[1:] == ([resumed] if resumed else [])
    assert_same_bits(tmp_path, straight, run_id)


def test_a_run_that_is_cut_again_and_again_ends_with_the_same_bits(tmp_path, train, unbroken):
    straight, run_id = unbroken(*LONG)
    for batch in (4, 8, 13, 14, 23):
        with cut(batch=batch), pytest.raises(PowerCut):
            train(*LONG, EVERY_ITERATION)
    (outcome,) = train(*LONG)
    assert continued_at(outcome) == [0, 3, 8, 12, 13, 22]
    assert_same_bits(tmp_path, straight, run_id)


def test_a_run_cut_between_its_last_checkpoint_and_its_record_only_writes_the_record(tmp_path, train, unbroken):
    straight, run_id = unbroken()
    (first,) = train()
    shutil.rmtree(tmp_path / "results")
    (outcome,) = train("engine=fast")  # whose process trains nothing
    assert outcome.record.engine == first.record.engine != outcome.record.segments[-1]["engine"]
    assert outcome.fresh and continued_at(outcome) == [0, 12]
    assert outcome.record.versions == first.record.versions
    assert outcome.record.clock == first.record.clock
    assert [segment["kernels"] for segment in outcome.record.segments] == [first.record.versions["kernels"], "none"]
    assert_same_bits(tmp_path, straight, run_id)


def test_a_continued_run_has_the_seconds_and_the_blemish_of_all_its_processes(tmp_path, train, monkeypatch):
    monkeypatch.setattr(training_run, "DIRTY", True)
    with cut(batch=10), pytest.raises(PowerCut):
        train(EVERY_ITERATION)
    monkeypatch.setattr(training_run, "DIRTY", False)
    (folder,) = (tmp_path / "runs").iterdir()
    rewrite(checkpoints(tmp_path, folder.name)[-1], train_seconds=1000.0, eval_seconds=2000.0)
    record = train()[0].record
    assert 1000 < record.train_seconds < 1100 and 2000 < record.eval_seconds < 2100
    assert record.dirty and [segment["dirty"] for segment in record.segments] == [True, False]


# Damaged and half-written checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, train):
    """A run that was cut at iteration 9 and left its two newest checkpoints, of iterations 8 and 9: its id."""
    with cut(batch=10), pytest.raises(PowerCut):
        train(EVERY_ITERATION)
    (folder,) = (tmp_path / "runs").iterdir()
    assert [checkpoint(path)["iteration"] for path in checkpoints(tmp_path, folder.name)] == [8, 9]
    return folder.name


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def test_a_half_written_checkpoint_beside_is_not_taken_for_one(tmp_path, train, stopped, unbroken):
    newest = checkpoints(tmp_path, stopped)[-1]
    half = newest.read_bytes()[:1000]
    (newest.parent / ".checkpoint-000000010.pt.4711.tmp").write_bytes(half)
    (outcome,) = train()
    assert continued_at(outcome) == [0, 9]
    assert_same_bits(tmp_path, unbroken()[0], stopped)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(
    tmp_path, train, stopped, unbroken, caplog, damage
):
    newest = checkpoints(tmp_path, stopped)[-1]
    damage(newest)
    (outcome,) = train()
    assert continued_at(outcome) == [0, 8]
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert any(newest.name in text and "the one before" in text for text in warnings)
    assert_same_bits(tmp_path, unbroken()[0], stopped)


def test_without_a_readable_checkpoint_a_run_begins_again_and_says_so(tmp_path, train, stopped, unbroken, caplog):
    damaged = checkpoints(tmp_path, stopped)
    for path in damaged:
        truncate(path)
    (outcome,) = train()
    assert continued_at(outcome) == [0]
    assert all(path.name in caplog.text for path in damaged)
    assert_same_bits(tmp_path, unbroken()[0], stopped)


def test_what_a_checkpoint_leaves_when_half_of_it_cannot_be_taken_is_undone(
    tmp_path, train, stopped, unbroken, caplog, monkeypatch
):
    """As after a change of the code: the network fits, its solver does not."""

    def refuse(solver, state):
        if state["state"]:
            raise ValueError("another solver's")

    monkeypatch.setattr(solvers.Solver, "load_state_dict", refuse)
    (outcome,) = train()
    assert continued_at(outcome) == [0] and "another solver's" in caplog.text
    assert_same_bits(tmp_path, unbroken()[0], stopped)


def test_a_checkpoint_of_another_form_leaves_nothing_of_itself(tmp_path, train, stopped, unbroken, caplog):
    """As after a change of the code, too: a curve with a column more."""
    for path in checkpoints(tmp_path, stopped):
        rewrite(path, curve=[(*row, 0.0) for row in checkpoint(path)["curve"]])
    (outcome,) = train()
    assert continued_at(outcome) == [0] and "cannot be used" in caplog.text
    assert_same_bits(tmp_path, unbroken()[0], stopped)


def test_a_run_that_begins_again_beside_unusable_checkpoints_can_be_cut_again(tmp_path, train, stopped, unbroken):
    damaged = checkpoints(tmp_path, stopped)
    for path in damaged:
        truncate(path)
    with cut(batch=7), pytest.raises(PowerCut):
        train(EVERY_ITERATION)
    (outcome,) = train(EVERY_ITERATION)
    assert continued_at(outcome) == [0, 6]
    assert_same_bits(tmp_path, unbroken()[0], stopped)
    assert not set(damaged) & set(checkpoints(tmp_path, stopped))


@pytest.mark.parametrize("saved", [(40, 45, 55), (45, 50, 55)])  # past the iteration of the unusable one, and at it
def test_an_unusable_checkpoint_is_none_of_the_two_that_are_kept(tmp_path, saved):
    network = torch.nn.Linear(1, 1)
    member = Member("run", "label", 0, network, torch.optim.SGD(network.parameters(), 0.1), segments=[{}])
    (tmp_path / "checkpoint-000000050.pt").write_bytes(b"half of it")
    assert not restore_checkpoint(tmp_path, member)
    for member.iteration in saved:
        save_checkpoint(tmp_path, member)
    assert [checkpoint(path)["iteration"] for path in sorted(tmp_path.iterdir())] == list(saved[1:])


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path, train, stopped, unbroken, caplog):
    other = train("seed=7", "iterations=11")[0].run_id
    shutil.copy(checkpoints(tmp_path, other)[-1], tmp_path / "runs" / stopped)
    (outcome,) = train()
    assert continued_at(outcome) == [0, 9]
    assert f"belongs to run {other}" in caplog.text
    assert_same_bits(tmp_path, unbroken()[0], stopped)


# A full disk ----------------------------------------------------------------------------------------------------------

CHECKPOINT_DOES_NOT_FIT, RECORD_DOES_NOT_FIT = 100_000, 1_000


def test_a_disk_too_full_for_a_checkpoint_leaves_the_one_before_and_does_not_stop_training(
    tmp_path, train, stopped, unbroken, full_disk, caplog
):
    before = {path: path.read_bytes() for path in checkpoints(tmp_path, stopped)}
    with full_disk(CHECKPOINT_DOES_NOT_FIT):
        (outcome,) = train(EVERY_ITERATION)
    assert outcome.record.status == "done" and outcome.record.iterations == 12
    assert caplog.text.count("no checkpoint at iteration 12") == 2  # after the last block, and after the run
    assert {path: path.read_bytes() for path in (tmp_path / "runs" / stopped).glob("*checkpoint*")} == before
    shutil.rmtree(tmp_path / "results")  # the checkpoint that was left is good for another end
    train()
    assert_same_bits(tmp_path, unbroken()[0], stopped)


def test_a_disk_too_full_for_the_record_leaves_none_and_the_run_ends_on_the_next_call(
    tmp_path, train, stopped, unbroken, full_disk
):
    before = {path: path.read_bytes() for path in checkpoints(tmp_path, stopped)}
    with full_disk(RECORD_DOES_NOT_FIT), pytest.raises(OSError, match="too large"):
        train()
    assert records_in(tmp_path) == []
    assert {path: path.read_bytes() for path in (tmp_path / "runs" / stopped).glob("*checkpoint*")} == before
    assert train()[0].record.status == "done"
    assert_same_bits(tmp_path, unbroken()[0], stopped)


# Killed ---------------------------------------------------------------------------------------------------------------


def wait_for(condition, process, seconds=120.0):
    """Whether `condition` came true before the process ended."""
    end = time.monotonic() + seconds
    while not condition():
        if not process.process.is_alive():
            return False
        assert time.monotonic() < end, process.output.read_text()
        time.sleep(0.0005)
    return True


@pytest.mark.slow
def test_a_run_killed_at_random_moments_until_it_ends_has_the_same_bits(tmp_path, unbroken):
    length = ("iterations=300", "eval_every=100")
    straight, run_id = unbroken(*length)
    folder, chance, kills = tmp_path / "runs" / run_id, random.Random(0), 4
    for attempt in range(kills + 1):
        before = {path.name for path in checkpoints(tmp_path, run_id)}
        process = Forked(tmp_path / f"{attempt}.txt", run_script, tiny(tmp_path, *length, EVERY_ITERATION))
        if attempt == kills:
            break
        # Only after a step further, or it would never end.
        assert wait_for(lambda known=before: {path.name for path in checkpoints(tmp_path, run_id)} - known, process)
        if attempt % 2:  # while a checkpoint is being written
            wait_for(lambda: list(folder.glob(".checkpoint-*.tmp")), process)
        else:
            time.sleep(chance.uniform(0, 0.2))
        process.process.kill()
        code, output = process.ends()
        assert code == -signal.SIGKILL, output
    code, output = process.ends()
    assert code == 0, output
    record = records.read_record(records.record_path(tmp_path / "results", run_id))
    assert record.status == "done" and len(record.segments) >= 3
    assert_same_bits(tmp_path, straight, run_id)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_record_and_continues_where_it_stopped(tmp_path, unbroken, signum):
    length = ("iterations=1000", "eval_every=100")
    straight, run_id = unbroken(*length)
    process = Forked(tmp_path / "first.txt", run_script, tiny(tmp_path, *length))
    evaluated = tmp_path / "runs" / run_id / "curve.csv"
    assert wait_for(lambda: evaluated.exists() and "\n100," in evaluated.read_text(), process)
    assert not checkpoints(tmp_path, run_id)  # one a minute
    os.kill(process.pid, signum)
    code, output = process.ends()
    assert code == 128 + signum, output
    assert not list((tmp_path / "results").rglob("*.json")), output
    (stopped,) = re.findall(r"stopped at iteration ([\d,]+); the same command continues there", output)
    (outcome,) = train(tmp_path, *length)
    assert outcome.record.status == "done"
    assert continued_at(outcome) == [0, int(stopped.replace(",", ""))] and continued_at(outcome)[1] >= 100
    assert_same_bits(tmp_path, straight, run_id)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [9, 15, 20])  # within a block, in the last one before an evaluation, at a block's end
def test_a_run_that_is_interrupted_within_a_block_ends_after_that_iteration(tmp_path, train, unbroken, signum, at):
    straight, run_id = unbroken(*LONG)
    step = module.reference_step

    def interrupted(network, *arguments):
        if (calls := next(count)) == at:
            signal.raise_signal(signum)
        assert calls <= at
        return step(network, *arguments)

    count = itertools.count()
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as left:
        patched.setattr(module, "reference_step", interrupted)
        train(*LONG)
    assert left.value.code == 128 + signum
    assert checkpoint(checkpoints(tmp_path, run_id)[-1])["curve"][-1][0] == at // 8 * 8
    (outcome,) = train(*LONG)
    assert continued_at(outcome) == [0, at + 1]
    assert_same_bits(tmp_path, straight, run_id)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_in_an_evaluation_continues_there(tmp_path, train, unbroken, monkeypatch, signum):
    straight, _ = unbroken(*LONG)
    step = Classifier.validation_step

    def interrupted(module, batch, number):
        if module.iteration == 8 and number == 0:
            signal.raise_signal(signum)
        step(module, batch, number)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
        patched.setattr(Classifier, "validation_step", interrupted)
        train(*LONG)
    assert left.value.code == 128 + signum
    (outcome,) = train(*LONG)
    assert continued_at(outcome) == [0, 8]
    assert_same_bits(tmp_path, straight, outcome.run_id)


def test_a_shell_that_ignores_interrupts_for_a_run_in_the_background_is_obeyed():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_waits_for_the_end_of_a_step_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):  # between steps
            signal.raise_signal(signal.SIGINT)
        interrupts.on_train_batch_start()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.on_train_batch_end()
        assert not interrupts.busy
    assert signal.getsignal(signal.SIGINT) is before
    with Interrupts() as interrupts:
        interrupts.on_validation_batch_start()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.busy
