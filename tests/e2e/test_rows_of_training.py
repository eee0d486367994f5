"""What algorithms, training and models do, row by row of their list, by the command line, which speaks HTTP.

The same RPCs over gRPC are in tests/integration/training.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from sklearn.datasets import load_wine
from transformers import LlamaConfig, LlamaForCausalLM

from tests.data import data_folder
from tests.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

_SUBJECTS = ("chinese_driving_rule", "computer_science", "economics")
_ARCHITECTURE = {
    "vocabulary_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 2,
    "sequence_length": 64,
}


class Shell(Protocol):
    """Types a command; gives what it prints."""

    def __call__(self, line: str, typed: str = "", wrong: bool = False) -> str: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def run(mesh: Mesh, folder: Path) -> Shell:
    """Somebody who is logged in."""

    def type_(line: str, typed: str = "", wrong: bool = False) -> str:
        done = mesh.typed(line, folder, typed)
        assert (done.returncode != 0) == wrong, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if wrong else "")

    type_(mesh.administrator_login())
    return type_


def said(run: Shell, line: str) -> Any:
    return json.loads(run(f"{line} --json"))


@pytest.fixture(scope="module")
def subjects(run: Shell, folder: Path) -> str:
    """Questions of CMMLU and the subject that each is from, split into two datasets."""
    rows: list[dict[str, str]] = []
    for subject in _SUBJECTS:
        with (data_folder("eval/cmmlu") / "test" / f"{subject}.csv").open(encoding="utf-8") as file:
            rows += [{"text": row["Question"], "label": subject} for row in csv.DictReader(file)]
    (folder / "subjects.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    run("argosy dataset import subjects.jsonl -d subjects")
    sides = "--train learned-subjects --test held-subjects --group text --text-column text"
    run(f"argosy dataset split subjects {sides} --fraction 0.2")
    run("argosy model-project create --id subjects --set display_name=Subjects")
    return "subjects"


@pytest.fixture(scope="module")
def trained(run: Shell, subjects: str) -> str:
    """A language model of a few steps, pre-trained and tuned."""
    org = said(run, "argosy dataset get subjects")["name"].split("/datasets")[0]
    training = {
        "dataset_version": f"{org}/datasets/learned-subjects/versions/v1",
        "validation_version": f"{org}/datasets/held-subjects/versions/v1",
        "model_project": f"{org}/modelProjects/subjects",
        "spec": {
            "phases": [
                {"method": "METHOD_PRETRAIN", "steps": 10, "batch_size": 8, "learning_rate": 2e-3},
                {"method": "METHOD_SFT", "steps": 20, "batch_size": 8, "learning_rate": 2e-3},
            ],
            "architecture": _ARCHITECTURE,
            "seed": 3,
        },
    }
    run("argosy training create --id subjects --body -", json.dumps(training))
    run("argosy training run subjects")
    return said(run, "argosy training-run get subjects/1")["model_version"]


def test_table_by_task_alone(run: Shell, folder: Path) -> None:
    """T1, T2: a table and a task; everything else is chosen and shown."""
    wine: Any = load_wine(as_frame=True)
    table = wine.frame.assign(target=[wine.target_names[number] for number in wine.target])
    table.to_csv(folder / "wine.csv", index=False)
    run("argosy dataset import wine.csv -d wine --type table")
    org = said(run, "argosy dataset get wine")["name"].split("/datasets")[0]
    assert "ocr" in run("argosy algorithm list --parent orgs/system")
    run("argosy model-project create --id wine --set display_name=Wine")
    training = {
        "dataset_version": f"{org}/datasets/wine/versions/v1",
        "model_project": f"{org}/modelProjects/wine",
        "task": "classification",
    }
    run("argosy training create --id wine --body -", json.dumps(training))
    assert "target" in run("argosy training preflight wine")
    run("argosy training run wine")
    record = said(run, "argosy training-run get wine/1")
    assert record["algorithm_version"].startswith("orgs/system/algorithms/tabular-classification/")
    assert record["parameters"]["label_column"] == "target"
    assert record["results"]["accuracy"] > record["results"]["baseline.accuracy"] + 0.3
    found = said(run, "argosy training-run list --parent - --filter 'parameters.label_column = target'")
    assert [one["name"] for one in found] == [record["name"]]


def test_run_with_curves(run: Shell, trained: str, folder: Path) -> None:
    """T2, T3, T6: what a run was given, its curves, its events, itself again with other values."""
    record = said(run, "argosy training-run get subjects/1")
    assert record["state"] == "STATE_SUCCEEDED"
    assert record["dataset_version"].endswith("learned-subjects/versions/v1")
    run("argosy training curves subjects/1 -k sft.loss --svg curves.svg")
    assert (folder / "curves.svg").read_text().startswith("<svg")
    kinds = [one["kind"] for one in said(run, "argosy run-event list --parent subjects/1")]
    assert {"KIND_CREATED", "KIND_STARTED", "KIND_SUCCEEDED"} <= set(kinds)


def test_wrong_trainings_are_named_before_anything_runs(run: Shell, subjects: str) -> None:
    """T8."""
    body = said(run, "argosy training get subjects")
    body["spec"]["phases"][1]["answer_column"] = "topic"
    wanted = {name: body[name] for name in ("dataset_version", "model_project", "spec")}
    run("argosy training create --id wrong --body -", json.dumps(wanted))
    assert "topic" in run("argosy training run wrong", wrong=True)
    wanted["spec"]["phases"][1]["learning_rate"] = -1
    assert "learning_rate" in run("argosy training create --id worse --body -", json.dumps(wanted), wrong=True)


def test_search(run: Shell, trained: str) -> None:
    """T5."""
    org = trained.split("/modelProjects")[0]
    search = {
        "training": f"{org}/trainings/subjects",
        "space": [{"path": "phases[1].learning_rate", "categorical": {"values": [1e-4, 4e-3]}}],
        "method": "METHOD_GRID",
        "objective": {"result": "sft.heldout_loss_after", "direction": "DIRECTION_MINIMIZE"},
        "budget": {"max_trials": 2},
    }
    task = json.loads(run("argosy search create --id rates --body - --json", json.dumps(search)))["task"]
    run(f"argosy task watch {task}")
    found = said(run, "argosy search get rates")
    trials = said(run, "argosy search-trial list --parent rates")
    assert len(trials) == 2
    assert found["model_version"]


def test_model(run: Shell, trained: str) -> None:
    """T7: what is known of a version, whether it is whole, and the names that point to it."""
    number = trained.rpartition("/")[2]
    shown = run(f"argosy model show subjects/{number}")
    assert "learned-subjects" in shown
    assert said(run, f"argosy model-version verify subjects/{number}")["intact"]
    run(f"argosy model-alias set subjects/champion --model-version {trained}")
    assert "champion" in run("argosy model-alias list --parent subjects")


def test_model_from_outside(run: Shell, folder: Path) -> None:
    """T7: a folder in the layout of Hugging Face, and the same with a config.json that its weights do not fit."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    run("argosy model import tiny --project tiny")
    version = said(run, "argosy model-version get tiny/1")
    assert (version["architecture"], version["task"]) == ("llama", "text-generation")
    config.vocab_size = 100
    config.save_pretrained(folder / "tiny")
    refused = run("argosy model import tiny --project tiny", wrong=True)
    assert "config.json wants lm_head.weight as [100, 32]" in " ".join(refused.split())
