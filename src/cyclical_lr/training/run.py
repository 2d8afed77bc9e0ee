"""From a config to records: what `scripts/run.py` and `scripts/study.py` do for each experiment."""

import hashlib
import logging
import signal
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import Timeout
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS

from cyclical_lr import kernels, records
from cyclical_lr.records import ConfigError, Record, build
from cyclical_lr.solvers import check_groups
from cyclical_lr.training import ddp, provenance, slurm
from cyclical_lr.training.callbacks import Checkpoints, Curves, Interrupts, Progress, restore_checkpoint
from cyclical_lr.training.config import check, check_network, check_parts, check_writable, describe, label, plain, seeds
from cyclical_lr.training.engine import BLOCKS, choose_engine, exact_arithmetic
from cyclical_lr.training.module import Classifier, Member
from cyclical_lr.training.sweep import lock_of
from cyclical_lr.training.tracking import close_logger, log_rows, open_logger

log = logging.getLogger(__name__)

CHECKSUMS = ("train_sha256", "test_sha256", "mean_sha256")
"""Keys of `data` that say what the images are."""

OWN_CLASSES = ("model", "data", "solver")
"""Parts that a user's own class may stand for, whose code is not part of a run's id; a schedule's LRs are."""
SOLVER_HAS = ("param_groups", "step", "zero_grad", "state_dict", "load_state_dict")
"""What training uses of a solver; torch's optimizers have it, and so may a wrapper of one."""
COMMIT, DIRTY = provenance.commit()  # now, when the code is read: a study runs for days, and the tree may change


