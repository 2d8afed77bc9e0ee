"""The files of the CIFAR sets: every way in which getting and reading them can fail."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from small_cifar import BASE, FILES, configured, ready, write_set
from torchvision.datasets import CIFAR10

from cyclical_lr.data import cifar_files
from cyclical_lr.data.cifar import CifarData
from cyclical_lr.data.cifar_files import sha256_as_set, sha256_in_order
from cyclical_lr.records import ConfigError


def write_archive(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def assert_holds(data: CifarData, folder: Path) -> None:
    entries = [pickle.loads((folder / file).read_bytes()) for file in FILES["cifar10"]["train"]]
    planes = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.train.pixels, torch.from_numpy(planes).permute(0, 2, 3, 1))
    assert data.train.labels.tolist() == [label for entry in entries for label in entry["labels"]]
    assert len(data.test) == 10


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.endswith(".lock")]


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


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_copy_of_any_pickle_protocol_is_read(copy, protocol):
    folder, declared = copy
    for path in folder.iterdir():
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol))
    assert_holds(ready(**declared, root=folder.parent), folder)


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


class Stalled(Interrupted):
    """Sends half of it and says no more."""

    def do_GET(self):
        super().do_GET()
        self.wfile.flush()
        time.sleep(5)


def test_a_host_that_falls_silent_is_an_error(copy, tmp_path, host, monkeypatch):
    monkeypatch.setattr(cifar_files, "SILENCE", 0.2)
    host(Stalled)
    with pytest.raises(ConfigError, match="timed out"):
        ready(**copy[1], root=tmp_path / "root")
    assert socket.getdefaulttimeout() is None


def test_a_full_disk_keeps_the_download_and_is_no_fault_of_the_archive(copy, tmp_path, host, monkeypatch):
    folder, declared = copy

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host(Quiet)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", full)
        with pytest.raises(ConfigError, match=r"^data\.root=.*: cannot be written \(.*No space left"):
            ready(**declared, root=tmp_path / "root")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/gone")
    assert_holds(ready(**declared, root=tmp_path / "root"), folder)
    assert leftovers(tmp_path / "root") == [folder.name]


def test_who_waits_for_another_process_says_so(copy, tmp_path, caplog):
    folder, declared = copy
    root, archive = tmp_path / "root", write_archive(folder, tmp_path / "copy.tar.gz")
    root.mkdir()
    caplog.set_level("INFO")
    held = threading.Event()

    def hold() -> None:
        with FileLock(root / f".{folder.name}.lock"):
            held.set()
            time.sleep(1.5)

    threading.Thread(target=hold).start()
    held.wait()
    assert_holds(ready(**declared, root=root, source=archive), folder)
    assert "another process is getting cifar10; waiting for it" in caplog.text


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


def test_of_the_official_files_the_damaged_one_is_named(copy, monkeypatch):
    folder, declared = copy
    files = [(file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for file in FILES["cifar10"]["train"]]
    monkeypatch.setattr(CIFAR10, "train_list", files)
    damaged = bytearray((folder / "data_batch_3").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "data_batch_3").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"data\.train_sha256: .* Not the official files: data_batch_3\. Remove"):
        ready(**declared, root=folder.parent)


def test_one_changed_label_is_noticed(copy):
    folder, declared = copy
    entry = pickle.loads((folder / "test_batch").read_bytes())
    entry["labels"] = entry["labels"][::-1]
    (folder / "test_batch").write_bytes(pickle.dumps(entry))
    with pytest.raises(ConfigError, match=r"data\.test_sha256"):
        ready(**declared, root=folder.parent)


def test_a_checksum_over_the_set_accepts_another_order_and_nothing_else(copy):
    folder, declared = copy
    digests, leaves = {}, {}
    for split, files in FILES["cifar10"].items():
        entries = [pickle.loads((folder / file).read_bytes()) for file in files]
        rows = [r.tobytes() + bytes([y]) for e in entries for r, y in zip(e["data"], e["labels"], strict=True)]
        leaves[split] = sorted(hashlib.sha256(row).digest() for row in rows)
        digests[f"{split}_sha256"] = hashlib.sha256(b"".join(leaves[split])).hexdigest()
    declared = {**declared, **digests, "checksum": "as_set"}
    one = ready(**declared, root=folder.parent)
    first, second = folder / "data_batch_1", folder / "data_batch_2"
    swapped = second.read_bytes(), first.read_bytes()
    first.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    other = ready(**declared, root=folder.parent)
    for split in ("train", "test"):  # whatever their order in the files, it is the same run
        ours, theirs = getattr(one, split), getattr(other, split)
        assert torch.equal(ours.pixels, theirs.pixels) and torch.equal(ours.labels, theirs.labels)
        rows = [
            image.transpose(2, 0, 1).tobytes() + bytes([label])
            for image, label in zip(ours.pixels.numpy(), ours.labels.tolist(), strict=True)
        ]
        assert [hashlib.sha256(row).digest() for row in rows] == leaves[split]
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


def test_the_sample_is_verified(sample):
    with pytest.raises(ConfigError, match=r"data\.test_sha256.*is not the declared set"):
        configured("cifar10_sample", test_sha256="0" * 64)


def test_checksums_tell_images_labels_and_order_apart():
    rng = np.random.default_rng(0)
    planes, labels = rng.integers(0, 256, (6, 3072), dtype=np.uint8), np.arange(6)
    order = np.array([3, 1, 0, 5, 4, 2])
    assert sha256_in_order(planes, labels) != sha256_in_order(planes[order], labels[order])
    assert sha256_as_set(planes, labels) == sha256_as_set(planes[order], labels[order])
    for checksum in (sha256_in_order, sha256_as_set):
        assert checksum(planes, labels) != checksum(planes, labels[order])
        assert checksum(planes, labels) != checksum(planes[order], labels)
