"""The life-cycle of model versions: what a project may configure, what events do, and what people are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.training.domain.life_cycle import DEFAULT, Event, LifeCycle, Role, Stage, State, Way
from services.training.domain.models import Gate, ModelVersion, signed_text
from services.training.domain.moving import move_by_hand, require_fitting
from tests.unit.factories import THEN, resource_fields

NAME = "orgs/acme/modelProjects/packages/versions/1"
DIGEST = "ab" * 32
STAGES = (
    Stage("new", State.REGISTERED),
    Stage("review", State.REGISTERED),
    Stage("good", State.APPROVED),
    Stage("gone", State.ARCHIVED),
)
REVIEWED = LifeCycle(
    "new",
    STAGES,
    (
        Way("new", "review", Event.EVALUATED),
        Way("review", "good", None, ("release",), Role.APPROVER, reason_required=True, second_person=True),
        Way("good", "gone"),
    ),
)


def version(cycle: LifeCycle = DEFAULT) -> ModelVersion:
    made = ModelVersion(**resource_fields(NAME), manifest_digest=DIGEST)
    made.creator = "users/alice"
    made.begin(cycle, "users/alice", THEN, "made")
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


def test_the_default_is_well_formed_and_survives_its_row() -> None:
    DEFAULT.check()
    REVIEWED.check()
    assert LifeCycle.from_json(REVIEWED.to_json()) == REVIEWED
    assert [stage.name for stage in DEFAULT.stages] == [
        "draft",
        "training",
        "trained",
        "evaluated",
        "approved",
        "rejected",
        "live",
        "retired",
    ]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"start": "nowhere"}, "life_cycle.start"),
        ({"start": "good"}, "life_cycle.start"),
        ({"stages": (*STAGES, Stage("new", State.REGISTERED))}, "stages[4].name"),
        ({"stages": (*STAGES, Stage("New!", State.REGISTERED))}, "stages[4].name"),
        ({"stages": (*STAGES, Stage("island", State.REGISTERED))}, "stages[4].name"),
        ({"ways": (*REVIEWED.ways, Way("review", "nowhere"))}, "transitions[3].to_stage"),
        ({"ways": (*REVIEWED.ways, Way("nowhere", "review"))}, "transitions[3].from_stage"),
        ({"ways": (*REVIEWED.ways, Way("new", "new"))}, "transitions[3].to_stage"),
        ({"ways": (*REVIEWED.ways, Way("good", "gone"))}, "transitions[3]"),
        ({"ways": (*REVIEWED.ways, Way("new", "gone", Event.EVALUATED))}, "transitions[3].event"),
        ({"ways": (*REVIEWED.ways, Way("new", "gone", Event.IMPORTED, role=Role.ADMIN))}, "transitions[3].event"),
        ({"ways": (*REVIEWED.ways, Way("new", "gone", gates=("No Gate",)))}, "transitions[3].gates"),
        ({"stages": (), "ways": ()}, "life_cycle.start"),
    ],
)
def test_a_life_cycle_that_makes_no_sense_is_refused_by_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(DomainError) as caught:
        replace(REVIEWED, **change).check()
    assert caught.value.reason == "INVALID_FIELD"
    assert caught.value.metadata["field"].endswith(field)


def test_events_go_the_ways_of_the_default() -> None:
    made = version()
    for event in (Event.RUN_STARTED, Event.RUN_SUCCEEDED):
        made.happen(event, DEFAULT, "services/training", THEN, "")
    made.decide(gate(), DEFAULT, "services/eval", THEN)
    for event in (Event.WENT_LIVE, Event.WENT_LIVE, Event.STOPPED):
        made.happen(event, DEFAULT, "services/deploy", THEN, "")
    way = [move.to_stage for move in made.new_transitions]
    assert way == ["draft", "training", "trained", "evaluated", "approved", "live", "approved"]
    assert made.state == State.APPROVED


def test_a_gate_of_the_way_keeps_an_event_from_moving() -> None:
    cycle = replace(REVIEWED, ways=(Way("new", "review", Event.EVALUATED, gates=("safety",)), *REVIEWED.ways[1:]))
    made = version(cycle)
    made.decide(gate(), cycle, "services/eval", THEN)
    assert made.stage == "new"
    made.decide(gate(gate="safety"), cycle, "services/eval", THEN)
    assert made.stage == "review"


def asked(made: ModelVersion, target: str, **fields: Any) -> str:
    """The reason of the refusal; empty when it moved."""
    usual: dict[str, Any] = {"actor": "users/bob", "role": Role.APPROVER, "reason": "read the report", "live": False}
    given = {**usual, **fields}
    try:
        move_by_hand(made, REVIEWED, target, given["actor"], given["role"], THEN, given["reason"], given["live"])
    except DomainError as error:
        return error.reason
    return ""


def in_review(*gates: Gate) -> ModelVersion:
    made = version(REVIEWED)
    made.gates = list(gates)
    made.move(REVIEWED, "review", "services/eval", THEN, "")
    return made


def test_people_are_asked_for_what_the_way_asks() -> None:
    assert asked(in_review(gate()), "good") == ""
    assert asked(in_review(gate()), "good", role=Role.EDITOR) == "ROLE_MISSING"
    assert asked(in_review(gate()), "good", actor="users/alice") == "SELF_APPROVAL"
    assert asked(in_review(gate()), "good", reason=" ") == "INVALID_FIELD"
    assert asked(in_review(gate(open=False)), "good") == "GATE_SHUT"
    assert asked(in_review(), "good") == "GATE_SHUT"
    assert asked(in_review(gate(model_digest="cd" * 32)), "good") == "GATE_SHUT"
    assert asked(in_review(gate()), "gone") == "STATE_CONFLICT"
    assert asked(in_review(gate()), "nowhere") == "INVALID_FIELD"
    # By an event only.
    assert asked(version(REVIEWED), "review") == "STATE_CONFLICT"


def test_a_live_version_is_not_archived_by_hand() -> None:
    made = in_review(gate())
    assert asked(made, "good") == ""
    assert asked(made, "gone", live=True) == "IN_USE"
    assert asked(made, "gone") == ""
    assert made.state == State.ARCHIVED


def test_a_new_life_cycle_keeps_the_stages_in_which_versions_stand() -> None:
    require_fitting(DEFAULT, REVIEWED, {})
    with pytest.raises(DomainError, match="2 versions stand in the stage review") as caught:
        require_fitting(DEFAULT, REVIEWED, {"review": 2})
    assert caught.value.reason == "IN_USE"
    stages = tuple(replace(stage, state=State.APPROVED) if stage.name == "review" else stage for stage in STAGES)
    with pytest.raises(DomainError, match="what it means"):
        require_fitting(replace(REVIEWED, stages=stages), REVIEWED, {"review": 1})


def test_what_is_signed_is_one_version_and_its_digest() -> None:
    assert signed_text(NAME, DIGEST) != signed_text(NAME.replace("/1", "/2"), DIGEST)
    assert signed_text(NAME, DIGEST) == f"argosy.model-version/1\n{NAME}\n{DIGEST}\n".encode()
