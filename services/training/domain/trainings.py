"""Trainings and their runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from libs.common.domain import DomainError, Resource
from services.training.domain.spec import Method, TrainingSpec, invalid


@dataclass(kw_only=True)
class Training(Resource):
    """What is to be learned from which data, how, and where the model goes.

    Attributes:
        dataset_version: to learn from.
        validation_version: held-out rows for the loss; empty: none.
        model_project: project that the model version goes to.
        base_model_version: to start from; empty: from nothing.
        run_count: runs so far; they are numbered from 1.
    """

    display_name: str = ""
    description: str = ""
    dataset_version: str = ""
    validation_version: str = ""
    model_project: str = ""
    base_model_version: str = ""
    spec: TrainingSpec
    run_count: int = 0

    def check(self) -> None:
        """Raises INVALID_FIELD for what no data could make right."""
        self.spec.check()
        for name in ("dataset_version", "model_project"):
            if not getattr(self, name):
                raise invalid(f"training.{name}", "must be set")
        first = self.spec.phases[0].method
        if first in (Method.DPO, Method.GRPO) and not self.base_model_version:
            message = (
                f"must not be {first}: a new model has no answers; set base_model_version or begin with another phase"
            )
            raise invalid("spec.phases[0].method", message)
        names = ("dataset_version", "validation_version", "model_project", "base_model_version")
        for value in (*(getattr(self, name) for name in names), *self.spec.frozen_versions):
            if value and value.split("/")[1] != self.org:
                # Another organization's resources are not there for this one.
                raise DomainError("NOT_FOUND", f"{value} does not exist.", name=value)

    def next_run_id(self) -> str:
        """The id of the run that comes now."""
        self.run_count += 1
        return str(self.run_count)


@dataclass(frozen=True)
class Checkpoint:
    """The newest complete checkpoint of a run: `step` counts inside `phase`."""

    step: int
    phase: str
    manifest_digest: str
    time: datetime

    def to_json(self) -> dict[str, Any]:
        """For the row."""
        return {
            "step": self.step,
            "phase": self.phase,
            "manifest_digest": self.manifest_digest,
            "time": self.time.isoformat(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Checkpoint:
        """What `to_json` gave."""
        return cls(data["step"], data["phase"], data["manifest_digest"], datetime.fromisoformat(data["time"]))


@dataclass(kw_only=True)
class TrainingRun(Resource):
    """One execution of a training, with everything that it was given as it was then.

    Attributes:
        state: one of `runs.RunState`.
        task: carries it.
        spec, dataset_version, ...: of the training when the run began.
        dataset_digest, validation_digest: SHA-256 of the manifests.
        model_version: empty until it has succeeded.
        results: figures by name: `pretrain.first_loss`, `sft.heldout_loss_after`, `tokens_per_second`, ...
        framework: versions of torch, transformers, ray, ...
    """

    task: str = ""
    spec: TrainingSpec
    dataset_version: str = ""
    dataset_digest: str = ""
    validation_version: str = ""
    validation_digest: str = ""
    model_project: str = ""
    base_model_version: str = ""
    model_version: str = ""
    results: dict[str, float] = field(default_factory=dict[str, float])
    checkpoint: Checkpoint | None = None
    framework: dict[str, str] = field(default_factory=dict[str, str])


def snapshot(training: Training | TrainingRun) -> dict[str, Any]:
    """What a run keeps of its training, and a clone of a run, as keyword arguments."""
    return {
        "spec": replace(training.spec),
        "dataset_version": training.dataset_version,
        "validation_version": training.validation_version,
        "model_project": training.model_project,
        "base_model_version": training.base_model_version,
    }
