"""Answers of a model: the most likely ones, or drawn ones that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.training.engines.encode import Array
from services.training.engines.model import resting
from services.training.engines.tokenizer import PAD_ID

# The next tokens, int64[n], from logits, float32[n, vocabulary], at a place of the answers.
Pick = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Sequence[Array], copies: int, max_new_tokens: int, end: int, pick: Pick
) -> list[list[int]]:
    """Continues prompts together; each key and value is computed once.

    Args:
        prompts: tokens of each.
        copies: answers to each.
        end: the token that ends an answer.
        pick: chooses the next tokens.

    Returns:
        Tokens of each answer, with the end token where it ended by itself; the answers to a prompt lie together.
    """
    with resting(model):
        return _continued(model, prompts, copies, max_new_tokens, end, pick)


def _continued(
    model: PreTrainedModel, prompts: Sequence[Array], copies: int, max_new_tokens: int, end: int, pick: Pick
) -> list[list[int]]:
    device, width = model.device, max(len(prompt) for prompt in prompts)
    # Padded on the left, so that all answers begin at the same place.
    inputs = np.full((len(prompts), width), PAD_ID, dtype=np.int64)
    real = np.zeros((len(prompts), width), dtype=np.int64)
    for index, prompt in enumerate(prompts):
        inputs[index, width - len(prompt) :] = prompt
        real[index, width - len(prompt) :] = 1
    mask = torch.from_numpy(real).to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model(
        input_ids=torch.from_numpy(inputs).to(device),
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = read.past_key_values
    cache.batch_repeat_interleave(copies)
    logits = read.logits[:, -1].repeat_interleave(copies, 0)
    mask, position = mask.repeat_interleave(copies, 0), positions[:, -1:].repeat_interleave(copies, 0)
    going = torch.ones(len(logits), dtype=torch.bool, device=device)
    columns: list[Tensor] = []
    for place in range(max_new_tokens):
        token = torch.where(going, pick(logits.float(), place), PAD_ID)
        columns.append(token)
        going &= token != end
        if place + 1 == max_new_tokens or not going.any():
            break
        mask, position = torch.cat([mask, torch.ones_like(mask[:, :1])], 1), position + 1
        read = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = read.logits[:, -1]
    return [_to_its_end(row, end) for row in torch.stack(columns, 1).tolist()]


def _to_its_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def most_likely(logits: Tensor, place: int) -> Tensor:
    """Greedy generation."""
    return logits.argmax(-1)


def drawn(seeds: Sequence[Sequence[int]], copies: int, max_new_tokens: int, temperature: float) -> Pick:
    """Draws from the softmax at a temperature, by numbers that depend on the seeds alone: the same answer is drawn
    whatever else is in the batch, whichever worker draws it.

    Args:
        seeds: of each prompt.
        copies: answers to each prompt.
    """
    numbers = np.concatenate([np.random.default_rng(list(seed)).random((copies, max_new_tokens)) for seed in seeds])

    def pick(logits: Tensor, place: int) -> Tensor:
        heights = torch.softmax(logits / temperature, -1).double().cumsum(-1)
        wanted = torch.from_numpy(numbers[:, place, None]).to(logits.device) * heights[:, -1:]
        return torch.searchsorted(heights, wanted, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)

    return pick
