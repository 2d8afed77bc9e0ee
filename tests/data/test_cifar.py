"""The CIFAR sets: arithmetic, order, and every way in which getting them can fail."""

import hashlib
import io
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hydra
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torchvision.datasets import CIFAR10, CIFAR100

from cyclical_lr.data.cifar import CifarData, ImageSet, sha256_as_set, sha256_in_order
from cyclical_lr.records import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "data"
BASE = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


# A synthetic set in torchvision's layout ------------------------------------------------------------------------------


def write_set(folder: Path, name: str = "cifar10", seed: int = 0) -> dict:
    """Write random images under `folder` and return the constructor's arguments that fit them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    classes = 10 if name == "cifar10" else 100
    sums = {}
    for split, files in FILES[name].items():
        parts = []
        for file in files:
            images = rng.integers(0, 256, (classes, 3072), dtype=np.uint8)
            labels = rng.permutation(classes)
            entry = {"data": images, "labels" if name == "cifar10" else "fine_labels": labels.tolist()}
            (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
            parts.append((images, labels))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        sums[f"{split}_sha256"] = hashlib.sha256(images.tobytes() + bytes(labels.tolist())).hexdigest()
    return {"name": name, "num_classes": classes, "checksum": "in_order", **sums}


def write_archive(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.fixture
def copy(tmp_path) -> tuple[Path, dict]:
    """A synthetic CIFAR-10 in a root of its own, and the arguments that declare it."""
    folder = tmp_path / "elsewhere" / BASE["cifar10"]
    return folder, write_set(folder)


@pytest.fixture(scope="module")
def sample() -> CifarData:
    data = hydra.utils.instantiate(OmegaConf.load(CONF / "cifar10_sample.yaml"))
    data.prepare_data()
    data.setup()
    return data


def ready(**arguments) -> CifarData:
    data = CifarData(**arguments)
    data.prepare_data()
    data.setup()
    return data


def assert_holds(data: CifarData, folder: Path) -> None:
    entries = [pickle.loads((folder / file).read_bytes()) for file in FILES["cifar10"]["train"]]
    planes = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.train.pixels, torch.from_numpy(planes).permute(0, 2, 3, 1))
    assert data.train.labels.tolist() == [label for entry in entries for label in entry["labels"]]
    assert len(data.test) == 10


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.endswith(".lock")]


# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["pixel", "channel", "none"])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_batch_is_the_pixels_minus_the_training_mean_times_the_scale(copy, mean, scale, split):
    folder, declared = copy
    data = ready(**declared, root=folder.parent, mean=mean, scale=scale)
    entries = {
        split: [pickle.loads((folder / file).read_bytes()) for file in files]
        for split, files in FILES["cifar10"].items()
    }
    images = {
        split: np.concatenate([entry["data"] for entry in parts]).reshape(-1, 3, 32, 32).astype(np.float64)
        for split, parts in entries.items()
    }
    centre = {
        "pixel": images["train"].mean(0),
        "channel": images["train"].mean((0, 2, 3))[:, None, None],
        "none": np.zeros(()),
    }[mean]
    indices = torch.tensor([9, 0, 3, 3, 7])

    x, y = getattr(data, split)(indices)

    np.testing.assert_allclose(x.numpy(), (images[split][indices] - centre) * scale, rtol=1e-6, atol=2e-5 * scale)
    assert y.tolist() == [entries[split][0]["labels"][i] for i in indices]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_subtraction_comes_before_the_scale_and_is_exact_in_float32():
    pixels = torch.arange(2 * 3072).remainder(256).to(torch.uint8).view(2, 32, 32, 3)
    mean = torch.linspace(0, 255, 3072).view(32, 32, 3)
    x, _ = ImageSet(pixels, torch.tensor([4, 2]), mean, 0.3)(torch.tensor([1, 0]))
    expected = (pixels.flip(0).numpy().astype(np.float32) - mean.numpy()) * np.float32(0.3)
    np.testing.assert_array_equal(x.permute(0, 2, 3, 1).numpy(), expected)


def test_a_set_moves_with_its_module_and_stays_out_of_checkpoints(sample):
    assert sample.train.state_dict() == {}
    assert {name for name, _ in sample.train.named_buffers()} == {"pixels", "labels", "mean"}
    assert sample.train.pixels.dtype == torch.uint8
    assert len(sample.train) == 2000


# Order ----------------------------------------------------------------------------------------------------------------


def stream(size: int, batch_size: int, shuffle: bool) -> CifarData:
    data = CifarData("cifar10_sample", 10, "", "", "in_order", None, batch_size=batch_size, shuffle=shuffle)
    data.train = ImageSet(
        torch.zeros(size, 1, 1, 3, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64), torch.zeros(3)
    )
    return data


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 5))
def test_a_shuffled_order_resumes_anywhere_and_each_epoch_is_a_permutation(size, batch_size, seed, start, count):
    data = stream(size, batch_size, shuffle=True)
    whole = data.indices(seed, 0, start + count)
    assert torch.equal(data.indices(seed, start, count), whole[start:])
    assert data.indices(seed, start, count).shape == (count, batch_size)
    for epoch in whole.flatten().split(size)[: whole.numel() // size]:
        assert sorted(epoch.tolist()) == list(range(size))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 30), st.integers(0, 12))
def test_file_order_wraps_around_whatever_the_seed(size, batch_size, seed, start, count):
    expected = list(itertools.islice(itertools.cycle(range(size)), (start + count) * batch_size))[start * batch_size :]
    assert stream(size, batch_size, shuffle=False).indices(seed, start, count).flatten().tolist() == expected


def test_the_shuffled_order_is_these_numbers():
    """A change here changes every shuffled run that is already recorded."""
    data = stream(8, 4, shuffle=True)
    assert data.indices(0, 0, 4).tolist() == [[4, 1, 3, 5], [0, 2, 6, 7], [4, 7, 5, 2], [1, 0, 6, 3]]
    assert data.indices(1, 0, 4).tolist() == [[4, 5, 6, 2], [1, 0, 3, 7], [3, 5, 0, 7], [2, 4, 1, 6]]


def test_seeds_and_epochs_have_orders_of_their_own():
    data = stream(50, 50, shuffle=True)
    orders = {tuple(row.tolist()) for seed in range(20) for row in data.indices(seed, 0, 20)}
    assert len(orders) == 400


def test_no_global_generator_moves(sample):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    shuffled = stream(50, 7, shuffle=True)
    assert len(list(shuffled.train_blocks([0, 1], 0, 20, 20, 3))) == 7
    assert len(list(sample.eval_blocks())) == 1
    hydra.utils.instantiate(OmegaConf.load(CONF / "cifar10_sample.yaml")).setup()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# Blocks ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 25), st.integers(1, 12))
def test_blocks_end_where_an_evaluation_is_due_and_cover_every_iteration_once(start, iterations, eval_every, block):
    data, seeds = stream(10, 3, shuffle=True), [5, 6]
    loader = data.train_blocks(seeds, start, iterations, eval_every, block)
    covered, position = [], start
    while position < iterations:
        blocks = list(loader)
        due = min(iterations, (position // eval_every + 1) * eval_every)
        assert [b["start"] for b in blocks] == list(range(position, due, block))
        for b in blocks:
            count = b["indices"].shape[1]
            assert count == min(block, due - b["start"])
            expected = torch.stack([data.indices(seed, b["start"], count) for seed in seeds])
            assert torch.equal(b["indices"], expected)
            covered += range(b["start"], b["start"] + count)
        position = due
    assert covered == list(range(start, iterations))
    assert list(loader) == []


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch):
        self.seen += range(batch["start"], batch["start"] + batch["indices"].shape[1])

    def on_validation_start(self):
        self.seen.append("evaluate")

    def validation_step(self, batch):
        self.seen.append(len(batch))

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [0, 3, 5])
def test_an_epoch_of_lightning_is_the_stretch_between_two_evaluations(sample, tmp_path, start):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        max_epochs=3 if start < 5 else 2, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet
    )
    recorder = Recorder()
    trainer.fit(recorder, sample.train_blocks([0], start, 12, eval_every=5, block=2), sample.eval_blocks())
    first = [*range(start, 5), "evaluate", 1000] if start < 5 else []
    assert recorder.seen == [*first, *range(5, 10), "evaluate", 1000, 10, 11, "evaluate", 1000]


@pytest.mark.parametrize("eval_batch_size", [1, 300, 1000, 4096])
@pytest.mark.parametrize(("split", "size"), [("train", 2000), ("test", 1000)])
def test_an_evaluation_sees_each_image_once(sample, eval_batch_size, split, size):
    data = CifarData("cifar10_sample", 10, "", "", "in_order", None, eval_batch_size=eval_batch_size)
    data.train, data.test = sample.train, sample.test
    blocks = list(data.eval_blocks(split))
    assert max(len(block) for block in blocks) == min(size, eval_batch_size)
    assert torch.cat(blocks).tolist() == list(range(size))


# Where the set comes from ---------------------------------------------------------------------------------------------


def test_a_set_under_root_is_read_in_place(copy):
    folder, declared = copy
    assert_holds(ready(**declared, root=folder.parent), folder)
    assert leftovers(folder.parent) == [folder.name]


def test_cifar100_has_fine_labels_and_a_hundred_classes(tmp_path):
    declared = write_set(tmp_path / BASE["cifar100"], "cifar100")
    data = ready(**declared, root=tmp_path)
    assert sorted(data.train.labels.tolist()) == list(range(100))


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_source_is_read_in_place_under_any_name(copy, tmp_path, inner, renamed):
    folder, declared = copy
    source = folder if inner else folder.parent
    if renamed:
        (tmp_path / "link").symlink_to(source)
        source = tmp_path / "link"
    assert_holds(ready(**declared, root=tmp_path / "root", source=source), folder)
    assert not (tmp_path / "root").exists()


def test_an_archive_source_is_unpacked_into_root_once(copy, tmp_path):
    folder, declared = copy
    archive = write_archive(folder, tmp_path / "copy.tar.gz")
    root = tmp_path / "root"
    assert_holds(ready(**declared, root=root, source=archive), folder)
    assert leftovers(root) == [folder.name]
    archive.unlink()
    assert_holds(ready(**declared, root=root, source=archive), folder)


def test_setup_reads_the_set_once(copy):
    folder, declared = copy
    data = ready(**declared, root=folder.parent)
    train = data.train
    shutil.rmtree(folder)
    data.setup("fit")
    assert data.train is train


@pytest.mark.parametrize("part", [0.3, 0.999])
def test_a_truncated_archive_leaves_nothing_that_looks_complete(copy, tmp_path, part):
    folder, declared = copy
    archive = write_archive(folder, tmp_path / "copy.tar.gz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * part)])
    root = tmp_path / "root"
    with pytest.raises(ConfigError, match=r"data\.source=.*copy\.tar\.gz.*data\.root"):
        ready(**declared, root=root, source=archive)
    assert leftovers(root) == []
    archive.write_bytes(whole)
    assert_holds(ready(**declared, root=root, source=archive), folder)


def test_what_a_killed_extraction_left_is_not_taken_and_is_cleared_away(copy, tmp_path):
    folder, declared = copy
    root = tmp_path / "root"
    partial = root / f".{folder.name}.partial-killed" / folder.name
    shutil.copytree(folder, partial)
    (partial / "data_batch_3").write_bytes(b"half")
    assert_holds(ready(**declared, root=root, source=write_archive(folder, tmp_path / "copy.tar.gz")), folder)
    assert leftovers(root) == [folder.name]


def test_an_archive_of_another_set_is_not_installed(copy, tmp_path):
    folder, declared = copy
    other = tmp_path / "other" / folder.name
    write_set(other, seed=1)
    root = tmp_path / "root"
    with pytest.raises(ConfigError, match="is not the declared set"):
        ready(**declared, root=root, source=write_archive(other, tmp_path / "other.tar.gz"))
    assert leftovers(root) == []


def test_an_archive_cannot_write_outside_its_folder(copy, tmp_path):
    folder, declared = copy
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ConfigError, match="escaped"):
        ready(**declared, root=tmp_path / "root", source=archive)
    assert not list(tmp_path.rglob("escaped"))


def test_an_archive_that_lacks_a_file_is_named_with_it(copy, tmp_path):
    folder, declared = copy
    (folder / "test_batch").unlink()
    with pytest.raises(ConfigError, match=r"copy\.tar\.gz.*test_batch"):
        ready(**declared, root=tmp_path / "root", source=write_archive(folder, tmp_path / "copy.tar.gz"))


def get_at_once(barrier, arguments) -> None:
    torch.set_num_threads(1)
    barrier.wait(60)
    assert len(ready(**arguments).train) == 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads
def test_processes_that_start_at_once_all_get_the_whole_set(copy, tmp_path):
    folder, declared = copy
    root = tmp_path / "root"
    arguments = {**declared, "root": root, "source": write_archive(folder, tmp_path / "copy.tar.gz")}
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=get_at_once, args=(barrier, arguments)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert leftovers(root) == [folder.name]


# The official host, played by a local one -----------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Interrupted(Quiet):
    """Promises the whole archive, sends half of it and hangs up."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@pytest.fixture
