"""Rules of training: specs, states, gates, pre-flight, the card."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.training.domain.card import model_card
from services.training.domain.estimate import estimate
from services.training.domain.leakage import Leakage
from services.training.domain.life_cycle import DEFAULT, Event, State
from services.training.domain.models import Gate, ModelVersion, decided
from services.training.domain.preflight import DataFacts, preflight
from services.training.domain.spec import Architecture, Method, TrainingSpec
from services.training.domain.trainings import TrainingRun
from tests.unit.factories import THEN, resource_fields
from tests.unit.training.samples import phase, tiny_spec

NAME = "orgs/acme/modelProjects/packages/versions/1"
DIGEST = "ab" * 32


def version() -> ModelVersion:
    made = ModelVersion(**resource_fields(NAME), manifest_digest=DIGEST)
    made.begin(DEFAULT, "users/alice", THEN, "made")
    made.happen(Event.IMPORTED, DEFAULT, "users/alice", THEN, "made")
    return made


def gate(**fields: Any) -> Gate:
    usual: dict[str, Any] = {
        "gate": "release",
        "open": True,
        "evaluation": "orgs/acme/evaluations/e1",
        "rule": "r",
        "figures": {},
        "model_digest": DIGEST,
        "decide_time": THEN,
    }
    return Gate(**{**usual, **fields})


def later(hours: int) -> datetime:
    return THEN + timedelta(hours=hours)


def test_newest_decision_of_all_gates_gives_the_state() -> None:
    made = version()
    made.decide(gate(), DEFAULT, "services/eval", THEN)
    assert made.state == State.APPROVED
    made.decide(gate(gate="safety", open=False, decide_time=later(1)), DEFAULT, "services/eval", later(1))
    assert made.state == State.REJECTED
    made.decide(gate(decide_time=later(2)), DEFAULT, "services/eval", later(2))
    assert made.state == State.APPROVED
    stages = [each.to_stage for each in made.new_transitions]
    assert stages == ["draft", "trained", "evaluated", "approved", "rejected", "approved"]


def test_second_open_gate_adds_no_transition() -> None:
    made = version()
    made.decide(gate(), DEFAULT, "services/eval", THEN)
    made.decide(gate(gate="safety", decide_time=later(1)), DEFAULT, "services/eval", later(1))
    assert [each.to_stage for each in made.new_transitions][-2:] == ["evaluated", "approved"]
    assert [each.gate for each in made.gates] == ["release", "safety"]


def test_archived_version_comes_back_as_its_stage_says() -> None:
    made = version()
    made.archive("users/alice", THEN)
    assert (made.state, made.stage) == (State.ARCHIVED, "trained")
    made.restore(DEFAULT, "users/alice", THEN)
    assert made.state == State.REGISTERED


def test_a_decision_from_the_future_counts_from_now() -> None:
    assert decided(gate(decide_time=later(9)), THEN).decide_time == THEN
    assert decided(gate(decide_time=THEN), later(9)).decide_time == THEN


def test_spec_survives_json() -> None:
    spec = tiny_spec(phases=(phase(Method.SFT, 3, answers=("a", "b")), phase(Method.SFT, 2)))
    assert TrainingSpec.from_json(spec.to_json()) == spec
    assert spec.phase_names == ("sft", "sft_2")


@pytest.mark.parametrize(
    "shape",
    [
        {"vocabulary_size": 259},
        {"hidden_size": 36},
        {"heads": 4, "key_value_heads": 3},
        {"sequence_length": 15},
    ],
)
def test_impossible_architectures(shape: dict[str, int]) -> None:
    with pytest.raises(DomainError) as caught:
        replace(Architecture(), **shape).check()
    assert caught.value.metadata["field"].startswith("spec.architecture.")


@pytest.mark.parametrize("template", ["no place", "{text} {text}"])
def test_template_needs_its_place_once(template: str) -> None:
    spec = tiny_spec(phases=(phase(Method.SFT, 2, prompt_template=template),))
    with pytest.raises(DomainError, match="exactly once"):
        spec.check()


def test_parameters_of_the_reference_model() -> None:
    # As `sum(p.numel())` of transformers' LlamaForCausalLM says for the same numbers.
    assert Architecture().parameter_count == 1_315_968


def test_estimate_grows_with_the_work_and_shrinks_with_workers() -> None:
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 10_000),), architecture=Architecture())
    one, two = estimate(spec), estimate(replace(spec, workers=2))
    assert one.seconds > 2000
    assert one.seconds / 2 < two.seconds < one.seconds
    assert two.memory_bytes > one.memory_bytes
    assert estimate(replace(spec, gpus_per_worker=1)).seconds == 0


def facts(**fields: Any) -> DataFacts:
    usual: dict[str, Any] = {
        "what": "dataset_version",
        "name": "orgs/acme/datasets/d/versions/1",
        "row_count": 1000,
        "columns": {"text": "string", "label": "string"},
        "sample": [{"text": "lion", "label": "zoo"}] * 10,
    }
    return DataFacts(**{**usual, **fields})


@pytest.mark.parametrize(
    ("change", "check", "blocking"),
    [
        ({"row_count": 0, "sample": []}, "schema", True),
        ({"columns": {"text": "string"}}, "schema", True),
        ({"columns": {"text": "binary", "label": "string"}}, "schema", True),
        ({"sample": [{"text": "lion", "label": ""}] * 10}, "template", False),
        ({"sample": [{"text": "lion", "label": "z…"}, {"text": "lion", "label": ""}], "row_count": 3}, "tokens", False),
        # These are all rows: a run would have nothing to learn.
        ({"sample": [{"text": "lion", "label": ""}] * 10, "row_count": 10}, "template", True),
        ({"row_count": 3}, "tokens", False),
    ],
)
def test_preflight_names_what_is_wrong(change: dict[str, Any], check: str, blocking: bool) -> None:
    spec = tiny_spec()
    assert preflight(spec, [facts()], estimate(spec), 0) == []
    found = preflight(spec, [facts(**change)], estimate(spec), 0)
    assert (check, blocking) in {(finding.check, finding.blocking) for finding in found}


def test_preflight_knows_the_memory_of_the_machine() -> None:
    spec = tiny_spec(architecture=replace(Architecture(), hidden_size=4096, intermediate_size=11008, layers=32))
    found = preflight(spec, [facts()], estimate(spec), 24 << 30)
    assert [(finding.check, finding.blocking) for finding in found if finding.check == "memory"] == [("memory", True)]


def test_card_tells_data_method_losses_and_limits() -> None:
    run = TrainingRun(
        **resource_fields("orgs/acme/trainings/t/runs/1"),
        spec=tiny_spec(),
        dataset_version="orgs/acme/datasets/d/versions/1",
        dataset_digest=DIGEST,
    )
    results = {
        "sft.first_loss": 5.0,
        "probe.steps": 40.0,
        "probe.loss_pretrained": 2.0,
        "probe.loss_fresh": 2.5,
        "probe.exact_match_pretrained": 0.2,
        "probe.exact_match_fresh": 0.1,
    }
    card = model_card(run, NAME, DIGEST, 7, 32, results, {"torch": "2"})
    for part in ("# packages, version 1", DIGEST, "| sft | 5.000 | – |", "2.000 with the pre-training", "## Limits"):
        assert part in card
    bare = model_card(run, NAME, DIGEST, 7, 32, {}, {})
    assert "What the pre-training did" not in bare
    assert "held-out rows are in" not in bare
    leaky = model_card(run, NAME, DIGEST, 7, 32, {"leaked_share": 0.0025}, {})
    assert "- 0.25% of the held-out rows are in what it learned from, exactly or nearly" in leaky


@pytest.mark.parametrize(("leaked", "refused"), [(0, False), (10, False), (11, True)])
def test_more_than_one_held_out_row_of_a_hundred_must_not_be_learned(leaked: int, refused: bool) -> None:
    assert bool(Leakage("text", 1000, leaked, leaked / 1000).fault) is refused
