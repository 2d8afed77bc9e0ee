"""scripts/run.py as a process: what it prints, how it exits, what a sweep does."""

import re
import resource
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from filelock import FileLock
from small_runs import CONF, SAMPLE, SCRIPT, Forked, records_in, run_script, tiny

from cyclical_lr import records
from cyclical_lr.records import ConfigError
from cyclical_lr.training.config import compose_config, describe, plain
from hydra_plugins.cyclical_lr import _launched, launch

DIVERGES = ("schedule.base_lr=1e30", "schedule.max_lr=1e30")
UNUSABLE, DIVERGED = 2, 3
README = CONF.parent / "README.md"


@pytest.fixture
def script(tmp_path):
    """`script(*overrides)`: exit code and output of a tiny run, or sweep, as a process of its own."""

    def run(*overrides, sweep=False):
        output = tmp_path / f"output{len(list(tmp_path.glob('output*')))}.txt"
        return Forked(output, run_script, ["-m"] * sweep + tiny(tmp_path, *overrides)).ends()

    return run


# --help ---------------------------------------------------------------------------------------------------------------


def test_help_lists_every_experiment_with_its_line_in_no_time_and_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cards = sorted((CONF / "experiment").glob("*.yaml"))
    assert cards
    for card in cards:
        about = card.read_text().splitlines()[1].removeprefix("# ")
        assert re.search(rf"^\s+{card.stem}\s+{re.escape(about)}$", shown.stdout, re.MULTILINE), card.stem
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "hydra" in imported and not imported & {"torch", "pytorch_lightning", "wandb", "pandas", "scipy"}
    # 2 seconds is what a person should wait; a busy machine, and -X importtime, take more.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 4


# One run --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_trains_prints_the_result_and_the_paths_and_repeats_nothing(tmp_path):
    where = [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs", "iterations=4", "schedule.base_lr=0.001"]
    overrides = [*SAMPLE, *where]
    first = subprocess.run([sys.executable, str(SCRIPT), *overrides], capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (record,) = records_in(tmp_path)
    written = tmp_path / "results" / "runs" / f"{record.run_id}.json"
    assert str(written) in first.stdout and str(tmp_path / "results" / "curves") in first.stdout
    assert f"{record.test_accuracy:.2f} % at 4 iterations" in first.stdout
    assert "4/4" in first.stdout and "lr 1.00e-03" in first.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"results", "runs"}  # nothing beside, such as Hydra's folders
    before = written.read_bytes()
    code, output = Forked(tmp_path / "again.txt", run_script, overrides).ends()
    assert code == 0 and "already done" in output
    assert f"{record.test_accuracy:.2f} % at 4 iterations" in output and "to train again what is done" in output
    assert written.read_bytes() == before


def test_a_run_in_another_process_is_left_alone_and_that_is_no_error(tmp_path, script):
    plan = plain(compose_config(CONF, tiny(tmp_path)))
    folder = tmp_path / "runs" / records.run_id(describe(plan, 0))
    with FileLock(folder / "lock"):
        code, output = script()
    assert code == 0, output
    assert "being worked on by another process" in output and str(folder) in output
    assert records_in(tmp_path) == []
    assert script()[0] == 0 and len(records_in(tmp_path)) == 1


# Exit codes -----------------------------------------------------------------------------------------------------------


def test_a_diverged_run_has_an_exit_code_of_its_own_also_when_repeated(tmp_path, script):
    for _ in range(2):
        code, output = script(*DIVERGES)
        assert code == DIVERGED and "diverged" in output
    (record,) = records_in(tmp_path)
    assert record.status == "diverged"


def test_a_range_test_that_diverges_is_a_success(tmp_path, script):
    ramp = ("schedule=range_test", "schedule.base_lr=0", "schedule.max_lr=1e30", "schedule.stepsize=12")
    code, output = script("+experiment=cifar10_range_test", *ramp)
    (record,) = records_in(tmp_path)
    assert record.status == "diverged" and "diverged" in output
    assert code == 0


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+typo=1", "typo"),
        ("+experiments=cifar10_tri2", "experiments: there is no such key; did you mean experiment?"),
        ("cifar10_tri2", "cifar10_tri2: expected KEY=VALUE, such as +experiment=cifar10_tri2"),
        ("schedule.stepsize=0", "schedule.stepsize"),
        ("seed=-1", "seed"),
        ("iterations=0", "0"),
        ("hydra.job.chdir=true", "hydra.job.chdir: expected false"),
        ("+hydra.sweeper.params.seed=0", "put them into a card"),
        ("trainer.max_epochs=3", "trainer.max_epochs: there is no such key; iterations=N is the length"),
    ],
)
def test_unusable_input_is_one_line_and_an_exit_code_of_its_own(tmp_path, script, override, named):
    code, output = script(override)
    assert code == UNUSABLE
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert named in line and "Traceback" not in output
    assert records_in(tmp_path) == []


def test_a_misspelt_experiment_fails_and_shows_which_there_are(tmp_path, script):
    code, output = script("+experiment=cifar10_tri3")
    assert code not in (0, DIVERGED)
    assert "cifar10_tri3" in output and "cifar10_tri2" in output and "Traceback" not in output
    assert records_in(tmp_path) == []


