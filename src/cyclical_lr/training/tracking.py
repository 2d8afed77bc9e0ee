"""Weights & Biases: a view of the local files, never in the way of training, made again from them by `replay`."""

import logging
import math
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cyclical_lr.records import ConfigError, CurveRow, Record

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30  # seconds; a compute node without network must not wait longer
FINISH_TIMEOUT = 60  # seconds, nor a run that is over for a host that is not there any more
NAME = 128  # characters that W&B takes; the config has all that a longer label says


def open_logger(
    folder: Path,
    run_id: str,
    label: str,
    config: dict[str, Any],
    kind: str,
    project: str,
    entity: str | None,
    mode: str,
) -> Any:
    """A Lightning logger for one run, or None for `kind="none"`, which imports nothing of wandb.

    A run that cannot be opened online (no key, no network) is opened offline, with a warning; one that cannot be opened
    at all is not logged. Nothing prompts. `folder` holds wandb's files, `check` accepts `kind` and `mode`.
    """
    if kind == "none" or mode == "disabled":
        return None
    try:
        import wandb
    except Exception as error:  # damaged, or at odds with another package: a view must not end a run
        log.warning("W&B is off for this run, as it cannot be imported (%s: %s)", type(error).__name__, error)
        return None

    if mode == "online" and (obstacle := _obstacle(wandb)):
        log.warning("logger.mode=online: W&B could not be opened online (%s): logging offline", obstacle)
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return _open(folder, run_id, label, config, project, entity, attempt)
        except Exception as error:  # wandb's view of the world must not end a run
            log.warning("W&B could not be opened %s (%s: %s)", attempt, type(error).__name__, error)
            wandb.teardown()  # its service holds on to the run's id; other runs of this process lose their view
    log.warning("W&B is off for this run; its record and curve are written as always")
    return None


def log_row(logger: Any, row: CurveRow) -> None:
    """Log one evaluation, without what is NaN."""
    finite = {name: value for name, value in asdict(row).items() if not math.isnan(value)}
    logger.log_metrics(finite, step=row.iteration)


def log_rows(logger: Any, run_id: str, rows: Sequence[CurveRow]) -> None:
    """Log evaluations of a run that is under way: a view, which must not end it."""
    for row in rows:
        try:
            log_row(logger, row)
        except Exception as error:
            log.warning("W&B did not take iteration %d of %s: %s", row.iteration, run_id, error)


def close_logger(logger: Any, status: str, message: str = "") -> None:
    """Finish the run in W&B, whatever state it is in."""
    try:
        _finish(logger, status, message)
    except Exception as error:  # the local files are complete by now
        log.warning(
            "W&B did not finish cleanly (%s: %s): scripts/wandb_replay.py logs the run anew",
            type(error).__name__,
            error,
        )


def replay(folder: Path, record: Record, curve: Sequence[CurveRow], project: str, entity: str | None, mode: str) -> str:
    """Log a run from its record and curve, as `open_logger` and what follows it log it live, under the same id.

    Online, a run with this id may be there already: logged in part, or in pieces by a job that was requeued. Its id
    cannot be used again once it is deleted, and W&B's rewinding is a preview that asks for access, so it is opened
    anew instead: without `resume`, W&B overwrites what the id had, row by row. A curve has all the rows that any piece
    of its run has logged, so none of those is left over.

    Args:
        folder: holds wandb's files; those of an earlier replay of this run are removed.
    Returns:
        where the run is: its folder, to be uploaded with `wandb sync`, or its address.
    Raises:
        ConfigError: unknown `mode`; there is no key, or no way to W&B.
        Exception: as wandb gives it, where it breaks off; nothing local is lost.
    """
    check("wandb", mode)
    if mode == "disabled":
        raise ConfigError("logger.mode: expected 'offline' or 'online' here, got 'disabled'")
    import wandb

    os.environ.pop("WANDB_RESUME", None)  # it would add the rows to those that are there
    if mode == "online" and (obstacle := _obstacle(wandb)):
        raise ConfigError(
            f"logger.mode=online: W&B could not be opened online ({obstacle}); leave it out and upload later with "
            "`wandb sync`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob(f"wandb/*run-*-{record.run_id}"):
        shutil.rmtree(earlier)
    # What this machine is, and how busy, says nothing about the run.
    here = {
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
    }
    logger = _open(folder, record.run_id, record.label, record.config, project, entity, mode, **here)
    for row in curve:
        log_row(logger, row)
    _finish(logger, record.status, record.message)
    run = logger.experiment
    return str(run.url if mode == "online" else Path(run.dir).parent)


def check(kind: Any, mode: Any) -> None:
    """Refuse a kind or mode that there is not.

    Raises:
        ConfigError: says which there are.
    """
    if kind not in ("wandb", "none"):
        raise ConfigError(f"logger.kind: expected 'wandb' or 'none', got {kind!r}; use logger=wandb or logger=none")
    if mode not in ("offline", "online", "disabled"):
        given = "; WANDB_MODE gives it where logger.mode= does not" if mode == os.environ.get("WANDB_MODE") else ""
        raise ConfigError(f"logger.mode: expected 'offline', 'online' or 'disabled', got {mode!r}{given}")


def _obstacle(wandb: Any) -> str:
    """Why no run can be opened online; empty where nothing is known to be in the way."""
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no key is set: run `wandb login`, or set WANDB_API_KEY"
    except Exception as error:  # a malformed key, say
        return f"it refuses its key: {error}"
    url = wandb.setup().settings.base_url
    parts = urlsplit(url)
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname or ""):
        return ""  # the proxy alone could say
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=INIT_TIMEOUT).close()
    except OSError as error:
        return f"{url} cannot be reached: {error}"
    return ""


def _open(
    folder: Path,
    run_id: str,
    label: str,
    config: dict[str, Any],
    project: str,
    entity: str | None,
    mode: Any,
    **settings: Any,
) -> Any:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    seed = f" seed {config['seed']}"
    run = wandb.init(
        id=run_id,
        name=f"{label[: NAME - len(seed)]}{seed}",
        group=os.environ.get("WANDB_RUN_GROUP") or label[:NAME],  # the seeds of a label
        project=project,
        entity=entity,
        dir=folder,
        mode=mode,
        config={**config, "experiment": label.partition("[")[0], "label": label},
        reinit="create_new",
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            **settings,
        ),
    )
    run.define_metric("iteration")
    run.define_metric("*", step_metric="iteration")  # every chart's axis, which is else the number of the evaluation
    return WandbLogger(experiment=run)


def _finish(logger: Any, status: str, message: str) -> None:
    logger.experiment.summary.update({"status": status} | ({"message": message} if message else {}))
    logger.experiment.finish(exit_code=int(status == "failed"))
