"""The methods of LLM training: one entry each, and nothing else in the engines asks which method a phase has."""

from __future__ import annotations

from services.training.domain.spec import Method
from services.training.engines.heldout import ANSWER_ROWS, PACKED_ROWS
from services.training.engines.methods import distill, dpo, grpo, language, pairs, reward
from services.training.engines.methods.method import Learning

# Costs: fine-tuning computes logits at a few places only, so its token costs about half of one of pre-training. DPO
# reads every answer once more for its reference, a student asks its teacher; GRPO draws a group of answers to each
# prompt and reads them three times.
METHODS: dict[Method, Learning] = {
    Method.PRETRAIN: Learning(
        encode=language.encode_texts,
        heldout_rows=PACKED_ROWS,
        rows=language.packed_rows,
        begin=language.begin,
        cost=1.0,
        worst_loss=language.worst_loss,
    ),
    Method.SFT: Learning(
        encode=language.encode_answered,
        heldout_rows=ANSWER_ROWS,
        rows=language.answer_rows,
        begin=language.begin,
        cost=0.5,
        worst_loss=language.worst_loss,
    ),
    Method.REWARD: Learning(
        encode=pairs.encode,
        heldout_rows=ANSWER_ROWS,
        rows=pairs.scored_pair_rows,
        begin=reward.begin,
        cost=0.5,
        worst_loss=pairs.worst_loss,
    ),
    Method.DPO: Learning(
        encode=pairs.encode,
        heldout_rows=ANSWER_ROWS,
        rows=pairs.pair_rows,
        begin=dpo.begin,
        cost=0.7,
        worst_loss=pairs.worst_loss,
    ),
    Method.GRPO: Learning(
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
        encode=distill.encode,
        heldout_rows=ANSWER_ROWS,
        rows=language.answer_rows,
        begin=distill.begin,
        cost=0.7,
        worst_loss=distill.worst_loss,
    ),
}
