"""Whether a model version may be deployed: only by an open gate that judged exactly these files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.common.domain import DomainError, Secrecy

APPROVED = "APPROVED"
# Task of the model versions that replicas can answer with.
SERVED_TASK = "text-generation"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The newest decision of one gate of a model version."""

    gate: str
    open: bool
    model_digest: str
    evaluation: str = ""
    rule: str = ""
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """What deploy needs to know of a model version of training.

    Attributes:
        adapter_of: complete version that it is an adapter for; empty: it is complete itself.
        task: what it does; empty: not known.
    """

    name: str
    state: str
    manifest_digest: str
    secrecy: Secrecy = Secrecy.INTERNAL
    context_length: int = 0
    gates: Sequence[Gate] = ()
    adapter_of: str = ""
    task: str = ""

    def require_servable(self) -> None:
        """Refuses what writes no text: an adapter without its base, and models of other tasks.

        Raises:
            DomainError: PREFLIGHT_FAILED.
        """
        if self.adapter_of:
            message = (
                f"{self.name} is an adapter for {self.adapter_of} and no complete model; a training with "
                "spec.adapter.merge makes one that can be served."
            )
            raise DomainError("PREFLIGHT_FAILED", message, check="adapter", detail=self.adapter_of)
        if self.task not in ("", SERVED_TASK):
            message = f"{self.name} is a model for {self.task}; only models for {SERVED_TASK} can be served."
            raise DomainError("PREFLIGHT_FAILED", message, check="task", detail=self.task)


def evidence(model: ModelVersion) -> Gate:
    """The gate that lets a model version through.

    Raises:
        DomainError: GATE_SHUT, unless the version is approved, no gate of it is shut and one is open for its very
        digest.
    """
    for gate in model.gates:
        if not gate.open:
            raise _shut(model, gate.gate, gate.reason or gate.rule or "the gate is shut")
    if not model.gates:
        raise _shut(model, "", "no gate has been decided")
    fitting = [gate for gate in model.gates if gate.model_digest == model.manifest_digest]
    if not fitting:
        raise _shut(model, model.gates[0].gate, "the gate judged other files than those of this version")
    if model.state != APPROVED:
        raise _shut(model, fitting[0].gate, f"the version is {model.state}")
    return fitting[0]


def _shut(model: ModelVersion, gate: str, reason: str) -> DomainError:
    message = f"{model.name} may not be deployed: {reason}."
    error = DomainError("GATE_SHUT", message, model_version=model.name, gate=gate)
    error.metadata["reason"] = reason
    return error
