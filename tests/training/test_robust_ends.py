"""What goes wrong around a run, in its middle or at its end: a clear word, nothing lost, and a rerun completes.

A full disk under checkpoints and records is in test_resume.py.
"""

import errno
import fcntl
import json
import os
import pickle
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_runs import (
    Forked,
    PowerCut,
    TinyData,
    assert_same_bits,
    checkpoints,
    curve,
    cut,
    records_in,
    run_script,
    tiny,
)
from small_runs import train as train_in

from cyclical_lr.data.cifar_files import sha256_in_order
from cyclical_lr.records import ConfigError
from cyclical_lr.training import tracking

EVENTFUL = "data._target_=test_robust_ends.EventfulData"


class EventfulData(TinyData):
    """Something happens to the world in mid-run, before iteration 6."""

    event: ClassVar[Callable[[], object]] = staticmethod(lambda: None)

    def indices(self, seed: int, iteration: int, count: int) -> torch.Tensor:
        if iteration == 6:
            type(self).event()
        return super().indices(seed, iteration, count)


@pytest.fixture
def happens(monkeypatch):
    """`happens(event)`: call `event` before iteration 6 of the runs that follow."""
    return lambda event: monkeypatch.setattr(EventfulData, "event", staticmethod(event))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, train_in(folder, EVENTFUL)[0].run_id


# The results folder ---------------------------------------------------------------------------------------------------


def lock(folder):
    """Take the right to write into a folder, from root too; False where root's cannot be taken."""
    folder.chmod(0o555)
    return os.geteuid() != 0 or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode == 0


def unlock(folder):
    if os.geteuid() == 0:
        subprocess.run(["chattr", "-i", folder], capture_output=True)
    folder.chmod(0o755)


@pytest.fixture
def read_only(tmp_path):
    """`read_only(folder)`: make it so, until the test is over."""
    made = []

    def make(folder):
        made.append(folder)
        if not lock(folder):
            pytest.skip("root needs a file system that knows chattr +i to lose the right to write")

    yield make
    for folder in made:
        unlock(folder)


@pytest.mark.parametrize("name", ["runs", "curves"])
def test_a_results_folder_that_goes_read_only_in_mid_run_costs_no_training(
    tmp_path, train, undisturbed, happens, read_only, name
):
    folder = tmp_path / "results" / name
    happens(lambda: read_only(folder))
    with pytest.raises(OSError, match=r"results_dir: cannot write to .*results \(.*Nothing .* lost.*same command"):
        train(EVENTFUL)
    assert records_in(tmp_path) == []
    straight, run_id = undisturbed
    assert checkpoints(tmp_path, run_id)[-1].name.endswith("12.pt")

    with pytest.raises(ConfigError, match="results_dir: cannot write"):  # the cause is still there
        train(EVENTFUL)
    unlock(folder)
    happens(lambda: pytest.fail("trained again"))
    (outcome,) = train(EVENTFUL)
    assert outcome.record.status == "done" and [segment["iteration"] for segment in outcome.record.segments] == [0, 12]
    assert_same_bits(tmp_path, straight, run_id)


def test_who_may_only_read_the_results_may_still_ask_for_what_is_done(tmp_path, train, read_only):
    (first,) = train("iterations=2")
    for folder in (tmp_path / "results" / "runs", tmp_path / "results" / "curves", tmp_path / "runs"):
        read_only(folder)
    (again,) = train("iterations=2", f"runs_dir={tmp_path}/runs/new")
    assert not again.fresh and again.record == first.record


def test_a_curve_that_was_lost_is_written_again_without_training(tmp_path, train, happens, undisturbed, caplog):
    (outcome,) = train(EVENTFUL)
    (lost,) = (tmp_path / "results" / "curves").iterdir()
    lost.unlink()
    happens(lambda: pytest.fail("trained again"))
    caplog.set_level("INFO")
    train(EVENTFUL)
    assert "was trained before, to its end; what is missing is written from" in caplog.text
    assert_same_bits(tmp_path, undisturbed[0], outcome.run_id)


def test_a_run_that_goes_on_with_other_evaluations_says_so(train, caplog):
    with cut(batch=8), pytest.raises(PowerCut):
        train("checkpoint_seconds=0", "eval_every=6")
    caplog.set_level("INFO")
    train("eval_every=4")
    assert "it was evaluated at other iterations so far than eval_every=4 gives: [0, 6]" in caplog.text


