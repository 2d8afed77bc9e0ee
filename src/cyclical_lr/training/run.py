"""From a config to records: what `scripts/run.py` and `scripts/study.py` do for each experiment."""

import hashlib
import logging
import os
import signal
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from cyclical_lr import records
from cyclical_lr.records import ConfigError, Record, build
from cyclical_lr.training import provenance
from cyclical_lr.training.callbacks import Checkpoints, Curves, Progress, restore_checkpoint
from cyclical_lr.training.config import check, compose_config, describe, plain, seeds
from cyclical_lr.training.module import Classifier, Member
from cyclical_lr.training.tracking import close_logger, open_logger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one run ended: its record (None where another process is working on it) and whether it was run now."""

    run_id: str
    record: Record | None
    fresh: bool


def run(cfg: DictConfig, conf: Path) -> list[Outcome]:
    """Train what is missing of the seeds in `cfg`, and write their records.

    Args:
        cfg: composed from conf/run.yaml.
        conf: the folder that it was composed from; an experiment's unchanged card is read there for the label.
    Returns:
        an outcome per seed.
    Raises:
        ConfigError: something in `cfg` cannot be used; nothing was written.
        Exception: whatever ended the training; the record says "failed" and why.
    """
    _quiet()
    plan = plain(cfg)
    check(plan)
    configs = [describe(plan, seed) for seed in seeds(plan["seed"])]
    lrs = records.learning_rates(configs[0])
    card = None
    if plan["experiment"]:
        card = describe(plain(compose_config(conf, [f"+experiment={plan['experiment']}"])), 0)
    name = records.label(plan["experiment"] or "custom", configs[0], card)
    results, folders = Path(plan["results_dir"]), {}
    for path in (records.record_path(results, "any"), records.curve_path(results, "any")):
        _check_writable("results_dir", path.parent)
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])

    outcomes: list[Outcome] = []
    with ExitStack() as locks:
        missing = []
        for config in configs:
            run_id = records.run_id(config)
            folder = Path(plan["runs_dir"]) / run_id
            _check_writable("runs_dir", folder)
            lock = FileLock(folder / "lock")
            try:
                locks.enter_context(lock.acquire(timeout=0))
            except Timeout:
                log.info("%s seed %d is being worked on by another process (%s)", name, config["seed"], folder)
                outcomes.append(Outcome(run_id, None, fresh=False))
                continue
            if records.is_over(results, run_id):
                path = records.record_path(results, run_id)
                record = records.read_record(path)
                log.info("%s seed %d is already %s: %s", record.label, record.seed, record.status, path)
                outcomes.append(Outcome(run_id, record, fresh=False))
                continue
            folders[run_id] = folder
            missing.append(config)
        if missing:
            fresh = _train(plan, name, missing, folders, lrs)
            outcomes += [Outcome(record.run_id, record, fresh=True) for record in fresh]
    return outcomes


def _check_writable(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{key}: cannot write to {folder} ({error.strerror}); give another {key}=...") from error


# Training -------------------------------------------------------------------------------------------------------------


def make_trainer(
    accelerator: str, precision: str, devices: int = 1, emulate_bf16: bool = False, **options: Any
) -> pl.Trainer:
    """A Lightning Trainer for the study: no checkpoints, bars or logs of its own.

    Raises:
        ConfigError: the device is not there, or does not have the precision.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator: expected a machine with a CUDA GPU, found none; use trainer=cpu")
    if accelerator == "cpu" and precision == "bf16-mixed" and not (emulate_bf16 or provenance.native_bf16()):
        raise ConfigError(
            f"trainer.precision: bf16-mixed needs a CPU with AVX-512-BF16 or AMX, this is "
            f"{provenance.device_name(torch.device('cpu'))}, where bf16 is emulated and ten times slower than float32; "
            "use trainer=cpu, or force it with trainer.emulate_bf16=true"
        )
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=precision,  # type: ignore[arg-type]
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )


def _train(
    plan: dict[str, Any],
    name: str,
    configs: list[dict[str, Any]],
    folders: Mapping[str, Path],
    lrs: np.ndarray[Any, Any],
) -> list[Record]:
    """Train runs that differ in their seed only; those that stand at the same point are stepped together."""
    make_trainer(**plan["trainer"])  # a device that is not there is found out before the data are unpacked
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    members = []
    for config in configs:
        member = new_member(plan, config, name)
        if restore_checkpoint(folders[member.run_id], member):
            log.info("%s seed %d continues at iteration %s", name, member.seed, f"{member.iteration:,}")
        members.append(member)

    def position(member: Member) -> tuple[int, bool]:
        return member.iteration, member.evaluation_due(plan["eval_every"], len(lrs) - 1)

    out = []
    for _, group in groupby(sorted(members, key=position), key=position):
        together = list(group)
        own = [config for config in configs if config["seed"] in {member.seed for member in together}]
        out += _train_together(plan, together, own, folders, lrs, data)
    return out


