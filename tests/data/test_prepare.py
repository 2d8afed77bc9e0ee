"""Preparing ImageNet: every readable image warped once, whatever stops it and however often; nothing lost unnoticed."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from cyclical_lr.data.prepare import Problem, find_images, mean_image, names_sha256, prepare
from cyclical_lr.data.warp import warp
from cyclical_lr.records import ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_imagenet.py"
CLASSES = ["n01", "n02", "n10"]


def picture(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """A smooth picture in RGB, which a JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, quality=95)
    return path


def damage(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.fixture
def source(tmp_path):
    """Three classes of four training images and a validation image each, all readable, all ordinary."""
    folder = tmp_path / "source"
    for label, wnid in enumerate(CLASSES):
        for number in range(4):
            save(folder / "train" / wnid / f"{wnid}_{number}.JPEG", picture(10 * label + number, (70 + number, 300)))
        save(folder / "val" / wnid / f"val_{label}.JPEG", picture(100 + label))
    return folder


@pytest.fixture
def odd(source):
    """The same with everything that ImageNet is known for, and what else a disk may hold."""
    train = source / "train"
    save(train / "n01" / "cmyk.JPEG", picture(1).convert("CMYK"))
    save(train / "n01" / "grey.JPEG", picture(2).convert("L"))
    save(train / "n02" / "png.JPEG", picture(3), "PNG")
    save(train / "n02" / "clear.JPEG", picture(4).convert("RGBA"), "PNG")
    damage(save(train / "n10" / "truncated.JPEG", picture(5)))
    damage(save(source / "val" / "n10" / "truncated.JPEG", picture(6), "PNG"))
    (train / "n10" / "text.JPEG").write_text("not an image")
    (train / "n10" / "empty.JPEG").touch()
    (train / "n10" / "gone.JPEG").symlink_to("nowhere")
    return source


PROBLEMS = [
    ("train/n01/cmyk.JPEG", "converted", "JPEG, CMYK"),
    ("train/n02/clear.JPEG", "converted", "PNG, RGBA"),
    ("train/n02/png.JPEG", "converted", "PNG, RGB"),
    ("train/n10/empty.JPEG", "skipped", "no image of a known format"),
    ("train/n10/gone.JPEG", "skipped", "No such file or directory"),
    ("train/n10/text.JPEG", "skipped", "no image of a known format"),
    ("train/n10/truncated.JPEG", "skipped", "truncated"),
    ("val/n10/truncated.JPEG", "skipped", "truncated"),
]


def check_problems(found: Iterable[tuple[str, str, str]]) -> None:
    for (path, action, reason), (our_path, our_action, our_reason) in zip(PROBLEMS, found, strict=True):
        assert (our_path, our_action) == (path, action)
        assert reason in our_reason.lower() if reason == "truncated" else our_reason == reason


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image)


