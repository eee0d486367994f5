"""CONTRIBUTING's three steps, done in a copy of this checkout: they add an RPC, and the protections know it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
CONTRACT = Path("protos/argosy/dataset/v1/dataset_service.proto")
HANDLERS = Path("services/dataset/handlers/datasets.py")
TESTS = Path("tests/integration/dataset/test_dataset_rpcs.py")


def snippets() -> list[str]:
    """The indented blocks of the three steps: the RPC, its request, the handler, the test."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an RPC in three steps", 1)[1].split("\n## ", 1)[0]
    return [textwrap.dedent(block) for block in re.findall(r"\n\n((?: {7}.*\n|\n(?= {7}))+)", section)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that are compiled, served and tested."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("protos", "libs", "services", "deploy", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "buf.yaml", ".importlinter", "Makefile", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_three_steps_add_an_rpc(checkout: Path) -> None:
    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{checkout / 'libs'}:{checkout}"}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    rpc, request, handler, test = snippets()

    contract = checkout / CONTRACT
    head, tail = contract.read_text().split("\n}\n", 1)  # the first brace at the margin ends the service
    contract.write_text(f"{head}\n\n{textwrap.indent(rpc, '  ')}}}\n{tail}\n{request}")
    run("protos/generate.py")
    for path, added in ((HANDLERS, handler), (TESTS, test)):
        file = checkout / path
        file.write_text(f"{file.read_text()}\n\n{added}")

    assert "1 passed" in run("-m", "pytest", str(TESTS), "-k", "locked_once")
    run("-m", "pytest", "tests/contract/test_protos.py", "tests/contract/test_imports.py")
    typed = "import sys; sys.argv = ['argosy', 'dataset', 'lock', '--help']; from argosy.cli.main import main; main()"
    assert "dataset lock" in run("-c", typed)
