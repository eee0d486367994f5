"""What answers are worth by the rules of a phase and by its reward model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.training.domain.methods import RewardRule, Rollouts, RuleKind
from services.training.engines.base import BaseText
from services.training.engines.encode import Array, Examples
from services.training.engines.group import CPU
from services.training.engines.patterns import matches
from services.training.engines.scorer import Scorer, scored_rows


class Rewards:
    """Judges answers.

    Args:
        rollouts: the rules.
        text: of the model that answers.
        examples: prompts, with the right answers where a rule compares with them.
        scorer: the reward model; None: the rules alone.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        text: BaseText,
        examples: Examples,
        scorer: Scorer | None,
        device: torch.device = CPU,
    ) -> None:
        self._rollouts = rollouts
        self._tokenizer = text.tokenizer
        self._end = text.special.end
        self._examples = examples
        self._scorer = None if scorer is None else scorer.to(device).eval().requires_grad_(False)
        self._device = device

    def of(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> Array:
        """What each answer is worth, float64[n].

        Args:
            rows: number of the prompt of each answer.
            answers: tokens of each, with the end token where it ended by itself.
        """
        texts = self._tokenizer.decode_batch([list(answer) for answer in answers])
        total = np.zeros(len(answers))
        for rule in self._rollouts.rules:
            total += rule.weight * self._kept(rule, rows, answers, texts)
        return total if self._scorer is None else total + self._scores(self._scorer, rows, answers)

    def _kept(
        self, rule: RewardRule, rows: Sequence[int], answers: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> Array:
        """Which answers keep a rule, bool[n]."""
        if rule.kind is RuleKind.PATTERN:
            return matches(rule.pattern, texts)
        if rule.kind is RuleKind.MAX_TOKENS:
            return np.array([len(answer) <= rule.max_tokens and self._end in answer for answer in answers])
        return np.array([text.strip() == self._wanted(row) for row, text in zip(rows, texts, strict=True)])

    def _wanted(self, row: int) -> str:
        tokens, answer = self._examples[row]
        return self._tokenizer.decode(tokens[answer:].tolist()).strip()

    @torch.no_grad()
    def _scores(self, scorer: Scorer, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> Array:
        """Scores of prompt and answer; one that was cut off is judged as if it had ended there."""
        sequences: list[Array] = []
        for row, answer in zip(rows, answers, strict=True):
            tokens, begin = self._examples[row]
            end = [] if self._end in answer else [self._end]
            sequences.append(np.concatenate([tokens[:begin], [*answer, *end]]))
        inputs, ends = scored_rows(sequences)
        return scorer(inputs.to(self._device), ends.to(self._device)).double().cpu().numpy()
