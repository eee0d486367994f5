"""Group relative policy optimisation (Shao et al., 2024, section 4.1): PPO without a value model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from libs.compute.context import EngineError
from services.training.domain.spec import Phase
from services.training.engines.batches import AnswerRows, Batch, answer_batch
from services.training.engines.encode import Array, Encoded, Examples, encode_answers
from services.training.engines.group import CPU
from services.training.engines.heldout import shares
from services.training.engines.methods.language import answered, asked, decoder
from services.training.engines.methods.method import Columns, Reading, RowBatch, Start, Work
from services.training.engines.model import MethodObjective, frozen_copy, log_probs_at, resting, trained_weights
from services.training.engines.rewards import Rewards
from services.training.engines.sampling import drawn, generate, most_likely
from services.training.engines.scorer import Scorer

# Rewards of a group that are equal but for rounding say nothing about its answers.
_EQUAL = 1e-6


def learns(phase: Phase, columns: Columns) -> list[bool]:
    """Whether a row has an input and, where a rule compares with it, a wanted answer."""
    return answered(phase, columns) if phase.has_answers else asked(phase, columns)


def encode(reading: Reading, batch: RowBatch) -> Encoded:
    """Prompts that leave room for an answer, with the right answer where a rule compares with it."""
    phase, rollouts = reading.phase, reading.phase.rollouts
    limit = reading.length - rollouts.max_new_tokens
    if limit < 2:
        message = f"Answers of {rollouts.max_new_tokens} tokens leave no room for a prompt in {reading.length} tokens."
        raise EngineError("CONTENT_INVALID", message, detail="max_new_tokens")
    texts = batch.wanted(phase.text_column)
    answers = batch.wanted(phase.answer_column) if phase.has_answers else [""] * len(texts)
    rows = [(text, (answer,)) for text, answer in zip(texts, answers, strict=True)]
    text = reading.text
    return encode_answers(text.tokenizer, text.special, rows, phase.prompt_template, limit, reading.length)


class GroupRows:
    """Prompts; a batch of them is groups of answers that the model draws now, and what they are worth.

    Args:
        examples: the prompts; what follows a prompt is not read here.
        policy: the model that learns.
        reference: the model as it was when the phase began.
        end: the token that ends an answer.
        entropy: seed of the run and number of the phase; with the number of a draw they say what is drawn.
    """

    def __init__(
        self,
        examples: Examples,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        rewards: Rewards,
        end: int,
        phase: Phase,
        entropy: tuple[int, int],
        device: torch.device = CPU,
    ) -> None:
        self._examples = examples
        self._policy = policy
        self._reference = reference
        self._rewards = rewards
        self._end = end
        self._rollouts = phase.rollouts
        self._entropy = entropy
        self._device = device
        self.lengths: Array | None = examples.answers

    def __len__(self) -> int:
        return len(self._examples)

    def target_count(self, rows: Array) -> int:
        return len(rows) * self._rollouts.group_size

    @torch.no_grad()
    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        assert draws is not None
        given = self._rollouts
        prompts = [prompt(self._examples, row) for row in rows]
        seeds = [(*self._entropy, int(draw)) for draw in draws]
        pick = drawn(seeds, given.group_size, given.max_new_tokens, given.temperature)
        answers = generate(self._policy, prompts, given.group_size, given.max_new_tokens, self._end, pick)
        every = np.repeat(np.asarray(rows), given.group_size)
        worth = self._rewards.of(every.tolist(), answers)
        advantages = group_advantages(worth.reshape(-1, given.group_size))
        drawn_rows = [
            (np.concatenate([prompt(self._examples, row), answer]).astype(np.int32), int(self._examples.answers[row]))
            for row, answer in zip(every, answers, strict=True)
        ]
        batch = answer_batch(drawn_rows).to(self._device)
        inputs, places, targets = batch.tensors
        with resting(self._policy):
            old, reference = (
                log_probs_at(model, inputs, places, targets, given.temperature)
                for model in (self._policy, self._reference)
            )
        wanted = torch.from_numpy(advantages.reshape(-1)).float().to(self._device)
        figures = {"reward": float(worth.sum()), "length": float(sum(len(answer) for answer in answers))}
        return Batch((*batch.tensors, old, reference, wanted), batch.tokens, figures)


def prompt(examples: Examples, row: int) -> Array:
    """Tokens of a prompt."""
    tokens, answer = examples[row]
    return tokens[:answer]


def group_advantages(rewards: Array) -> Array:
    """By how many standard deviations of its group each answer is better than the mean of its group; zero where all are
    worth the same.

    Args:
        rewards: float64[prompts, group size].
    """
    spread = rewards.std(1, keepdims=True)
    centred = rewards - rewards.mean(1, keepdims=True)
    return np.where(spread > _EQUAL, centred / np.maximum(spread, _EQUAL), 0.0)


class GrpoObjective(MethodObjective[PreTrainedModel]):
    """The negative of equation 3: clipped gain, less the divergence from the reference.

    Args:
        clip: how far the probability ratio counts.
        beta: weight of the divergence.
        temperature: that the answers were drawn with.
    """

    def __init__(self, model: PreTrainedModel, clip: float, beta: float, temperature: float) -> None:
        super().__init__(model)
        self._clip = clip
        self._beta = beta
        self._temperature = temperature

    def forward(
        self, inputs: Tensor, places: Tensor, targets: Tensor, old: Tensor, reference: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of answers.

        Args:
            inputs, places, targets: as in `Objective.forward`; the targets are the drawn tokens.
            old, reference: log-probabilities of the targets by the model that drew them and by the reference, in nats,
                float32[n].
            advantages: of each answer, float32[rows].

        Returns:
            Summed loss, each answer by the mean of its tokens; and the mean divergence of each answer from the
            reference in nats, float32[rows], by the estimator of equation 4, which is never negative.
        """
        current = log_probs_at(self.model, inputs, places, targets, self._temperature)
        row = places // inputs.shape[1]
        ratio = torch.exp(current - old)
        gain = torch.minimum(ratio * advantages[row], ratio.clamp(1 - self._clip, 1 + self._clip) * advantages[row])
        divergence = torch.exp(reference - current) - (reference - current) - 1
        share = 1 / torch.bincount(row, minlength=len(inputs))[row]
        loss = -((gain - self._beta * divergence) * share).sum()
        return loss, torch.zeros(len(inputs), device=loss.device).index_add(0, row, (divergence * share).detach())

    def figures(self, seen: Tensor) -> dict[str, float]:
        return {"kl": float(seen.sum())}


