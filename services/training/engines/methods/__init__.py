"""The methods of LLM training: one entry each, and nothing else in the engines asks which method a phase has."""

from __future__ import annotations

from dataclasses import replace

from services.training.domain.spec import Method, Phase
from services.training.engines.methods import conversational, distill, dpo, grpo, language, pairs, reward
from services.training.engines.methods.method import Learning
from services.training.engines.order import ANSWER_ROWS, PACKED_ROWS
from services.training.engines.turn_rows import turn_rows

# Costs: fine-tuning computes logits at a few places only, so its token costs about half of one of pre-training. DPO
# reads every answer once more for its reference, a student asks its teacher; GRPO draws a group of answers to each
# prompt and reads them three times.
METHODS: dict[Method, Learning] = {
    Method.PRETRAIN: Learning(
        learns=None,
        encode=language.encode_plain,
        heldout_rows=PACKED_ROWS,
        rows=language.packed_rows,
        begin=language.begin,
        cost=1.0,
        worst_loss=language.worst_loss,
    ),
    Method.SFT: Learning(
        learns=language.answered,
        encode=language.encode_answered,
        heldout_rows=ANSWER_ROWS,
        rows=language.answer_rows,
        begin=language.begin,
        cost=0.5,
        worst_loss=language.worst_loss,
    ),
    Method.REWARD: Learning(
        learns=pairs.compared,
        encode=pairs.encode,
        heldout_rows=ANSWER_ROWS,
        rows=pairs.scored_pair_rows,
        begin=reward.begin,
        cost=0.5,
        worst_loss=pairs.worst_loss,
    ),
    Method.DPO: Learning(
        learns=pairs.compared,
        encode=pairs.encode,
        heldout_rows=ANSWER_ROWS,
        rows=pairs.pair_rows,
        begin=dpo.begin,
        cost=0.7,
        worst_loss=pairs.worst_loss,
    ),
    Method.GRPO: Learning(
        learns=grpo.learns,
        encode=grpo.encode,
        # Each is answered token by token, twice a phase.
        heldout_rows=PACKED_ROWS,
        rows=language.answer_rows,
        begin=grpo.begin,
        cost=16.0,
        worst_loss=grpo.worst_loss,
        loss_falls=False,
    ),
    Method.DISTILL: Learning(
        learns=distill.learns,
        encode=distill.encode,
        heldout_rows=ANSWER_ROWS,
        rows=language.answer_rows,
        begin=distill.begin,
        cost=0.7,
        worst_loss=distill.worst_loss,
    ),
}
# The same on conversations, whose rows are looked at one by one as they are encoded.
_CONVERSATIONAL: dict[Method, Learning] = {
    Method.SFT: replace(METHODS[Method.SFT], learns=None, encode=conversational.encode, rows=turn_rows),
    Method.REWARD: replace(METHODS[Method.REWARD], learns=None, encode=conversational.encode_preferences),
    Method.DPO: replace(METHODS[Method.DPO], learns=None, encode=conversational.encode_preferences),
}


def learning_of(phase: Phase) -> Learning:
    """How a phase learns from the rows that it has."""
    return _CONVERSATIONAL[phase.method] if phase.messages_column else METHODS[phase.method]
