"""Phases of a training to messages and back, with the defaults of each method written out."""

from __future__ import annotations

from argosy.training.v1 import training_pb2 as pb

from services.training.domain.methods import Distillation, Method, RewardRule, Rollouts, RuleKind, Signal
from services.training.domain.spec import PLACEHOLDER, Phase, invalid

# What a phase on conversations has no use for.
_NOT_WITH_MESSAGES = ("text_column", "answer_column", "prompt_template", "answers")
_METHODS = {
    Method.PRETRAIN: pb.Phase.METHOD_PRETRAIN,
    Method.SFT: pb.Phase.METHOD_SFT,
    Method.REWARD: pb.Phase.METHOD_REWARD,
    Method.DPO: pb.Phase.METHOD_DPO,
    Method.GRPO: pb.Phase.METHOD_GRPO,
    Method.DISTILL: pb.Phase.METHOD_DISTILL,
}
_SIGNALS = {
    Signal.LOGITS: pb.Distillation.SIGNAL_LOGITS,
    Signal.RESPONSES: pb.Distillation.SIGNAL_RESPONSES,
}
_KINDS = {
    RuleKind.EXACT_MATCH: pb.RewardRule.KIND_EXACT_MATCH,
    RuleKind.PATTERN: pb.RewardRule.KIND_PATTERN,
    RuleKind.MAX_TOKENS: pb.RewardRule.KIND_MAX_TOKENS,
}
# Rafailov et al., 2023, section 6 (DPO: 0.1); Shao et al., 2024, section 4.2 (GRPO: 0.04).
_BETAS = {Method.DPO: 0.1, Method.GRPO: 0.04}


def phase_message(phase: Phase) -> pb.Phase:
    """A phase with the fields that its method reads."""
    message = pb.Phase(
        method=_METHODS[phase.method],
        steps=phase.steps,
        batch_size=phase.batch_size,
        learning_rate=phase.learning_rate,
        warmup_fraction=phase.warmup_fraction,
        weight_decay=phase.weight_decay,
        text_column=phase.text_column,
        answer_column=phase.answer_column,
        prompt_template=phase.prompt_template,
        answers=phase.answers,
        messages_column=phase.messages_column,
    )
    if phase.messages_column:
        for name in _NOT_WITH_MESSAGES:
            message.ClearField(name)
    if phase.compares:
        message.chosen_column, message.rejected_column = phase.chosen_column, phase.rejected_column
    if phase.method in _BETAS:
        message.beta = phase.beta
    if phase.method is Method.DISTILL:
        message.distillation.CopyFrom(_distillation_message(phase.distillation))
    if phase.method is Method.GRPO:
        message.rollouts.CopyFrom(_rollouts_message(phase.rollouts))
    return message


def _distillation_message(distillation: Distillation) -> pb.Distillation:
    return pb.Distillation(
        teacher_version=distillation.teacher_version,
        signal=_SIGNALS[distillation.signal],
        alpha=distillation.alpha,
        temperature=distillation.temperature,
        max_new_tokens=distillation.max_new_tokens,
    )


def _rollouts_message(rollouts: Rollouts) -> pb.Rollouts:
    return pb.Rollouts(
        group_size=rollouts.group_size,
        max_new_tokens=rollouts.max_new_tokens,
        temperature=rollouts.temperature,
        updates=rollouts.updates,
        clip=rollouts.clip,
        rules=[
            pb.RewardRule(kind=_KINDS[rule.kind], weight=rule.weight, pattern=rule.pattern, max_tokens=rule.max_tokens)
            for rule in rollouts.rules
        ],
        reward_version=rollouts.reward_version,
    )


def phase_from(message: pb.Phase) -> Phase:
    """A phase with its defaults written out."""
    if message.messages_column:
        given = next((name for name in _NOT_WITH_MESSAGES if getattr(message, name)), None)
        if given is not None:
            raise invalid(f"spec.phases.{given}", "does not go with messages_column")
    methods = {number: method for method, number in _METHODS.items()}
    method = methods[message.method]
    return Phase(
        method=method,
        steps=message.steps,
        batch_size=message.batch_size,
        learning_rate=message.learning_rate,
        warmup_fraction=message.warmup_fraction,
        weight_decay=message.weight_decay,
        text_column=message.text_column or "text",
        answer_column=message.answer_column or "label",
        prompt_template=message.prompt_template or PLACEHOLDER,
        answers=tuple(message.answers),
        messages_column=message.messages_column,
        chosen_column=message.chosen_column or "chosen",
        rejected_column=message.rejected_column or "rejected",
        beta=message.beta if message.HasField("beta") else _BETAS.get(method, 0.0),
        distillation=_distillation_from(message.distillation),
        rollouts=_rollouts_from(message.rollouts),
    )


def _distillation_from(message: pb.Distillation) -> Distillation:
    signals = {number: signal for signal, number in _SIGNALS.items()}
    default = Distillation()
    return Distillation(
        teacher_version=message.teacher_version,
        signal=signals.get(message.signal, default.signal),
        alpha=message.alpha or default.alpha,
        temperature=message.temperature or default.temperature,
        max_new_tokens=message.max_new_tokens or default.max_new_tokens,
    )


def _rollouts_from(message: pb.Rollouts) -> Rollouts:
    kinds = {number: kind for kind, number in _KINDS.items()}
    default = Rollouts()
    return Rollouts(
        group_size=message.group_size or default.group_size,
        max_new_tokens=message.max_new_tokens or default.max_new_tokens,
        temperature=message.temperature or default.temperature,
        updates=message.updates or default.updates,
        clip=message.clip or default.clip,
        rules=tuple(
            RewardRule(kinds[rule.kind], rule.weight if rule.HasField("weight") else 1.0, rule.pattern, rule.max_tokens)
            for rule in message.rules
        ),
        reward_version=message.reward_version,
    )
