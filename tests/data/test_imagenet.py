"""ImageNet as Caffe's data layer presents it: pixels, crops, mean, order; and that the set is the one that is meant."""

import json
import os
import shutil
import signal
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_imagenet import CLASSES, TRAIN, VAL, prepared
from small_runs import CONF

from cyclical_lr import records
from cyclical_lr.data import imagenet
from cyclical_lr.data.imagenet import ImageNetData
from cyclical_lr.records import ConfigError
from cyclical_lr.training.config import compose_config, describe, label, plain

MEANS = {"image": 227, (123, 117, 104): 224}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def copy(root, tmp_path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def data(root: Path, **choices: Any) -> ImageNetData:
    usual = {"name": "x", "num_classes": 6, "root": root, "crop": 227, "batch_size": 4, "workers": 0}
    made = ImageNetData(**usual | choices)
    made.setup()
    return made


def blocks(made: ImageNetData, *seeds: int, start: int = 0, iterations: int = 6, eval_every: int = 100) -> list[dict]:
    return list(made.train_blocks(seeds, start, iterations, eval_every))


def batch(made: ImageNetData, block: dict, member: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return made.train(**{name: values[member, 0] for name, values in block.items() if name != "start"})


def files(root: Path, split: str) -> list[tuple[Path, int]]:
    return [(path, CLASSES.index(path.parent.name)) for path in sorted((root / split).rglob("*.JPEG"))]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float64)


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", MEANS, ids=str)
def test_a_training_batch_is_caffes_transform_of_the_images(root, mean):
    crop = MEANS[mean]
    made = data(root, crop=crop, mean=mean)
    listed = files(root, "train")
    subtracted = np.load(root / "mean.npy") if mean == "image" else np.array(mean)
    for iteration, block in enumerate(blocks(made, 5)):
        order, (x, y) = made.order(5, iteration), batch(made, block)
        assert x.dtype == torch.float32 and x.shape == (4, 3, crop, crop)
        assert x.is_contiguous(memory_format=torch.channels_last)
        parts = (order[key] for key in ("samples", "top", "left", "mirrored"))
        for ours, label_, sample, top, left, mirrored in zip(x, y, *parts, strict=True):
            path, expected_label = listed[sample]
            # The mean is subtracted where the pixel comes from, before the crop is mirrored.
            expected = (pixels(path) - subtracted)[top : top + crop, left : left + crop]
            expected = expected[:, ::-1] if mirrored else expected
            np.testing.assert_allclose(ours.permute(1, 2, 0), expected, atol=1.01)  # two JPEG decoders
            assert np.abs(ours.permute(1, 2, 0).numpy() - expected).mean() < 0.05
            assert label_ == expected_label


@pytest.mark.parametrize(("crop", "offset"), [(227, 14), (224, 16)])
def test_evaluation_sees_the_centre_of_every_image_once_unmirrored_and_in_order(root, crop, offset):
    made = data(root, crop=crop, eval_batch_size=3)
    seen = [made.test(**block) for block in made.eval_blocks()]
    assert [len(y) for _, y in seen] == [3, 3, 2] and len(made.test) == VAL
    mean = np.load(root / "mean.npy")
    listed = files(root, "val")
    assert torch.cat([y for _, y in seen]).tolist() == [number for _, number in listed]
    for image, (path, _) in zip(torch.cat([x for x, _ in seen]), listed, strict=True):
        expected = (pixels(path) - mean)[offset : offset + crop, offset : offset + crop]
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() < 0.05


def test_on_a_cpu_neither_workers_nor_where_jpegs_are_decoded_change_a_bit(root, monkeypatch):
    ours = data(root)
    straight = [batch(ours, block, member) for block in blocks(ours, 0, 7) for member in (0, 1)]
    for choices in (
        {"workers": 2},
        {"workers": 2, "start": "spawn"},
        {"decode": "device"},
        {"workers": 1, "decode": "device"},
    ):
        start = choices.pop("start", "fork")
        monkeypatch.setattr(imagenet, "get_start_method", lambda start=start: start)
        other = data(root, **choices)
        again = [batch(other, block, member) for block in blocks(other, 0, 7) for member in (0, 1)]
        for (x, y), (x2, y2) in zip(straight, again, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)


def test_workers_use_their_memory_again_once_nothing_of_a_batch_is_left(root):
    loader, places, expected = (
        data(root, workers=1).train_blocks([0], 0, 40, 100),
        [],
        blocks(data(root), 0, iterations=40),
    )
    for block, other in zip(loader, expected, strict=True):
        assert torch.equal(block["images"], other["images"])
        places.append(block["images"].data_ptr())
    assert len(set(places)) <= 4
    del block
    assert not loader.dataset.memory._taken.any()


def test_no_worker_writes_where_a_part_of_a_batch_is_still_in_use(root):
    expected = [block["images"][0, 0, 1:2] for block in blocks(data(root), 0, iterations=40)]
    kept = [block["images"][0, 0, 1:2] for block in data(root, workers=1).train_blocks([0], 0, 40, 100)]
    assert all(map(torch.equal, kept, expected))


# Order and randomness -------------------------------------------------------------------------------------------------


def samples(made: ImageNetData, seed: int, iterations: int) -> list[int]:
    return np.concatenate([made.order(seed, iteration)["samples"] for iteration in range(iterations)]).tolist()


def test_the_order_is_one_permutation_for_all_epochs_and_seeds(root):
    made = data(root)
    stream = samples(made, 0, 9)  # two epochs of 18
    assert stream[:TRAIN] == stream[TRAIN:] == samples(made, 9, 9)[:TRAIN]
    assert sorted(stream[:TRAIN]) == list(range(TRAIN)) != stream[:TRAIN]


def test_samples_crops_and_mirrors_are_those_of_every_version(root):
    order = {key: values.tolist() for key, values in data(root).order(3, 5).items()}
    assert order == {
        "samples": [12, 6, 7, 14],
        "top": [0, 4, 1, 26],
        "left": [24, 26, 9, 17],
        "mirrored": [False, True, False, False],
    }
    assert data(root, shuffle=True, batch_size=50).order(3, 5)["mirrored"].any()


def test_a_shuffled_order_is_another_permutation_for_each_epoch_and_seed(root):
    made = data(root, shuffle=True)
    stream, other = samples(made, 0, 9), samples(made, 1, 9)
    epochs = [stream[:TRAIN], stream[TRAIN:], other[:TRAIN], other[TRAIN:]]
    assert all(sorted(epoch) == list(range(TRAIN)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_crops_and_mirrors_cover_all_that_they_may_and_differ_by_seed_and_iteration(root):
    made = data(root, batch_size=2000)
    first, again, later, other = (made.order(*which) for which in ((3, 5), (3, 5), (3, 6), (4, 5)))
    for key in ("top", "left", "mirrored"):
        assert np.array_equal(first[key], again[key])
        assert not np.array_equal(first[key], later[key]) and not np.array_equal(first[key], other[key])
    assert set(first["top"]) == set(first["left"]) == set(range(256 - 227 + 1))
    assert 0.45 < first["mirrored"].mean() < 0.55
    assert abs(np.corrcoef(first["top"], first["left"])[0, 1]) < 0.1
    assert not data(root, mirror=False).order(3, 5)["mirrored"].any()


def test_blocks_end_at_evaluations_and_go_on_where_they_stopped(root):
    loader = data(root).train_blocks([0], 3, 11, 4)
    assert [[block["start"] for block in loader] for _ in range(4)] == [[3], [4, 5, 6, 7], [8, 9, 10], []]


def test_blocks_from_the_middle_are_those_of_an_unbroken_run(root):
    made = data(root)
    straight, resumed = blocks(made, 1, 2, iterations=7), blocks(made, 1, 2, start=4, iterations=7)
    for ours, theirs in zip(resumed, straight[4:], strict=True):
        assert ours.keys() == theirs.keys() and ours["start"] == theirs["start"]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - {"start"})
    assert not torch.equal(straight[0]["images"][0], straight[0]["images"][1])  # a crop of its own for every seed


# Which set it is ------------------------------------------------------------------------------------------------------


def plan(root: Path, *overrides: str) -> dict[str, Any]:
    chosen = ["+experiment=imagenet_alexnet_tri2", "data=imagenet_subset", "data.num_classes=6", f"data.root={root}"]
    return plain(compose_config(CONF, [*chosen, *overrides]))


def run_id(root: Path, *overrides: str) -> str:
    return records.run_id(describe(plan(root, *overrides), 0))


def test_a_runs_id_is_that_of_the_set_wherever_it_lies_and_however_it_is_read(root, copy, tmp_path):
    assert run_id(root) == run_id(copy)
    assert run_id(root) == run_id(root, "data.workers=3", "data.eval_batch_size=7")
    assert run_id(root) != run_id(root, "data.decode=device")  # a GPU's decoder has other pixels
    assert run_id(root) != run_id(prepared(tmp_path / "other", first=5000))
    assert run_id(root) != run_id(root, "data.mirror=false")


def test_a_record_says_what_set_was_found(root):
    index = json.loads((root / "index.json").read_text())
    config = describe(plan(root), 0)["data"]
    assert (config["train_sha256"], config["test_sha256"], config["mean_sha256"]) == (
        *(index[split]["names_sha256"] for split in ("train", "val")),
        index["mean_sha256"],
    )
    declared = plan(root, f"data.mean_sha256={index['mean_sha256']}")
    assert records.run_id(describe(declared, 0)) == run_id(root)


def test_a_label_names_another_set_and_says_nothing_of_what_the_card_leaves_open(root, monkeypatch):
    assert label(plan(root), CONF) == "imagenet_alexnet_tri2[data=imagenet_subset]"
    whole = ["+experiment=imagenet_alexnet_tri2", f"data.root={root}"]  # a stand-in for the real set
    assert label(plain(compose_config(CONF, whole)), CONF) == "imagenet_alexnet_tri2"
    monkeypatch.setenv("CYCLICAL_LR_IMAGENET", str(root))
    assert label(plain(compose_config(CONF, whole[:1])), CONF) == "imagenet_alexnet_tri2"
    overridden = label(plan(root, "data.mirror=false"), CONF)
    assert overridden == "imagenet_alexnet_tri2[data.mirror=False,data=imagenet_subset]"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_classes": 1000}, r"data\.num_classes=1000: the set in data\.root=\S+ has 6\..*data=imagenet_subset"),
        ({"train_images": 1281167}, r"data\.train_images=1281167: the set in data\.root=\S+ has 18"),
        ({"test_images": 7}, r"data\.test_images=7: .* has 8"),
        ({"train_sha256": "abc"}, r"data\.train_sha256=abc: .* has [0-9a-f]{64}"),
        ({"mean_sha256": "abc"}, r"data\.mean_sha256=abc: .* has [0-9a-f]{64}"),
        ({"root": None}, r"data\.root: expected .*, got None; .*CYCLICAL_LR_IMAGENET"),
        ({"crop": 257}, r"data\.crop: expected 1 to 256 pixels, got 257"),
        ({"mean": "pixel"}, r"data\.mean: expected image, or three numbers .*, got 'pixel'"),
        ({"mean": [1.0, 2.0]}, r"data\.mean: expected .*got \[1\.0, 2\.0\]"),
        *(({"mean": wrong}, r"data\.mean: expected image, or three") for wrong in ([1, 2, "x"], [1, 2, None], 5, None)),
        ({"mean": [1, 2, float("nan")]}, r"data\.mean: expected .*got \[1, 2, nan\]"),
        ({"decode": "gpu"}, r"data\.decode: expected one of workers, device, got 'gpu'"),
        ({"workers": -1}, r"data\.workers: expected an integer of at least 0, got -1"),
        ({"batch_size": 0}, r"data\.batch_size: expected .*got 0"),
    ],
)
def test_another_set_or_value_than_was_meant_is_refused(root, choices, message):
    with pytest.raises(ConfigError, match=message):
        data(**{"root": root} | choices)


