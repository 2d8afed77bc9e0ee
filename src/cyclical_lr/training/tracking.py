"""Weights & Biases: a view of the local files, never in the way of training."""

import logging
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cyclical_lr.records import ConfigError

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30  # seconds; a compute node without network must not wait longer


def open_logger(
    folder: Path, run_id: str, name: str, config: dict[str, Any], kind: str, project: str, entity: str | None, mode: str
) -> Any:
    """A Lightning logger for one run, or None for `kind="none"`, which imports nothing of wandb.

    A run that cannot be opened online (no key, no network) is opened offline, with a warning; one that cannot be opened
    at all is not logged. Nothing prompts. `folder` holds wandb's files.

    Raises:
        ConfigError: unknown `kind` or `mode`.
    """
    if kind == "none":
        return None
    if kind != "wandb":
        raise ConfigError(f"logger.kind: expected 'wandb' or 'none', got {kind!r}; use logger=wandb or logger=none")
    if mode not in ("offline", "online"):
        raise ConfigError(f"logger.mode: expected 'offline' or 'online', got {mode!r}")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    if mode == "online" and not _has_key(wandb):
        log.warning("logger.mode=online, but no W&B key is set (wandb login, or WANDB_API_KEY): logging offline")
        mode = "offline"
    if mode == "online" and not _reachable(wandb.setup().settings.base_url):
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            run = wandb.init(
                id=run_id,
                name=name,
                project=project,
                entity=entity,
                dir=folder,
                mode=attempt,  # type: ignore[arg-type]
                config=config,
                reinit="create_new",
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT,
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                ),
            )
            return WandbLogger(experiment=run)
        except Exception as error:  # wandb's view of the world must not end a run
            log.warning("W&B could not be opened %s (%s: %s)", attempt, type(error).__name__, error)
            wandb.teardown()  # its service holds on to the run's id; other runs of this process lose their view
    log.warning("W&B is off for this run; its record and curve are written as always")
    return None


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # a malformed key, say
        log.warning("W&B refuses its key (%s)", error)
        return False


def _reachable(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=INIT_TIMEOUT).close()
    except OSError as error:
        log.warning("W&B could not be opened online (%s: %s): logging offline", url, error)
        return False
    return True


def close_logger(logger: Any, summary: dict[str, Any], exit_code: int) -> None:
    """Finish the run in W&B, whatever state it is in."""
    try:
        logger.experiment.summary.update(summary)
        logger.experiment.finish(exit_code=exit_code)
    except Exception as error:  # the local files are complete by now
        log.warning("W&B did not finish cleanly (%s: %s)", type(error).__name__, error)
