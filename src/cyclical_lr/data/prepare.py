"""ImageNet warped to 256x256 once, and its mean image.

Source: Caffe's `examples/imagenet/create_imagenet.sh` with RESIZE=true (`convert_imageset --resize_width=256
--resize_height=256`) and `make_imagenet_mean.sh` (`compute_image_mean` over the training set). Unlike there, a warped
image is kept as a JPEG of quality 95 with full colour resolution, instead of raw pixels in an LMDB.

    SOURCE/train/<wnid>/*.JPEG                           DEST/train/<wnid>/*.JPEG, DEST/val/<wnid>/*.JPEG
    SOURCE/val/<wnid>/*.JPEG, or SOURCE/val/*.JPEG       DEST/mean.npy, DEST/index.json, DEST/problems.csv
        with a file of labels

Each prepared image is written whole or not at all, and says in its JPEG comment that it was made here, and from what
if not from an ordinary JPEG. So an interrupted preparation continues with what is missing, and forgets no problem.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from cyclical_lr.data.warp import SIZE, read_rgb, warp
from cyclical_lr.records import ConfigError, write_atomic

QUALITY = 95
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""In lower or upper case; what a file holds is another matter, and what is prepared is a JPEG."""
MADE_HERE = "warped to 256x256 by cyclical_lr"
LAYOUT = "expected SOURCE/train/<wnid>/*.JPEG, and SOURCE/val/<wnid>/*.JPEG or SOURCE/val/*.JPEG"

T = TypeVar("T")
R = TypeVar("R")


class Job(NamedTuple):
    """One image: where it is below SOURCE, and where below DEST."""

    source: str
    target: str


class Outcome(NamedTuple):
    """What became of one image: `kept` from an earlier call, `written`, or `skipped`; `note` says what was odd."""

    action: str
    note: str


