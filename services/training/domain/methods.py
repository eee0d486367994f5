"""What the methods beyond next tokens need to know: whose answers to follow, and what an answer is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from libs.common.domain import DomainError


class Method(StrEnum):
    """How a phase learns."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    REWARD = "reward"
    DPO = "dpo"
    GRPO = "grpo"
    DISTILL = "distill"


# What a phase of each method is measured by on held-out rows.
HELDOUT_FIGURES: dict[Method, tuple[str, ...]] = {
    Method.PRETRAIN: ("loss",),
    Method.SFT: ("loss", "exact_match"),
    Method.REWARD: ("loss", "accuracy", "margin"),
    Method.DPO: ("loss", "accuracy", "margin", "ranking_accuracy"),
    Method.GRPO: ("reward", "length"),
    Method.DISTILL: ("loss", "kl", "token_accuracy"),
}


class Signal(StrEnum):
    """What a student sees of its teacher: its probabilities at the right answer, or the answers that it gives."""

    LOGITS = "logits"
    RESPONSES = "responses"


class RuleKind(StrEnum):
    """What a rule looks at."""

    EXACT_MATCH = "exact_match"
    PATTERN = "pattern"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher.

    Attributes:
        teacher_version: model version of the teacher.
        signal: of the teacher.
        alpha: share of the teacher's probabilities in the loss; the rest is cross-entropy with the right answer.
        temperature: of both distributions (Hinton et al., 2015, section 2).
        max_new_tokens: longest answer of the teacher, for responses.
    """

    teacher_version: str = ""
    signal: Signal = Signal.LOGITS
    alpha: float = 0.5
    temperature: float = 2.0
    max_new_tokens: int = 32

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD for what no data could make right."""
        if not self.teacher_version:
            raise invalid(f"{where}.teacher_version", "must be set")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Distillation:
        """From `dataclasses.asdict`."""
        if not data:
            return cls()
        values: dict[str, Any] = {**data, "signal": Signal(data["signal"])}
        return cls(**values)


@dataclass(frozen=True)
class RewardRule:
    """Gives its weight to an answer that keeps it.

    Attributes:
        kind: `EXACT_MATCH`: it is the answer of the row, but for white space around it. `PATTERN`: the pattern is found
            in it. `MAX_TOKENS`: it ends by itself within so many tokens.
        weight: what that is worth; below zero: a penalty.
        pattern: regular expression in the syntax of RE2, for `PATTERN`.
        max_tokens: for `MAX_TOKENS`.
    """

    kind: RuleKind
    weight: float = 1.0
    pattern: str = ""
    max_tokens: int = 0

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD for a rule that no answer could be held to."""
        if self.kind is RuleKind.MAX_TOKENS and self.max_tokens < 1:
            raise invalid(f"{where}.max_tokens", "must be at least 1")
        if self.kind is RuleKind.PATTERN:
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise invalid(f"{where}.pattern", f"is no regular expression: {error}") from None
            if not self.pattern:
                raise invalid(f"{where}.pattern", "must be set")


@dataclass(frozen=True)
class Rollouts:
    """How answers are drawn and rewarded (GRPO: Shao et al., 2024, section 4.1).

    Attributes:
        group_size: answers to each prompt; an answer is judged against the others of its group.
        max_new_tokens: longest answer.
        temperature: that they are drawn with.
        updates: optimiser updates for each set of answers.
        clip: how far the probability ratio to the drawing model counts.
        rules: what an answer is worth; their weights add up.
        reward_version: model version of a reward model whose score is added; empty: none.
    """

    group_size: int = 8
    max_new_tokens: int = 16
    temperature: float = 1.0
    updates: int = 1
    clip: float = 0.2
    rules: tuple[RewardRule, ...] = ()
    reward_version: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of its rules."""
        return tuple(rule.pattern for rule in self.rules if rule.kind is RuleKind.PATTERN)

    @property
    def needs_answers(self) -> bool:
        """Whether a rule compares with the answer of the row."""
        return any(rule.kind is RuleKind.EXACT_MATCH for rule in self.rules)

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD for what no data could make right."""
        if not self.rules and not self.reward_version:
            raise invalid(f"{where}.rules", "must have a rule where there is no reward_version")
        if self.group_size < 2:
            raise invalid(f"{where}.group_size", "must be at least 2: an answer is judged against the others")
        for index, rule in enumerate(self.rules):
            rule.check(f"{where}.rules[{index}]")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rollouts:
        """From `dataclasses.asdict`."""
        if not data:
            return cls()
        rules: list[dict[str, Any]] = [{**rule, "kind": RuleKind(rule["kind"])} for rule in data["rules"]]
        values: dict[str, Any] = {**data, "rules": tuple(RewardRule(**rule) for rule in rules)}
        return cls(**values)


def invalid(field_path: str, message: str) -> DomainError:
    """INVALID_FIELD that names the field."""
    return DomainError("INVALID_FIELD", f"{field_path} {message}.", field=field_path)
