"""What a run costs: as it was estimated, and as it was in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from libs.common.domain import Needs
from services.training.domain.estimate import Estimate
from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import TrainingRun


@dataclass(frozen=True)
class Cost:
    """A cost; 0: not known.

    Attributes:
        seconds: from the start of the engine to the finished model.
        memory_bytes: most that the workers held at once, all together.
        cpu_hours, gpu_hours: booked cores and GPUs for this time.
        tokens: read over all phases.
        storage_bytes: of the model, and in an estimate of the checkpoints that are kept at once.
    """

    seconds: float = 0.0
    memory_bytes: int = 0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    tokens: int = 0
    storage_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the row of a run."""
        return asdict(self)


def booked(spec: TrainingSpec) -> tuple[float, float]:
    """Cores and GPUs that the workers of a run book."""
    return float(spec.workers * max(1, spec.threads_per_worker)), float(spec.workers * spec.gpus_per_worker)


def cost_of(spec: TrainingSpec, seconds: float, memory_bytes: int, tokens: int, storage_bytes: int) -> Cost:
    """What workers cost that take so long and so much."""
    cpus, gpus = booked(spec)
    return Cost(seconds, memory_bytes, cpus * seconds / 3600, gpus * seconds / 3600, tokens, storage_bytes)


def expected(spec: TrainingSpec, guess: Estimate) -> Cost:
    """What a run is expected to cost."""
    return cost_of(spec, guess.seconds, guess.memory_bytes, guess.tokens, guess.storage_bytes)


def needs_of(spec: TrainingSpec, estimate: Mapping[str, float]) -> Needs:
    """What a run holds of quotas.

    Args:
        estimate: fields of its expected `Cost`; what is missing is not known.
    """
    cpus, gpus = booked(spec)
    memory, storage = (round(estimate.get(name, 0)) for name in ("memory_bytes", "storage_bytes"))
    return Needs(cpus, gpus, memory, estimate.get("seconds", 0.0), storage)


def ratio(run: TrainingRun, name: str) -> float:
    """Estimate over actual; 0 where one of the two is not known."""
    estimate, actual = run.estimate.get(name, 0.0), run.actual.get(name, 0.0)
    return estimate / actual if actual else 0.0
