"""Preference, policy and teacher methods by the engine: each reaches its aim, resumes exactly and names bad data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, EnginePaused, LocalContext
from services.training.domain.methods import Distillation, Method, RewardRule, Rollouts, RuleKind, Signal
from services.training.domain.spec import Phase
from services.training.engines.frozen import Teacher, frozen_model
from services.training.engines.prepare import partly_prepared, prepare
from services.training.engines.scorer import Scorer, scored_rows
from services.training.engines.tokenizer import END_ID
from services.training.engines.train import run
from tests.unit.training.preferences import context, pairs, right_and_wrong
from tests.unit.training.samples import TEMPLATE, TINY, phase, tiny_spec

BASE, JUDGE = "orgs/acme/modelProjects/p/versions/1", "orgs/acme/modelProjects/judge/versions/1"
ENDS_FIRMLY = RewardRule(RuleKind.PATTERN, 1, r"\.$")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


@pytest.fixture(scope="module")
def base(store: BlobStore) -> dict[str, Any]:
    """A model that tells the label and is doubtful twice as often as firm."""
    return run(context(store, tiny_spec(phases=(tuned(150),)), pairs(120)))


@pytest.fixture(scope="module")
def judge(store: BlobStore, base: dict[str, Any]) -> dict[str, Any]:
    """A reward model on the base."""
    return run(context(store, tiny_spec(phases=(given(Method.REWARD, 20),)), pairs(120), base=base))


def tuned(steps: int) -> Phase:
    return phase(Method.SFT, steps, answers=())


def given(method: Method, steps: int, **fields: Any) -> Phase:
    usual: dict[str, Any] = {
        Method.DPO: {"beta": 0.1, "learning_rate": 0.003},
        Method.REWARD: {"learning_rate": 0.003},
        Method.GRPO: {
            "beta": 0.04,
            "batch_size": 4,
            "learning_rate": 0.003,
            "rollouts": Rollouts(group_size=6, max_new_tokens=6, rules=(ENDS_FIRMLY,)),
        },
        Method.DISTILL: {"distillation": Distillation(BASE)},
    }[method]
    return phase(method, steps, prompt_template=TEMPLATE, **{**usual, **fields})


def weights(store: BlobStore, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load(content(store, result, "model.safetensors"))


def content(store: BlobStore, result: dict[str, Any], path: str) -> bytes:
    return store.read_sync(next(file["sha256"] for file in result["files"] if file["path"] == path))


def test_dpo_prefers_the_better_answers_of_pairs_that_it_has_not_seen(store: BlobStore, base: dict[str, Any]) -> None:
    ctx = context(store, tiny_spec(phases=(given(Method.DPO, 40),)), pairs(120), base=base)
    results = run(ctx)["results"]
    # Measured: accuracy 0.5 to 1.0, ranking accuracy 0.0 to 1.0, margin 3.3, loss 0.69 to 0.04.
    assert results["dpo.heldout_accuracy_before"] == 0.5
    assert results["dpo.heldout_accuracy_after"] > 0.9
    assert results["dpo.heldout_ranking_accuracy_after"] > results["dpo.heldout_ranking_accuracy_before"] + 0.8
    assert results["dpo.heldout_margin_after"] > 1.5
    assert results["dpo.heldout_loss_after"] < results["dpo.heldout_loss_before"] - 0.4
    assert all({"accuracy", "margin", "loss"} <= values.keys() for _, _, values in ctx.recorded.metrics)


def test_reward_model_tells_right_answers_from_wrong_ones(store: BlobStore, base: dict[str, Any]) -> None:
    spec = tiny_spec(phases=(given(Method.REWARD, 60),))
    ctx = context(store, spec, right_and_wrong(120), base=base, heldout=right_and_wrong(48, seed=99))
    results = run(ctx)["results"]
    # Measured: accuracy 0.5 to 1.0, loss 0.69 to 0.001.
    assert results["reward.heldout_accuracy_after"] > 0.9
    assert results["reward.heldout_accuracy_after"] > results["reward.heldout_accuracy_before"] + 0.2
    assert results["reward.heldout_loss_after"] < 0.3


def test_reward_model_loads_in_transformers(store: BlobStore, judge: dict[str, Any], tmp_path: Path) -> None:
    for file in judge["files"]:
        store.export_sync(file["sha256"], tmp_path / file["path"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert judge["parameter_count"] == sum(parameter.numel() for parameter in theirs.parameters())
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = frozen_model(tmp_path)
    assert isinstance(ours, Scorer)
    texts = ["lion\nPackage:zoo.", "loan credit\nPackage:bank?"]
    ids = [[*tokenizer(text)["input_ids"], END_ID] for text in texts]
    scores = ours(*scored_rows([np.asarray(each) for each in ids]))
    for row, score in zip(ids, scores.tolist(), strict=True):
        assert theirs(torch.tensor([row])).logits.item() == pytest.approx(score, abs=1e-4)
    assert scores[0] > scores[1]


def test_grpo_earns_more_by_a_rule(store: BlobStore, base: dict[str, Any]) -> None:
    ctx = context(store, tiny_spec(phases=(given(Method.GRPO, 25),)), pairs(120), base=base)
    results = run(ctx)["results"]
    # Measured: held-out reward 0.0 to 1.0; drawn answers 0.87.
    assert results["grpo.heldout_reward_after"] > results["grpo.heldout_reward_before"] + 0.7
    assert results["grpo.last_reward"] > 0.7
    assert results["grpo.last_kl"] > 0
    assert 1 <= results["grpo.last_length"] <= 6
    assert all({"reward", "kl", "length"} <= values.keys() for _, _, values in ctx.recorded.metrics)


def test_grpo_earns_more_by_a_reward_model(store: BlobStore, base: dict[str, Any], judge: dict[str, Any]) -> None:
    rollouts = Rollouts(group_size=6, max_new_tokens=6, reward_version=JUDGE, updates=2)
    spec = tiny_spec(phases=(given(Method.GRPO, 15, rollouts=rollouts),))
    results = run(context(store, spec, pairs(120), base=base, frozen={JUDGE: judge}))["results"]
    # Measured: -5.5 to 4.3.
    assert results["grpo.heldout_reward_after"] > results["grpo.heldout_reward_before"] + 5


def test_a_student_comes_closer_to_its_teacher_than_without(store: BlobStore, base: dict[str, Any]) -> None:
    """Both see the same few rows, whose endings are chance; one sees how sure the teacher is of them too."""

    def learn(alpha: float) -> dict[str, float]:
        taught = given(Method.DISTILL, 100, distillation=Distillation(BASE, alpha=alpha))
        return run(context(store, tiny_spec(phases=(taught,)), pairs(18), frozen={BASE: base}))["results"]

    taught, alone = learn(0.9), learn(0.0)
    # Measured: 5.8 to 0.0005 with the teacher, 0.093 without.
    assert taught["distill.heldout_kl_after"] < taught["distill.heldout_kl_before"] / 100
    assert taught["distill.heldout_kl_after"] < alone["distill.heldout_kl_after"] / 4


def test_a_student_learns_the_answers_that_its_teacher_gives(store: BlobStore, base: dict[str, Any]) -> None:
    """The rows have no answers of their own; the student has a tokenizer of its own."""
    copied = given(Method.DISTILL, 100, distillation=Distillation(BASE, Signal.RESPONSES, max_new_tokens=8))
    bare = [{"text": row["text"]} for row in pairs(120)]
    spec = tiny_spec(phases=(copied,), architecture=replace(TINY, vocabulary_size=290))
    result = run(context(store, spec, bare, frozen={BASE: base}))
    # Measured: 0.0 to 1.0.
    assert result["results"]["distill.heldout_exact_match_before"] == 0
    assert result["results"]["distill.heldout_exact_match_after"] > 0.9
    assert content(store, result, "tokenizer.json") != content(store, base, "tokenizer.json")


def test_answers_of_a_teacher_are_kept_for_the_next_attempt(
    store: BlobStore, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.training.engines.phase_rows.TAUGHT_ROWS", 8)
    asked, answers = list[str](), Teacher.answers

    def counted(teacher: Teacher, texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        return answers(teacher, texts)

    monkeypatch.setattr(Teacher, "answers", counted)
    copied = given(Method.DISTILL, 9, distillation=Distillation(BASE, Signal.RESPONSES, max_new_tokens=8))
    spec = tiny_spec(phases=(copied,), architecture=replace(TINY, vocabulary_size=290))
    bare = [{"text": row["text"]} for row in pairs(20)]

    def attempt(**options: Any) -> LocalContext:
        return context(store, spec, bare, frozen={BASE: base}, heldout=bare[:4], **options)

    whole = attempt()
    plan, every = prepare(whole, spec, partly_prepared(whole)), list(asked)
    assert every == [row["text"] for row in [*bare, *bare[:4]]]
    asked.clear()
    # Killed behind the second shard.
    killed = attempt(cancel_when=lambda seen: len(seen.checkpoints) == 2)
    with pytest.raises(EngineCancelled):
        prepare(killed, spec, partly_prepared(killed))
    assert asked == every[:16]
    asked.clear()
    again = attempt(resume=killed.recorded.checkpoints[-1], attempt=2)
    assert prepare(again, spec, partly_prepared(again))["prepared"] == plan["prepared"]
    assert asked == every[16:]


RESUMED = [
    given(Method.DPO, 8),
    given(Method.REWARD, 8),
    given(Method.GRPO, 8, rollouts=Rollouts(group_size=4, max_new_tokens=4, rules=(ENDS_FIRMLY,), updates=2)),
    given(Method.DISTILL, 8),
]


@pytest.mark.parametrize("resumed", RESUMED, ids=lambda each: each.method.value)
def test_resume_in_the_middle_gives_the_same_losses(store: BlobStore, base: dict[str, Any], resumed: Phase) -> None:
    spec = tiny_spec(phases=(resumed,), checkpoint_every=3)
    frozen = {BASE: base}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.training.engines.worker.METRICS_EVERY", 1)
        patch.setattr("services.training.engines.worker.ASK_SECONDS", 0.0)
        first = context(store, spec, pairs(60), base=base, frozen=frozen)
        whole = run(first)
        stopped = context(store, spec, pairs(60), base=base, frozen=frozen, pause_when=lambda _: True)
        with pytest.raises(EnginePaused):
            run(stopped)
        checkpoint = stopped.recorded.checkpoints[-1]
        assert checkpoint["step"] == 3
        again = context(store, spec, pairs(60), base=base, frozen=frozen, resume=checkpoint, attempt=2)
        result = run(again)
    curves = [{step: values["loss"] for _, step, values in ctx.recorded.metrics} for ctx in (first, again)]
    assert sorted(curves[1]) == [4, 5, 6, 7, 8]
    for step, loss in curves[1].items():
        assert loss == pytest.approx(curves[0][step], abs=1e-6)
    for name, tensor in weights(store, whole).items():
        torch.testing.assert_close(weights(store, result)[name], tensor, rtol=1e-5, atol=1e-6)
    figures = [{k: v for k, v in each["results"].items() if "heldout" in k} for each in (whole, result)]
    assert figures[1] == pytest.approx(figures[0], abs=1e-5)


def test_a_phase_is_held_to_what_it_began_with(store: BlobStore, base: dict[str, Any]) -> None:
    """The checkpoint in the middle names what the phase keeps; without it a resumed run would be held to a model that
    has already moved."""
    spec = tiny_spec(phases=(given(Method.DPO, 8),), checkpoint_every=3)
    ctx = context(store, spec, pairs(60), base=base)
    run(ctx)
    manifests = [store.load_manifest_sync(each["manifest_digest"]) for each in ctx.recorded.checkpoints[1:]]
    kept = [[entry["sha256"] for entry in each["blobs"] if entry["path"] == "kept.safetensors"] for each in manifests]
    assert len(kept) == 3
    assert kept[0] == kept[1] != []
    assert kept[2] == []


@pytest.mark.parametrize(
    ("given_phase", "rows", "expected"),
    [
        (given(Method.DPO, 2), [{"text": "a", "chosen": "b"}], "no column 'rejected'"),
        (given(Method.REWARD, 2), [{"text": "a", "chosen": "b", "rejected": "b"}], "another one in 'rejected'"),
        (given(Method.GRPO, 2), [{"text": "", "label": "b"}], "no row has text in 'text'"),
        (
            given(Method.GRPO, 2, rollouts=Rollouts(rules=(RewardRule(RuleKind.EXACT_MATCH),))),
            [{"text": "a", "label": ""}],
            "no row has an answer in 'label'",
        ),
        (
            given(Method.GRPO, 2, rollouts=Rollouts(max_new_tokens=32, rules=(ENDS_FIRMLY,))),
            pairs(4),
            "no room for a prompt",
        ),
        (given(Method.GRPO, 2, rollouts=Rollouts(rules=(replace(ENDS_FIRMLY, pattern="(?=a)"),))), pairs(4), "RE2"),
        (given(Method.GRPO, 2, rollouts=Rollouts(reward_version=BASE)), pairs(4), f"{BASE} is no reward model"),
        (given(Method.DISTILL, 2, distillation=Distillation(JUDGE)), pairs(4), f"{JUDGE} is a reward model"),
    ],
)
def test_bad_data_is_named(
    store: BlobStore, base: dict[str, Any], judge: dict[str, Any], given_phase: Phase, rows: Any, expected: str
) -> None:
    spec = tiny_spec(phases=(given_phase,))
    with pytest.raises(EngineError) as caught:
        run(context(store, spec, rows, base=base, frozen={BASE: base, JUDGE: judge}))
    assert caught.value.reason == "CONTENT_INVALID"
    assert expected in caught.value.message


def test_a_teacher_with_another_vocabulary_is_refused(store: BlobStore, base: dict[str, Any]) -> None:
    other = run(context(store, tiny_spec(phases=(tuned(1),)), [{"text": "quite other words", "label": "x"}] * 9))
    spec = tiny_spec(phases=(given(Method.DISTILL, 2),))
    with pytest.raises(EngineError, match=f"Model version {BASE} has another vocabulary") as caught:
        run(context(store, spec, pairs(12), base=base, frozen={BASE: other}))
    assert caught.value.reason == "CONTENT_INVALID"


def test_a_reward_model_is_no_base(store: BlobStore, judge: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="The base model is a reward model"):
        run(context(store, tiny_spec(phases=(tuned(1),)), pairs(12), base=judge))
