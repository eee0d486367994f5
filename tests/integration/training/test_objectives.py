"""Losses of the preference and policy methods against the formulas written out, sampling, and rewards."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from libs.compute.context import EngineError
from services.training.domain.methods import Distillation, Method, RewardRule, Rollouts, RuleKind
from services.training.domain.spec import Phase
from services.training.engines.base import BaseText
from services.training.engines.encode import encode_prompts
from services.training.engines.group import Group
from services.training.engines.methods import METHODS
from services.training.engines.methods.distill import DistillObjective
from services.training.engines.methods.dpo import DpoObjective
from services.training.engines.methods.grpo import GrpoObjective, group_advantages
from services.training.engines.methods.method import Reading, RowBatch, Start, Work
from services.training.engines.model import llama_config, log_probs_at, new_model
from services.training.engines.patterns import matches
from services.training.engines.rewards import Rewards
from services.training.engines.sampling import drawn, generate, most_likely
from services.training.engines.tokenizer import END_ID, SpecialTokens, train_tokenizer
from tests.unit.training.preferences import pairs
from tests.unit.training.samples import TEMPLATE, TINY, phase, rows

DRAWN = Rollouts(group_size=3, max_new_tokens=5, rules=(RewardRule(RuleKind.PATTERN, 1, "[aeiou]"),))
PHASES = [
    phase(Method.SFT, 1, answers=()),
    phase(Method.DPO, 1, beta=0.3, prompt_template=TEMPLATE),
    phase(Method.REWARD, 1, prompt_template=TEMPLATE),
    phase(Method.GRPO, 1, beta=0.1, prompt_template=TEMPLATE, rollouts=DRAWN),
    phase(Method.DISTILL, 1, prompt_template=TEMPLATE, distillation=Distillation("teacher")),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([row["text"] for row in rows(60)], 400)


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return llama_config(TINY, 400)


@pytest.fixture(scope="module")
def model(config: LlamaConfig) -> LlamaForCausalLM:
    """Fresh weights, sharpened: near-uniform guesses would hide mistakes."""
    made = new_model(config, 3)
    assert isinstance(made, LlamaForCausalLM)
    with torch.no_grad():
        made.model.embed_tokens.weight.mul_(10)
    return made.eval()


def begin(given: Phase, tokenizer: Tokenizer, config: LlamaConfig, seed: int = 3) -> Work:
    """A phase on eight rows, as a worker begins it."""
    content = pairs(8)
    columns = {name: [row[name] for row in content] for name in given.columns}
    learning = METHODS[given.method]
    arrays = learning.encode(Reading(BaseText(tokenizer), given, 32), RowBatch(0, columns, range(8))).arrays
    if given.method is Method.PRETRAIN:
        arrays = {"sequences": arrays["tokens"][: len(arrays["tokens"]) // 32 * 32].reshape(-1, 32)}
    data = learning.rows(arrays.__getitem__)
    start = Start(
        new_model(config, seed),
        given,
        0,
        7,
        Group(),
        data,
        data,
        BaseText(tokenizer),
        lambda: new_model(config, 9),
        lambda: False,
        None,
    )
    return learning.begin(start)


@torch.no_grad()
def one_by_one(model: nn.Module, inputs: Tensor, places: Tensor, targets: Tensor) -> list[list[float]]:
    """Log-probability of each target by row, from the logits of the whole model."""
    logits = model(input_ids=inputs).logits.double()
    width = inputs.shape[1]
    found: list[list[float]] = [[] for _ in inputs]
    for place, target in zip(places.tolist(), targets.tolist(), strict=True):
        row = logits[place // width, place % width]
        found[place // width].append(float(row[target] - row.logsumexp(0)))
    return found


def fixed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four rows of seven tokens, with answers of two, three, one and two tokens."""
    inputs = torch.from_numpy(np.random.default_rng(1).integers(3, 400, (4, 7)))
    places = torch.tensor([3, 4, 7 + 2, 7 + 3, 7 + 4, 14 + 6, 21 + 5, 21 + 6])
    return inputs, places, torch.tensor([7, 8, 9, 10, 11, 12, 13, END_ID])


