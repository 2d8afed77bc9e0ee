"""Many runs at once: no run twice, none lost, no torn file. `make soak` does the same with a hundred faults."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from soak import soak

from cyclical_lr import records

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = "data=cifar10_sample data.batch_size=4 data.eval_batch_size=500 compress=5000"


@pytest.mark.slow
def test_twenty_processes_of_which_ten_are_killed_at_random_moments_leave_every_run_once_and_whole(tmp_path):
    outcome = soak(tmp_path, runs=12, faults=10, processes=20)
    assert (outcome.runs, outcome.processes, outcome.faults) == (12, 20, 10)
    assert outcome.torn > 0 and outcome.continued > 0  # else nothing was put to the test


@pytest.mark.slow
def test_a_study_that_is_started_twice_at_once_trains_each_run_once(tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text(yaml.safe_dump({"experiments": [f"cifar10_tri2 {TINY}", f"cifar10_fixed_25k {TINY}"]}))
    command = [sys.executable, "scripts/study.py", f"+study={study}", "seeds=2", "threads=1", "logger=none"]
    command += [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    done = [records.read_record(path) for path in (tmp_path / "results" / "runs").glob("*.json")]
    assert len(done) == 4 and {record.status for record in done} == {"done"}
    trained = Counter(run_id for output in outputs for run_id in re.findall(r"wrote  .*/runs/(\w+)\.json", output))
    assert trained == {record.run_id: 1 for record in done}
    assert not list(tmp_path.rglob(".*.tmp"))
