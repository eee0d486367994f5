"""The README's way from a JSONL file to a model that answers, its own commands in their order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.demo import corpus
from tests.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """The lines of the block below "Your own data"."""
    section = (ROOT / "README.md").read_text().split("## Your own data", 1)[1].split("\n## ", 1)[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ") and line.strip()]


def own_data(folder: Path) -> str:
    """A file as somebody might have it: module and docstring, and which package it is; with one broken line."""
    found = corpus.build(folder / "corpus", 1500, 3, only=("python", "torch", "sympy"))
    rows = [json.loads(line) for line in Path(found.path).read_text().splitlines()]
    lines = [
        json.dumps({"text": f"{row['module']}: {' '.join(row['text'].split())[:300]}", "label": row["package"]})
        for row in rows
    ]
    lines.insert(7, '{"text": "cut in the mid')
    (folder / "my.jsonl").write_text("\n".join(lines) + "\n")
    return str(rows[0]["module"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands are typed: a checkout, as far as they look into it. Fewer steps teach enough here."""
    training = json.loads((ROOT / "docs/guides/training.json").read_text())
    for phase, steps in zip(training["spec"]["phases"], (10, 80), strict=True):
        phase["steps"] = steps
    (tmp_path / "docs/guides").mkdir(parents=True)
    (tmp_path / "docs/guides/training.json").write_text(json.dumps(training))
    return tmp_path


def test_own_data_becomes_a_model_that_answers(mesh: Mesh, folder: Path) -> None:
    module = own_data(folder)
    known: dict[str, str] = {}
    keys: list[str] = []
    shown: list[str] = []

    def run(line: str) -> str:
        for placeholder, value in known.items():
            line = line.replace(placeholder, value)
        done = mesh.typed(line, folder)
        shown.append(f"$ {line}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0, "\n".join(shown)
        return done.stdout

    for line in commands():
        if line.startswith("export "):
            continue
        if line.startswith("argosy bootstrap"):
            line = mesh.administrator_login()
        output = run(line)
        if "api-key create" in line:
            keys.append(json.loads(output)["secret"])
            known = dict(zip(("ANNS_KEY", "BENS_KEY"), keys, strict=False))
        elif "training run" in line:
            found = re.search(r"model version: (\S+)", output)
            assert found, output
            known["mine/VERSION"] = found[1]
        elif "deploy order" in line:
            found = re.search(r"deploy approve (\S+)", output)
            assert found, output
            known["ORDER"] = found[1]
        elif "dataset import" in line:
            assert "line 8" in output, "the broken line is named"
    assert keys
    answer = run(f"argosy chat --model app:mine '{module}: Return the sum of the elements.'").strip()
    assert answer