def script(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


# Images of every kind -------------------------------------------------------------------------------------------------


def test_odd_files_are_used_or_skipped_and_listed_but_never_a_crash(odd, tmp_path):
    done = prepare(odd, tmp_path / "dest")
    check_problems((problem.path, problem.action, problem.reason) for problem in done.problems)
    with (tmp_path / "dest" / "problems.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "action", "reason"]
    assert [Problem(*row) for row in rows] == list(done.problems)
    assert (done.written, done.kept, done.images) == (16 + 3, 0, {"train": 16, "val": 3})
    assert done.usable and done.without_images == ()
    skipped = {path for path, action, _ in PROBLEMS if action == "skipped"}
    expected = {path.relative_to(odd).as_posix() for path in odd.rglob("*.JPEG")} - skipped
    assert set(tree(tmp_path / "dest")) == expected | {"problems.csv", "mean.npy", "index.json"}


@pytest.mark.parametrize(
    ("name", "seed", "mode"),
    [
        ("n01/cmyk", 1, "RGB"),
        ("n01/grey", 2, "L"),
        ("n02/png", 3, "RGB"),
        ("n02/clear", 4, "RGB"),
        ("n01/n01_0", 0, ""),
    ],
)
def test_a_prepared_image_shows_the_picture_in_its_own_colours(odd, tmp_path, name, seed, mode):
    prepare(odd, tmp_path / "dest")
    picked = picture(seed, (90, 60) if mode else (70, 300))
    expected = warp(np.asarray(picked.convert(mode or "RGB").convert("RGB"))).astype(int)
    error = np.abs(pixels(tmp_path / "dest" / "train" / f"{name}.JPEG") - expected)
    assert error.mean() < 2.5
    assert np.abs(255 - 2 * expected).mean() > 40, "an inverted picture would not pass"


def test_prepared_images_keep_their_colours_in_full_and_nearly_all_detail(source, tmp_path):
    dest = tmp_path / "dest"
    prepare(source, dest)
    with Image.open(next((dest / "train").rglob("*.JPEG"))) as image:
        assert get_sampling(image) == 0  # 4:4:4
        assert image.quantization[0][0] == 2  # 16 at quality 50, 2 at 95


def test_sixteen_bits_keep_the_upper_eight(source, tmp_path):
    deep = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    Image.fromarray(deep).save(source / "train" / "n01" / "deep.JPEG", "PNG")
    done = prepare(source, tmp_path / "dest")
    assert [problem.reason for problem in done.problems] == ["PNG, I;16"]
    expected = warp(np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, 2)).astype(int)
    assert np.abs(pixels(tmp_path / "dest" / "train" / "n01" / "deep.JPEG") - expected).mean() < 2


# Mean and index -------------------------------------------------------------------------------------------------------


def test_the_mean_image_is_that_of_the_prepared_training_images(odd, tmp_path):
    dest = tmp_path / "dest"
    prepare(odd, dest)
    mean = np.load(dest / "mean.npy")
    stack = np.stack([pixels(path) for path in sorted((dest / "train").rglob("*.JPEG"))])
    assert (mean.dtype, mean.shape, len(stack)) == (np.float32, (256, 256, 3), 16)
    assert np.array_equal(mean, stack.astype(np.float64).mean(0).astype(np.float32))
    names = [f"train/{path.parent.name}/{path.name}" for path in (dest / "train").rglob("*.JPEG")] * 9
    expected = np.concatenate([stack] * 9).mean(0, dtype=np.float64).astype(np.float32)
    assert np.array_equal(mean_image(dest, names), expected), "more than one chunk, in any order"


def test_the_index_has_the_classes_the_counts_and_the_checksums(odd, tmp_path):
    dest = tmp_path / "dest"
    prepare(odd, dest)
    index = json.loads((dest / "index.json").read_text())
    names = {
        split: sorted(f"{path.parent.name}/{path.name}" for path in (dest / split).rglob("*.JPEG"))
        for split in ("train", "val")
    }
    text = {split: "".join(f"{split}/{name}\n" for name in names[split]) for split in names}
    assert index == {
        "classes": CLASSES,
        "mean_sha256": hashlib.sha256((dest / "mean.npy").read_bytes()).hexdigest(),
        "train": {
            "images": 16,
            "names_sha256": hashlib.sha256(text["train"].encode()).hexdigest(),
            "per_class": {"n01": 6, "n02": 6, "n10": 4},
        },
        "val": {
            "images": 3,
            "names_sha256": hashlib.sha256(text["val"].encode()).hexdigest(),
            "per_class": {"n01": 1, "n02": 1, "n10": 1},
        },
    }
    assert names_sha256(reversed([f"val/{name}" for name in names["val"]])) == index["val"]["names_sha256"]


# Parallel, stopped and continued --------------------------------------------------------------------------------------


def test_several_workers_give_the_same_bits_as_one(odd, tmp_path):
    one, two = prepare(odd, tmp_path / "one"), prepare(odd, tmp_path / "two", workers=2)
    assert one == two
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_finished_images_are_not_redone_and_their_problems_not_forgotten(odd, tmp_path):
    dest = tmp_path / "dest"
    first = prepare(odd, dest)
    before, times = tree(dest), {path: path.stat().st_mtime_ns for path in dest.rglob("*.JPEG")}
    lost = [dest / "train" / "n01" / "n01_2.JPEG", dest / "val" / "n02" / "val_1.JPEG"]
    for path in lost:
        path.unlink()
    again = prepare(odd, dest)
    assert (again.written, again.kept) == (2, first.written - 2)
    assert again.problems == first.problems
    assert tree(dest) == before
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == set(lost)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_continues_to_the_same_bits(odd, tmp_path, workers):
    big = save(tmp_path / "big.JPEG", picture(7, (1500, 1000)))
    for number in range(60):
        (odd / "train" / "n02" / f"big_{number:02}.JPEG").hardlink_to(big)
    unbroken, dest = tmp_path / "unbroken", tmp_path / "dest"
    prepare(odd, unbroken)

    killed = subprocess.Popen([sys.executable, SCRIPT, odd, dest, f"--workers={workers}"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(dest.glob("train/*/*.JPEG"))) < 10 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate(timeout=60)  # its workers, who share the pipe, end by themselves
    finished = tree(dest)
    assert 10 <= len(finished) < len(tree(unbroken)) - 3
    assert not {"index.json", "mean.npy"} & finished.keys()
    (dest / "train" / "n01" / ".n01_0.JPEG.123.tmp").write_bytes(b"half")

    continued = prepare(odd, dest)
    assert continued.kept == len(finished)
    assert tree(dest) == tree(unbroken)
    assert not list(dest.rglob("*.tmp"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_named_and_what_is_finished_stays(source, tmp_path, full_disk, workers):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    save(source / "train" / "n02" / "n02_1.JPEG", Image.fromarray(noise))  # far larger than a smooth picture
    dest = tmp_path / "dest"
    with full_disk(60_000), pytest.raises(ConfigError, match=r"DEST=.*cannot be written .*too large.*free space"):
        prepare(source, dest, workers)
    finished = len(list(dest.rglob("*.JPEG")))
    assert finished >= 5 and not list(dest.rglob("*.tmp"))
    assert prepare(source, dest).kept == finished


# Both forms of val/ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["wnid", "index"])
def test_a_flat_val_folder_gives_the_same_as_class_folders(source, tmp_path, form):
    prepare(source, tmp_path / "folders")
    lines = ["not_here.JPEG n01", ""]
    for label, wnid in enumerate(CLASSES):
        image = next((source / "val" / wnid).iterdir())
        image.rename(source / "val" / image.name)
        image.parent.rmdir()
        lines.append(f"{image.name} {wnid}" if form == "wnid" else f"{image.name}\t{label}  ")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(lines), encoding="utf-8-sig")  # as editors on Windows write it
    prepare(source, tmp_path / "flat", val_labels=labels)
    assert tree(tmp_path / "flat") == tree(tmp_path / "folders")


def flatten(source: Path) -> None:
    for image in list((source / "val").rglob("*.JPEG")):
        image.rename(source / "val" / image.name)
        image.parent.rmdir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.JPEG n01\nval_1.JPEG n01\n", r"no line for images of val/: val_2\.JPEG"),
        ("val_0.JPEG n03\n", r"line 1 is 'val_0\.JPEG n03'; expected .* 0 to 2"),
        ("val_0.JPEG 0\nval_1.JPEG 3\n", r"line 2 is 'val_1\.JPEG 3'"),
        ("490\n361\n", r"line 1 is '490'"),
        ("val_0.JPEG 0\nval_0.JPEG 1\n", r"line 2 is 'val_0\.JPEG 1'; expected a file's name, once"),
        (None, r"--val-labels=.*: cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_named(source, tmp_path, text, message):
    flatten(source)
    labels = tmp_path / "labels.txt"
    if text is not None:
        labels.write_text(text)
    with pytest.raises(ConfigError, match=message):
        prepare(source, tmp_path / "dest", val_labels=labels)


# Unusable input -------------------------------------------------------------------------------------------------------


def test_a_flat_val_folder_without_labels_tells_how_to_give_them(source, tmp_path):
    flatten(source)
    with pytest.raises(ConfigError, match=r"--val-labels FILE, lines like 'val_0\.JPEG n01' or 'val_0\.JPEG 0'"):
        prepare(source, tmp_path / "dest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda source: (source / "train").rename(source / "training"), r"there is no folder .*train; expected SOURCE"),
        (lambda source: (source / "val").rename(source / "validation"), r"there is no folder .*val; expected SOURCE"),
        (lambda source: source.rename(source.with_name("elsewhere")), r"there is no folder .*source; expected SOURCE"),
        (lambda source: (source / "train" / "n03").mkdir(), r"without an image \(\.JPEG, .*\): train/n03; fill"),
        (lambda source: (source / "val" / "n03").mkdir(), r"train/ lacks classes of val/: n03"),
        (lambda source: (source / "val" / "n01" / "val_0.JPEG").unlink(), r": val/n01; fill"),
        (lambda source: save(source / "train" / "loose.jpg", picture(0)), r"train/loose\.jpg is in no class folder"),
        (lambda source: save(source / "val" / "loose.jpg", picture(0)), r"val/ has both class folders and images"),
    ],
)
def test_folders_of_another_form_are_named(source, tmp_path, change, message):
    change(source)
    with pytest.raises(ConfigError, match=rf"SOURCE=.*{message}"):
        prepare(source, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_train_without_class_folders_and_val_without_images_are_named(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ConfigError, match=r"train/ has no class folders \(unpack its archives\)"):
        find_images(tmp_path)
    save(tmp_path / "train" / "n01" / "a.JPEG", picture(0))
    with pytest.raises(ConfigError, match=r"val/ has no images"):
        find_images(tmp_path)


def test_names_are_sorted_hidden_files_left_out_and_both_suffixes_taken(source):
    folder = source / "train" / "n01"
    for name in ("b.jpg", "A.JPG", "._n01_0.JPEG", "notes.txt"):
        (folder / name).touch()
    classes, jobs = find_images(source)
    assert classes == CLASSES
    assert [job.target for job in jobs[:7]] == [
        f"train/n01/{name}" for name in ("A.JPG", "b.jpg", *(f"n01_{i}.JPEG" for i in range(4)))
    ] + ["train/n02/n02_0.JPEG"]


def test_a_validation_image_whose_class_was_corrected_is_named_as_such(source, tmp_path):
    flatten(source)
    labels = tmp_path / "labels.txt"
    labels.write_text("val_0.JPEG n01\nval_1.JPEG n02\nval_2.JPEG n10\n")
    prepare(source, tmp_path / "dest", val_labels=labels)
    labels.write_text("val_0.JPEG n02\nval_1.JPEG n02\nval_2.JPEG n10\n")
    message = r"has val/n01/val_0\.JPEG, whose class is another one now; remove \S+/dest/val, which is then made anew,"
    with pytest.raises(ConfigError, match=message):
        prepare(source, tmp_path / "dest", val_labels=labels)


def test_images_of_other_formats_are_taken_and_listed(source, tmp_path):
    (source / "train" / "n01" / "n01_0.JPEG").unlink()
    save(source / "train" / "n01" / "n01_0.png", picture(0), "PNG")
    done = prepare(source, tmp_path / "dest")
    assert done.images == {"train": 12, "val": 3}
    assert done.problems == (Problem("train/n01/n01_0.png", "converted", "PNG, RGB"),)


def test_labels_for_class_folders_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"--val-labels=.*leave it out"):
        prepare(source, tmp_path / "dest", val_labels=tmp_path / "labels.txt")


@pytest.mark.parametrize("dest", [".", "train", "new/folder", "../source"])
def test_a_destination_inside_the_source_is_refused(source, dest):
    before = tree(source)
    with pytest.raises(ConfigError, match=r"DEST=.*lies inside SOURCE="):
        prepare(source, source / dest)
    assert tree(source) == before


def test_a_destination_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"DEST=.*file/dest: cannot be written"):
        prepare(source, tmp_path / "file" / "dest")


def test_a_destination_in_use_is_left_alone(source, tmp_path):
    dest = tmp_path / "dest"
    dest.mkdir()
    with FileLock(dest / ".prepare.lock"), pytest.raises(ConfigError, match=r"DEST=.*another process"):
        prepare(source, dest)
    assert not tree(dest)


def test_images_that_were_not_prepared_here_are_neither_taken_nor_overwritten(source, tmp_path):
    dest = tmp_path / "dest"
    stranger = save(dest / "train" / "n01" / "n01_1.JPEG", picture(50, (256, 256)))
    before = tree(dest)
    with pytest.raises(ConfigError, match=r"DEST=.*n01_1\.JPEG is no image that was prepared here"):
        prepare(source, dest)
    assert tree(dest).items() >= before.items()
    stranger.rename(stranger.with_name("other.JPEG"))
    with pytest.raises(ConfigError, match=r"DEST=.*has train/n01/other\.JPEG, which SOURCE does not have"):
        prepare(source, dest)


def test_no_workers_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"--workers: expected at least 1, got 0"):
        prepare(source, tmp_path / "dest", workers=0)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_reports_problems_and_exits_with_0(odd, tmp_path):
    ran = script(odd, tmp_path / "dest", "--workers", 1)
    assert ran.returncode == 0, ran.stderr
    assert "16 training and 3 validation images of 3 classes" in ran.stdout
    assert "written 19, kept from before 0" in ran.stdout
    assert "3 converted, 5 skipped, listed in" in ran.stdout
    assert "warping: 100%" in ran.stderr and "mean image: 100%" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_command_exits_with_1_where_nothing_is_usable(source, tmp_path):
    for image in source.glob("val/*/*.JPEG"):
        image.write_bytes(b"")
    ran = script(source, tmp_path / "dest", "--workers", 1)
    assert ran.returncode == 1
    assert "no usable image in val; see problems.csv" in ran.stderr
    assert "classes without a readable image: val/n01, val/n02, val/n10" in ran.stdout
    assert not (tmp_path / "dest" / "index.json").exists()
    assert (tmp_path / "dest" / "problems.csv").read_text().count("skipped") == 3


def test_the_command_exits_with_2_on_unusable_input(tmp_path):
    ran = script(tmp_path / "nothing", tmp_path / "dest")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: SOURCE=") and "Traceback" not in ran.stderr


def test_help_needs_neither_torch_nor_pillow():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--help"], capture_output=True, text=True, check=True
    )
    assert "--val-labels FILE" in shown.stdout
    assert "torch" not in shown.stderr and "PIL" not in shown.stderr


def test_preparing_never_imports_torch():
    code = "import sys, cyclical_lr.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Real JPEGs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_images_of_any_size_are_prepared(tmp_path):
    folder = os.environ.get("CYCLICAL_LR_JPEGS")
    if not folder or not (Path(folder) / "full_size").is_dir():
        pytest.skip(
            "needs real JPEGs: set CYCLICAL_LR_JPEGS to a folder with full_size/<wnid>/*.JPEG, images of any size, and "
            "train/ and val/ in ImageNet's layout"
        )
    source, dest = tmp_path / "source", tmp_path / "dest"
    for split in ("train", "val"):
        for path in sorted(Path(folder, "full_size").iterdir())[:30]:
            (source / split).mkdir(parents=True, exist_ok=True)
            (source / split / path.name).symlink_to(path.resolve())
    done = prepare(source, dest)
    assert done.images["train"] == done.images["val"] == len(list(source.glob("train/*/*.*"))) >= 30
    assert {problem.action for problem in done.problems} <= {"converted"}
    mean = np.load(dest / "mean.npy").mean((0, 1))
    assert ((mean > 80) & (mean < 150)).all() and mean[0] > mean[2], "about 123, 117, 104 in RGB"
