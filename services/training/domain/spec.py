"""What a training is to do: phases, architecture, workers. Immutable, with the defaults written out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from services.training.domain.adapter import Adapter
from services.training.domain.distribution import Distribution
from services.training.domain.divergence import OnDivergence
from services.training.domain.methods import HELDOUT_FIGURES, Distillation, Method, Rollouts, Signal, invalid

__all__ = ["PLACEHOLDER", "Architecture", "Method", "Phase", "TrainingSpec", "invalid"]

PLACEHOLDER = "{text}"


@dataclass(frozen=True)
class Phase:
    """One part of a training.

    Attributes:
        method: how it learns.
        steps: optimiser steps over all workers.
        batch_size: sequences a step over all workers.
        learning_rate: peak; reached after `warmup_fraction` of the steps, then a cosine to a tenth of it.
        weight_decay: of matrices; vectors have none.
        text_column: plain text (pre-training) or input (every other method).
        answer_column: right answer.
        prompt_template: prompt around the input, with `{text}` where it goes.
        answers: only rows whose answer is one of these; empty: all that have one.
        messages_column: conversations (fine-tuning), or what was said before the answers of a pair (DPO, reward model),
            instead of the four before; empty: those.
        chosen_column: the better answer of a pair (DPO, reward model); messages where the prompt is.
        rejected_column: the worse one.
        beta: how strongly the model is held to what it was when the phase began (DPO, GRPO).
        distillation: teacher and loss (distillation).
        rollouts: how answers are drawn and rewarded (GRPO).
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
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    beta: float = 0.0
    distillation: Distillation = field(default_factory=Distillation)
    rollouts: Rollouts = field(default_factory=Rollouts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads, that of its texts first."""
        if self.compares:
            return (self.messages_column or self.text_column, self.chosen_column, self.rejected_column)
        if self.messages_column:
            return (self.messages_column,)
        return (self.text_column, self.answer_column) if self.has_answers else (self.text_column,)

    @property
    def prompts(self) -> bool:
        """Whether the model is asked by the prompt template."""
        return self.method is not Method.PRETRAIN

    @property
    def compares(self) -> bool:
        """Whether it learns from pairs of a better and a worse answer."""
        return self.method in (Method.DPO, Method.REWARD)

    @property
    def has_answers(self) -> bool:
        """Whether it reads the right answers."""
        if self.method is Method.GRPO:
            return self.rollouts.needs_answers
        return self.method is Method.SFT or (self.method is Method.DISTILL and not self.copies_answers)

    @property
    def copies_answers(self) -> bool:
        """Whether the answers are those that the teacher gives."""
        return self.method is Method.DISTILL and self.distillation.signal is Signal.RESPONSES

    @property
    def frozen_version(self) -> str:
        """Model version that it asks and does not change: teacher or reward model; empty: none."""
        if self.method is Method.DISTILL:
            return self.distillation.teacher_version
        return self.rollouts.reward_version if self.method is Method.GRPO else ""

    @property
    def shares_vocabulary(self) -> bool:
        """Whether that version must have the model's vocabulary, as its tokens are the model's."""
        return bool(self.frozen_version) and not self.copies_answers

    @property
    def updates(self) -> int:
        """Optimiser updates of a step."""
        return self.rollouts.updates if self.method is Method.GRPO else 1

    @property
    def heldout_figures(self) -> tuple[str, ...]:
        """What it is measured by on held-out rows."""
        if self.copies_answers:
            return HELDOUT_FIGURES[Method.SFT]
        return HELDOUT_FIGURES[self.method]

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD for what no data could make right."""
        if self.messages_column and self.method is not Method.SFT and not self.compares:
            raise invalid(f"{where}.messages_column", "is for supervised fine-tuning, DPO and reward models")
        if self.prompts and self.prompt_template.count(PLACEHOLDER) != 1:
            raise invalid(f"{where}.prompt_template", f"must have {PLACEHOLDER} exactly once")
        if self.compares and self.chosen_column == self.rejected_column:
            raise invalid(f"{where}.rejected_column", "must not be the chosen_column")
        if self.method is Method.DPO and self.beta <= 0:
            raise invalid(f"{where}.beta", "must be above 0")
        if self.method is Method.DISTILL:
            self.distillation.check(f"{where}.distillation")
        if self.method is Method.GRPO:
            self.rollouts.check(f"{where}.rollouts")


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
        workers: size of the data-parallel group, at most.
        threads_per_worker: CPU threads of each.
        gpus_per_worker: GPUs of each; 0 trains on the CPU.
        seed: of the first weights and of the order of the data.
        checkpoint_every: steps that the loss of all workers costs at most.
        on_divergence: what happens when the loss has run away.
        heldout_at: shares of each phase's steps after which held-out rows are asked too; a search sets its rungs here.
        probe: whether the effect of pre-training is measured beside the run; a search turns it off.
        adapter: what is trained beside the weights of the base; None: all weights.
        distribution: how the workers share the work.
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
    distribution: Distribution = field(default_factory=Distribution)

    @property
    def steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def writing_steps(self) -> int:
        """Steps that may be taken while a checkpoint is being written: an eighth of `checkpoint_every`."""
        return self.checkpoint_every // 8

    @property
    def checkpoint_period(self) -> int:
        """Steps from one checkpoint to the next: each is complete before `checkpoint_every` steps hang on the last."""
        return self.checkpoint_every - self.writing_steps

    @property
    def frozen_versions(self) -> tuple[str, ...]:
        """Teachers and reward models of all phases, each once."""
        return tuple(dict.fromkeys(phase.frozen_version for phase in self.phases if phase.frozen_version))

    @property
    def scores(self) -> bool:
        """Whether the model that comes out scores answers instead of writing them."""
        return self.phases[-1].method is Method.REWARD

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
            phase.check(where)
            if phase.method is Method.REWARD and index + 1 < len(self.phases):
                raise invalid(f"{where}.method", "must be that of the last phase: a reward model writes no text")
            if phase.batch_size < self.workers:
                raise invalid(f"{where}.batch_size", f"must be at least the number of workers, {self.workers}")
        methods = [phase.method for phase in self.phases]
        self.distribution.check(self.workers, self.gpus_per_worker, methods, self.adapter is not None)

    def _check_adapter(self, adapter: Adapter, based: bool) -> None:
        if not based:
            raise invalid("spec.adapter", "needs a training.base_model_version")
        if self.scores:
            raise invalid("spec.adapter", "does not go with a reward model, whose score head no base has")
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
            "distribution": Distribution.from_json(data.get("distribution", {})),
        }
        return cls(**rest)


def _phase(data: dict[str, Any]) -> Phase:
    values: dict[str, Any] = {
        **data,
        "method": Method(data["method"]),
        "answers": tuple(data["answers"]),
        "distillation": Distillation.from_json(data.get("distillation", {})),
        "rollouts": Rollouts.from_json(data.get("rollouts", {})),
    }
    return Phase(**values)
