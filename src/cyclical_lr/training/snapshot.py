"""The code under a queued job: a copy of what was submitted, and the process that goes on from it.

A job may wait for days, and be requeued for weeks. With `cluster.snapshot=true` it, and every continuation of it, runs
the code and the configs as they were at submission, whatever has become of the working tree. What a user has elsewhere,
a folder of --config-dir or modules on PYTHONPATH, is read where it lies.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from cyclical_lr.training import provenance

COPIED = ("src", "scripts", "conf", "pyproject.toml", "benchmarks/results")
REPOSITORY = "CYCLICAL_LR_REPOSITORY"
"""Names, in the environment of a process that runs from a snapshot, the checkout that it was taken from."""


def take(repository: Path, runs_dir: Path) -> Path:
    """Copy the code of a working tree, uncommitted edits included, to `runs_dir/.snapshots/<hash of the files>/`.

    Returns:
        the copy; one that is there already is used again.
    Raises:
        OSError: `runs_dir` cannot be written to.
    """
    files = [file for name in COPIED for file in _files(repository / name)]
    contents = {file.relative_to(repository): file.read_bytes() for file in sorted(files)}
    digest = hashlib.sha256()
    for path, data in contents.items():
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    copy = runs_dir.absolute() / ".snapshots" / digest.hexdigest()[:12]
    if copy.exists():
        return copy
    beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        for path, data in contents.items():
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            (beside / path).write_bytes(data)
        beside.rename(copy)  # whole or not at all
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not copy.exists():  # else another submission was quicker
            raise
    return copy


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def go_on_from_copy(runs_dir: Path) -> None:
    """Replace this process by the same command from a copy of the code; returns only in a process that is one already.

    Records of that process, and of the jobs that it submits, name the commit of now, and whether files differ from it.
    """
    if REPOSITORY in os.environ:
        return
    script = Path(sys.argv[0]).resolve()
    repository = script.parent.parent
    commit, dirty = provenance.commit()
    copy = take(repository, runs_dir)
    os.environ[REPOSITORY] = str(repository)
    os.environ["CYCLICAL_LR_COMMIT"] = commit + provenance.DIRTY * dirty
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(copy / "src"), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(copy / "scripts" / script.name), *sys.argv[1:]])