def test_a_failed_run_exits_with_1_and_its_message(tmp_path, script):
    code, output = script("model._target_=small_runs.Fails")
    assert code == 1 and "the cat sat on the cable" in output
    (record,) = records_in(tmp_path)
    assert record.status == "failed" and "the cat sat on the cable" in record.message
    assert output.rstrip().endswith(f"{record.run_id}.json; the same command goes on from the last checkpoint, if any")


def test_the_readmes_way_from_a_record_to_its_network_gives_the_records_accuracy(tmp_path, script):
    assert script("iterations=12")[0] == 0
    (record,) = records_in(tmp_path)
    ((code,),) = [re.findall(r"in its last checkpoint[^\n]*:\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)]
    for name, here in {
        "results/runs/RUN_ID": f"{tmp_path}/results/runs/{record.run_id}",
        "outputs/RUN_ID/checkpoint-000025000": f"{tmp_path}/runs/{record.run_id}/checkpoint-000000012",
        "arange(500)": "arange(50)",
    }.items():
        assert name in code
        code = code.replace(name, here)
    found = {}
    exec(code, found)
    assert 100 * found["accuracy"].item() == pytest.approx(record.test_accuracy, abs=1e-4)


# Sweeps ---------------------------------------------------------------------------------------------------------------


def test_in_a_sweep_the_others_finish_beside_one_that_diverges(tmp_path, script):
    code, output = script("iterations=4", "schedule.max_lr=0.005,1e30,0.006", sweep=True)
    assert code == 0, output
    statuses = {record.config["schedule"]["max_lr"]: record.status for record in records_in(tmp_path)}
    assert statuses == {0.005: "done", 1e30: "diverged", 0.006: "done"}
    lines = re.findall(r"^  (\w+) +custom\[.*\] seed 0  (.*)$", output, re.MULTILINE)
    assert [status for status, _ in lines] == ["done", "diverged", "done"], output
    assert "loss is" in lines[1][1] and lines[2][1].endswith(" %")


def test_in_a_sweep_the_others_finish_beside_one_that_fails_and_the_exit_code_tells(tmp_path, script):
    code, output = script("iterations=2", "schedule.stepsize=3,0,4", sweep=True)
    assert code == 1
    assert re.search(r"^  refused +schedule.stepsize=0 +schedule.stepsize: expected", output, re.MULTILINE), output
    assert {record.config["schedule"]["stepsize"] for record in records_in(tmp_path)} == {3, 4}


def test_in_a_sweep_the_others_finish_beside_one_that_has_no_such_key(tmp_path, script):
    code, output = script("iterations=2", "schedule=triangular,fixed", sweep=True)  # of which one has a max_lr
    assert code == 1, output
    assert re.search(r"^  refused +schedule=fixed +schedule.max_lr: there is no such key", output, re.MULTILINE), output
    assert [record.status for record in records_in(tmp_path)] == ["done"]


def test_a_sweep_takes_no_directory_of_each_jobs_own(tmp_path, script):
    code, output = script("seed=0,1", "hydra.job.chdir=true", sweep=True)
    assert code == UNUSABLE and output.startswith("error: hydra.job.chdir: expected false"), output
    assert records_in(tmp_path) == []


def test_nor_do_the_jobs_of_a_study():
    with pytest.raises(ConfigError, match=r"hydra\.job\.chdir: expected false"):
        launch(CONF, ["hydra.job.chdir=true"], print, [])


def test_a_launcher_that_ends_all_for_one_job_leaves_a_sweep_its_report():
    class Launcher:
        def __init__(self, error):
            self.error = error

        def launch(self, job_overrides, initial_job_idx):
            raise self.error

    jobs = [SimpleNamespace(title=f"a seed {seed}", overrides=[]) for seed in range(2)]
    killed = RuntimeError("Job 1 has not\nproduced any output")
    said = "RuntimeError: Job 1 has not produced any output"
    assert _launched(Launcher(killed), jobs) == {"a seed 0": said, "a seed 1": said}
    with pytest.raises(ConfigError, match="partition"):
        _launched(Launcher(ConfigError("cluster.partition: none")), jobs)


def test_the_report_of_a_sweep_has_a_failed_runs_message_and_the_log_its_traceback(tmp_path, script):
    code, output = script("iterations=2", "model._target_=small_runs.Fails,small_runs.WithDropout", sweep=True)
    assert code == 1
    assert re.search(r"^  failed .* seed 0  RuntimeError: the cat sat on the cable$", output, re.MULTILINE), output
    assert "Traceback" in output and "1 of 2 runs are done" in output
    assert sorted(record.status for record in records_in(tmp_path)) == ["done", "failed"]


def test_the_report_of_a_sweep_has_the_latest_reason(tmp_path, script):
    assert script("model._target_=small_runs.Fails", sweep=True)[0] == 1
    code, output = script("model._target_=small_runs.Fails", "data.root=/gone", "data=cifar10", sweep=True)
    assert code == 1
    (line,) = re.findall(r"^  failed .* seed 0  (.*)$", output, re.MULTILINE)
    assert "/gone" in line and "cat" not in line


def test_a_sweep_without_a_place_for_its_runs_is_refused_in_one_line(tmp_path, script):
    (tmp_path / "file").touch()
    for folder in (f"{tmp_path}/file/runs", "'~/runs'"):
        code, output = script("seed=0,1", f"runs_dir={folder}", sweep=True)
        assert code == UNUSABLE and output.startswith("error: runs_dir: ") and output.count("\n") == 1, output
    assert records_in(tmp_path) == []


def test_a_sweep_without_a_folder_for_its_runs_makes_none(tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = script("seed=0,1", "runs_dir=null", sweep=True)
    assert code == 1 and output.count("runs_dir: expected a folder, got None") == 2
    assert not (tmp_path / "None").exists()


def test_a_card_may_hold_a_sweep(tmp_path):
    (tmp_path / "experiment").mkdir()
    card = (CONF / "experiment" / "cifar10_fixed_25k.yaml").read_text().replace("cifar10_fixed_25k", "mine")
    card += "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1', schedule.base_lr: '0.001,0.002'}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(card)
    where = [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs"]
    overrides = [*SAMPLE, *where, "iterations=2", "schedule.base_lr=0.003,0.004"]  # the command line's comes last
    command = ["--config-dir", str(tmp_path), "+experiment=mine", *overrides]
    code, output = Forked(tmp_path / "out.txt", run_script, command).ends()
    assert code == 0 and "4 of 4 runs are done" in output, output
    ran = {(record.seed, record.config["schedule"]["base_lr"]) for record in records_in(tmp_path)}
    assert ran == {(0, 0.003), (0, 0.004), (1, 0.003), (1, 0.004)}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "error: cluster: expected Slurm's commands on the PATH"),
        (["cluster.time=1-00:00:00"], "error: cluster.time: expected a whole number of minutes, got '1-00:00:00'; see"),
        (["cluster.memory=8GB"], "error: cluster.memory: expected a whole number of GB, got '8GB'; see"),
    ],
)
def test_jobs_that_cannot_be_submitted_are_refused_in_one_line(tmp_path, overrides, said):
    command = tiny(tmp_path, "cluster=slurm", "cluster.snapshot=false", *overrides)
    code, output = Forked(tmp_path / "out.txt", run_script, command, PATH=str(tmp_path)).ends()
    assert code == UNUSABLE and said in output and "Traceback" not in output, output


def test_a_repeated_sweep_runs_only_what_is_missing(tmp_path, script):
    assert script("iterations=2", "seed=0,1", sweep=True)[0] == 0
    before = {record.seed: record.ended for record in records_in(tmp_path)}
    code, output = script("iterations=2", "seed=range(3)", sweep=True)
    assert code == 0 and "2 of 3 runs are done, 1 are missing" in output
    after = {record.seed: record.ended for record in records_in(tmp_path)}
    assert set(after) == {0, 1, 2} and {seed: after[seed] for seed in before} == before


def test_a_run_that_is_done_under_another_name_is_told_with_it(tmp_path, script):
    assert script("iterations=2")[0] == 0
    (record,) = records_in(tmp_path)
    other = replace(record, label="mine")
    records.write_record(tmp_path / "results", other)
    code, output = script("iterations=2")
    assert code == 0 and f"tables have it under that name; to have it as {record.label} too, give folders" in output
    code, output = script("iterations=2", "seed=0,1", sweep=True)
    assert code == 0 and f"{record.test_accuracy:.2f} %, recorded as mine\n" in output
    assert output.count("recorded as") == 1


def test_a_curve_that_is_cut_is_told_in_a_sweep_and_the_exit_code_tells(tmp_path, script):
    assert script("iterations=2", "seed=0,1", sweep=True)[0] == 0
    record = records_in(tmp_path)[0]
    path = records.curve_path(tmp_path / "results", record.run_id)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    code, output = script("iterations=2", "seed=0,1", sweep=True)
    assert code == 1 and "1 of 2 runs are done, 1 are missing" in output
    assert re.search(rf"^  failed .* seed {record.seed}  {path} is .*or remove it", output, re.MULTILINE), output


@pytest.mark.parametrize("nothing", ["seed=range(5,1)", "solver=glob(cafe*)"])
def test_a_sweep_of_nothing_is_refused(tmp_path, script, nothing):
    code, output = script(nothing, sweep=True)
    assert code == UNUSABLE and f"{nothing}: expected a run or more, got none" in output, output


def test_folders_come_from_the_environment_where_the_command_does_not_name_them(tmp_path):
    overrides = [text for text in tiny(tmp_path, "iterations=2") if not text.startswith("runs_dir=")]
    elsewhere = {"CYCLICAL_LR_RUNS": str(tmp_path / "elsewhere")}
    code, output = Forked(tmp_path / "out.txt", run_script, overrides, **elsewhere).ends()
    assert code == 0, output
    (record,) = records_in(tmp_path)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [record.run_id]