def host(copy, tmp_path, monkeypatch):
    """A function that starts a host with the copy's archive, which torchvision takes for the official one."""
    folder, _ = copy
    (tmp_path / "served").mkdir()
    archive = write_archive(folder, tmp_path / "served" / CIFAR10.filename)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=archive.parent))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_without_a_source_the_set_is_downloaded(copy, tmp_path, host):
    folder, declared = copy
    host(Quiet)
    assert_holds(ready(**declared, root=tmp_path / "root"), folder)
    assert leftovers(tmp_path / "root") == [folder.name]


def test_an_interrupted_download_is_an_error_and_the_next_one_starts_afresh(copy, tmp_path, host):
    folder, declared = copy
    host(Interrupted)
    with pytest.raises(ConfigError, match="failed"):
        ready(**declared, root=tmp_path / "root")
    assert leftovers(tmp_path / "root") == []
    host(Quiet)
    assert_holds(ready(**declared, root=tmp_path / "root"), folder)


def test_without_a_network_the_error_tells_how_to_get_the_set(copy, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/{CIFAR10.filename}")
    with pytest.raises(ConfigError) as error:
        ready(**copy[1], root=tmp_path / "root")
    for word in (f"data.root={tmp_path / 'root'}", "data.source", "CYCLICAL_LR_DATA", CIFAR10.filename, "slow host"):
        assert word in str(error.value)


# Wrong, damaged and malicious files -----------------------------------------------------------------------------------


def test_other_images_are_named_with_both_checksums(copy):
    folder, declared = copy
    received = write_set(folder, seed=1)["train_sha256"]
    with pytest.raises(ConfigError) as error:
        ready(**declared, root=folder.parent)
    for word in ("data.train_sha256", str(folder), declared["train_sha256"], received, "data.source"):
        assert word in str(error.value)


def test_one_changed_label_is_noticed(copy):
    folder, declared = copy
    entry = pickle.loads((folder / "test_batch").read_bytes())
    entry["labels"] = entry["labels"][::-1]
    (folder / "test_batch").write_bytes(pickle.dumps(entry))
    with pytest.raises(ConfigError, match=r"data\.test_sha256"):
        ready(**declared, root=folder.parent)


def test_a_checksum_over_the_set_accepts_another_order_and_nothing_else(copy):
    folder, declared = copy
    digests = {}
    for split, files in FILES["cifar10"].items():
        entries = [pickle.loads((folder / file).read_bytes()) for file in files]
        rows = [r.tobytes() + bytes([y]) for e in entries for r, y in zip(e["data"], e["labels"], strict=True)]
        leaves = sorted(hashlib.sha256(row).digest() for row in rows)
        digests[f"{split}_sha256"] = hashlib.sha256(b"".join(leaves)).hexdigest()
    declared = {**declared, **digests, "checksum": "as_set"}
    first, second = folder / "data_batch_1", folder / "data_batch_2"
    swapped = second.read_bytes(), first.read_bytes()
    first.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    assert_holds(ready(**declared, root=folder.parent), folder)
    second.write_bytes(swapped[0])  # now twice there
    with pytest.raises(ConfigError, match="is not the declared set"):
        ready(**declared, root=folder.parent)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(copy, part):
    folder, declared = copy
    whole = (folder / "data_batch_4").read_bytes()
    (folder / "data_batch_4").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ConfigError, match=r"data_batch_4.*remove or replace"):
        ready(**declared, root=folder.parent)