def no_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def half_an_index(folder: Path) -> None:
    (folder / "index.json").write_text((folder / "index.json").read_text()[:40])


def index_without_a_split(folder: Path) -> None:
    (folder / "index.json").write_text('{"classes": [], "mean_sha256": "", "train": {}}')


def another_mean(folder: Path) -> None:
    np.save(folder / "mean.npy", np.zeros((256, 256, 3), np.float32))


def no_mean(folder: Path) -> None:
    (folder / "mean.npy").unlink()


def an_image_less(folder: Path) -> None:
    (folder / "train" / "n01" / "n01_2.JPEG").unlink()


def an_image_more(folder: Path) -> None:
    shutil.copy(folder / "val" / "n01" / "val_1_0.JPEG", folder / "val" / "n02" / "more.JPEG")


def no_split(folder: Path) -> None:
    shutil.rmtree(folder / "val")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_index, r"no prepared ImageNet there .*prepare_imagenet\.py SOURCE DEST"),
        (half_an_index, r"index\.json is no index of a prepared set \(JSONDecodeError"),
        (index_without_a_split, r"index\.json is no index of a prepared set \(KeyError"),
        (another_mean, r"mean image \S+ cannot be used \(it is not the one in index\.json\)"),
        (no_mean, r"mean image \S+ cannot be used \(.*No such file"),
        (an_image_less, r"the 17 images in train/ are not the 18 of index\.json"),
        (an_image_more, r"the 9 images in val/ are not the 8 of index\.json"),
        (no_split, r"data\.root: \S+/val cannot be listed"),
    ],
)
def test_a_damaged_or_changed_set_is_refused_before_training(copy, damage, message):
    damage(copy)
    with pytest.raises(ConfigError, match=message):
        data(copy)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"not a JPEG", (255, 256), (256, 257), None], ids=str)