def test_dpo_is_equation_7(model: LlamaForCausalLM) -> None:
    inputs, places, targets = fixed_batch()
    reference = torch.tensor([[-9.0, -8.0], [-3.5, -11.0]])
    loss, seen = DpoObjective(model, 0.3)(inputs, places, targets, reference)
    likely = [sum(row) for row in one_by_one(model, inputs, places, targets)]
    wanted = 0.0
    for pair in (0, 1):
        better, worse = likely[2 * pair] - float(reference[pair, 0]), likely[2 * pair + 1] - float(reference[pair, 1])
        wanted -= math.log(1 / (1 + math.exp(-0.3 * (better - worse))))
        assert float(seen[pair, 0]) == pytest.approx(0.3 * (better - worse), rel=1e-4)
        assert float(seen[pair, 1]) == pytest.approx(likely[2 * pair] - likely[2 * pair + 1], rel=1e-4)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_grpo_is_equation_3(model: LlamaForCausalLM) -> None:
    inputs, places, targets = fixed_batch()
    likely = one_by_one(model, inputs, places, targets)
    # One ratio inside the clip, the others outside on both sides.
    old = torch.tensor([value for row in likely for value in row], dtype=torch.float32) - torch.tensor(
        [0.1, 0.5, -0.5, 0.0, 0.3, -0.3, 0.25, -0.1]
    )
    reference = old + torch.tensor([0.2, -0.2, 0.4, 0.0, -0.4, 0.1, 0.3, -0.3])
    advantages = torch.tensor([1.5, -0.5, -1.0, 0.0])
    loss, divergence = GrpoObjective(model, 0.2, 0.04, 1.0)(inputs, places, targets, old, reference, advantages)
    wanted, number = 0.0, 0
    for row, values in enumerate(likely):
        total = far = 0.0
        for value in values:
            ratio = math.exp(value - float(old[number]))
            gap = float(reference[number]) - value
            far += math.exp(gap) - gap - 1
            a = float(advantages[row])
            total += min(ratio * a, min(max(ratio, 0.8), 1.2) * a) - 0.04 * (math.exp(gap) - gap - 1)
            number += 1
        wanted -= total / len(values)
        assert float(divergence[row]) == pytest.approx(far / len(values), rel=1e-4, abs=1e-6)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_advantages_are_of_the_group_alone() -> None:
    found = group_advantages(np.array([[1.0, 0.0, 0.0, 1.0], [7.0, 7.0, 7.0, 7.0], [0.0, 3.0, 0.0, 0.0]]))
    assert found[0] == pytest.approx([1, -1, -1, 1])
    assert found[1] == pytest.approx([0, 0, 0, 0])
    assert found[2] == pytest.approx([-1 / math.sqrt(3), math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)])