class NotWritten(OSError):
    """Runs ended, and their records could not be written; `strerror` says what to do."""


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
        an outcome per seed; of several ranks, on the first alone.
    Raises:
        ConfigError: something in `cfg` cannot be used. Nothing was written, unless training alone could tell.
        Exception: whatever ended the training; the record says "failed" and why.
        SystemExit: with 130 after Ctrl-C and 143 after SIGTERM; the same run goes on from its last checkpoint.
    """
    _quiet()
    plan = plain(cfg)
    check(plan)
    if plan["trainer"].get("strategy") == "ddp":
        ddp.join()
    configs = [describe(plan, seed) for seed in seeds(plan["seed"])]
    lrs = records.learning_rates(configs[0])
    name = label(plan, conf)
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    with ExitStack() as locks:
        outcomes, missing = ddp.first(lambda: _claim(plan, name, configs, locks))
        if missing:
            folders = {records.run_id(config): _folder(plan, config) for config in missing}
            fresh = _train(plan, name, missing, folders, lrs)
            outcomes += [Outcome(record.run_id, record, fresh=True) for record in fresh]
    return outcomes if ddp.rank() == 0 else []


def _claim(
    plan: Mapping[str, Any], name: str, configs: list[dict[str, Any]], locks: ExitStack
) -> tuple[list[Outcome], list[dict[str, Any]]]:
    """Lock the runs that are missing: the outcomes of the others, and the configs of these."""
    results = Path(plan["results_dir"])
    outcomes, missing = [], []
    for config in configs:
        run_id, folder = records.run_id(config), _folder(plan, config)
        files = records.record_path(results, run_id), records.curve_path(results, run_id)
        if not records.is_over(results, run_id):  # else nothing is written, and anyone may look
            for path in files:
                check_writable("results_dir", path.parent)
            check_writable("runs_dir", folder)
            try:
                locks.enter_context(lock_of(folder).acquire(timeout=0.2))  # a look (sweep.report) takes an instant
            except Timeout:
                log.info("%s seed %d is being worked on by another process (%s)", name, config["seed"], folder)
                outcomes.append(Outcome(run_id, None, fresh=False))
                continue
            except OSError as error:
                raise ConfigError(
                    f"runs_dir: cannot lock {folder} ({error.strerror}); give another runs_dir=..., on a file system "
                    "with flock (Lustre has it where it is mounted with -o flock)"
                ) from error
        if records.is_over(results, run_id):
            record = records.read_record(files[0])
            log.info("%s seed %d is already %s: %s", record.label, record.seed, record.status, files[0])
            if record.label != name:  # the id is of what is computed, whatever it is called
                log.info("  tables have it under that name; to have it as %s too, give folders of its own", name)
            if record.config.get("eval_every") != plan["eval_every"]:  # which is no part of what a run is
                log.info("  it was evaluated every %s iterations", record.config.get("eval_every"))
            if records.is_foreign({key: plan[key] for key in OWN_CLASSES}):
                log.info("  its id does not tell whether the code of a class of yours has changed since")
            outcomes.append(Outcome(run_id, record, fresh=False))
            continue
        records.remove_leftovers(folder)
        for path in files:
            records.remove_leftovers(path.parent, path.name)
        missing.append(config)
    return outcomes, missing


def _folder(plan: Mapping[str, Any], config: dict[str, Any]) -> Path:
    return Path(plan["runs_dir"]) / records.run_id(config)


# Training -------------------------------------------------------------------------------------------------------------


def make_trainer(
    accelerator: str,
    precision: str,
    devices: int = 1,
    emulate_bf16: bool = False,
    strategy: str | None = None,
    **options: Any,
) -> pl.Trainer:
    """A Lightning Trainer for the study: no checkpoints, bars or logs of its own.

    With `strategy` "ddp" it is of one of the ranks, if there are several (`ddp.join`).

    Raises:
        ConfigError: the device is not there, or does not have the precision.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: expected a CUDA GPU that torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}, can use, found none; use trainer=cpu, or a driver for that CUDA"
        )
    if accelerator == "gpu" and precision == "bf16-mixed" and torch.cuda.get_device_capability() < (8, 0):
        raise ConfigError(
            f"trainer.precision: bf16-mixed needs a GPU of compute capability 8.0 or more, this is "
            f"{provenance.device_name(torch.device('cuda'))}, where bf16 is emulated; use trainer=gpu"
        )
    if accelerator == "cpu" and precision == "bf16-mixed" and not (emulate_bf16 or provenance.native_bf16()):
        raise ConfigError(
            f"trainer.precision: bf16-mixed needs a CPU with AVX-512-BF16 or AMX, this is "
            f"{provenance.device_name(torch.device('cpu'))}, where bf16 is emulated and ten times slower than float32; "
            "use trainer=cpu, or force it with trainer=cpu_bf16 trainer.emulate_bf16=true"
        )
    exact_arithmetic()
    ours = {"devices": devices, **(ddp.trainer_options(accelerator) if strategy == "ddp" else {}), **options}
    return pl.Trainer(
        accelerator=accelerator,
        precision=precision,  # type: ignore[arg-type]
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
        **slurm.trainer_options(ours),
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
    check_parts(plan)
    if COMMIT == "unknown":
        where = Path(__file__).parent
        log.warning("git tells no commit for the record (see git -C %s status); CYCLICAL_LR_COMMIT=... names it", where)
    data = build(plan["data"])
    data.prepare_data()
    data.setup("fit")
    if missing := [split for split in ("train", "test") if not hasattr(data, split)]:
        made = f"{plan['data']['_target_']} to make self.{' and self.'.join(missing)}"
        raise ConfigError(f"data: expected setup() of {made}, as an ImageSet each")
    ddp.check_shares(data.batch_size, len(data.test))
    members: list[Member] = []
    for config in configs:
        member = new_member(plan, config, name)
        if restore_checkpoint(folders[member.run_id], member):
            _say_where(member, folders[member.run_id], plan["eval_every"], len(lrs) - 1)
        members.append(member)
    check_network(plan, data)

    def position(member: Member) -> tuple[int, bool]:
        return member.iteration, member.evaluation_due(plan["eval_every"], len(lrs) - 1)

    out = []
    for _, group in groupby(sorted(members, key=position), key=position):
        together = list(group)
        own = [config for config in configs if config["seed"] in {member.seed for member in together}]
        out += _train_together(plan, together, own, folders, lrs, data)
    return out


def _say_where(member: Member, folder: Path, every: int, iterations: int) -> None:
    """From where a run goes on."""
    title = f"{member.label} seed {member.seed}"
    if member.iteration == iterations:
        log.info("%s was trained before, to its end; what is missing is written from %s", title, folder)
    else:
        log.info("%s continues at iteration %s", title, f"{member.iteration:,}")
    evaluated = {row.iteration for row in member.curve} - {member.iteration}
    if evaluated != set(range(0, member.iteration, every)):
        log.info("  it was evaluated at other iterations so far than eval_every=%d gives: %s", every, sorted(evaluated))


def new_member(plan: Mapping[str, Any], config: dict[str, Any], name: str) -> Member:
    """A run at iteration 0. Its seed draws the initial weights, on the CPU whatever the device.

    Raises:
        ConfigError: a class that is not this package's gives no network, or no solver, that can be trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = build(plan["model"])
        if not isinstance(network, nn.Module) or any(map(is_lazy, network.parameters())):
            got = f"{type(network).__name__}" + " with lazy parameters" * isinstance(network, nn.Module)
            raise ConfigError(
                f"model: expected {plan['model']['_target_']} to give a torch.nn.Module of known sizes, got {got}"
            )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    solver = build(plan["solver"], network)
    if not all(hasattr(solver, name) for name in SOLVER_HAS) or isinstance(solver, LBFGS):
        got = f"{type(solver).__name__} from {plan['solver']['_target_']}"
        raise ConfigError(f"solver: expected an optimizer like torch's whose step needs no closure, got {got}")
    try:
        check_groups(solver)
    except ValueError as error:
        raise ConfigError(f"solver: {plan['solver']['_target_']}: {error}") from error
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
    interrupts = Interrupts()
    callbacks = [Curves(folders, loggers), Progress(title, iterations), checkpoints] if ddp.rank() == 0 else []
    # The last: at its moments the others are done. Ranks would wait for each other.
    callbacks.append(interrupts if ddp.ranks() == 1 else ddp.EndAtTerm())
    trainer = make_trainer(
        **plan["trainer"],
        max_epochs=-(-iterations // every) - first // every,  # an epoch is the stretch between two evaluations
        callbacks=callbacks,
        default_root_dir=folders[members[0].run_id],
    )
    device = trainer.strategy.root_device
    foreign = records.is_foreign({key: plan[key] for key in OWN_CLASSES})
    engine = choose_engine(plan["engine"], [member.solver for member in members], data.train, device, foreign)
    kernels.begin_run()
    for member, config in zip(members, configs, strict=True):
        member.segments.append(_segment(first, device, engine, len(members)))
        if ddp.rank() == 0:
            logger = open_logger(folders[member.run_id], member.run_id, member.label, config, **plan["logger"])
            if logger is not None:
                loggers[member.run_id] = logger
                log_rows(logger, member.run_id, member.curve)  # W&B has what is logged last under an id, from row 0 on

    may_draw = records.is_foreign([plan["model"], plan["solver"]])  # a set says it by `stochastic`
    module = Classifier(members, data.train, data.test, lrs, engine, may_draw)
    shard = ddp.rank(), ddp.ranks()
    error: Exception | None = None
    saved = True
    try:
        with interrupts if ddp.ranks() == 1 else nullcontext():
            if members[0].evaluation_due(every, iterations):
                trainer.validate(module, data.eval_blocks(shard=shard), verbose=False)
            if first < iterations:
                seeds_of = [member.seed for member in members]
                blocks = data.train_blocks(seeds_of, first, iterations, every, block=BLOCKS[engine], shard=shard)
                trainer.fit(module, blocks, data.eval_blocks(shard=shard))
        if ddp.rank() == 0:
            saved = checkpoints.save(module)
    except SystemExit as leave:  # how Lightning answers SIGTERM, with a code of 0, and Ctrl-C, with 1
        module.stop_clock()
        where = "from its last checkpoint"
        # Lightning looks for SIGTERM between two batches, of an evaluation too; `Interrupts` within a block.
        if (isinstance(leave, SIGTERMException) or not interrupts.busy) and ddp.ranks() == 1:
            module.sync()
            where = "there" if checkpoints.save(module) else where
        log.info("%s stopped at iteration %s; the same command continues %s", title, f"{module.iteration:,}", where)
        interrupted = isinstance(leave.__context__, KeyboardInterrupt)
        raise SystemExit(128 + (signal.SIGINT if interrupted else signal.SIGTERM)) from leave
    except Exception as failure:
        error = failure
    with nullcontext() if error is None else suppress(Exception):  # of a GPU that failed and does not answer
        module.stop_clock()
    if ddp.rank() > 0:
        if error is not None:
            raise error
        return []

    return _write(plan, title, members, configs, loggers, error, saved)


def _segment(first: int, device: torch.device, engine: str, together: int) -> dict[str, Any]:
    """What a record keeps of this process, which works on a run from iteration `first` on."""
    name = provenance.device_name(device)
    return {
        "iteration": first,
        "commit": COMMIT,
        "dirty": DIRTY,
        "device": f"{ddp.ranks()} x {name}" if ddp.ranks() > 1 else name,
        "ranks": ddp.ranks(),
        "threads": torch.get_num_threads(),
        "engine": engine,
        "together": together,  # runs that share the process, hence the training seconds
        "started": _now(),
    }


def _write(
    plan: Mapping[str, Any],
    title: str,
    members: list[Member],
    configs: list[dict[str, Any]],
    loggers: Mapping[str, Any],
    error: Exception | None,
    saved: bool,
) -> list[Record]:
    """Write curves and records of runs that ended, by `error` or well; `saved`: with their last checkpoint.

    Raises:
        NotWritten: a file could not be written.
        Exception: `error`.
    """
    results, out, obstacle = Path(plan["results_dir"]), [], None
    for member, config in zip(members, configs, strict=True):
        record = _record(plan, member, config, error)
        try:
            records.write_curve(records.curve_path(results, member.run_id), member.curve)
            records.write_record(results, record)  # last: a run with a record is over
        except OSError as full:
            obstacle = full
        if member.run_id in loggers:
            close_logger(loggers[member.run_id], record.status, record.message)
        out.append(record)
    if obstacle is not None:
        kept = f"Nothing that was trained is lost: the checkpoints in {plan['runs_dir']} stay"
        if not saved:
            kept = f"Nor could the last checkpoint, to {plan['runs_dir']}: training goes on from the one before, if any"
        raise NotWritten(
            obstacle.errno,
            f"results_dir: cannot write to {results} ({obstacle.strerror}). {kept}. Make room there, or make it "
            "writable, or give another results_dir=...; the same command then writes what is missing",
        ) from (error or obstacle)
    if error is not None:
        paths = ", ".join(str(records.record_path(results, record.run_id)) for record in out)
        error.add_note(f"{title} failed, says {paths}; the same command goes on from the last checkpoint, if any")
        raise error
    return out


def _data_sha256(data: Mapping[str, Any]) -> str:
    """Of the checksums of the images; empty of a set from elsewhere, which need not keep to them."""
    if records.is_foreign(data):
        return ""
    return hashlib.sha256("".join(data.get(key) or "" for key in CHECKSUMS).encode()).hexdigest()


def _record(plan: Mapping[str, Any], member: Member, config: dict[str, Any], error: Exception | None) -> Record:
    accuracies = [row.test_accuracy for row in member.curve]
    # The process that writes the record may have had nothing left to train.
    last = next(
        (part for part in reversed(member.segments) if part["iteration"] < member.iteration), member.segments[-1]
    )
    used = (kernels.kind(), *(segment.get("kernels", "none") for segment in reversed(member.segments)))
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
        engine=last["engine"],
        precision=config["precision"],
        device=last["device"],
        threads=last["threads"],
        data_sha256=_data_sha256(config["data"]),
        config_sha256=records.config_sha256(config),
        commit=last["commit"],
        dirty=any(segment["dirty"] for segment in member.segments),
        started=member.started,
        ended=_now(),
        message=member.diverged or (f"{type(error).__name__}: {error}" if error else ""),
        versions={**provenance.versions(), "kernels": next((kind for kind in used if kind != "none"), "none")},
        segments=member.segments,
        config=config,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _quiet() -> None:
    """Silence Lightning's tips and the warnings about what is meant here or is not ours."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*`srun` command.*"):
        warnings.filterwarnings("ignore", message)
