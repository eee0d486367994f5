"""Folders that go with their process, however deep and however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from libs.compute.scratch import remove_tree, scratch_folder

# Makes a folder, says which, and is killed in it or waits in it.
MAKER = (
    "import os, signal, sys\nfrom libs.compute.scratch import scratch_folder\n"
    "with scratch_folder('argosy-test-') as folder:\n    (folder / 'a').mkdir()\n    print(folder, flush=True)\n"
    "    sys.stdin.read() if sys.argv[1] == 'waits' else os.kill(os.getpid(), signal.SIGKILL)"
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_with_all_that_is_in_it(temporary: Path) -> None:
    with pytest.raises(InterruptedError), scratch_folder("argosy-test-") as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a" / "b").mkdir(parents=True)
        raise InterruptedError
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_goes_with_the_next(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", MAKER, "waits"], stdin=-1, stdout=-1, text=True) as waits:
        assert waits.stdin is not None
        assert waits.stdout is not None
        held = Path(waits.stdout.readline().strip())
        killed = subprocess.run([sys.executable, "-c", MAKER, "killed"], stdout=-1, text=True, check=False)
        left = Path(killed.stdout.strip())
        (temporary / "argosy-other").mkdir()
        (temporary / "argosy-test-file").touch()
        (temporary / "argosy-test-link").symlink_to(temporary / "argosy-other")
        assert left.exists()
        with scratch_folder("argosy-test-"):
            assert not left.exists()
            assert (held / "a").exists()
            assert (temporary / "argosy-other").exists()
        waits.stdin.close()
    assert not held.exists()


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    """Which os.walk and shutil.rmtree cannot read."""
    root, kept = tmp_path / "root", tmp_path / "kept"
    root.mkdir()
    kept.mkdir()
    (root / "link").symlink_to(kept)
    at = os.open(root, os.O_RDONLY)
    for number in range(1_100):
        os.mkdir("deep", 0o700, dir_fd=at)
        deeper = os.open("deep", os.O_RDONLY, dir_fd=at)
        os.close(os.open(f"f{number}", os.O_CREAT, 0, dir_fd=at))
        os.close(at)
        at = deeper
    os.close(at)
    (root / "closed" / "inside" / "more").mkdir(parents=True)
    (root / "closed" / "inside").chmod(0)
    (root / "closed").chmod(0)
    remove_tree(root)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
