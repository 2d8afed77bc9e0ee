"""On a real Slurm, whatever happens to a job: the records are those of an undisturbed local run, bit for bit."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from held_runs import STOP
from small_runs import REPOSITORY, assert_same_bits, records_in, tiny, train
from small_slurm import Slurm

from cyclical_lr.records import Record

HERE = Path(__file__).parent
HELD = ("data._target_=held_runs.HeldData", "checkpoint_seconds=0")
CLUSTER = ("cluster=slurm", "cluster.cpus=1", "cluster.memory=null")
UNDISTURBED, REQUEUED, NODE_DIES, CANCELLED, FAILING, TIMED_OUT, PREEMPTED, EDITED, QUEUED, RANKS = range(10)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(seed, *overrides)`: folder and record of that run, in this process and without any Slurm."""

    @cache
    def find(seed: int, *overrides: str) -> tuple[Path, Record]:
        folder = tmp_path_factory.mktemp("undisturbed")
        record = train(folder, *HELD, f"seed={seed}", *overrides)[0].record
        assert record is not None
        return folder, record

    return find


def assert_same_run(folder: Path, undisturbed: tuple[Path, Record]) -> Record:
    """Record, curve and final weights in `folder` are the undisturbed run's; returns the record."""
    straight, expected = undisturbed
    (record,) = [record for record in records_in(folder) if record.run_id == expected.run_id]
    for name in (
        "status",
        "label",
        "iterations",
        "test_accuracy",
        "best_test_accuracy",
        "threads",
        "message",
        "config",
    ):
        assert getattr(record, name) == getattr(expected, name), name
    assert_same_bits(folder, straight, record.run_id)
    return record


def continued_at(record: Record) -> list[int]:
    return [segment["iteration"] for segment in record.segments]


