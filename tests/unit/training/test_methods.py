"""Rules of the methods beyond next tokens: what a phase reads, what no data could make right, what the card says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.training.domain.card import model_card
from services.training.domain.estimate import estimate
from services.training.domain.methods import Distillation, Method, RewardRule, Rollouts, RuleKind, Signal
from services.training.domain.preflight import DataFacts, preflight
from services.training.domain.spec import Phase, TrainingSpec
from services.training.domain.trainings import Training, TrainingRun
from services.training.handlers.phases import phase_from, phase_message
from tests.unit.factories import resource_fields
from tests.unit.training.samples import phase, tiny_spec

VERSION = "orgs/acme/modelProjects/other/versions/1"
MATCH = RewardRule(RuleKind.EXACT_MATCH)


def rollouts(**fields: Any) -> Phase:
    given: dict[str, Any] = {"rules": (MATCH,), **fields}
    return phase(Method.GRPO, 2, rollouts=Rollouts(**given))


def distillation(**fields: Any) -> Phase:
    given: dict[str, Any] = {"teacher_version": VERSION, **fields}
    return phase(Method.DISTILL, 2, distillation=Distillation(**given))


def test_spec_with_every_method_survives_json_and_messages() -> None:
    rules = (MATCH, RewardRule(RuleKind.PATTERN, -1, "a+"), RewardRule(RuleKind.MAX_TOKENS, 0, "", 4))
    phases = (
        phase(Method.DPO, 2, beta=0.2, chosen_column="good", rejected_column="bad"),
        rollouts(rules=rules, reward_version=VERSION, updates=2, clip=0.1, temperature=0.7),
        distillation(signal=Signal.RESPONSES, max_new_tokens=9),
        phase(Method.REWARD, 2),
    )
    spec = tiny_spec(phases=phases)
    spec.check()
    assert TrainingSpec.from_json(spec.to_json()) == spec
    assert [phase_from(phase_message(each)) for each in phases[:3]] == list(phases[:3])
    assert spec.phase_names == ("dpo", "grpo", "distill", "reward")
    assert spec.frozen_versions == (VERSION,)


def test_spec_of_an_older_row_has_the_defaults() -> None:
    data = tiny_spec().to_json()
    for each in data["phases"]:
        for name in ("chosen_column", "rejected_column", "beta", "distillation", "rollouts"):
            del each[name]
    assert TrainingSpec.from_json(data) == tiny_spec()


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (phase(Method.DPO, 2), ("text", "chosen", "rejected")),
        (phase(Method.REWARD, 2), ("text", "chosen", "rejected")),
        (rollouts(), ("text", "label")),
        (rollouts(rules=(), reward_version=VERSION), ("text",)),
        (distillation(), ("text", "label")),
        (distillation(signal=Signal.RESPONSES), ("text",)),
    ],
)
def test_a_method_reads_what_it_needs(given: Phase, columns: tuple[str, ...]) -> None:
    assert given.columns == columns


@pytest.mark.parametrize(
    ("phases", "field"),
    [
        ((phase(Method.REWARD, 2), phase(Method.SFT, 2)), "spec.phases[0].method"),
        ((phase(Method.DPO, 2, beta=0.1, prompt_template="no place"),), "spec.phases[0].prompt_template"),
        ((phase(Method.DPO, 2, beta=0.1, rejected_column="chosen"),), "spec.phases[0].rejected_column"),
        ((phase(Method.DPO, 2),), "spec.phases[0].beta"),
        ((distillation(teacher_version=""),), "spec.phases[0].distillation.teacher_version"),
        ((rollouts(rules=()),), "spec.phases[0].rollouts.rules"),
        ((rollouts(group_size=1),), "spec.phases[0].rollouts.group_size"),
        ((rollouts(rules=(MATCH, RewardRule(RuleKind.MAX_TOKENS))),), "spec.phases[0].rollouts.rules[1].max_tokens"),
    ],
)
def test_what_no_data_could_make_right_is_named(phases: tuple[Phase, ...], field: str) -> None:
    with pytest.raises(DomainError) as caught:
        tiny_spec(phases=phases).check()
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize("pattern", ["(", "", "a{99999999999}", "*"])
def test_a_pattern_that_is_none_is_named(pattern: str) -> None:
    with pytest.raises(DomainError, match=r"rollouts\.rules\[0\]\.pattern"):
        tiny_spec(phases=(rollouts(rules=(RewardRule(RuleKind.PATTERN, 1, pattern),)),)).check()


def training(**fields: Any) -> Training:
    usual: dict[str, Any] = {
        "dataset_version": "orgs/acme/datasets/d/versions/1",
        "model_project": "orgs/acme/modelProjects/p",
    }
    return Training(**resource_fields("orgs/acme/trainings/t"), **{**usual, **fields})


def test_a_new_model_has_no_answers_to_compare() -> None:
    spec = tiny_spec(phases=(phase(Method.DPO, 2, beta=0.1),))
    with pytest.raises(DomainError, match="set base_model_version"):
        training(spec=spec).check()
    training(spec=spec, base_model_version=VERSION).check()
    training(spec=replace(spec, phases=(phase(Method.SFT, 2), *spec.phases))).check()


def test_a_teacher_of_another_organization_is_not_there() -> None:
    spec = tiny_spec(phases=(distillation(teacher_version="orgs/other/modelProjects/p/versions/1"),))
    with pytest.raises(DomainError) as caught:
        training(spec=spec).check()
    assert caught.value.reason == "NOT_FOUND"


def facts(sample: list[dict[str, str]]) -> list[DataFacts]:
    columns = dict.fromkeys(("text", "chosen", "rejected"), "string")
    return [DataFacts("dataset_version", "orgs/acme/datasets/d/versions/1", 1000, columns, sample)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "a", "chosen": "b", "rejected": "c"}, []),
        ({"text": "a", "chosen": "b", "rejected": "b"}, ["template"]),
        ({"text": "a", "chosen": "b", "rejected": ""}, ["template"]),
    ],
)
def test_preflight_looks_for_pairs(row: dict[str, str], found: list[str]) -> None:
    spec = tiny_spec(phases=(phase(Method.DPO, 2, beta=0.1),))
    findings = preflight(spec, facts([row] * 10), estimate(spec), 0)
    assert [finding.check for finding in findings] == found
    assert all("'chosen' and 'rejected'" in finding.message for finding in findings)


def test_preflight_names_a_missing_column_of_pairs() -> None:
    spec = tiny_spec(phases=(phase(Method.REWARD, 2, chosen_column="better"),))
    findings = preflight(spec, facts([]), estimate(spec), 0)
    assert [(finding.check, finding.blocking) for finding in findings] == [("schema", True)]
    assert "'better'" in findings[0].message


def test_estimate_counts_pairs_groups_and_frozen_models() -> None:
    def guess(given: Phase) -> tuple[float, int]:
        # Enough steps for the fixed time of a run not to count.
        found = estimate(tiny_spec(phases=(replace(given, steps=5_000_000),), checkpoint_every=10_000_000))
        return found.seconds, found.memory_bytes

    sft, pairs, dpo = (guess(phase(method, 2)) for method in (Method.SFT, Method.REWARD, Method.DPO))
    # A score needs no logits, a reference reads everything once more; calls are as many for two sequences as for one.
    assert pairs[0] < 2 * sft[0]
    assert pairs[0] < dpo[0] < 2 * sft[0] * 4 / 3
    few, many = guess(rollouts(group_size=4)), guess(rollouts(group_size=8))
    assert 1.3 * few[0] < many[0] < 2 * few[0]
    assert guess(distillation())[1] > sft[1]
    assert guess(rollouts(reward_version=VERSION))[1] > guess(rollouts())[1]


def test_card_tells_what_a_phase_was_held_to() -> None:
    pattern = RewardRule(RuleKind.PATTERN, 0.5, "please")
    spec = tiny_spec(
        phases=(
            phase(Method.DPO, 2, beta=0.1),
            rollouts(rules=(MATCH, pattern), reward_version=VERSION),
            distillation(),
        )
    )
    run = TrainingRun(**resource_fields("orgs/acme/trainings/t/runs/1"), spec=spec)
    results = {"dpo.heldout_accuracy_before": 0.5, "dpo.heldout_accuracy_after": 0.9, "dpo.heldout_loss_after": 0.1}
    card = model_card(run, VERSION, "ab" * 32, 7, 32, results, {})
    for part in (
        "- dpo: beta 0.1",
        "1 for the right answer; 0.5 for an answer with `please`; score of `orgs/acme/modelProjects/other/versions/1`",
        "- distill: the probabilities of `orgs/acme/modelProjects/other/versions/1`, alpha 0.5, temperature 2",
        "| dpo | accuracy | 0.500 | 0.900 |",
    ):
        assert part in card
    assert "| dpo | loss |" not in card


def test_card_of_a_reward_model_says_that_it_writes_nothing() -> None:
    run = TrainingRun(
        **resource_fields("orgs/acme/trainings/t/runs/1"), spec=tiny_spec(phases=(phase(Method.REWARD, 2),))
    )
    card = model_card(run, VERSION, "ab" * 32, 7, 32, {}, {})
    assert "A reward model of the architecture `llama`" in card
    assert "It writes no text." in card