def test_distillation_weighs_teacher_and_answer(model: LlamaForCausalLM) -> None:
    inputs, places, targets = fixed_batch()
    teacher = torch.from_numpy(np.random.default_rng(2).normal(0, 3, (len(places), 400))).float()
    loss, seen = DistillObjective(model, 0.7, 2.0)(inputs, places, targets, teacher)
    logits = model(input_ids=inputs).logits.flatten(0, 1)[places]

    def divergence(temperature: float) -> Tensor:
        theirs, ours = (torch.softmax(each / temperature, -1) for each in (teacher, logits))
        return (theirs * (theirs.log() - ours.log())).sum(-1)

    hard = -sum(value for row in one_by_one(model, inputs, places, targets) for value in row)
    assert loss.item() == pytest.approx(0.7 * 4 * float(divergence(2.0).sum()) + 0.3 * hard, rel=1e-4)
    torch.testing.assert_close(seen[:, 0], divergence(1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", PHASES, ids=lambda given: given.method.value)
def test_workers_together_take_the_step_of_one(given: Phase, tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """Averaged gradients of two shares are the gradient of the whole; drawn answers do not depend on who draws."""
    every = np.arange(8)

    def gradient(shares: list[np.ndarray]) -> Tensor:
        grads: list[Tensor] = []
        for share in shares:
            work = begin(given, tokenizer, config)
            summed, _ = work.objective(*work.train.batch(share, share).tensors)
            (summed / work.train.target_count(every) * len(shares)).backward()
            grads.append(
                nn.utils.parameters_to_vector([p.grad for p in work.objective.parameters() if p.grad is not None])
            )
        return torch.stack(grads).mean(0)

    torch.testing.assert_close(gradient([every]), gradient([every[0::2], every[1::2]]), rtol=1e-3, atol=1e-6)


def test_dpo_begins_with_ties(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    work = begin(PHASES[1], tokenizer, config)
    found = work.measure()
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found["accuracy"] == 0.5
    assert found["margin"] == pytest.approx(0, abs=1e-5)


def prompts_of(tokenizer: Tokenizer, count: int) -> list[np.ndarray]:
    texts = [row["text"][: 10 + 7 * number] for number, row in enumerate(rows(count))]
    return [np.asarray(ids) for ids in encode_prompts(tokenizer, SpecialTokens(), texts, TEMPLATE, 24)]


def test_greedy_answers_are_those_of_transformers(tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    prompts = prompts_of(tokenizer, 5)
    answers = generate(model, prompts, 1, 8, END_ID, most_likely)
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = model.generate(torch.from_numpy(prompt)[None], max_new_tokens=8, do_sample=False)  # type: ignore[operator]
        assert answer == whole[0][len(prompt) :].tolist()


def test_a_drawn_answer_depends_on_its_seed_alone(tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    prompts = prompts_of(tokenizer, 5)
    seeds = [(7, 0, 3, row) for row in range(5)]
    together = generate(model, prompts, 4, 6, END_ID, drawn(seeds, 4, 6, 1.0))
    apart = [
        answer
        for prompt, seed in zip(prompts, seeds, strict=True)
        for answer in generate(model, [prompt], 4, 6, END_ID, drawn([seed], 4, 6, 1.0))
    ]
    assert together == apart
    assert len({tuple(answer) for answer in together}) > 10
    assert generate(model, prompts, 4, 6, END_ID, drawn([(8, *seed[1:]) for seed in seeds], 4, 6, 1.0)) != together


def test_drawn_tokens_have_the_probabilities_of_the_model() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.0, 0.2])).expand(4000, 4)
    tokens = drawn([(1, 2)], 4000, 1, 1.0)(logits, 0)
    assert (torch.bincount(tokens, minlength=4) / 4000).tolist() == pytest.approx([0.5, 0.3, 0, 0.2], abs=0.03)
    sharp = drawn([(1, 2)], 4000, 1, 0.1)(logits, 0)
    assert float((sharp == 0).float().mean()) > 0.98


def test_a_row_that_comes_again_is_answered_anew(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """Eight places of two steps have the same row; what is drawn follows the place alone."""
    train = begin(PHASES[3], tokenizer, config).train

    def answers(draws: np.ndarray) -> list[tuple[int, ...]]:
        inputs = train.batch(np.zeros(len(draws), np.int64), draws).tensors[0]
        groups = inputs.reshape(len(draws), -1, inputs.shape[1])
        return [tuple(group[group != 0].tolist()) for group in groups]

    every = answers(np.arange(8))
    assert len(set(every)) == 8
    # Whoever draws it, and however often.
    assert [answers(np.array([draw]))[0] for draw in (5, 2)] == [every[5], every[2]]


def test_ratio_of_a_fresh_draw_is_one(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    work = begin(PHASES[3], tokenizer, config)
    batch = work.train.batch(np.arange(4), np.arange(4))
    inputs, places, targets, old, reference, _ = batch.tensors
    torch.testing.assert_close(log_probs_at(work.objective.model, inputs, places, targets), old)  # type: ignore[arg-type]
    torch.testing.assert_close(old, reference)
    assert batch.figures["length"] == len(targets)


def test_rules_judge_answers(tokenizer: Tokenizer) -> None:
    given = phase(Method.SFT, 1, answers=())
    columns = {"text": ["lion", "loan"], "label": ["zoo", "bank"]}
    reading = Reading(BaseText(tokenizer), given, 32)
    arrays = METHODS[Method.SFT].encode(reading, RowBatch(0, columns, range(2))).arrays
    examples = METHODS[Method.SFT].rows(arrays.__getitem__).examples  # type: ignore[attr-defined]
    rules = (
        RewardRule(RuleKind.EXACT_MATCH, 2),
        RewardRule(RuleKind.PATTERN, -0.5, "^b"),
        RewardRule(RuleKind.MAX_TOKENS, 0.25, max_tokens=4),
    )
    answers = [tokenizer.encode(text, add_special_tokens=False).ids for text in (" zoo", "zoo", "bank", "boat boat")]
    answers[1:3] = [[*answer, END_ID] for answer in answers[1:3]]
    judged = Rewards(Rollouts(rules=rules), BaseText(tokenizer), examples, None).of([0, 0, 1, 1], answers)
    short = [0.25 * (len(answer) <= 4) for answer in answers[1:3]]
    assert judged.tolist() == [2, 2 + short[0], 1.5 + short[1], -0.5]


def test_no_pattern_takes_long_or_means_something_else() -> None:
    began = time.process_time()
    assert not matches("(a+)+$", ["a" * 5000 + "!"]).any()
    assert time.process_time() - began < 1
    with pytest.raises(EngineError, match="RE2") as caught:
        matches("(?=a)", [""])
    assert caught.value.reason == "CONTENT_INVALID"
