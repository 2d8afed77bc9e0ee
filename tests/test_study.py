"""Studies: lists of experiments, run until nothing is missing."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from small_runs import CONF, REPOSITORY, Forked, records_in

from cyclical_lr import records
from cyclical_lr.report.arms import LATER_POLICIES, MISTAKES
from cyclical_lr.training import sweep
from cyclical_lr.training.config import check, compose_config, describe, label, plain
from cyclical_lr.training.local import Progress, in_processes
from cyclical_lr.training.sweep import Job

SCRIPT = REPOSITORY / "scripts" / "study.py"
STUDIES = sorted((CONF / "study").glob("*.yaml"))
TINY = "data=cifar10_sample data.batch_size=4 data.eval_batch_size=500 compress=5000"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_a_study_is_a_run_of_its_own_that_could_start(path):
    ids = {}
    for arm in yaml.safe_load(path.read_text())["experiments"]:
        experiment, *overrides = arm.split()
        plan = plain(compose_config(CONF, [f"+experiment={experiment}", *overrides]))
        check(plan)
        config = describe(plan, seed=0)
        assert len(records.learning_rates(config)) == config["iterations"] + 1
        ids[arm] = records.run_id(config)
    assert len(set(ids.values())) == len(ids), "two arms are the same run"


@pytest.mark.parametrize(
    ("study", "groups"),
    [("porting_mistakes", MISTAKES), ("modern", LATER_POLICIES)],
)
def test_a_figures_rows_are_the_arms_of_its_study_each_at_its_end(study, groups):
    plans = []
    for arm in yaml.safe_load((CONF / "study" / f"{study}.yaml").read_text())["experiments"]:
        experiment, *overrides = arm.split()
        plans.append(plain(compose_config(CONF, [f"+experiment={experiment}", *overrides])))
    rows = [(name, iteration) for cells in groups.values() for name, iteration, _ in cells]
    assert sorted(rows) == sorted((label(plan, CONF), plan["iterations"]) for plan in plans)


def run_study(arguments: list[str]) -> None:
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def start(tmp_path: Path, arms: list[str], *arguments: str) -> Forked:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"experiments": arms}))
    where = [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs"]
    output = tmp_path / f"output{len(list(tmp_path.glob('output*')))}.txt"
    return Forked(output, run_study, [f"+study={file}", "logger=none", *where, *arguments])


def study(tmp_path: Path, arms: list[str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of a study of these arms, whose files go into `tmp_path`."""
    return start(tmp_path, arms, *arguments).ends()


def test_a_study_runs_what_is_missing_goes_on_after_a_failure_and_says_so(tmp_path):
    arms = [f"cifar10_fixed_25k {TINY}", f"cifar10_exp {TINY} data.train_sha256=abc", f"cifar10_tri2 {TINY}"]
    code, output = study(tmp_path, arms, "threads=1")
    assert code == 1, output
    summary = output[output.index("2 of 3 runs are done") :]
    failed = r"^  failed +cifar10_exp\[.*\] seed 0 .*data.train_sha256"
    assert re.search(failed, summary, re.MULTILINE), summary
    assert summary.count("  done ") == 2
    assert "[3/3] cifar10_tri2" in output
    done = records_in(tmp_path)
    assert sorted(record.experiment for record in done) == ["cifar10_fixed_25k", "cifar10_tri2"]
    assert {path.stem for path in (tmp_path / "results/curves").glob("*.csv")} == {record.run_id for record in done}

    code, output = study(tmp_path, arms[::2], "threads=1")
    assert code == 0, output
    assert "2 of 2 runs are done, 0 are missing" in output and "[1/" not in output

    code, output = study(tmp_path, [f"cifar10_tri {TINY}", f"cifar10_tri2 {TINY} model.lrn=typo"], "threads=1")
    assert code == 2 and "error: model.lrn: expected 'within_channel'" in output and len(records_in(tmp_path)) == 2