@dataclass(frozen=True)
class Problem:
    """A row of problems.csv: a source file that was `converted` from something odd and is used, or was `skipped`."""

    path: str  # below SOURCE
    action: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What a preparation did."""

    written: int
    kept: int  # finished by an earlier call
    problems: tuple[Problem, ...]
    images: dict[str, int]  # usable images of "train" and "val"
    classes: int
    without_images: tuple[str, ...]  # "<split>/<wnid>" of classes none of whose images could be read

    @property
    def usable(self) -> bool:
        """Whether both splits have images; if not, there is no mean image and no index."""
        return all(self.images.values())


def prepare(source: Path, dest: Path, workers: int = 1, val_labels: Path | None = None) -> Summary:
    """Warp every image below `source` into `dest`, then compute the mean image and the index.

    Args:
        source: the folder with train/ and val/.
        dest: the folder to fill, new, empty or of an earlier call; outside `source`.
        workers: processes; 1 works in this one. Their number changes no bit of the result.
        val_labels: only where val/ has no class folders: lines of a file's name and its class, given as the wnid or as
            a 0-based index into the sorted wnids, which is what Caffe's val.txt has.
    Returns:
        the summary. In `dest` there are
        - mean.npy: float32 [256, 256, 3], RGB, in 0..255, the mean over the prepared training images;
        - index.json: `classes` (the sorted wnids, whose positions are the labels), `mean_sha256` of mean.npy, and for
          each split `images`, `per_class` and `names_sha256` (of `names_sha256`);
        - problems.csv: path, action, reason.
    Raises:
        ConfigError: `source`, `dest` or the labels cannot be used, or `dest` is full; what is finished stays.
    """
    source, dest = Path(source).expanduser(), Path(dest).expanduser()
    if workers < 1:
        raise ConfigError(f"--workers: expected at least 1, got {workers}")
    if dest.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"DEST={dest}: lies inside SOURCE={source}; choose a folder outside it")
    classes, jobs = find_images(source, val_labels)
    try:
        dest.mkdir(parents=True, exist_ok=True)
        with FileLock(dest / ".prepare.lock", timeout=0):
            _refuse_strangers(dest, jobs)
            return _prepare_all(source, dest, workers, classes, jobs)
    except Timeout as error:
        raise ConfigError(f"DEST={dest}: another process prepares it at the moment; wait for it or end it") from error
    except OSError as error:
        raise _unwritable(dest, error) from error


def _prepare_all(source: Path, dest: Path, workers: int, classes: list[str], jobs: list[Job]) -> Summary:
    outcomes = []
    with (
        closing(_map(partial(_prepare_one, source, dest), jobs, workers, chunksize=16)) as results,
        tqdm(total=len(jobs), desc="warping", unit="image", smoothing=0.05) as bar,
    ):
        for outcome in results:
            outcomes.append(outcome)
            bar.update()

    problems = [
        Problem(job.source, "skipped" if outcome.action == "skipped" else "converted", outcome.note)
        for job, outcome in zip(jobs, outcomes, strict=True)
        if outcome.note
    ]
    write_atomic(dest / "problems.csv", _table(problems))
    usable = [job.target for job, outcome in zip(jobs, outcomes, strict=True) if outcome.action != "skipped"]
    targets = {split: [target for target in usable if target.startswith(split + "/")] for split in ("train", "val")}
    per_class = {
        split: {**dict.fromkeys(classes, 0), **Counter(target.split("/")[1] for target in targets[split])}
        for split in targets
    }
    actions = Counter(outcome.action for outcome in outcomes)
    given = {job.target.rpartition("/")[0] for job in jobs}
    summary = Summary(
        written=actions["written"],
        kept=actions["kept"],
        problems=tuple(problems),
        images={split: len(names) for split, names in targets.items()},
        classes=len(classes),
        without_images=tuple(sorted(given - {target.rpartition("/")[0] for target in usable})),
    )
    if not summary.usable:
        return summary

    content = io.BytesIO()
    np.save(content, mean_image(dest, targets["train"], workers))
    index: dict[str, Any] = {"classes": classes, "mean_sha256": hashlib.sha256(content.getvalue()).hexdigest()}
    for split, names in targets.items():
        index[split] = {"images": len(names), "names_sha256": names_sha256(names), "per_class": per_class[split]}
    write_atomic(dest / "mean.npy", content.getvalue())
    write_atomic(dest / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    return summary


# What there is --------------------------------------------------------------------------------------------------------


def find_images(source: Path, val_labels: Path | None = None) -> tuple[list[str], list[Job]]:
    """The sorted classes of `source`/train, and every image: training first, by class and name.

    Raises:
        ConfigError: the folders are not in one of the usual forms, or the labels do not fit; the message names which.
    """
    for folder in (source, source / "train", source / "val"):
        if not folder.is_dir():
            raise ConfigError(f"SOURCE={source}: there is no folder {folder}; {LAYOUT}")
    classes, loose = list_folder(source / "train")
    if loose:
        raise ConfigError(f"SOURCE={source}: train/{loose[0]} is in no class folder; {LAYOUT}")
    if not classes:
        raise ConfigError(f"SOURCE={source}: train/ has no class folders (unpack its archives); {LAYOUT}")
    jobs = _in_folders(source, "train", classes)

    folders, flat = list_folder(source / "val")
    if folders and flat:
        raise ConfigError(f"SOURCE={source}: val/ has both class folders and images ({flat[0]}); {LAYOUT}")
    if folders:
        if val_labels is not None:
            raise ConfigError(f"--val-labels={val_labels}: val/ has class folders, which tell the labels; leave it out")
        if unknown := sorted(set(folders) - set(classes)):
            raise ConfigError(f"SOURCE={source}: train/ lacks classes of val/: {_some(unknown)}; add or remove them")
        return classes, jobs + _in_folders(source, "val", folders)
    if not flat:
        raise ConfigError(f"SOURCE={source}: val/ has no images; {LAYOUT}")
    if val_labels is None:
        raise ConfigError(
            f"SOURCE={source}: val/ has images without class folders; give their classes with --val-labels FILE, lines "
            f"like '{flat[0]} {classes[0]}' or '{flat[0]} 0' (0-based, in the order of the sorted wnids)"
        )
    labels = read_labels(val_labels, classes)
    if missing := [name for name in flat if name not in labels]:
        raise ConfigError(f"--val-labels={val_labels}: no line for images of val/: {_some(missing)}; add them")
    return classes, jobs + [Job(f"val/{name}", f"val/{labels[name]}/{name}") for name in flat]


def _in_folders(source: Path, split: str, folders: Sequence[str]) -> list[Job]:
    names = {wnid: list_folder(source / split / wnid)[1] for wnid in folders}
    if empty := [f"{split}/{wnid}" for wnid in folders if not names[wnid]]:
        raise ConfigError(
            f"SOURCE={source}: class folders without an image (.JPEG, .png, ...): {_some(empty)}; fill or remove them"
        )
    paths = (f"{split}/{wnid}/{name}" for wnid in folders for name in names[wnid])
    return [Job(path, path) for path in paths]


def list_folder(folder: Path, key: str = "SOURCE") -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the images in a folder, hidden ones left out.

    Raises:
        ConfigError: it cannot be listed; the message begins with `key`.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    images.append(entry.name)
    except OSError as error:
        raise ConfigError(f"{key}: {folder} cannot be listed ({error}); make it readable") from error
    return sorted(folders), sorted(images)


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """The wnid of each file name in a file of labels, as `prepare` describes it; a name of a class is tried first.

    Raises:
        ConfigError: the file cannot be read, a line has another form, an unknown class or a second class for a name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--val-labels={path}: cannot be read ({error}); expected a text file") from error
    known = set(classes)
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = name.strip()
        if label not in known and label.isdecimal() and int(label) < len(classes):
            label = classes[int(label)]
        if not name or label not in known or labels.setdefault(name, label) != label:
            raise ConfigError(
                f"--val-labels={path}: line {number} is {line!r}; expected a file's name, once, and its class: a wnid "
                f"of train/ or an index from 0 to {len(classes) - 1} into the sorted wnids"
            )
    return labels