def test_a_file_system_without_flock_is_refused_before_a_lock_could_outlive_its_owner(tmp_path, train, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(ConfigError, match=r"runs_dir: cannot lock .*not implemented.*runs_dir=.*flock"):
        train("iterations=2")
    monkeypatch.undo()
    assert train("iterations=2")[0].record.status == "done"


def test_another_results_folder_takes_what_a_full_one_could_not(tmp_path, train, full_disk):
    with full_disk(500), pytest.raises(OSError, match=r"results_dir: cannot write to .*too large.*results_dir="):
        train("seed=[0,1]", "iterations=2")
    assert records_in(tmp_path) == [] and not list((tmp_path / "results").rglob(".*.tmp"))
    outcomes = train("seed=[0,1]", "iterations=2", f"results_dir={tmp_path}/elsewhere")
    assert [outcome.record.status for outcome in outcomes] == ["done", "done"]
    assert len(list((tmp_path / "elsewhere" / "runs").glob("*.json"))) == 2


def test_where_not_even_a_checkpoint_fits_nothing_is_promised(tmp_path, train, full_disk, caplog):
    with full_disk(10), pytest.raises(OSError, match=r"Nor could the last checkpoint.*goes on from the one before"):
        train("iterations=2")
    assert "no checkpoint at iteration 2" in caplog.text and f"make room in {tmp_path}" in caplog.text


def test_a_results_folder_that_is_removed_in_mid_run_is_made_again(tmp_path, train, happens, undisturbed):
    happens(lambda: shutil.rmtree(tmp_path / "results"))
    (outcome,) = train(EVENTFUL)
    assert records_in(tmp_path) == [outcome.record] and outcome.record.status == "done"
    assert_same_bits(tmp_path, undisturbed[0], outcome.run_id)


def test_a_run_folder_that_cannot_be_written_any_more_costs_checkpoints_and_not_the_run(
    tmp_path, train, happens, undisturbed, caplog
):
    def block():
        (folder,) = (tmp_path / "runs").iterdir()
        shutil.rmtree(folder)
        folder.write_text("in the way")

    happens(block)
    (outcome,) = train(EVENTFUL)
    assert outcome.record.status == "done"
    assert "no checkpoint at iteration 12" in caplog.text and "curve" in caplog.text
    assert curve(tmp_path, outcome.run_id) == curve(undisturbed[0], undisturbed[1])


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_set(tmp_path):
    """A set of 80 + 50 images in torchvision's layout: overrides, and one of its files."""
    folder, chance = tmp_path / "data" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    overrides = ["data=cifar10", f"data.root={folder.parent}"]
    for split, names in {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}.items():
        parts = []
        for name in names:
            count = 50 if split == "test" else 16
            planes, labels = chance.integers(0, 256, (count, 3072), np.uint8), np.arange(count) % 10
            (folder / name).write_bytes(pickle.dumps({"data": planes, "labels": labels.tolist()}))
            parts.append((planes, labels))
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        overrides.append(f"data.{split}_sha256={sha256_in_order(images, labels)}")
    return overrides, folder / "data_batch_3"


def test_data_that_changed_since_a_run_began_are_refused_and_it_goes_on_with_the_right_ones(tmp_path, train, small_set):
    overrides, file = small_set
    with cut(batch=6), pytest.raises(PowerCut):
        train(*overrides, "checkpoint_seconds=0")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("checkpoint*")}
    right = file.read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    file.write_bytes(wrong)
    with pytest.raises(ConfigError, match=r"data\.train_sha256: .*cifar-10-batches-py.*expected .*received .*Remove"):
        train(*overrides)
    assert records_in(tmp_path) == [] and len(before) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("checkpoint*")} == before

    file.write_bytes(right)
    (outcome,) = train(*overrides)
    assert outcome.record.status == "done" and outcome.record.segments[1]["iteration"] == 6
    (straight,) = train_in(tmp_path / "straight", *overrides)
    assert straight.run_id == outcome.run_id
    assert_same_bits(tmp_path, tmp_path / "straight", outcome.run_id)


# W&B ------------------------------------------------------------------------------------------------------------------

KEY = "0123456789" * 4
ANSWER = {
    "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
    "upsertBucket": {
        "inserted": True,
        "bucket": {
            **{"id": "x", "name": "x", "displayName": "x", "description": "", "config": "{}", "sweepName": None},
            **{"project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}, "historyLineCount": 0},
        },
    },
}


class Host(BaseHTTPRequestHandler):
    """Stands in for W&B's: takes the key, opens one run, and is down from then on."""

    opened: ClassVar[bool] = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        up = self.path == "/graphql" and not Host.opened
        Host.opened |= b"upsertBucket" in body
        answer = json.dumps({"data": ANSWER}).encode() if up else b""
        self.send_response(200 if up else 503)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host():
    """The address of a host that is down as soon as it has opened a run."""
    Host.opened = False
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent_host():
    """The address of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def run_impatiently(overrides):
    tracking.INIT_TIMEOUT = tracking.FINISH_TIMEOUT = 3  # that the wait has an end is tested, not its length
    run_script(overrides)


def run_online(tmp_path, url):
    overrides = tiny(tmp_path, "logger=wandb", "logger.mode=online", "iterations=4", "eval_every=2")
    here = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path / "home")}
    code, output = Forked(tmp_path / "out.txt", run_impatiently, overrides, **here).ends(seconds=100)
    assert code == 0, output
    (record,) = records_in(tmp_path)
    assert record.status == "done" and len(curve(tmp_path, record.run_id)) == 3
    return output, list((tmp_path / "runs" / record.run_id / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_host_that_goes_down_in_mid_run_does_not_hold_up_the_end(tmp_path, host):
    output, offline = run_online(tmp_path, host)
    assert Host.opened and not offline
    assert "W&B did not finish cleanly (TimeoutError" in output and "scripts/wandb_replay.py" in output


@pytest.mark.slow
def test_a_host_that_never_answers_is_given_up_and_the_run_logged_offline(tmp_path, silent_host):
    output, (file,) = run_online(tmp_path, silent_host)
    assert "W&B could not be opened online" in output
    assert file.read_bytes().count(b"test_accuracy") >= 3