def test_progress_is_read_from_the_curves_and_what_has_ended_is_not_left(tmp_path, caplog):
    plans = [plain(compose_config(CONF, [f"+experiment={name}"])) for name in ("cifar10_tri2", "cifar10_exp")]
    first, second = (Job([], plan["experiment"], [describe(plan, 0)], tmp_path, tmp_path) for plan in plans)
    progress = Progress([first, second])
    assert (progress.bar.total, progress.iterations()) == (95_000, 0)
    curve = tmp_path / records.run_id(second.configs[0]) / "curve.csv"
    records.write_curve(curve, [records.CurveRow(t, 0.001, 1.0, 1.0, 50.0, 1.0) for t in (0, 3000, 7000)])
    assert progress.iterations() == 7000 == Progress([second]).bar.n
    with pytest.raises(RuntimeError), progress.of(first):
        raise RuntimeError("a run that fails")
    assert progress.iterations() == 25_000 + 7000
    progress.every = 0.01
    with progress, caplog.at_level("INFO"):
        time.sleep(0.5)
    assert re.fullmatch(r"2 runs: 34 %, 32,000 of 95,000 iterations, \d+:\d\d left", caplog.messages[-1])


def test_a_job_has_failed_unless_it_ended_well_or_diverged(tmp_path):
    jobs = [Job([str(code)], f"ends with {code}", [], tmp_path, tmp_path) for code in (0, 1, 3, 7)]
    script = "import sys; print('last words'); sys.exit(int(sys.argv[1]))"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    problems = in_processes(jobs, 2, [sys.executable, "-c", script], [])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    for number, handler in before.items():
        signal.signal(number, handler)
    assert problems == {f"ends with {code} seed ": f"exit code {code} after 'last words'" for code in (1, 7)}


@pytest.mark.slow
def test_jobs_are_processes_that_share_the_cores(tmp_path):
    code, output = study(tmp_path, [f"cifar10_fixed_25k {TINY}", f"cifar10_tri2 {TINY}"], "jobs=2")
    assert code == 0, output
    assert output.index("[2/2] cifar10_tri2") < output.index("5/5"), "one began after the other had ended"
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [record.threads for record in records_in(tmp_path)] == [share, share]
    assert len(re.findall(r"^  done .* %$", output, re.MULTILINE)) == 2


