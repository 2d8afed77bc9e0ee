"""W&B is a view: offline unless asked, never in the way, and absent where it is not wanted."""

import logging
import sys
from types import SimpleNamespace

import pytest
from small_runs import Forked, records_in, run_script, tiny

from cyclical_lr.training import tracking

WANDB = ("logger=wandb", "iterations=4", "eval_every=2")


def offline_runs(folder, run_id):
    return sorted((folder / "runs" / run_id / "wandb").glob("offline-run-*"))


def script_then_list_wandb_modules(overrides):
    try:
        run_script(overrides)
    finally:  # a script ends with SystemExit
        print("wandb modules:", sorted(name for name in sys.modules if name.partition(".")[0] == "wandb"))


def test_without_a_logger_nothing_of_wandb_is_imported(tmp_path):
    overrides = tiny(tmp_path, "iterations=2")
    code, output = Forked(tmp_path / "out.txt", script_then_list_wandb_modules, overrides).ends()
    assert code == 0 and "wandb modules: []" in output
    assert not list(tmp_path.rglob("*wandb*"))


def test_wandbs_own_switch_turns_it_off(tmp_path):
    overrides = tiny(tmp_path, *WANDB)
    code, output = Forked(tmp_path / "out.txt", script_then_list_wandb_modules, overrides, WANDB_MODE="disabled").ends()
    assert code == 0 and "wandb modules: []" in output
    code, output = Forked(tmp_path / "o.txt", run_script, [*overrides, "seed=1"], WANDB_MODE="dryrun").ends()
    assert code == 2 and "'disabled', got 'dryrun'; WANDB_MODE gives it" in output


def test_a_wandb_that_cannot_be_imported_ends_no_run(train, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (outcome,) = train("logger=wandb", "iterations=2")
    assert outcome.record.status == "done" and "W&B is off for this run, as it cannot be imported" in caplog.text


@pytest.mark.slow
def test_seeds_of_one_process_become_offline_runs_of_their_own(tmp_path):
    code, output = Forked(tmp_path / "out.txt", run_script, tiny(tmp_path, *WANDB, "seed=[0,1]")).ends()
    assert code == 0, output
    done = records_in(tmp_path)
    assert [record.seed for record in done] == [0, 1]
    for record, other in zip(done, reversed(done), strict=True):
        (folder,) = offline_runs(tmp_path, record.run_id)
        assert folder.name.endswith(f"-{record.run_id}")
        logged = (folder / f"run-{record.run_id}.wandb").read_bytes()
        assert logged.count(b"test_accuracy") >= 3  # a row per evaluation
        assert f"seed {record.seed}".encode() in logged and b"base_lr" in logged
        assert f"seed {other.seed}".encode() not in logged


@pytest.mark.slow
def test_without_a_key_an_online_run_goes_on_offline_and_asks_nothing(tmp_path):
    overrides = tiny(tmp_path, *WANDB, "logger.mode=online")
    alone = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    process = Forked(tmp_path / "out.txt", run_script, overrides, **alone)
    code, output = process.ends(seconds=120)
    assert code == 0, output
    assert "logger.mode=online" in output and "offline" in output
    (record,) = records_in(tmp_path)
    assert record.status == "done" and len(offline_runs(tmp_path, record.run_id)) == 1


def open_without_a_network(folders):
    """What `run` does with the loggers of several seeds, at a host that refuses."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    tracking.INIT_TIMEOUT = 3  # it is how long to wait that is bounded, not this test's patience
    loggers = [
        tracking.open_logger(
            folder, folder.name, "a run", {"seed": 0}, kind="wandb", project="p", entity=None, mode="online"
        )
        for folder in folders
    ]
    assert None not in loggers, "not even offline"
    for logger in loggers:
        logger.log_metrics({"test_accuracy": 12.5}, step=1)
    for logger in loggers:
        tracking.close_logger(logger, "done")


@pytest.mark.slow
def test_behind_a_proxy_the_host_need_not_be_reached_directly(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(
        wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url="http://127.0.0.1:9"))
    )
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "127.0.0.1:9 cannot be reached" in tracking._obstacle(wandb)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")
    assert tracking._obstacle(wandb) == ""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "127.0.0.1:9 cannot be reached" in tracking._obstacle(wandb)


def test_a_host_that_cannot_be_reached_costs_a_bounded_time_and_every_seed_is_logged_offline(tmp_path):
    folders = [tmp_path / "runs" / run_id for run_id in ("0123456789ab", "ba9876543210")]
    for folder in folders:
        folder.mkdir(parents=True)
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
    code, output = Forked(tmp_path / "out.txt", open_without_a_network, folders, **closed).ends(seconds=120)
    assert "could not be opened online" in output
    assert code == 0 and "did not finish" not in output, output
    for folder in folders:
        (offline,) = offline_runs(tmp_path, folder.name)
        assert b"test_accuracy" in (offline / f"run-{folder.name}.wandb").read_bytes()