def test_a_file_that_cannot_be_used_is_named(copy, workers, content):
    made, path = data(copy, workers=workers), copy / "train" / "n03" / "n03_1.JPEG"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.write_bytes(path.read_bytes()[:-400])  # cut off
    else:
        Image.new("RGB", content).save(path)
    with pytest.raises(ConfigError, match=r"^data\.root: .*n03_1\.JPEG cannot be used .*prepare_imagenet\.py once"):
        blocks(made, 0)


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_file_that_another_device_would_decode_is_named_too(copy, part):
    made, path = data(copy, decode="device"), copy / "train" / "n03" / "n03_1.JPEG"
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ConfigError, match=r"^data\.root: .*n03_1\.JPEG cannot be used .*begin and end as a JPEG"):
        blocks(made, 0)


def test_workers_that_lack_shared_memory_are_refused_and_silent_ones_end_a_run(root, monkeypatch):
    made = data(root, workers=2)
    assert made.train_blocks((0,), 0, 6, 6).timeout == made.eval_blocks().timeout == 600
    free = 2 * 2 * 4 * 3 * 227**2
    # Forked workers have memory of another kind (batch_memory.py).
    for start, left, refused in (("spawn", free, False), ("spawn", free - 1, True), ("fork", 0, False)):
        monkeypatch.setattr(imagenet, "get_start_method", lambda start=start: start)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, left=left: SimpleNamespace(free=left))
        with pytest.raises(ConfigError, match=r"data\.workers=2: .*--shm-size") if refused else nullcontext():
            made.train_blocks((0,), 0, 6, 6)
    data(root, workers=0).train_blocks((0,), 0, 6, 6)


def test_in_a_slurm_job_workers_leave_signals_to_the_run(root, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    made = data(root, workers=1)
    loader = iter(made.train_blocks((0,), 0, 6, 6))
    first = next(loader)
    (worker,) = loader._workers
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(worker.pid, number)
    assert len([first, *loader]) == 6


@pytest.mark.parametrize("decode", ["workers", "device"])
def test_a_file_that_is_gone_is_named(copy, decode):
    made = data(copy, decode=decode)
    (copy / "train" / "n03" / "n03_1.JPEG").unlink()
    with pytest.raises(ConfigError, match=r"n03_1\.JPEG cannot be used .*No such file"):
        blocks(made, 0)


def test_hidden_files_and_foreign_folders_are_left_alone(copy):
    (copy / "train" / "n01" / "._n01_0.JPEG").write_bytes(b"of another system")
    (copy / "train" / "lost+found").mkdir()
    assert all(left <= right for left, right in pairwise(data(copy).images["train"].labels))
