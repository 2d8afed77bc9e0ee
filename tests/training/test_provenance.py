"""The commit of a record: that of the checkout that the code was imported from."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cyclical_lr.records import ConfigError
from cyclical_lr.training import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def imported_from(folder: Path):
    """The module under test, imported from a copy in `folder`."""
    path = folder / "src" / "package" / "provenance.py"
    path.parent.mkdir(parents=True)
    shutil.copy(str(provenance.__file__), path)
    spec = importlib.util.spec_from_file_location("copied_provenance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit that holds the module: folder, module."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "CYCLICAL_LR_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet")
    module = imported_from(tmp_path)
    (tmp_path / ".gitignore").write_text("__pycache__/\n/outputs/\n")
    for folder in ("results", "paper_figures", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "committed.txt").write_text("before")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path, module


def test_a_clean_checkout_gives_its_commit(checkout):
    folder, module = checkout
    assert module.commit() == (git(folder, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("change", ["src/package/provenance.py", "new.py", "src/results/new.py", "src/README.md"])
def test_a_changed_or_new_file_makes_it_dirty(checkout, change):
    folder, module = checkout
    path = folder / change
    path.parent.mkdir(exist_ok=True)
    path.write_text("# changed\n")
    assert module.commit() == (git(folder, "rev-parse", "HEAD"), True)


def test_evidence_and_ignored_files_do_not_make_it_dirty(checkout):
    folder, module = checkout
    (folder / "outputs").mkdir()
    evidence = ("results/committed.txt", "results/new.json", "paper_figures/new.png", "benchmarks/results/a_gpu.json")
    for name in (*evidence, "README.md", "outputs/new.pt"):
        (folder / name).write_text("after")
    assert module.commit() == (git(folder, "rev-parse", "HEAD"), False)


def test_without_git_the_environment_names_the_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("CYCLICAL_LR_COMMIT", raising=False)
    module = imported_from(tmp_path)
    assert module.commit() == ("unknown", False)
    monkeypatch.setenv("CYCLICAL_LR_COMMIT", "abc123")
    assert module.commit() == ("abc123", False)
    monkeypatch.setenv("CYCLICAL_LR_COMMIT", "abc123-dirty")
    assert module.commit() == ("abc123", True)


def test_a_commit_that_is_not_the_checkouts_is_refused(checkout, monkeypatch):
    folder, module = checkout
    head = git(folder, "rev-parse", "HEAD")
    monkeypatch.setenv("CYCLICAL_LR_COMMIT", head)
    assert module.commit() == (head, False)
    (folder / "new.py").write_text("# changed\n")
    with pytest.raises(ConfigError, match=rf"CYCLICAL_LR_COMMIT={head}: expected what git says of .*, {head}-dirty"):
        module.commit()
    monkeypatch.setenv("CYCLICAL_LR_COMMIT", f"{head}-dirty")
    assert module.commit() == (head, True)


def test_a_copy_inside_somebody_elses_checkout_does_not_borrow_its_commit(checkout):
    folder, _ = checkout
    (folder / ".gitignore").write_text("/.venv/\n")
    assert imported_from(folder / ".venv" / "site-packages").commit() == ("unknown", False)


def test_versions_and_device_are_named():
    versions = provenance.versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] and versions["python"].startswith("3.")
    assert {"torchvision", "pytorch-lightning", "numpy", "hydra-core"} <= set(versions)
    device = provenance.device_name(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in device and "native bf16" in device
    assert ("no native bf16" in device) != provenance.native_bf16()


def test_processors_of_one_name_are_told_apart_by_their_family(monkeypatch):
    cores = "model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n\nmodel name\t: other\nmodel\t\t: 3\n"
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: cores)
    assert provenance.device_name(torch.device("cpu")).startswith("AMD EPYC family 26 model 2 (")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({}, False), ({"avx512_bf16": True, "amx_bf16": False}, True), ({"avx512_bf16": False, "amx_bf16": True}, True)],
)
def test_either_extension_makes_bf16_native(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert provenance.native_bf16() == native