@dataclass
class Submission:
    """A script of the repository, or of a copy of it, that submits jobs and waits for them."""

    slurm: Slurm
    output: Path
    process: subprocess.Popen[bytes]

    def ends(self) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        self.slurm.until(lambda: self.process.poll() is not None)
        return self.process.wait(), self.output.read_text()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait while it runs; `condition` must come true before it ends."""
        self.slurm.until(lambda: condition() or self.process.poll() is not None)
        assert condition(), self.output.read_text()

    def jobs(self) -> list[str]:
        """Slurm's ids of its jobs, in the order of the overrides."""
        return re.findall(r"^Slurm job (\w+):", self.output.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def submit(slurm):
    """`submit(folder, *arguments)`: `scripts/run.py -m`, or another script, with the folder for its files."""
    submissions = []

    def start(folder: Path, *arguments: str, script: str = "scripts/run.py", code: Path = REPOSITORY) -> Submission:
        paths = [code / "src", REPOSITORY / "tests", HERE]
        environment = {**slurm.environment, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HELD_RUNS": str(folder)}
        output = folder / f"output{len(submissions)}.txt"
        with output.open("wb") as file:
            command = [sys.executable, str(code / script), *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
        submissions.append(Submission(slurm, output, process))
        return submissions[-1]

    yield start
    for submission in submissions:
        submission.process.kill()
        submission.process.wait()


def command_line(folder: Path, *overrides: str) -> list[str]:
    return tiny(folder, *HELD, *CLUSTER, *overrides)


def hold(folder: Path, *seeds: int) -> None:
    for seed in seeds:
        (folder / f"hold-{seed}").touch()


def let_go(folder: Path, seed: int) -> None:
    (folder / f"hold-{seed}").unlink()


def held(folder: Path, *seeds: int) -> Callable[[], bool]:
    """Whether these runs wait in mid-run, with a checkpoint."""
    return lambda: all((folder / f"held-{seed}").exists() for seed in seeds)


def over(folder: Path, *seeds: int) -> Callable[[], bool]:
    return lambda: set(seeds) <= {record.seed for record in records_in(folder)}


def restarted(slurm: Slurm, job: str) -> bool:
    """Whether Slurm has queued the job again and its processes have ended."""
    shown = slurm("scontrol", "show", "job", job)
    return "Restarts=1" in shown and "JobState=COMPLETING" not in shown


# A sweep to which everything happens at once --------------------------------------------------------------------------


@dataclass
class Sweep:
    folder: Path
    first: tuple[int, str]  # exit code and output
    records: dict[int, Record]  # after the first submission, by seed
    again: tuple[int, str]


@pytest.fixture(scope="module")
def sweep(slurm, submit, tmp_path_factory):
    """Five runs of one sweep, four of them disturbed; then the same command again."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["-m", *command_line(folder, "seed=range(5)")]
    hold(folder, REQUEUED, NODE_DIES, CANCELLED)
    (folder / f"fail-{FAILING}").touch()
    submission = submit(folder, *arguments)

    submission.wait_for(held(folder, REQUEUED, CANCELLED))
    slurm("scontrol", "requeue", submission.jobs()[REQUEUED])
    slurm("scancel", submission.jobs()[CANCELLED])
    submission.wait_for(lambda: restarted(slurm, submission.jobs()[REQUEUED]))
    let_go(folder, REQUEUED)
    submission.wait_for(held(folder, NODE_DIES))
    submission.wait_for(over(folder, UNDISTURBED, REQUEUED, FAILING))
    submission.wait_for(lambda: len(slurm("squeue", "--noheader", "--array").splitlines()) == 1)
    slurm.kill_node()
    let_go(folder, NODE_DIES)
    slurm.start_node()
    first, after = submission.ends(), {record.seed: record for record in records_in(folder)}

    let_go(folder, CANCELLED)
    (folder / f"fail-{FAILING}").unlink()
    return Sweep(folder, first, after, submit(folder, *arguments).ends())


def test_a_job_ends_like_a_local_run(sweep, undisturbed):
    record = assert_same_run(sweep.folder, undisturbed(UNDISTURBED))
    assert continued_at(record) == [0]


@pytest.mark.parametrize("seed", [REQUEUED, NODE_DIES], ids=["requeued in mid-run", "its node died in mid-run"])
def test_a_requeued_job_goes_on_in_the_same_folder(sweep, undisturbed, seed):
    assert sweep.records[seed].status == "done"
    record = assert_same_run(sweep.folder, undisturbed(seed))
    assert record == sweep.records[seed]
    first, *later = continued_at(record)
    assert first == 0 and later and all(0 < iteration <= STOP for iteration in later)


def test_a_cancelled_job_leaves_no_record_and_goes_on_when_the_sweep_is_repeated(sweep, undisturbed):
    assert CANCELLED not in sweep.records
    record = assert_same_run(sweep.folder, undisturbed(CANCELLED))
    assert continued_at(record)[1:] == [pytest.approx(STOP, abs=1)]


def test_a_failed_job_says_so_in_its_record_and_may_be_repeated(sweep, undisturbed):
    assert sweep.records[FAILING].status == "failed"
    assert "the cat sat on the cable" in sweep.records[FAILING].message
    assert_same_run(sweep.folder, undisturbed(FAILING))


def test_the_sweep_ends_with_a_line_per_run_and_exit_code_1(sweep):
    code, output = sweep.first
    assert code == 1, output
    summary = output[output.index("3 of 5 runs are done") :]
    lines = {int(seed): line for line, seed in re.findall(r"^(  \w+ .*? seed (\d) .*)$", summary, re.MULTILINE)}
    for seed in (UNDISTURBED, REQUEUED, NODE_DIES):
        assert re.fullmatch(rf"  done .* seed {seed} +{sweep.records[seed].test_accuracy:.2f} %", lines[seed]), summary
    assert lines[FAILING].startswith("  failed") and "the cat sat on the cable" in lines[FAILING]
    assert lines[CANCELLED].startswith("  failed") and "was cancelled or killed" in lines[CANCELLED]


def test_the_same_command_again_submits_only_what_is_missing(sweep):
    code, output = sweep.again
    assert code == 0, output
    assert "3 of 5 runs are done, 2 are missing" in output and "5 of 5 runs are done" in output
    assert re.findall(r"^Slurm job \w+: (.*)$", output, re.MULTILINE) == [f"seed={CANCELLED}", f"seed={FAILING}"]


def test_what_is_in_the_queue_is_waited_for_and_not_submitted_again(slurm, submit, tmp_path, undisturbed):
    arguments = ["-m", *command_line(tmp_path, f"seed={QUEUED}", "+cluster.sbatch.hold=true")]
    first = submit(tmp_path, *arguments)
    first.wait_for(first.jobs)
    first.process.kill()
    again = submit(tmp_path, *arguments)
    again.wait_for(lambda: f"Slurm job {first.jobs()[0]} (in the queue already): " in again.output.read_text())
    assert len(slurm("squeue", "--noheader", "--array").splitlines()) == 1
    slurm("scontrol", "release", first.jobs()[0])
    code, output = again.ends()
    assert code == 0 and "1 of 1 runs are done" in output and not again.jobs(), output
    assert_same_run(tmp_path, undisturbed(QUEUED))


def test_srun_is_told_of_the_cores_that_sbatch_asked_for(sweep):
    scripts = list((sweep.folder / "runs" / ".submitit").rglob("*submission.sh"))
    assert scripts
    for script in scripts:
        assert re.search(r"^#SBATCH --cpus-per-task=1$", script.read_text(), re.MULTILINE)
        assert re.search(r"^srun .*--cpus-per-task=1 ", script.read_text(), re.MULTILINE)


# Several ranks --------------------------------------------------------------------------------------------------------


def test_a_job_of_two_ranks_is_requeued_and_goes_on(slurm, submit, tmp_path):
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "hydra.launcher.tasks_per_node=2")
    hold(tmp_path, RANKS)
    submission = submit(tmp_path, "-m", *command_line(tmp_path, f"seed={RANKS}", *ranks))
    submission.wait_for(held(tmp_path, RANKS))
    (job,) = submission.jobs()
    slurm("scancel", "--signal=USR2", job)  # as before a time limit
    submission.wait_for(lambda: restarted(slurm, job))
    let_go(tmp_path, RANKS)
    code, output = submission.ends()
    assert code == 0, output
    (record,) = records_in(tmp_path)
    assert record.status == "done" and [segment["ranks"] for segment in record.segments] == [2, 2]
    assert continued_at(record)[1] == pytest.approx(STOP, abs=1)


# Time limits ----------------------------------------------------------------------------------------------------------


def test_a_study_submits_what_is_missing_and_its_jobs_outlast_their_time_limit(slurm, submit, tmp_path, undisturbed):
    experiment = "cifar10_tri_no_drops"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"experiments": [experiment]}))
    straight, _ = undisturbed(0, f"+experiment={experiment}")
    shutil.copytree(straight / "results", tmp_path / "results")
    hold(tmp_path, 1)
    limit = ["cluster.time=1", "hydra.launcher.signal_delay_s=10", "cluster.snapshot=false"]
    arguments = ["+study=mine.yaml", "seeds=2", *command_line(tmp_path, *limit)]
    submission = submit(tmp_path, *arguments, script="scripts/study.py")

    submission.wait_for(held(tmp_path, 1))
    (log,) = (tmp_path / "runs" / ".submitit").glob("*/*_log.out")
    before = log.read_text().count("Requeued job")
    submission.wait_for(lambda: log.read_text().count("Requeued job") > before)
    let_go(tmp_path, 1)
    code, output = submission.ends()
    assert code == 0, output
    assert "1 of 2 runs are done, 1 are missing" in output and len(submission.jobs()) == 1
    record = assert_same_run(tmp_path, undisturbed(1, f"+experiment={experiment}"))
    assert continued_at(record)[-1] == pytest.approx(STOP, abs=1)


# Preemption, and the code under a queued job --------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code, committed: its folder."""
    folder = tmp_path / "checkout"
    for name in ("src", "scripts", "conf"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / ".gitignore").write_text("__pycache__/\n")
    for command in ("init --quiet", "add .", "-c user.name=a -c user.email=a@b.c commit --quiet -m first"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return folder


def head(checkout: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()


def commits(record: Record) -> list[tuple[str, bool]]:
    return [(segment["commit"], segment["dirty"]) for segment in record.segments]


def test_a_preempted_job_goes_on_with_the_code_that_was_submitted(slurm, submit, tmp_path, checkout, undisturbed):
    hold(tmp_path, PREEMPTED)
    submission = submit(tmp_path, "-m", *command_line(tmp_path, f"seed={PREEMPTED}"), code=checkout)
    submission.wait_for(held(tmp_path, PREEMPTED))
    (job,) = submission.jobs()
    log = tmp_path / "runs" / ".submitit" / job / f"{job}_0_log"
    slurm("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=true")
    submission.wait_for(lambda: restarted(slurm, job))
    # Its grace time was over: a job that ends itself at SIGTERM has failed by then, and Slurm leaves it so.
    assert "training goes on" in log.with_suffix(".out").read_text() + log.with_suffix(".err").read_text()
    for file in ("src/cyclical_lr/training/run.py", "conf/run.yaml", "conf/model/cifar10_full.yaml"):
        (checkout / file).write_text("this is not the code that was submitted")
    let_go(tmp_path, PREEMPTED)
    code, output = submission.ends()
    assert code == 0, output
    record = assert_same_run(tmp_path, undisturbed(PREEMPTED))
    assert len(record.segments) == 2 and continued_at(record)[1] > 0
    assert commits(record) == [(head(checkout), False)] * 2


def test_without_a_snapshot_a_job_that_starts_after_an_edit_records_it(slurm, submit, tmp_path, checkout, undisturbed):
    options = ["cluster.snapshot=false", "+cluster.sbatch.hold=true"]
    submission = submit(tmp_path, "-m", *command_line(tmp_path, f"seed={EDITED}", *options), code=checkout)
    submission.wait_for(submission.jobs)
    with (checkout / "src" / "cyclical_lr" / "training" / "run.py").open("a") as file:
        file.write("# edited after submission\n")
    slurm("scontrol", "release", submission.jobs()[0])
    code, output = submission.ends()
    assert code == 0, output
    assert commits(assert_same_run(tmp_path, undisturbed(EDITED))) == [(head(checkout), True)]
