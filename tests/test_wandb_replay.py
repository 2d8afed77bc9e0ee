"""scripts/wandb_replay.py: what it writes, read back from W&B's own files."""

import json
import runpy
import shutil
import struct
import sys
from dataclasses import astuple, fields, replace

import pytest
from filelock import FileLock
from small_runs import REPOSITORY, Forked, records_in, run_script, tiny

from cyclical_lr import records
from cyclical_lr.records import CurveRow

SCRIPT = REPOSITORY / "scripts" / "wandb_replay.py"
UNUSABLE = 2
OWN = ("_timestamp", "_runtime", "_wandb")
"""What W&B says of the minute in which it was called."""


def replay(*commands):
    """`python scripts/wandb_replay.py COMMAND` for each, one after the other; the exit code is the largest."""
    codes = []
    for arguments in commands:
        sys.argv = [str(SCRIPT), *arguments]
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as leave:
            codes.append(leave.code)
    sys.exit(max(codes))


# W&B's files ----------------------------------------------------------------------------------------------------------


def wandb_records(path):
    """The protobuf messages of a .wandb file, which is a LevelDB log: blocks of 32 kB, messages cut to fit them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, message, out = 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no room for a chunk's head: the rest of the block is padding
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or the last piece of one
            out.append(Record.FromString(message))
            message = b""
    assert message == b"" and out
    return out


def wandb_run(folder):
    """What the one .wandb file in a run's folder holds: id, project, name, config, rows, summary, exit code, axes."""
    (path,) = folder.glob("*.wandb")
    out = {"rows": [], "summary": {}, "config": {}, "axes": {}}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            out |= {"id": run.run_id, "project": run.project, "name": run.display_name, "group": run.run_group}
            out["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            out["rows"].append({key: value for key, value in row.items() if key not in OWN})
        elif kind == "summary":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
            out["summary"] |= {key: value for key, value in items.items() if key not in OWN}
        elif kind == "metric":
            out["axes"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            out["exit_code"] = record.exit.exit_code
    return out


def rows_of(curve):
    """What a curve is in W&B: every value but NaN, the row's number and Lightning's step."""
    names = [field.name for field in fields(CurveRow)]
    rows = [dict(zip(names, astuple(row), strict=True)) for row in curve]
    return [
        {name: value for name, value in row.items() if value == value}
        | {"trainer/global_step": row["iteration"], "_step": number}
        for number, row in enumerate(rows)
    ]


# A folder of results, replayed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A run that was logged live, and one that failed and one with a long curve made of it; all replayed, one twice."""
    folder = tmp_path_factory.mktemp("replay")
    live = Forked(folder / "live.txt", run_script, tiny(folder, "logger=wandb", "eval_every=4"))
    code, output = live.ends()
    assert code == 0, output
    (record,) = records_in(folder)
    results = folder / "results"
    curve = records.read_curve(records.curve_path(results, record.run_id))
    shutil.copytree(results, folder / "before")
    for changes, rows in (
        ({"run_id": "0" * 12, "status": "failed", "message": "the cat", "seed": 3}, curve[:2]),
        ({"run_id": "1e1000000000", "label": "long" * 50}, [replace(curve[1], iteration=t) for t in range(400)]),
        ({"run_id": "00000000000a", "label": "refused"}, curve[:2]),
    ):
        config = {**record.config, "seed": changes.get("seed", 0)}
        if changes.get("label") == "refused":  # as if W&B did
            del config["seed"]
        changes |= {"test_accuracy": rows[-1].test_accuracy, "iterations": rows[-1].iteration}
        best = max(row.test_accuracy for row in rows)
        records.write_record(results, replace(record, **changes, best_test_accuracy=best, config=config))
        records.write_curve(records.curve_path(results, changes["run_id"]), rows)
    records.write_record(results, replace(record, run_id="2" * 12))  # its curve is missing
    records.write_record(results, replace(record, run_id="3" * 12, test_accuracy=99.9))  # edited
    records.write_curve(records.curve_path(results, "3" * 12), curve)
    (results / "runs" / "broken.json").write_text("{")
    where = [f"results_dir={results}", f"runs_dir={folder}/runs"]
    environment = {"HOME": str(folder), "WANDB_RESUME": "allow"}
    process = Forked(folder / "out.txt", replay, [record.run_id, *where], where, **environment)
    code, output = process.ends()
    return folder, record, code, output


def replayed_run(folder, run_id):
    (found,) = (folder / "runs" / "wandb-replay" / "wandb").glob(
        f"offline-run-*-{run_id}"
    )  # one, however often replayed
    return wandb_run(found)


@pytest.mark.slow
def test_a_replay_holds_the_runs_id_name_config_every_row_of_its_curve_status_and_exit_code(replayed):
    folder, record, *_ = replayed
    run = replayed_run(folder, record.run_id)
    assert (run["id"], run["name"], run["project"]) == (record.run_id, f"{record.label} seed 0", "cyclical-lr")
    named = {"experiment": "custom", "label": record.label}
    assert {key: value for key, value in run["config"].items() if key != "_wandb"} == record.config | named
    assert run["group"] == record.label and run["axes"] == {"iteration": "", "*": "iteration"}
    curve = records.read_curve(records.curve_path(folder / "results", record.run_id))
    assert [row.iteration for row in curve] == [0, 4, 8, 12]
    assert run["rows"] == rows_of(curve)
    assert "train_loss" not in run["rows"][0] and "train_loss" in run["rows"][1]  # NaN is left out
    assert run["summary"]["status"] == "done" and run["exit_code"] == 0
    assert run["summary"]["test_accuracy"] == record.test_accuracy


@pytest.mark.slow
def test_a_replay_is_what_the_run_logged_live(replayed):
    folder, record, *_ = replayed
    (live,) = (folder / "runs" / record.run_id / "wandb").glob("offline-run-*")
    assert wandb_run(live) == replayed_run(folder, record.run_id)


@pytest.mark.slow
def test_a_process_that_goes_on_with_a_run_logs_its_rows_from_the_first(tmp_path):
    command = tiny(tmp_path, "logger=wandb", "eval_every=4")
    environment = {"HOME": str(tmp_path), "WANDB_PROJECT": "mine", "WANDB_RUN_GROUP": "ours"}
    for output in ("first.txt", "second.txt"):
        assert Forked(tmp_path / output, run_script, command, **environment).ends()[0] == 0
        (record,) = records_in(tmp_path)
        curve = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
        shutil.rmtree(tmp_path / "results")  # so that the run is not over
    first, second = map(wandb_run, sorted((tmp_path / "runs" / record.run_id / "wandb").glob("offline-run-*")))
    assert first["rows"] == second["rows"] == rows_of(curve) and len(curve) == 4
    assert (second["project"], second["group"]) == ("mine", "ours")


@pytest.mark.slow
def test_a_failed_run_says_so_and_a_long_curve_is_whole(replayed):
    folder, *_ = replayed
    failed = replayed_run(folder, "0" * 12)
    assert failed["summary"]["status"] == "failed" and failed["exit_code"] == 1
    assert failed["summary"]["message"] == "the cat"
    assert failed["name"].endswith("seed 3") and len(failed["rows"]) == 2
    long = replayed_run(folder, "1e1000000000")  # an id that reads as a number stays one
    assert [row["iteration"] for row in long["rows"]] == list(range(400))
    assert len(long["name"]) == 128 and long["name"].endswith("longl seed 0")


@pytest.mark.slow
def test_what_cannot_be_used_is_named_and_does_not_stop_the_others(replayed):
    folder, record, code, output = replayed
    assert code == 1
    assert "broken.json is not a run's record" in output and f"{'2' * 12}.csv" in output
    assert f"{'3' * 12}.csv is not the curve of its record" in output
    assert "error: refused seed 0: KeyError: 'seed'; the same command tries again" in output
    assert output.count(f"{record.label} seed 0: 4 evaluations") == 2
    assert f"wandb sync {folder}/runs/wandb-replay/wandb/offline-run-*" in output


@pytest.mark.slow
def test_a_replay_leaves_results_and_run_folders_as_they_were(replayed):
    folder, record, *_ = replayed
    for path in (folder / "before").rglob("*.*"):
        assert path.read_bytes() == (folder / "results" / path.relative_to(folder / "before")).read_bytes()
    assert len(list((folder / "runs" / record.run_id / "wandb").glob("offline-run-*"))) == 1
    assert {path.name for path in (folder / "runs").iterdir()} == {record.run_id, "wandb-replay"}


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    committed = REPOSITORY / "results" / "runs" / "7d12faf62654.json"
    for part, name in (("runs", committed.name), ("curves", "7d12faf62654.csv")):
        (folder / part).mkdir()
        shutil.copy(REPOSITORY / "results" / part / name, folder / part)
    return folder


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["mode=online"], {}, ["mode=online", "logger.mode"]),
        (["0123456789ab"], {}, ["0123456789ab.json", "once it has ended"]),
        (["--mode", "online"], {}, ["--mode: there is no such option", "--help"]),
        (["results_dir=nowhere"], {}, ["results_dir", "nowhere"]),
        (["logger.mode=typo"], {}, ["logger.mode", "typo", "online"]),
        (["logger.mode=online"], {}, ["logger.mode=online", "wandb login", "WANDB_API_KEY", "wandb sync"]),
        (
            ["logger.mode=online"],
            {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            ["logger.mode=online", "127.0.0.1:9 cannot be reached", "wandb sync"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, (list, dict)) else None,
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(tmp_path, one_record, arguments, environment, named):
    alone = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), **environment}
    where = [f"results_dir={one_record}", f"runs_dir={tmp_path}/runs"]
    given = [text for text in where if text.partition("=")[0] not in " ".join(arguments)]
    code, output = Forked(tmp_path / "out.txt", replay, [*arguments, *given], **alone).ends()
    assert code == UNUSABLE, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert all(text in line for text in named) and "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_being_worked_on_is_left_alone(tmp_path, one_record):
    folder = tmp_path / "runs" / "7d12faf62654"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        where = [f"results_dir={one_record}", f"runs_dir={tmp_path}/runs"]
        code, output = Forked(tmp_path / "out.txt", replay, where).ends()
    assert code == 0 and "being worked on by another process" in output
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["7d12faf62654"]