@pytest.mark.parametrize(
    "entry",
    [
        {"data": np.zeros((10, 3072), np.uint8)},
        {"data": np.zeros((10, 3072), np.float32), "labels": list(range(10))},
        {"data": np.zeros((9, 3072), np.uint8), "labels": list(range(10))},
        {"data": np.zeros((10, 100), np.uint8), "labels": list(range(10))},
        {"data": np.zeros((10, 3072), np.uint8), "labels": list("0123456789")},
        [1, 2, 3],
    ],
)
def test_a_file_of_something_else_is_named(copy, entry):
    folder, declared = copy
    (folder / "data_batch_2").write_bytes(pickle.dumps(entry))
    with pytest.raises(ConfigError, match=r"data_batch_2: not a batch of CIFAR images"):
        ready(**declared, root=folder.parent)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("file", ["data_batch_1", "test_batch"])
def test_a_malicious_pickle_is_refused_and_its_code_not_run(copy, tmp_path, file, protocol):
    folder, declared = copy
    entry = pickle.loads((folder / file).read_bytes())
    entry["extra"] = Evil(tmp_path / "executed")
    content = pickle.dumps(entry, protocol=protocol)
    (folder / file).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{file}.*refused"):
        ready(**declared, root=folder.parent)
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)
    assert (tmp_path / "executed").exists(), "the pickle of this test does nothing, so refusing it proves nothing"