def begin(start: Start) -> Work:
    """Keeps the model as it is now: what is learned is held to it."""
    phase, group, policy = start.phase, start.group, decoder(start)
    assert isinstance(start.train, AnswerRows)
    kept = start.kept or {name: tensor.cpu().clone() for name, tensor in trained_weights(policy).items()}
    reference = frozen_copy(policy, kept)
    scorer = start.frozen() if phase.rollouts.reward_version else None
    assert scorer is None or isinstance(scorer, Scorer)

    def rewards(examples: Examples) -> Rewards:
        return Rewards(phase.rollouts, start.text, examples, scorer, group.device)

    examples, end, entropy = start.train.examples, start.text.special.end, (start.seed, start.number)
    rows = GroupRows(examples, policy, reference, rewards(examples), end, phase, entropy, group.device)

    def measure() -> dict[str, float]:
        """What the most likely answers to held-out prompts are worth, and how long they are."""
        held = start.heldout
        assert isinstance(held, AnswerRows)
        judge, worth, length = rewards(held.examples), 0.0, 0.0
        for chosen in shares(held, group):
            if not len(chosen):
                continue
            prompts = [prompt(held.examples, row) for row in chosen]
            answers = generate(policy, prompts, 1, phase.rollouts.max_new_tokens, end, most_likely)
            worth += float(judge.of(chosen.tolist(), answers).sum())
            length += sum(len(answer) for answer in answers)
        worth, length = group.sum(worth, length)
        return {"reward": worth / len(held), "length": length / len(held)}

    objective = GrpoObjective(policy, phase.rollouts.clip, phase.beta, phase.rollouts.temperature)
    return Work(objective, rows, start.heldout, measure, kept)


def worst_loss(phase: Phase, vocabulary_size: int) -> float:
    """The loss of drawn answers has no scale of its own; only the gradients tell."""
    return math.inf
