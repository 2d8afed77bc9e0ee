"""What a run does inside a Slurm job, as far as it can be shown without Slurm; `tests/slurm` has the rest."""

import os
import signal
import time

import pytest
from small_runs import (
    Forked,
    Terminated,
    TinyData,
    assert_same_bits,
    checkpoints,
    records_in,
    run_script,
    tiny,
    train,
)

JOB = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}


@pytest.mark.slow
def test_a_submitted_job_trains_on_after_sigterm_until_slurm_kills_it(tmp_path):
    length = ("iterations=300", "eval_every=100")
    overrides = tiny(tmp_path, *length, "checkpoint_seconds=0")
    process = Forked(tmp_path / "out.txt", run_script, overrides, **JOB, SUBMITIT_EXECUTOR="slurm")
    while not any(checkpoints(tmp_path, folder.name) for folder in (tmp_path / "runs").glob("*")):
        assert process.process.is_alive(), process.output.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    code, output = process.ends()
    assert code == 0 and "SIGTERM: training goes on" in output, output
    (record,) = records_in(tmp_path)
    assert record.status == "done" and len(record.segments) == 1
    train(tmp_path / "undisturbed", *length)
    assert_same_bits(tmp_path, tmp_path / "undisturbed", record.run_id)


class TermedData(TinyData):
    """Whose first evaluation sends SIGTERM."""

    def eval_blocks(self, shard=(0, 1)):
        blocks = super().eval_blocks(shard)
        return Terminated(blocks) if self.served is None else blocks


def test_so_does_the_evaluation_before_training(tmp_path):
    overrides = tiny(tmp_path, "data._target_=test_slurm_job.TermedData", "iterations=2")
    code, output = Forked(tmp_path / "out.txt", run_script, overrides, **JOB, SUBMITIT_EXECUTOR="slurm").ends()
    assert code == 0 and "SIGTERM: training goes on" in output, output


def test_in_an_allocation_of_several_tasks_a_run_is_still_one_process(tmp_path, train, monkeypatch):
    for name, value in {**JOB, "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    (outcome,) = train("iterations=2")
    assert outcome.record.status == "done"
