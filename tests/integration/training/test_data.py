"""Rows to tokens, order of rows, learning rates, and the header of what is written."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers
from torch import nn
from transformers import LlamaConfig

from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.encode import Examples, encode_answers, encode_prompts, encode_texts
from services.training.engines.model import Objective, llama_config, new_model
from services.training.engines.optimise import learning_rate, new_optimiser
from services.training.engines.order import Order
from services.training.engines.tokenizer import BEGIN_ID, END_ID, SpecialTokens, train_tokenizer
from services.training.engines.word_tokens import token_ids
from tests.unit.training.samples import TEMPLATE, TINY, rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([row["text"] for row in rows(60)], 400)


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return llama_config(TINY, 400)


def examples_of(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> Examples:
    """Prompts of at most 24 tokens with their answers, 32 tokens together."""
    rows = [(text, (answer,)) for text, answer in pairs]
    return Examples(**encode_answers(tokenizer, SpecialTokens(), rows, TEMPLATE, 24, 32).arrays)


def test_every_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in ("lion", "  two  spaces\n\ttab", "中文 и кириллица", "\x00\x7f", "🙂"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_in_a_text_are_only_text_to_a_packer(tokenizer: Tokenizer) -> None:
    encoded = encode_texts(tokenizer, SpecialTokens(), ["lion"] * 40)
    assert encoded.by_token["tokens"].dtype == np.int32


def test_words_that_were_seen_have_the_tokens_of_their_text(tokenizer: Tokenizer) -> None:
    """All of ASCII at random, words of the vocabulary, what is not ASCII and special tokens: as the tokenizer says."""
    choose = random.Random(3)
    ascii_ = [chr(code) for code in range(128)]
    parts = [*ascii_, " ", "  ", "\n", "\t ", "lion", " tiger", "'s", "'ll", "12", "é", "中", "<|end|>", "\x85", "\xa0"]
    texts = ["".join(choose.choices(parts, k=choose.randint(0, 30))) for _ in range(3000)]
    for _ in range(2):
        wanted = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        assert token_ids(tokenizer, texts) == wanted
    # One that cuts or changes texts in another way goes the long way.
    other = Tokenizer.from_str(tokenizer.to_str())
    other.normalizer = normalizers.Lowercase()
    assert token_ids(other, ["LION Tiger"]) == token_ids(tokenizer, ["lion tiger"])


def test_each_text_has_an_end(tokenizer: Tokenizer) -> None:
    encoded = encode_texts(tokenizer, SpecialTokens(), ["lion tiger"] * 50)
    length = len(tokenizer.encode("lion tiger", add_special_tokens=False).ids) + 1
    assert np.flatnonzero(encoded.by_token["tokens"] == END_ID).tolist() == list(range(length - 1, 50 * length, length))
    assert encoded.starts.tolist() == list(range(0, 50 * length + 1, length))


def test_long_text_loses_its_end_and_nothing_else(tokenizer: Tokenizer) -> None:
    texts = ["lion " * 500, "wolf", "中" * 300, ""]
    for prompt, text in zip(encode_prompts(tokenizer, SpecialTokens(), texts, TEMPLATE, 24), texts, strict=True):
        assert len(prompt) <= 24
        assert prompt[0] == BEGIN_ID
        shown = tokenizer.decode(prompt[1:])
        assert shown.endswith("\nPackage:")
        assert text.startswith(shown.removesuffix("\nPackage:"))


def test_examples_keep_wanted_answers_whole(tokenizer: Tokenizer) -> None:
    examples = examples_of(tokenizer, [("lion " * 99, "zoo"), ("loan", "bank"), ("x", "ship " * 40)])
    assert len(examples) == 2
    for number, answer in enumerate(("zoo", "bank")):
        tokens = examples.tokens[examples.starts[number] : examples.starts[number + 1]]
        assert len(tokens) <= 32
        assert tokens[-1] == END_ID
        assert tokenizer.decode(tokens[examples.answers[number] : -1].tolist()) == answer


@pytest.mark.parametrize("rows_", [1, 5, 12, 13, 100])
def test_order_is_a_function_of_seed_phase_and_step(rows_: int) -> None:
    order, again = Order(rows_, 12, 7, 0), Order(rows_, 12, 7, 0)
    for step in (40, 0, 3):
        assert np.array_equal(order.batch(step), again.batch(step))
    if rows_ > 12:
        assert not np.array_equal(order.batch(0), Order(rows_, 12, 8, 0).batch(0))
        assert not np.array_equal(order.batch(0), Order(rows_, 12, 7, 1).batch(0))


def test_an_epoch_reads_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 120)
    order = Order(120, 12, 7, 0, lengths)
    seen = np.concatenate([order.batch(step) for step in range(10)])
    assert sorted(seen) == list(range(120))
    spread = np.mean([np.ptp(lengths[order.batch(step)]) for step in range(10)])
    assert spread < np.mean([np.ptp(lengths[Order(120, 12, 7, 0).batch(step)]) for step in range(10)]) / 2


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 100, 2e-3, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == pytest.approx(2e-3)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(2e-4)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_vectors_do_not_decay(config: LlamaConfig) -> None:
    decaying, free = new_optimiser(new_model(config, 0), 1e-3, 0.1).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.1, 0)
    assert {parameter.ndim for parameter in free["params"]} == {1}


def test_objective_is_the_loss_of_transformers(config: LlamaConfig) -> None:
    model = new_model(config, 0)
    tokens = np.random.default_rng(0).integers(3, 400, (4, 16)).astype(np.int32)
    batch = PackedRows(tokens).batch(np.arange(4))
    summed, hits = Objective(model)(*batch.tensors)
    ids = torch.from_numpy(tokens.astype(np.int64))
    assert summed.item() / 60 == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    assert len(hits) == PackedRows(tokens).target_count(np.arange(4)) == 60


def test_padding_and_prompt_have_no_loss(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    pairs = [("lion", "zoo"), ("loan credit account interest loan", "bank")]
    data = AnswerRows(examples_of(tokenizer, pairs))
    objective = Objective(new_model(config, 0))
    both = data.batch(np.array([0, 1]))
    apart = [data.batch(np.array([row])) for row in (0, 1)]
    summed = [objective(*batch.tensors)[0].item() for batch in (both, *apart)]
    assert summed[0] == pytest.approx(summed[1] + summed[2], rel=1e-5)
    assert data.target_count(np.array([0, 1])) == len(both.tensors[2])


def test_workers_together_take_the_step_of_one(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """Averaged gradients of two shares with different numbers of targets are the gradient of the whole."""
    pairs = [("lion", "zoo"), ("loan", "bank of the river"), ("keel", "ship"), ("wolf", "zoo zoo zoo")]
    data = AnswerRows(examples_of(tokenizer, pairs))
    every = np.arange(4)

    def gradient(shares: list[np.ndarray]) -> torch.Tensor:
        grads = []
        for share in shares:
            objective = Objective(new_model(config, 0))
            batch = data.batch(share)
            summed, _ = objective(*batch.tensors)
            (summed / data.target_count(every) * len(shares)).backward()
            grads.append(nn.utils.parameters_to_vector([p.grad for p in objective.parameters() if p.grad is not None]))
        return torch.stack(grads).mean(0)

    torch.testing.assert_close(gradient([every]), gradient([every[0::2], every[1::2]]), rtol=1e-4, atol=1e-6)
