"""The main job on a mesh of its own, short: every stage real. That a second run ends alike is shown by the drill."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from argosy.cli.live import watch
from argosy.client import Client
from rich.console import Console

from deploy.demo.access import ORG, people
from deploy.demo.scale import PROMPT, SHORT
from tests.mesh import Mesh

ADAPTER_STEPS, ADAPTER_MARGIN = 100, 0.2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def summary(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "deploy.demo", "--short", "--home", str(mesh.home.root), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads((folder / "summary.json").read_text())


def test_no_row_is_lost_or_doubled(summary: dict[str, Any]) -> None:
    cleaned, split = summary["cleaned"], summary["split"]
    assert summary["imported"]["rows"] == summary["corpus"]["rows"] == 2000
    assert cleaned["rows_in"] == cleaned["kept"] + sum(cleaned["dropped"].values())
    assert cleaned["kept"] == split["train_rows"] + split["test_rows"] + split["leakage"]


def test_the_summary_says_all_that_was_promised(summary: dict[str, Any]) -> None:
    assert len(summary["corpus"]["digest"]) == 64
    assert summary["corpus"]["packages"]
    assert summary["training"]["last_loss"] < summary["training"]["first_loss"]
    assert summary["training"]["tokens_per_second"] > 0
    # The run was compared with its held-out rows by both columns that it reads.
    assert summary["training"]["results"]["leaked_share"] <= 0.01
    evaluation = summary["evaluation"]
    assert evaluation["gate"]["open"]
    assert not evaluation["first_try"]["gate"]["open"]
    assert {"majority", "bag_of_words"} <= set(evaluation["baselines"])
    assert evaluation["score"]["lower"] > evaluation["baselines"]["majority"]["value"]
    assert summary["deployment"]["state"] == "LIVE"
    assert summary["deployment"]["refusal"]["reason"] == "GATE_SHUT"
    assert summary["answers"]["answer"]
    assert summary["answers"]["application"]["answer"]
    assert summary["answers"]["time_to_first_token_seconds"] > 0
    assert all(trace["spans"] > 0 and not trace["missing"] for trace in summary["traces"].values())
    assert len(summary["seconds"]) == 11


def test_an_adapter_makes_a_model_of_the_main_job_better(mesh: Mesh, summary: dict[str, Any]) -> None:
    """LoRA on the first try, which was hardly tuned, judged by rows that neither has seen. The short job's final model
    makes no mistake on them."""
    run = summary["run"]
    keys, _ = people(mesh.url, mesh.home.root)
    with Client(mesh.url, keys.alice) as alice:
        tried = alice.training.get_training(name=f"{ORG}/trainings/first-try-{run}")
        base = alice.training.get_model_version(
            name=alice.training.get_training_run(name=f"{tried.name}/runs/run1").model_version
        )
        alice.training.create_training(
            parent=ORG,
            training_id=f"adapter-{run}",
            training={
                "dataset_version": tried.dataset_version,
                "validation_version": tried.validation_version,
                "model_project": tried.model_project,
                "base_model_version": base.name,
                "spec": {
                    "adapter": {"method": "METHOD_LORA", "rank": 8, "merge": True},
                    "phases": [
                        {
                            "method": "METHOD_SFT",
                            "steps": ADAPTER_STEPS,
                            "batch_size": 32,
                            "learning_rate": 4e-3,
                            "warmup_fraction": 0.1,
                            "prompt_template": PROMPT,
                            "text_column": SHORT.asked,
                            "answer_column": "package",
                            "answers": list(SHORT.only),
                        }
                    ],
                    "seed": 7,
                },
            },
        )
        started = alice.training.run_training(name=f"{ORG}/trainings/adapter-{run}", run_id="run1")
        watch(alice, started.task, Console(quiet=True), "adapter")
        results = dict(alice.training.get_training_run(name=started.name).results)
    assert results["trained_parameters"] < 0.2 * base.parameter_count
    assert results["sft.heldout_exact_match_after"] > results["sft.heldout_exact_match_before"] + ADAPTER_MARGIN
