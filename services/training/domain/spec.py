"""What a training is to do: phases, architecture, workers. Immutable, with the defaults written out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from libs.common.domain import DomainError
from services.training.domain.adapter import Adapter
from services.training.domain.divergence import OnDivergence

PLACEHOLDER = "{text}"


class Method(StrEnum):
    """How a phase learns."""

    PRETRAIN = "pretrain"
    SFT = "sft"


@dataclass(frozen=True)
class Phase:
    """One part of a training.

    Attributes:
        method: next-token prediction on plain text, or supervised fine-tuning with the loss on the answer only.
        steps: optimiser steps over all workers.
        batch_size: sequences a step over all workers.
        learning_rate: peak; reached after `warmup_fraction` of the steps, then a cosine to a tenth of it.
        weight_decay: of matrices; vectors have none.
        text_column: plain text (pre-training) or input (fine-tuning).
        answer_column: right answer (fine-tuning).
        prompt_template: prompt around the input, with `{text}` where it goes.
        answers: only rows whose answer is one of these; empty: all that have one.
        messages_column: conversations (fine-tuning) instead of the four before; empty: those.
    """

    method: Method
    steps: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float = 0.0
    weight_decay: float = 0.0
    text_column: str = "text"
    answer_column: str = "label"
    prompt_template: str = PLACEHOLDER
    answers: tuple[str, ...] = ()
    messages_column: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads, that of its texts first."""
        if self.messages_column:
            return (self.messages_column,)
        return (self.text_column,) if self.method is Method.PRETRAIN else (self.text_column, self.answer_column)


@dataclass(frozen=True)
class Architecture:
    """A Llama-architecture decoder (transformers `LlamaConfig`). The defaults are 1.3 million parameters."""

    vocabulary_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 344
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 4
    sequence_length: int = 128

    @property
    def parameter_count(self) -> int:
        """Parameters of the model with input and output embeddings tied."""
        key_value = self.key_value_heads * (self.hidden_size // self.heads)
        attention = 2 * self.hidden_size * (self.hidden_size + key_value)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocabulary_size * self.hidden_size + self.layers * layer + self.hidden_size

    def check(self) -> None:
        """Raises INVALID_FIELD where the numbers do not fit each other."""
        rules = (
            ("vocabulary_size", self.vocabulary_size >= 260, "at least 260: the 256 bytes and the special tokens"),
            ("hidden_size", self.hidden_size % (2 * self.heads) == 0, "a multiple of twice the heads"),
            ("key_value_heads", self.heads % self.key_value_heads == 0, "a divisor of the heads"),
            ("sequence_length", self.sequence_length >= 16, "at least 16 tokens"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise invalid(f"spec.architecture.{name}", f"must be {wanted}")


@dataclass(frozen=True)
class TrainingSpec:
    """Method and hyper-parameters of a training.

    Attributes:
        workers: size of the data-parallel group.
        threads_per_worker: CPU threads of each.
        gpus_per_worker: GPUs of each; 0 trains on the CPU.
        seed: of the first weights and of the order of the data.
        checkpoint_every: steps between checkpoints.
        on_divergence: what happens when the loss has run away.
        heldout_at: shares of each phase's steps after which held-out rows are asked too; a search sets its rungs here.
        probe: whether the effect of pre-training is measured beside the run; a search turns it off.
        adapter: what is trained beside the weights of the base; None: all weights.
    """

    phases: tuple[Phase, ...]
    architecture: Architecture = field(default_factory=Architecture)
    workers: int = 1
    threads_per_worker: int = 1
    gpus_per_worker: int = 0
    seed: int = 0
    checkpoint_every: int = 200
    on_divergence: OnDivergence = OnDivergence.ALERT
    heldout_at: tuple[float, ...] = ()
    probe: bool = True
    adapter: Adapter | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def phase_names(self) -> tuple[str, ...]:
        """`pretrain`, `sft`; a method that comes again gets a number: `sft_2`."""
        names: list[str] = []
        for index, phase in enumerate(self.phases):
            earlier = sum(other.method is phase.method for other in self.phases[:index])
            names.append(phase.method.value if not earlier else f"{phase.method.value}_{earlier + 1}")
        return tuple(names)

    def check(self, based: bool = False) -> None:
        """Raises INVALID_FIELD for what no data could make right.

        Args:
            based: whether there is a base model version; the architecture is then that of a model that works.
        """
        if not self.phases:
            raise invalid("spec.phases", "must have at least one phase")
        if not based:
            self.architecture.check()
        if self.adapter is not None:
            self._check_adapter(self.adapter, based)
        for index, phase in enumerate(self.phases):
            where = f"spec.phases[{index}]"
            if phase.messages_column and phase.method is not Method.SFT:
                raise invalid(f"{where}.messages_column", "is for supervised fine-tuning")
            if phase.method is Method.SFT and phase.prompt_template.count(PLACEHOLDER) != 1:
                raise invalid(f"{where}.prompt_template", f"must have {PLACEHOLDER} exactly once")
            if phase.batch_size < self.workers:
                raise invalid(f"{where}.batch_size", f"must be at least the number of workers, {self.workers}")

    def _check_adapter(self, adapter: Adapter, based: bool) -> None:
        if not based:
            raise invalid("spec.adapter", "needs a training.base_model_version")
        if adapter.quantize_base_bits and not self.gpus_per_worker:
            raise invalid("spec.adapter.quantize_base_bits", "needs spec.gpus_per_worker of at least 1")

    def to_json(self) -> dict[str, Any]:
        """For task rows and engines; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingSpec:
        """What `to_json` wrote."""
        phases = tuple(_phase(phase) for phase in data["phases"])
        adapter = Adapter.from_json(data["adapter"]) if data.get("adapter") else None
        rest: dict[str, Any] = {
            **data,
            "phases": phases,
            "architecture": Architecture(**data["architecture"]),
            "on_divergence": OnDivergence(data.get("on_divergence", OnDivergence.ALERT)),
            "heldout_at": tuple(data.get("heldout_at", ())),
            "adapter": adapter,
        }
        return cls(**rest)


def _phase(data: dict[str, Any]) -> Phase:
    values: dict[str, Any] = {**data, "method": Method(data["method"]), "answers": tuple(data["answers"])}
    return Phase(**values)


def invalid(field_path: str, message: str) -> DomainError:
    """INVALID_FIELD that names the field."""
    return DomainError("INVALID_FIELD", f"{field_path} {message}.", field=field_path)