@pytest.mark.parametrize("stored", [pickle.DEFAULT_PROTOCOL, 0, 2, 3])
def test_arrays_pickled_by_other_versions_are_read(copy, stored):
    folder, declared = copy
    for files in FILES["cifar10"].values():
        for file in files:
            entry = pickle.loads((folder / file).read_bytes())
            entry["labels"] = [np.int64(label) for label in entry["labels"]]
            content = pickle.dumps(entry, protocol=stored)
            if stored < 4:  # NumPy before 2.0 wrote its older name
                content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
            (folder / file).write_bytes(content)
    assert_holds(ready(**declared, root=folder.parent), folder)


def test_an_incomplete_folder_is_named_with_what_it_lacks(copy):
    folder, declared = copy
    (folder / "data_batch_5").unlink()
    with pytest.raises(ConfigError, match=r"data\.root=.*incomplete.*data_batch_5"):
        ready(**declared, root=folder.parent)


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_a_source_without_the_set_is_named(copy, tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"data\.source=.*{source}"):
        ready(**copy[1], root=tmp_path / "root", source=tmp_path / source)


def test_a_root_that_cannot_be_written_is_named(copy, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"data\.root=.*file: cannot be written"):
        ready(**copy[1], root=tmp_path / "file")


def test_setup_without_the_set_tells_how_to_get_it(copy, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root=.*data\.source"):
        CifarData(**copy[1], root=tmp_path / "root").setup()


def test_a_wrong_number_of_classes_is_named(copy):
    folder, declared = copy
    with pytest.raises(ConfigError, match=r"data\.num_classes=100.*0 to 9"):
        ready(**{**declared, "num_classes": 100}, root=folder.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "cifar11"),
        ("checksum", "md5"),
        ("mean", "image"),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("root", None),
    ],
)
def test_a_wrong_value_is_named_at_construction(copy, tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"data\.{key}={value!r}: expected"):
        CifarData(**{**copy[1], "root": tmp_path, key: value})


