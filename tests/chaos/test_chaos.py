"""Whatever dies during the main job, it ends as it would have: the same rows, the same weights, the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local import mesh as runner
from tests.chaos import books, job
from tests.chaos.conftest import Calm, Trial, Ward
from tests.chaos.injuries import INJURIES, KILLS, LOSSES
from tests.chaos.plan import Plan, earlier, plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7500)]

# Runs in which the same injuries are tried.
_TRIES = 3
# How often each came is no promise: a replica that is replaced goes live again.
_REPEATABLE = ("deploy.deployment.live", "training.model_project.updated")


def _come_to(summary: dict[str, Any]) -> dict[str, Any]:
    """What of a summary does not depend on the clock or on the run's name. Weights and answers are the same bit for
    bit: the digest of the model is that of its files, that of the samples that of every generated text.
    """
    evaluation = summary["evaluation"]
    return {
        "corpus": summary["corpus"],
        "imported": summary["imported"],
        "cleaned": summary["cleaned"],
        "split": summary["split"],
        "model": summary["training"]["model_digest"],
        "losses": {name: value for name, value in summary["training"]["results"].items() if "loss" in name},
        "score": evaluation["score"],
        "masked": evaluation["masked_score"],
        "samples": evaluation["samples_digest"],
        "gate": _decided(evaluation["gate"]),
        "first_try": {"score": evaluation["first_try"]["score"], "gate": _decided(evaluation["first_try"]["gate"])},
        "refusal": summary["deployment"]["refusal"]["reason"],
        "state": summary["deployment"]["state"],
        "answer": summary["answers"]["answer"],
        "app_answer": summary["answers"]["application"]["answer"],
    }


def _decided(gate: dict[str, Any]) -> dict[str, Any]:
    """A verdict without its reason, which names the run's datasets."""
    return {name: value for name, value in gate.items() if name != "reason"}


def _hurt(name: str, ward: Ward, calm: Calm, trial: Trial, todo: Plan, folder: Path) -> None:
    """Disturbed runs until every injury has happened. The moments come from the undisturbed run: on a machine that was
    slower then, a stage can be over before its last ones are due, and they come earlier in the next run.
    """
    for _ in range(_TRIES):
        todo = earlier(_hurt_once(name, ward, calm, trial, todo, folder))
        if not todo:
            return
    raise AssertionError(f"these never happened: {', '.join(injury.name for _, injury in todo)}")


def _hurt_once(name: str, ward: Ward, calm: Calm, trial: Trial, todo: Plan, folder: Path) -> Plan:
    """One run and its verdict; what did not happen."""
    print(f"\n{name}, seed {trial.seed}: {', '.join(injury.name for _, injury in todo)}")
    outcome = job.run(
        ward.mesh,
        folder,
        short=trial.short,
        plan=todo,
        undisturbed=calm.outcome.seconds,
        limit=trial.limit,
    )
    assert _come_to(outcome.summary) == _come_to(calm.outcome.summary)
    found = books.read(ward.mesh, outcome.summary["run"])
    assert (found.unsent, found.unheard, found.dead) == (0, 0, 0)
    wanted = calm.books
    assert found.versions == wanted.versions
    assert found.tasks == wanted.tasks
    assert found.models == wanted.models
    assert found.gates == wanted.gates
    assert found.evaluations == wanted.evaluations
    # Training wrote down each announcement of deploy once.
    assert found.events["deploy.deployment.live"] == found.events["training.model_project.updated"]
    assert _steady(found) == _steady(wanted)
    # The mesh is whole again, without anybody's help.
    assert {part.name: part.state for part in runner.status(ward.mesh.home) if part.state != "ready"} == {}
    return [(moment, injury) for moment, injury in todo if injury.name in outcome.missed]


def _steady(found: books.Books) -> dict[str, int]:
    return {kind: count for kind, count in found.events.items() if kind not in _REPEATABLE}


def test_the_books_of_an_undisturbed_run_are_in_order(calm: Calm) -> None:
    found = calm.books
    assert [name for name, _, _ in found.versions] == ["docs", "docs", "test", "train"]
    assert {state for _, state in found.tasks} == {"SUCCEEDED"}
    assert sum(found.tasks.values()) == 8
    assert len(found.models) == 2
    assert found.gates == [("release", False), ("release", True)]
    assert found.evaluations == [("SUCCEEDED", "RECORDED")] * 2
    assert (found.unsent, found.unheard, found.dead) == (0, 0, 0)


def test_the_job_survives_every_kind_of_process(ward: Ward, calm: Calm, trial: Trial, tmp_path: Path) -> None:
    """Each process once: all in one run, or spread over two of the full job."""
    for number, todo in enumerate(plan(trial.seed, KILLS, calm.outcome.seconds, 1 if trial.short else 2), 1):
        _hurt(f"kills-{number}", ward, calm, trial, todo, tmp_path)


def test_the_job_survives_a_lost_bus_and_full_disks(ward: Ward, calm: Calm, trial: Trial, tmp_path: Path) -> None:
    if not ward.limited:
        pytest.skip("only root may mount file systems of limited size")
    todo = plan(trial.seed, LOSSES, calm.outcome.seconds, 1)[0]
    _hurt("losses", ward, calm, trial, todo, tmp_path)


def test_every_injury_is_in_the_register() -> None:
    register = (Path(__file__).parent / "REGISTER.md").read_text()
    assert [injury.name for injury in INJURIES if f"| `{injury.name}` |" not in register] == []
