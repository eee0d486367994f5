"""A training run that is watched in the database, and killed at steps of it."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from argosy.client import Client

from deploy.demo.access import ORG, POLICY, people
from services.training.domain.spec import TrainingSpec
from tests.chaos import books
from tests.chaos.injuries import KILLS, Injury, NobodyThere
from tests.chaos.plan import Plan, plan
from tests.mesh import Mesh
from tests.unit.training.samples import rows

# The service, the process of its tasks, the Ray worker that takes the steps (a single one is the carrier), Ray itself.
KINDS = ("training", "training-jobs", "carrier", "ray")
# A plan places what it does in shares of ten stages; here they are tenths of the steps.
_STAGES = 10
# Steps between two reports.
EVERY_REPORT = 10
# How often the database is asked where the run is.
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Work:
    """A run that is small, and slow enough to be hit.

    Attributes:
        steps: of its only phase.
        every: steps that a loss costs at most.
        batch_size: rows of a step, which decide how long it takes: nobody sees the steps while a service is down.
    """

    steps: int
    every: int
    batch_size: int

    @property
    def reported(self) -> list[int]:
        """Steps of which a loss is reported: every tenth, and those of checkpoints."""
        period = TrainingSpec((), checkpoint_every=self.every).checkpoint_period
        return sorted({*range(EVERY_REPORT, self.steps + 1, EVERY_REPORT), *range(period, self.steps, period)})

    def spec(self) -> dict[str, Any]:
        phase = {
            "method": "METHOD_PRETRAIN",
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": 0.002,
            "warmup_fraction": 0.1,
        }
        # Three MB a checkpoint: the stores of the mesh are small.
        shape = {"vocabulary_size": 400, "hidden_size": 64, "layers": 4, "heads": 4, "sequence_length": 64}
        return {"phases": [phase], "architecture": shape, "seed": 11, "checkpoint_every": self.every}


@dataclass(frozen=True)
class Told:
    """What became of a run.

    Attributes:
        losses: by step, as anybody reads them.
        reports: attempt and step of every report of a loss, in the order in which they came.
        digest: of the model's files.
        struck: the step that had been reported at each kill.
    """

    losses: dict[int, float]
    reports: list[tuple[int, int]]
    digest: str
    struck: list[int]

    def lost(self) -> list[int]:
        """Steps that each attempt but the first did again."""
        found: list[int] = []
        for attempt in sorted({attempt for attempt, _ in self.reports})[1:]:
            before = max(step for earlier, step in self.reports if earlier < attempt)
            again = [step for number, step in self.reports if number == attempt and step <= before]
            found.append(before - min(again) + EVERY_REPORT if again else 0)
        return found


def kills(seed: int, count: int) -> Plan:
    """Points at which one process each is killed; every kind as often as any other, or once more. None in the last
    tenth: a run whose service is down may be over before anybody sees it there."""
    known = {injury.name: injury for injury in KILLS}
    chosen = [replace(known[KINDS[number % len(KINDS)]], stages=(1, _STAGES - 1)) for number in range(count)]
    return plan(seed, chosen, [1.0] * _STAGES, 1)[0]


class Trainings:
    """Trains on a mesh."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self._mesh = mesh
        self._run = f"k{secrets.token_hex(3)}"
        self._count = 0
        self._client = Client(mesh.url, people(mesh.url, mesh.home.root)[0].alice, POLICY)
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(400)), encoding="utf-8")
        text = {"type": "DATASET_TYPE_TEXT"}
        dataset = self._client.dataset.create_dataset(parent=ORG, dataset_id=f"rows-{self._run}", dataset=text)
        upload = self._client.upload(ORG, path, upload_id=f"rows-{self._run}")
        task = self._client.dataset.import_version(parent=dataset.name, upload=upload.name, format="jsonl")
        self._ended("dataset", task.name, time.monotonic() + 120)
        self._version = self._client.dataset.get_dataset(name=dataset.name).latest_version
        self._project = f"{ORG}/modelProjects/kills-{self._run}"
        self._client.training.create_model_project(
            parent=ORG, model_project_id=self._project.split("/")[-1], model_project={}
        )

    def close(self) -> None:
        self._client.close()

    def train(self, work: Work, todo: Plan, limit: float) -> Told:
        """Runs the work to its end and does what the plan says.

        Args:
            limit: seconds in which it must end.
        """
        self._count += 1
        training = self._client.training.create_training(
            parent=ORG,
            training_id=f"kills-{self._run}-{self._count}",
            training={"dataset_version": self._version, "model_project": self._project, "spec": work.spec()},
        )
        run, end = self._client.training.run_training(name=training.name, run_id="run1"), time.monotonic() + limit
        struck: list[int] = []
        for moment, injury in todo:
            step = round((moment.stage - 1 + moment.share) / _STAGES * work.steps)
            struck.append(self._reach(run.task, step, end))
            print(f"step {struck[-1]}, wanted {step}: {injury.name}: {self._harm(injury, end)}", flush=True)
        self._ended("training", run.task, end)
        return self._told(run, struck)

    def _harm(self, injury: Injury, end: float) -> str:
        try:
            return injury.harm(self._mesh, lambda: time.monotonic() < end)
        except NobodyThere as nobody:
            raise AssertionError(f"there was no {injury.name} to kill") from nobody

    def _reach(self, task: str, step: int, end: float) -> int:
        """Waits until a step has been reported; a process that is just starting again gets the time to."""
        query = (
            "SELECT state, error, coalesce((SELECT max((payload->>'step')::int) FROM task_events"
            " WHERE task_uid = uid AND kind = 'metrics'), 0) AS step FROM tasks WHERE name = $1"
        )
        while (row := books.ask(self._mesh, "training", query, task)[0])["step"] < step:
            assert row["state"] in ("QUEUED", "RUNNING"), row["error"]
            assert time.monotonic() < end, f"it is at step {row['step']} only, and {step} was to be reached"
            time.sleep(_LOOK_SECONDS)
        return int(row["step"])

    def _ended(self, service: str, task: str, end: float) -> None:
        query = "SELECT state, error FROM tasks WHERE name = $1"
        while (row := books.ask(self._mesh, service, query, task)[0])["state"] in ("QUEUED", "RUNNING"):
            assert time.monotonic() < end, f"{task} has not ended"
            time.sleep(_LOOK_SECONDS)
        assert row["state"] == "SUCCEEDED", row["error"]

    def _told(self, run: Any, struck: list[int]) -> Told:
        (curve,) = self._client.training.get_run_curves(
            parent=ORG, runs=[run.name], keys=["pretrain.loss"], max_points=100_000
        ).curves
        steps = [int(step) for step in curve.steps]
        assert len(steps) == len(set(steps)), "a step has two values"
        query = (
            "SELECT e.attempt, (e.payload->>'step')::int AS step FROM task_events e JOIN tasks t"
            " ON t.uid = e.task_uid WHERE t.name = $1 AND e.kind = 'metrics' ORDER BY e.sequence"
        )
        reports = [(row["attempt"], row["step"]) for row in books.ask(self._mesh, "training", query, run.task)]
        version = self._client.training.get_training_run(name=run.name).model_version
        digest = self._client.training.get_model_version(name=version).manifest_digest
        return Told(dict(zip(steps, curve.values, strict=True)), reports, digest, struck)