@pytest.mark.parametrize("to", ["process", "a thread that waits for a run"])  # the kernel may pick any thread
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_to_stop_a_study_is_to_stop_all_of_its_processes(tmp_path, signum, to):
    process = start(tmp_path, [f"cifar10_fixed_25k {TINY}", f"cifar10_tri2 {TINY}", f"cifar10_tri {TINY}"], "jobs=2")
    threads = Path(f"/proc/{process.pid}/task")
    children: dict[str, int] = {}  # and the thread that started each
    while len(children) < 2:
        assert process.process.is_alive(), process.output.read_text()
        time.sleep(0.05)
        listed = {thread.name: (thread / "children").read_text().split() for thread in threads.iterdir()}
        children = {child: int(thread) for thread, started in listed.items() for child in started}
    os.kill(process.pid if to == "process" else next(iter(children.values())), signum)
    code, output = process.ends()
    assert code == 128 + signum, output
    assert "[3/3]" not in output
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert records_in(tmp_path) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_study_that_is_stopped_in_a_run_says_that_it_goes_on(tmp_path, signum, code):
    long = f"cifar10_tri2 {TINY} eval_every=20".replace("compress=5000", "compress=10")
    process = start(tmp_path, [long], "threads=1")
    while "  20/2,500 " not in process.output.read_text():
        assert process.process.is_alive(), process.output.read_text()
        time.sleep(0.05)
    os.kill(process.pid, signum)
    ended, output = process.ends()
    assert ended == code, output
    assert re.search(r"stopped at iteration \d+; the same command continues", output)
    assert "Traceback" not in output and records_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seeds=0"], "seeds: expected"),
        (["seed=1"], "seeds: expected"),
        (["jobs=0"], "jobs: expected"),
        (["jobs=2", "cluster=slurm"], "jobs: expected cluster=local"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: Hydra launches nothing here"),
        (["+cluster.partitoin=gpu"], "cluster.partitoin: there is no such key; did you mean partition?"),
        (["+typo=1"], "typo: there is no such key"),
        (["trainer=typo"], "trainer"),
        (["seedz=3"], "seedz: there is no such key; did you mean seeds?"),
        (["iteratons=3"], "iteratons: there is no such key; did you mean iterations? scripts/run.py --cfg job after"),
        (["seeds=2", "seeds=3"], "seeds: expected it once, got it 2 times"),
        (["+study=none_such"], "study: expected it once, got it 2 times"),
        (["table1_cifar"], "table1_cifar: expected KEY=VALUE, such as +study=table1_cifar"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_trained(tmp_path, arguments, message):
    code, output = study(tmp_path, [f"cifar10_tri2 {TINY}"], *arguments)
    assert code == 2, output
    assert re.search(rf"^error: .*{re.escape(message)}", output, re.MULTILINE), output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected .* to have one key with the runs, such as `experiments: .*`, got None"),
        ("- cifar10_tri2", "to have one key with the runs"),
        ("arms: [cifar10_tri2]", "to have one key with the runs"),
        ("experiments: []", "to have one key with the runs"),
        ("experiments: [3]", "to have one key with the runs"),
        ("word " * 1000, r"to have one key with the runs.*, got 'word .* \[\.\.\.\]$"),
        ("experiments: [cifar10_tri2]\nseeds: 5", "to have one key with the runs"),
        (
            "experiments: [cifar10_tri2, cifar10_tri2 seed=1]",
            "expected arms without seed= in .*, got cifar10_tri2 seed=1",
        ),
        (
            "experiments: [cifar10_tri2, cifar10_tri2 data.root=/x]",
            "has 'cifar10_tri2 data.root=/x' twice, as cifar10_tri2 ",
        ),
        ("experiments: [cifar10_tri2", "is no YAML file"),
        ("experiments: [cifar10_tri9]", "experiment: there is no 'cifar10_tri9'; did you mean cifar10_tri"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_what_it_should_be(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    code, output = Forked(tmp_path / "output.txt", run_study, [f"+study={file}", "logger=none"]).ends()
    assert code == 2 and "Traceback" not in output
    assert re.search(rf"^error: .*{message}", output, re.MULTILINE), output


def test_a_record_that_cannot_be_read_fails_its_run_alone_in_one_paragraph(tmp_path):
    arms = [f"cifar10_fixed_25k {TINY}", f"cifar10_tri2 {TINY}"]
    assert study(tmp_path, arms[:1], "threads=1")[0] == 0
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    path.write_text("{}")
    code, output = study(tmp_path, arms, "threads=1")
    assert code == 1 and "Traceback" not in output
    assert re.search(
        rf"^  failed +cifar10_fixed_25k.* seed 0 .*{path.name} is not a run's record", output, re.MULTILINE
    )
    assert re.search(r"^  done +cifar10_tri2", output, re.MULTILINE)


def test_a_run_that_is_over_is_done_whoever_holds_its_lock(tmp_path, caplog):
    overrides = ["+experiment=cifar10_fixed_25k", *TINY.split()]
    where = [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs", "logger=none", "threads=1"]
    assert study(tmp_path, [f"cifar10_fixed_25k {TINY}"], "threads=1")[0] == 0
    job = sweep.plan_job(compose_config(CONF, [*overrides, *where]), CONF, overrides)
    (lock,) = (tmp_path / "runs").glob("*/lock")
    caplog.set_level("INFO")
    with FileLock(lock):
        assert sweep.report([job], {})
    assert "1 of 1 runs are done" in caplog.text
    (record,) = records_in(tmp_path)
    records.curve_path(job.results_dir, record.run_id).unlink()
    assert not sweep.report([job], {}) and f"missing  {job.title}  ended without a curve" in caplog.text
    records.write_record(job.results_dir, replace(record, status="failed", message="the cat"))
    assert not sweep.report([job], {}) and f"failed   {job.title}  the cat" in caplog.text
    records.record_path(job.results_dir, record.run_id).unlink()
    assert not sweep.report([job], {}) and f"missing  {job.title}  ended without a record" in caplog.text


def test_help_lists_every_study():
    shown = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(f"  {path.stem} " in shown.stdout for path in STUDIES)
