"""A snapshot is the code that was submitted, with its uncommitted edits, and nothing else."""

import pytest

from cyclical_lr.training import snapshot

CODE = ("src/package/module.py", "scripts/run.py", "conf/cluster/mine.yaml", "pyproject.toml")
NAMES = (*CODE, "benchmarks/results/a_gpu.json")  # by the last one engine=auto chooses


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "checkout"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    for other in ("src/package/__pycache__/module.pyc", "results/runs/1.json", ".git/HEAD"):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_text("not code")
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_has_the_code_and_the_configs_as_they_are_and_nothing_else(tree, tmp_path):
    copy = snapshot.take(tree, tmp_path / "runs")
    assert files(copy) == {name: f"# {name}\n" for name in NAMES}
    assert list((tmp_path / "runs").iterdir()) == [copy.parent]


def test_files_that_change_places_are_another_snapshot(tree, tmp_path):
    first, second = tree / "src" / "a.py", tree / "src" / "b.py"
    first.write_text("one")
    second.write_text("two")
    before = snapshot.take(tree, tmp_path)
    first.write_text("onetwo")
    second.write_text("")
    assert snapshot.take(tree, tmp_path) != before


def test_the_same_code_is_the_same_snapshot_and_an_edit_is_another(tree, tmp_path):
    before = snapshot.take(tree, tmp_path)
    assert snapshot.take(tree, tmp_path) == before
    (tree / "src" / "package" / "module.py").write_text("# edited\n")
    after = snapshot.take(tree, tmp_path)
    assert after != before
    assert (before / "src/package/module.py").read_text() == "# src/package/module.py\n"
    assert (after / "src/package/module.py").read_text() == "# edited\n"
    assert set(before.parent.iterdir()) == {before, after}