def _refuse_strangers(dest: Path, jobs: Sequence[Job]) -> None:
    """Clear away what a killed process left half-written; refuse images that are none of `jobs`."""
    expected, sources = {job.target for job in jobs}, {job.source for job in jobs}
    for split in ("train", "val"):
        for folder, _, names in os.walk(dest / split):
            below = Path(folder).relative_to(dest).as_posix()
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):  # write_atomic's; we hold the lock
                    (Path(folder) / name).unlink(missing_ok=True)
                elif name.lower().endswith(SUFFIXES) and f"{below}/{name}" not in expected:
                    elsewhere = f"{split}/{name}" in sources
                    what = "whose class is another one now" if elsewhere else "which SOURCE does not have"
                    remedy = f"remove {dest / split}, which is then made anew," if elsewhere else "remove it"
                    raise ConfigError(f"DEST={dest}: has {below}/{name}, {what}; {remedy} or choose a new folder")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# One image ------------------------------------------------------------------------------------------------------------


def _prepare_one(source: Path, dest: Path, job: Job) -> Outcome:
    target = dest / job.target
    if target.exists():
        return Outcome("kept", _note(dest, target))
    try:
        pixels, note = read_rgb(source / job.source)
    except UnidentifiedImageError:  # its message has the path once more
        return Outcome("skipped", "no image of a known format")
    except Exception as error:  # a damaged file raises nearly anything
        reason = error.strerror if isinstance(error, OSError) else None  # without the path
        return Outcome("skipped", reason or f"{type(error).__name__}: {error}")
    content = io.BytesIO()
    comment = f"{MADE_HERE}; {note}" if note else MADE_HERE
    Image.fromarray(warp(pixels)).save(content, "JPEG", quality=QUALITY, subsampling=0, comment=comment.encode())
    try:
        write_atomic(target, content.getvalue())
    except OSError as error:
        raise _unwritable(dest, error) from error
    return Outcome("written", note)


def _note(dest: Path, target: Path) -> str:
    """What a prepared image says that it was converted from."""
    try:
        with Image.open(target, formats=("JPEG",)) as image:
            mark, _, note = image.info.get("comment", b"").decode(errors="replace").partition("; ")
            if mark == MADE_HERE and image.size == (SIZE, SIZE):
                return note
    except OSError:
        pass
    raise ConfigError(f"DEST={dest}: {target} is no image that was prepared here; remove it or choose a new folder")


def _unwritable(dest: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"DEST={dest}: cannot be written ({error}); free space, make it writable or choose another folder, then run "
        f"the same command again: finished images are kept"
    )


# All images -----------------------------------------------------------------------------------------------------------


def mean_image(dest: Path, targets: Sequence[str], workers: int = 1) -> np.ndarray:
    """The mean of prepared images, `targets` below `dest`: float32 [256, 256, 3], RGB, in 0..255.

    Sums of whole numbers are exact in float64 up to 2^53, so that neither order nor `workers` change a bit.

    Raises:
        ConfigError: an image is damaged.
    """
    total = np.zeros((SIZE, SIZE, 3))
    chunks = [targets[start : start + 64] for start in range(0, len(targets), 64)]
    with (
        closing(_map(partial(_sum, dest), chunks, workers, chunksize=1)) as results,
        tqdm(total=len(targets), desc="mean image", unit="image", smoothing=0.05) as bar,
    ):
        for chunk, part in zip(chunks, results, strict=True):
            total += part
            bar.update(len(chunk))
    return (total / len(targets)).astype(np.float32)


def _sum(dest: Path, targets: Sequence[str]) -> np.ndarray:
    total = np.zeros((SIZE, SIZE, 3))
    for target in targets:
        try:
            with Image.open(dest / target, formats=("JPEG",)) as image:
                total += np.asarray(image)
        except Exception as error:  # as for a damaged source
            raise ConfigError(f"DEST={dest}: {target} is damaged ({error}); remove it and run again") from error
    return total


def names_sha256(targets: Iterable[str]) -> str:
    """SHA-256 over the sorted paths "<split>/<wnid>/<name>" in the file system's bytes, each with a line feed."""
    return hashlib.sha256(b"".join(sorted(os.fsencode(target) + b"\n" for target in targets))).hexdigest()


def _table(problems: Iterable[Problem]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "action", "reason"))
    writer.writerows((problem.path, problem.action, problem.reason) for problem in problems)
    return os.fsencode(text.getvalue())


def _map(function: Callable[[T], R], items: Sequence[T], workers: int, chunksize: int) -> Generator[R, None, None]:
    """Results in the order of `items`; workers are spawned, since a fork of a process with threads may hang."""
    if workers == 1:
        yield from map(function, items)
        return
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from executor.map(function, items, chunksize=chunksize)
    except BrokenProcessPool as error:
        raise ConfigError(
            f"--workers={workers}: a worker was killed, perhaps for want of memory; run the same command again with "
            f"fewer: finished images are kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()  # a killed parent cannot end its workers
