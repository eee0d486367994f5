"""Trainings and their runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from libs.common.domain import DomainError, Resource
from services.training.domain.distribution import Distribution
from services.training.domain.spec import Method, TrainingSpec, invalid

# Relation of a run, and of its model version, to the own code that it ran.
TRAINED_BY = "trained_by"


@dataclass(kw_only=True)
class Training(Resource):
    """What is to be learned from which data, how, and where the model goes.

    Attributes:
        dataset_version: to learn from.
        validation_version: held-out rows for the loss; empty: none.
        model_project: project that the model version goes to.
        base_model_version: to start from; empty: from nothing.
        algorithm_version: of the catalogue; empty: a language model, as the spec says, or what `task` chooses.
        parameters: of the algorithm, as they were given.
        task: that an algorithm is chosen for.
        outside: its runs are reported by programs elsewhere and never started here.
        run_count: runs so far; they are numbered from 1.
    """

    display_name: str = ""
    description: str = ""
    dataset_version: str = ""
    validation_version: str = ""
    model_project: str = ""
    base_model_version: str = ""
    spec: TrainingSpec
    algorithm_version: str = ""
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""
    outside: bool = False
    run_count: int = 0

    @property
    def runs_algorithm(self) -> bool:
        """Whether it trains an algorithm of the catalogue."""
        return bool(self.algorithm_version or self.task)

    def check(self) -> None:
        """Raises INVALID_FIELD for what no data could make right."""
        if self.outside:
            self._check_outside()
            return
        if self.runs_algorithm:
            self._check_algorithm()
        else:
            self.spec.check(based=bool(self.base_model_version))
            self._check_first_phase()
            if self.parameters:
                raise invalid("training.parameters", "are those of an algorithm, and there is no algorithm_version")
        # An algorithm that acts in an environment of its own reads no data; what it reads is in the catalogue.
        needed = ("model_project",) if self.runs_algorithm else ("dataset_version", "model_project")
        for name in needed:
            if not getattr(self, name):
                raise invalid(f"training.{name}", "must be set")
        names = ("dataset_version", "validation_version", "model_project", "base_model_version")
        for value in (*(getattr(self, name) for name in names), *self.spec.frozen_versions):
            if value and value.split("/")[1:2] != [self.org]:
                # Another organization's resources are not there for this one.
                raise DomainError("NOT_FOUND", f"{value} does not exist.", name=value)
        # Built-in algorithms are there for everybody.
        if self.algorithm_version and self.algorithm_version.split("/")[1] not in (self.org, "system"):
            raise DomainError("NOT_FOUND", f"{self.algorithm_version} does not exist.", name=self.algorithm_version)

    def require_started_here(self) -> None:
        """Raises STATE_CONFLICT if its runs are reported by programs elsewhere."""
        if self.outside:
            message = f"{self.name} has outside runs: programs elsewhere report them, and Argosy starts none."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="outside", wanted="started here")

    def _check_outside(self) -> None:
        """What says how to train means nothing for runs that are not started here."""
        names = ("dataset_version", "validation_version", "model_project", "base_model_version", "algorithm_version")
        for name in (*names, "task", "parameters"):
            if getattr(self, name):
                raise invalid(f"training.{name}", "must be empty for outside runs, which are not started here")
        if self.spec.phases:
            raise invalid("spec.phases", "must be empty for outside runs, which are not started here")

    def _check_first_phase(self) -> None:
        first = self.spec.phases[0].method
        if first in (Method.DPO, Method.GRPO) and not self.base_model_version:
            message = (
                f"must not be {first}: a new model has no answers; set base_model_version or begin with another phase"
            )
            raise invalid("spec.phases[0].method", message)

    def _check_algorithm(self) -> None:
        """An algorithm takes the seed and the threads of the spec, and nothing else."""
        rules = (
            ("spec.phases", not self.spec.phases, "must be empty: algorithms have parameters in their place"),
            ("spec.workers", self.spec.workers == 1, "must be 1: algorithms run in one process"),
            ("spec.gpus_per_worker", not self.spec.gpus_per_worker, "must be 0: algorithms run on the CPU"),
            ("spec.distribution", self.spec.distribution == Distribution(), "must not be set: there is one worker"),
            ("base_model_version", not self.base_model_version, "must be empty: algorithms begin from nothing"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise invalid(f"training.{name}", wanted)

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
        algorithm_version, parameters: what it runs, all parameters written out; empty: a language model.
        estimate, actual: what it was to cost and what it did cost, by the names of `costs.Cost`; empty: unknown.
        outside: Argosy did not start it; `parameters` are then texts that its sender gave.
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
    algorithm_version: str = ""
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    estimate: dict[str, float] = field(default_factory=dict[str, float])
    actual: dict[str, float] = field(default_factory=dict[str, float])
    outside: bool = False


def snapshot(training: Training | TrainingRun) -> dict[str, Any]:
    """What a run keeps of its training, and a clone of a run, as keyword arguments."""
    return {
        "spec": replace(training.spec),
        "dataset_version": training.dataset_version,
        "validation_version": training.validation_version,
        "model_project": training.model_project,
        "base_model_version": training.base_model_version,
        "algorithm_version": training.algorithm_version,
    }