# The real sets and the sample -----------------------------------------------------------------------------------------


def configured(name: str, root: Path | None, **changes) -> CifarData:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    data = hydra.utils.instantiate(OmegaConf.merge(config, {"root": None if root is None else str(root), **changes}))
    data.prepare_data()
    data.setup()
    return data


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the three channels, from exact sums."""
    count = pixels[..., 0].size
    first = pixels.sum(0, dtype=np.int64).sum((0, 1)) / count
    squares = [np.square(part, dtype=np.uint16).sum(0, dtype=np.int64).sum((0, 1)) for part in np.split(pixels, 10)]
    return first, np.sqrt(sum(squares) / count - first**2)


@pytest.mark.slow
def test_the_real_cifar10_has_the_known_statistics_and_order(real_data):
    data = configured("cifar10", real_data)
    mean, std = channel_statistics(data.train.pixels.numpy())
    np.testing.assert_allclose(mean, [125.307, 122.950, 113.865], atol=5e-4)
    np.testing.assert_allclose(std, [62.993, 62.089, 66.705], atol=5e-4)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    some = data.train.pixels[:, 3, 30].double().mean(0)
    np.testing.assert_allclose(data.train.mean[3, 30].numpy(), some.numpy(), rtol=1e-6)
    official = CIFAR10(real_data, train=False)
    assert np.array_equal(data.test.pixels.numpy(), official.data)
    assert data.test.labels.tolist() == official.targets
    # Caffe's 500 fixed batches: iteration 500 is iteration 0 again.
    assert torch.equal(data.indices(0, 500, 3), data.indices(9, 0, 3))


@pytest.mark.slow
def test_the_real_cifar100_has_the_known_statistics(real_data):
    if not (real_data / "cifar-100-python" / "test").is_file():
        pytest.skip(
            f"needs the real CIFAR-100: no cifar-100-python/ in {real_data}. Get it with "
            f"torchvision.datasets.CIFAR100({str(real_data)!r}, download=True) (a slow host)"
        )
    data = configured("cifar100", real_data, mean="channel")
    mean, std = channel_statistics(data.train.pixels.numpy())
    np.testing.assert_allclose(mean, [129.304, 124.070, 112.434], atol=5e-4)
    np.testing.assert_allclose(std, [68.170, 65.392, 70.418], atol=5e-4)
    np.testing.assert_allclose(data.train.mean[0, 0].numpy(), mean, rtol=1e-6)
    assert data.train.labels.bincount().tolist() == [500] * 100
    assert data.test.labels.bincount().tolist() == [100] * 100


def test_the_sample_has_as_many_images_of_each_class(sample):
    assert sample.train.labels.bincount().tolist() == [200] * 10
    assert sample.test.labels.bincount().tolist() == [100] * 10
    assert sample.train.pixels.shape == (2000, 32, 32, 3)


def test_the_sample_is_verified(sample):
    with pytest.raises(ConfigError, match=r"data\.test_sha256.*is not the declared set"):
        configured("cifar10_sample", None, test_sha256="0" * 64)


def test_the_sample_is_small_enough_to_embed():
    folder = Path(CONF).parents[1] / "src" / "cyclical_lr" / "data" / "sample"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 7_000_000


@pytest.mark.slow
def test_the_sample_is_the_first_images_of_each_class_of_the_real_set(sample, real_data):
    for split, ours in (("train", sample.train), ("test", sample.test)):
        official = CIFAR10(real_data, train=split == "train")
        for label in range(10):
            theirs = official.data[np.asarray(official.targets) == label]
            mine = ours.pixels[ours.labels == label].numpy()
            assert np.array_equal(mine, theirs[: len(mine)])


def test_checksums_tell_images_labels_and_order_apart():
    rng = np.random.default_rng(0)
    planes, labels = rng.integers(0, 256, (6, 3072), dtype=np.uint8), np.arange(6)
    order = np.array([3, 1, 0, 5, 4, 2])
    assert sha256_in_order(planes, labels) != sha256_in_order(planes[order], labels[order])
    assert sha256_as_set(planes, labels) == sha256_as_set(planes[order], labels[order])
    for checksum in (sha256_in_order, sha256_as_set):
        assert checksum(planes, labels) != checksum(planes, labels[order])
        assert checksum(planes, labels) != checksum(planes[order], labels)


@pytest.mark.parametrize("path", sorted(CONF.glob("cifar*.yaml")), ids=lambda path: path.stem)
def test_a_config_has_every_key_of_the_constructor(path):
    names = CifarData.__init__.__code__.co_varnames[1 : CifarData.__init__.__code__.co_argcount]
    assert set(OmegaConf.load(path)) == {"_target_", *names}
    assert CIFAR100.base_folder == BASE["cifar100"]
