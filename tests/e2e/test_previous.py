"""A data folder that the previous commit wrote works with this one."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from argosy.client import Client, Policy

from deploy.demo.access import people
from deploy.local import processes
from deploy.local.topology import ROOT
from tests.mesh import Mesh, new_mesh, remove

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the previous commit is not here: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The Python of an environment in which the packages of this one meet the code of the previous commit."""
    tree = tmp_path / "tree"
    tree.mkdir()
    archive = tmp_path / "tree.tar"
    _git("archive", "--output", str(archive), "HEAD~1")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tree)], check=True)
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Read as plain folders, so that the way to this checkout, which lies in the last one, does not count.
    (packages / "previous.pth").write_text(f"{tree}\n{tree / 'libs'}\n{site.getsitepackages()[0]}\n")
    for name in ("ray", "nats-server"):
        (environment / "bin" / name).symlink_to(Path(sys.executable).with_name(name))
    python = environment / "bin" / "python"
    subprocess.run([str(python), str(tree / "protos" / "generate.py")], check=True, cwd=tree)
    return python


def _run(python: Path, mesh: Mesh, *arguments: str) -> None:
    """`argosy` of the previous commit."""
    done = subprocess.run(
        [str(python), "-c", "from argosy.cli.main import main; main()", *arguments],
        env={**os.environ, "ARGOSY_HOME": str(mesh.home.root)},
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_data_folder_of_the_previous_commit_migrates(previous: Path) -> None:
    mesh = new_mesh("previous")
    try:
        ports = ("--port-base", str(mesh.ports.base), "--http-port", str(mesh.ports.http))
        _run(previous, mesh, "up", *ports)
        lines = [processes.command_line(started.pid) for started in processes.belonging(mesh.home.root, [])]
        assert any(str(previous) in line and "services.dataset" in line for line in lines)
        keys, _ = people(mesh.url, mesh.home.root)
        with Client(mesh.url, keys.alice, Policy(patience=30)) as alice:
            made = alice.dataset.create_dataset(
                parent="orgs/demo", dataset_id="old", dataset={"type": "DATASET_TYPE_TEXT", "display_name": "kept"}
            )
        _run(previous, mesh, "down")
        mesh.up()
        with Client(mesh.url, keys.alice, Policy(patience=30)) as alice:
            again = alice.dataset.get_dataset(name=made.name)
            assert (again.uid, again.etag, again.display_name) == (made.uid, made.etag, "kept")
            alice.dataset.update_dataset(
                dataset={"name": made.name, "display_name": "changed"}, update_mask="display_name"
            )
        mesh.argosy("down")
        assert mesh.left() == []
    finally:
        remove(mesh)