def new_member(plan: Mapping[str, Any], config: dict[str, Any], name: str) -> Member:
    """A run at iteration 0. Its seed draws the initial weights, on the CPU whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = build(plan["model"]).to(memory_format=torch.channels_last)
    solver = build(plan["solver"], network)
    return Member(records.run_id(config), name, config["seed"], network, solver, started=_now())


def _train_together(
    plan: dict[str, Any],
    members: list[Member],
    configs: list[dict[str, Any]],
    folders: Mapping[str, Path],
    lrs: np.ndarray[Any, Any],
    data: Any,
) -> list[Record]:
    iterations, every = len(lrs) - 1, plan["eval_every"]
    first = members[0].iteration
    title = f"{members[0].label} seed {','.join(str(member.seed) for member in members)}"
    loggers: dict[str, Any] = {}
    checkpoints = Checkpoints(folders, plan["checkpoint_seconds"])
    trainer = make_trainer(
        **plan["trainer"],
        max_epochs=-(-iterations // every) - first // every,  # an epoch is the stretch between two evaluations
        callbacks=[Curves(folders, loggers), Progress(title, iterations), checkpoints],
        default_root_dir=folders[members[0].run_id],
    )
    commit, dirty = provenance.commit()
    device = provenance.device_name(trainer.strategy.root_device)
    for member, config in zip(members, configs, strict=True):
        member.segments.append(
            {
                "iteration": first,
                "commit": commit,
                "dirty": dirty,
                "device": device,
                "together": len(members),  # runs that share the process, hence the training seconds
                "started": _now(),
            }
        )
        title_of_one = f"{member.label} seed {member.seed}"
        logger = open_logger(folders[member.run_id], member.run_id, title_of_one, config, **plan["logger"])
        if logger is not None:
            loggers[member.run_id] = logger

    module = Classifier(members, data.train, data.test, lrs)
    error: Exception | None = None
    try:
        if members[0].evaluation_due(every, iterations):
            trainer.validate(module, data.eval_blocks(), verbose=False)
        if first < iterations:
            blocks = data.train_blocks([member.seed for member in members], first, iterations, every)
            trainer.fit(module, blocks, data.eval_blocks())
        checkpoints.save(module)
    except SystemExit as leave:  # how Lightning answers SIGTERM, and with a code of 0
        raise SystemExit(leave.code or 128 + signal.SIGTERM) from leave
    except Exception as failure:
        error = failure
    module.stop_clock()

    results, out = Path(plan["results_dir"]), []
    for member, config in zip(members, configs, strict=True):
        record = _record(plan, member, config, error)
        records.write_curve(records.curve_path(results, member.run_id), member.curve)
        records.write_record(results, record)  # last: a run with a record is over
        if member.run_id in loggers:
            close_logger(loggers[member.run_id], {"status": record.status}, int(record.status == "failed"))
        out.append(record)
    if error is not None:
        raise error
    return out


def _record(plan: Mapping[str, Any], member: Member, config: dict[str, Any], error: Exception | None) -> Record:
    accuracies = [row.test_accuracy for row in member.curve]
    last = member.segments[-1]
    data = config["data"]
    return Record(
        run_id=member.run_id,
        experiment=plan["experiment"] or "custom",
        label=member.label,
        seed=member.seed,
        status="diverged" if member.diverged else "failed" if error else "done",
        iterations=member.iteration,
        test_accuracy=accuracies[-1] if accuracies else None,
        best_test_accuracy=max(accuracies, default=None),
        train_seconds=round(member.train_seconds, 3),
        eval_seconds=round(member.eval_seconds, 3),
        engine="reference",
        precision=config["precision"],
        device=last["device"],
        threads=torch.get_num_threads(),
        data_sha256=hashlib.sha256((data["train_sha256"] + data["test_sha256"]).encode()).hexdigest(),
        config_sha256=records.config_sha256(config),
        commit=last["commit"],
        dirty=any(segment["dirty"] for segment in member.segments),
        started=member.started,
        ended=_now(),
        message=member.diverged or (f"{type(error).__name__}: {error}" if error else ""),
        versions=provenance.versions(),
        segments=member.segments,
        config=config,
    )


# What a person reads at the end ---------------------------------------------------------------------------------------


def summary(record: Record, conf: Path, results: Path) -> str:
    """The result beside the paper's number, and where it was written."""
    curve = records.read_curve(records.curve_path(results, record.run_id))
    best = max(curve, key=lambda row: row.test_accuracy, default=None)
    head = f"{record.label} seed {record.seed}: {record.status}"
    if record.status != "done":
        head += f" ({record.message})"
    lines = [head]
    if best is not None:
        lines.append(
            f"  ours   {record.test_accuracy:.2f} % at {curve[-1].iteration:,} iterations "
            f"(best {best.test_accuracy:.2f} % at {best.iteration:,}); "
            f"{record.train_seconds / 60:.1f} min of training, {record.eval_seconds / 60:.1f} of evaluation"
        )
    if record.label == record.experiment:  # anything else is not the paper's experiment
        at = {row.iteration: row.test_accuracy for row in curve}
        for number in paper_numbers(conf, record.experiment):
            ours = at.get(number["iterations"])
            beside = "not reached" if ours is None else f"ours there {ours:.2f} %"
            lines.append(f"  paper  {number['accuracy']} % at {number['iterations']:,} ({number['where']}); {beside}")
    lines.append(f"  wrote  {records.record_path(results, record.run_id)}")
    lines.append(f"         {records.curve_path(results, record.run_id)}")
    return "\n".join(lines)


def paper_numbers(conf: Path, experiment: str) -> list[dict[str, Any]]:
    """The paper's table rows for an experiment: iterations, accuracy in percent, where."""
    tables = [yaml.safe_load(path.read_text()) for path in sorted((conf / "paper").glob("table*.yaml"))]
    return [row for table in tables for row in table.get("rows", []) if row.get("experiment") == experiment]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _quiet() -> None:
    """Silence Lightning's tips and the warnings about what is meant here or is not ours."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
