"""The life-cycle of model versions over the wire: stages, history, what was live when, aliases, the view."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from argosy.common.v1 import event_pb2, options_pb2, task_pb2
from argosy.deploy.v1 import deploy_events_pb2
from argosy.training.v1 import model_registry_service_pb2 as pb
from argosy.training.v1 import model_service_pb2, training_pb2, training_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from libs.common.clock import SYSTEM_CLOCK
from libs.common.db.mapping import timestamp
from services.training.events.subscribers import LiveVersions
from services.training.store import tables
from tests.integration.training.peers import PROJECT, Caller, refusal, training_of
from tests.integration.training.versions import TRAINING, app, apply, finished_run, record, states, two_versions

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
CHAT = "orgs/acme/deployments/chat"
CHAMPION = f"{PROJECT}/aliases/champion"
# Of a base model.
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


async def deployed(caller: Caller, version: str, hour: int, *, live: bool = True, deployment: str = CHAT) -> None:
    """What deploy tells, so many hours after noon."""
    change = deploy_events_pb2.DeploymentChanged(deployment=deployment, model_version=version)
    event = event_pb2.Event(org="acme", occur_time=timestamp(NOON + timedelta(hours=hour)))
    event.payload.Pack(change)
    listener = LiveVersions(SYSTEM_CLOCK)
    async with app(caller).database.system() as uow:
        await (listener.deployment_live if live else listener.deployment_stopped)(event, uow)


async def stage(caller: Caller, version: str) -> str:
    return (await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=version))).stage


async def stages(caller: Caller, version: str) -> list[str]:
    request = model_service_pb2.ListModelVersionTransitionsRequest(parent=version, page_size=1000)
    return [move.to_stage for move in (await caller.ListModelVersionTransitions(request)).transitions]


def move(version: str, stage: str, reason: str = "", **fields: Any) -> pb.TransitionModelVersionRequest:
    return pb.TransitionModelVersionRequest(name=version, stage=stage, reason=reason, **fields)


async def then(caller: Caller, hour: float) -> list[str]:
    """What was live so many hours after noon."""
    at = timestamp(NOON + timedelta(hours=hour))
    answer = await caller.ListModelDeployments(pb.ListModelDeploymentsRequest(parent=PROJECT, at=at))
    return [each.model_version for each in answer.deployments]


async def test_a_version_goes_its_way_by_what_happens_to_it(served: Caller) -> None:
    version = await finished_run(served)
    assert version.stage == "trained"
    await record(served, version)
    await deployed(served, version.name, 0)
    await deployed(served, version.name, 1, live=False)
    wanted = ["draft", "training", "trained", "evaluated", "approved", "live", "approved"]
    assert await stages(served, version.name) == wanted
    request = move(version.name, "retired", "a better one is here", request_id="retire-1")
    retired = await served.TransitionModelVersion(request)
    assert (retired.stage, retired.state) == ("retired", training_pb2.ModelVersion.STATE_ARCHIVED)
    assert await served.TransitionModelVersion(request) == retired
    assert (await stages(served, version.name))[-1] == "retired"
    assert (await states(served, version.name))[-1] == ("APPROVED", "ARCHIVED", "users/alice")


async def test_transitions_that_are_not_allowed_are_refused(served: Caller) -> None:
    version = (await finished_run(served)).name
    for request, reason in (
        (move(version, "live"), "STATE_CONFLICT"),
        (move(version, "nowhere"), "INVALID_FIELD"),
        (move(version, "retired"), "INVALID_FIELD"),
        (move(version, "retired", "old", etag="other"), "ETAG_MISMATCH"),
        (move(f"{PROJECT}/versions/9", "retired", "old"), "NOT_FOUND"),
    ):
        assert (await refusal(served.TransitionModelVersion(request))).reason == reason
    assert "retired" in (await refusal(served.TransitionModelVersion(move(version, "live")))).message
    viewer = served.other(role=options_pb2.ROLE_VIEWER)
    assert (await refusal(viewer.TransitionModelVersion(move(version, "retired", "old")))).reason == "ROLE_MISSING"
    assert await stage(served, version) == "trained"


def reviewed() -> training_pb2.LifeCycle:
    """One in which a second person has the last word."""
    state, event = training_pb2.ModelVersion, training_pb2.StageTransition
    return training_pb2.LifeCycle(
        start="new",
        stages=[
            training_pb2.Stage(name="new", state=state.STATE_REGISTERED),
            training_pb2.Stage(name="in-review", state=state.STATE_REGISTERED),
            training_pb2.Stage(name="approved", state=state.STATE_APPROVED),
        ],
        transitions=[
            event(from_stage="new", to_stage="in-review", event=event.EVENT_EVALUATED),
            event(
                from_stage="in-review",
                to_stage="approved",
                gates=["release"],
                role=options_pb2.ROLE_APPROVER,
                reason_required=True,
                second_person=True,
            ),
        ],
    )


async def test_a_project_has_a_life_cycle_of_its_own(served: Caller) -> None:
    await served.CreateModelProject(
        model_service_pb2.CreateModelProjectRequest(
            parent="orgs/acme",
            model_project_id="packages",
            model_project=training_pb2.ModelProject(
                life_cycle=reviewed(), metrics_url="https://boards/1", model_uri="hdfs://models/packages"
            ),
        )
    )
    shown = await served.GetModelProject(model_service_pb2.GetModelProjectRequest(name=PROJECT))
    assert [way.to_stage for way in shown.life_cycle.transitions] == ["in-review", "approved"]
    assert (shown.metrics_url, shown.model_uri) == ("https://boards/1", "hdfs://models/packages")
    await served.training()
    run = await served.RunTraining(training_service_pb2.RunTrainingRequest(name=TRAINING))
    version = await apply(served, run, b"weights")
    assert version.stage == "new"
    reviewed_now = await record(served, version)
    # The gate is open, and it is not approved: that is for people here.
    assert (reviewed_now.stage, reviewed_now.state) == ("in-review", training_pb2.ModelVersion.STATE_REGISTERED)
    wanted = move(version.name, "approved", "read the report")
    assert (await refusal(served.TransitionModelVersion(wanted))).reason == "ROLE_MISSING"
    approver = served.other(role=options_pb2.ROLE_APPROVER)
    assert (await refusal(approver.TransitionModelVersion(wanted))).reason == "SELF_APPROVAL"
    second = served.other(subject="users/bob", role=options_pb2.ROLE_APPROVER)
    assert (await second.TransitionModelVersion(wanted)).state == training_pb2.ModelVersion.STATE_APPROVED


async def test_life_cycles_that_make_no_sense_are_refused(served: Caller) -> None:
    version = await finished_run(served)

    async def change(cycle: training_pb2.LifeCycle) -> Any:
        project = training_pb2.ModelProject(name=PROJECT, life_cycle=cycle)
        mask = FieldMask(paths=["life_cycle"])
        request = model_service_pb2.UpdateModelProjectRequest(model_project=project, update_mask=mask)
        return await served.UpdateModelProject(request)

    wrong = reviewed()
    wrong.start = "nowhere"
    refused = await refusal(change(wrong))
    assert (refused.reason, refused.metadata["field"]) == ("INVALID_FIELD", "model_project.life_cycle.start")
    # A version stands in `trained`.
    used = await refusal(change(reviewed()))
    assert (used.reason, used.metadata["name"]) == ("IN_USE", "trained")
    wider = (await served.GetModelProject(model_service_pb2.GetModelProjectRequest(name=PROJECT))).life_cycle
    wider.stages.add(name="on-hold", state=training_pb2.ModelVersion.STATE_REGISTERED)
    wider.transitions.add(from_stage="trained", to_stage="on-hold")
    assert len((await change(wider)).life_cycle.stages) == 9
    assert (await served.TransitionModelVersion(move(version.name, "on-hold"))).stage == "on-hold"
    assert (await refusal(change(training_pb2.LifeCycle()))).reason == "IN_USE"


async def test_the_database_refuses_to_change_history(served: Caller) -> None:
    version = await finished_run(served)
    await served.SetModelAlias(pb.SetModelAliasRequest(name=CHAMPION, model_version=version.name))
    for table in ("model_version_transitions", "model_alias_changes"):
        for change in ("UPDATE {} SET reason = 'forged'", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(DBAPIError, match=f"{table} is append-only"):
                async with app(served).database.system() as uow:
                    await (await uow.connection()).execute(text(change.format(table)))
    assert len(await states(served, version.name)) == 3


async def test_long_histories_have_pages(served: Caller) -> None:
    version = await finished_run(served)
    row = {"org": "acme", "model_version": version.name, "actor": "users/alice", "time": NOON, "reason": ""}
    row |= {"from_state": "APPROVED", "to_state": "APPROVED", "from_stage": "approved", "to_stage": "live"}
    async with app(served).database.system() as uow:
        await (await uow.connection()).execute(insert(tables.model_version_transitions), [row] * 5000)
    request = model_service_pb2.ListModelVersionTransitionsRequest(parent=version.name, page_size=1000)
    sizes: list[int] = []
    while True:
        page = await served.ListModelVersionTransitions(request)
        sizes.append(len(page.transitions))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sizes == [1000] * 5 + [3]
    view = await served.GetModel(pb.GetModelRequest(name=PROJECT))
    assert len(view.transitions) == 20


async def test_what_was_live_then(served: Caller) -> None:
    first, second = await two_versions(served)
    await deployed(served, first, 0)
    await deployed(served, first, 1)
    await deployed(served, second, 2)
    await deployed(served, second, 4, live=False)
    assert [await then(served, hour) for hour in (-1, 0, 1.9, 2, 3.9, 4)] == [
        [],
        [first],
        [first],
        [second],
        [second],
        [],
    ]
    pages = await served.ListModelDeployments(pb.ListModelDeploymentsRequest(parent=PROJECT, page_size=1))
    assert [each.model_version for each in pages.deployments] == [second]
    assert pages.next_page_token
    assert [await stage(served, version) for version in (first, second)] == ["approved", "approved"]
    # The same event again adds nothing; the time that it began stays.
    assert (await stages(served, first)).count("live") == 1


async def test_a_version_is_live_as_long_as_one_deployment_answers_with_it(served: Caller) -> None:
    first, _ = await two_versions(served)
    await deployed(served, first, 0)
    await deployed(served, first, 1, deployment="orgs/acme/deployments/other")
    await deployed(served, first, 2, live=False)
    assert await stage(served, first) == "live"
    project = await served.GetModelProject(model_service_pb2.GetModelProjectRequest(name=PROJECT))
    assert project.live_version == first
    delete = model_service_pb2.DeleteModelVersionRequest(name=first)
    assert (await refusal(served.DeleteModelVersion(delete))).reason == "IN_USE"
    await deployed(served, first, 3, live=False, deployment="orgs/acme/deployments/other")
    assert await stage(served, first) == "approved"
    await served.DeleteModelVersion(delete)


async def test_a_shut_gate_of_a_live_version_and_back(served: Caller) -> None:
    version = await finished_run(served)
    await record(served, version)
    await deployed(served, version.name, 0)
    assert (await record(served, version, open=False, evaluation="orgs/acme/evaluations/e2")).stage == "rejected"
    # It still answers, so that an open gate makes it live and not just approved.
    assert (await record(served, version, evaluation="orgs/acme/evaluations/e3")).stage == "live"


async def test_aliases_move_and_every_move_is_kept(served: Caller) -> None:
    first, second = await two_versions(served)

    async def set_alias(version: str, **fields: Any) -> pb.ModelAlias:
        return await served.SetModelAlias(pb.SetModelAliasRequest(name=CHAMPION, model_version=version, **fields))

    alias = await set_alias(first, request_id="one")
    assert await set_alias(first, request_id="one") == alias
    await set_alias(first)
    assert (await refusal(set_alias(second, etag="stale"))).reason == "ETAG_MISMATCH"
    await set_alias(second, reason="better by 0.02")
    assert (await served.GetModelAlias(pb.GetModelAliasRequest(name=CHAMPION))).model_version == second
    delete = model_service_pb2.DeleteModelVersionRequest(name=second)
    assert (await refusal(served.DeleteModelVersion(delete))).metadata["used_by"] == CHAMPION
    await served.DeleteModelAlias(pb.DeleteModelAliasRequest(name=CHAMPION, reason="over"))
    assert (await refusal(served.GetModelAlias(pb.GetModelAliasRequest(name=CHAMPION)))).reason == "NOT_FOUND"
    await set_alias(first)
    listed = await served.ListModelAliases(pb.ListModelAliasesRequest(parent=PROJECT))
    assert [each.name for each in listed.model_aliases] == [CHAMPION]
    request = pb.ListModelAliasChangesRequest(parent=PROJECT, page_size=3)
    page = await served.ListModelAliasChanges(request)
    request.page_token = page.next_page_token
    rest = await served.ListModelAliasChanges(request)
    changes = [(change.from_version, change.to_version, change.reason) for change in (*page.changes, *rest.changes)]
    assert changes == [("", first, ""), (first, second, "better by 0.02"), (second, "", "over"), ("", first, "")]


async def test_aliases_of_nothing_are_refused(served: Caller) -> None:
    await finished_run(served)
    for version, reason in (
        (f"{PROJECT}/versions/9", "NOT_FOUND"),
        ("orgs/acme/modelProjects/other/versions/1", "INVALID_FIELD"),
        ("orgs/acme/modelProjects/packages", "INVALID_FIELD"),
    ):
        request = pb.SetModelAliasRequest(name=CHAMPION, model_version=version)
        assert (await refusal(served.SetModelAlias(request))).reason == reason
    stranger = served.other(org="globex", subject="users/mallory", role=options_pb2.ROLE_ADMIN)
    assert (await refusal(stranger.GetModel(pb.GetModelRequest(name=PROJECT)))).reason == "NOT_FOUND"
    foreign = pb.SetModelAliasRequest(name=CHAMPION, model_version=f"{PROJECT}/versions/1")
    assert (await refusal(stranger.SetModelAlias(foreign))).reason == "NOT_FOUND"


async def test_a_training_keeps_the_version_that_an_alias_stood_for(served: Caller) -> None:
    await served.project()
    await served.training()
    made_of: list[str] = []
    for weights in (b"first", b"second"):
        run = await served.RunTraining(training_service_pb2.RunTrainingRequest(name=TRAINING))
        made_of.append((await apply(served, run, weights, config=json.dumps(CONFIG).encode())).name)
    first, second = made_of
    await served.SetModelAlias(pb.SetModelAliasRequest(name=CHAMPION, model_version=first))
    tuned = training_of(base_model_version=CHAMPION)
    tuned.spec.ClearField("architecture")
    made = await served.CreateTraining(
        training_service_pb2.CreateTrainingRequest(parent="orgs/acme", training_id="tuned", training=tuned)
    )
    assert made.base_model_version == first
    await served.SetModelAlias(pb.SetModelAliasRequest(name=CHAMPION, model_version=second))
    kept = await served.GetTraining(training_service_pb2.GetTrainingRequest(name=made.name))
    assert kept.base_model_version == first
    wrong = training_of(base_model_version=f"{PROJECT}/aliases/nobody")
    request = training_service_pb2.CreateTrainingRequest(parent="orgs/acme", training_id="wrong", training=wrong)
    assert (await refusal(served.CreateTraining(request))).reason == "NOT_FOUND"


async def test_the_view_shows_training_evaluation_and_deployment_together(served: Caller) -> None:
    await served.project()
    empty = await served.GetModel(pb.GetModelRequest(name=PROJECT))
    assert not empty.HasField("model_version")
    await served.training()
    run = await served.RunTraining(training_service_pb2.RunTrainingRequest(name=TRAINING))
    begun = await served.GetModel(pb.GetModelRequest(name=PROJECT))
    assert (begun.training_run.name, begun.training_task.state) == (run.name, task_pb2.Task.STATE_QUEUED)
    first = await apply(served, run, b"weights")
    await record(served, first)
    await deployed(served, first.name, 0)
    again = await served.RunTraining(training_service_pb2.RunTrainingRequest(name=TRAINING))
    second = await apply(served, again, b"other")
    await served.SetModelAlias(pb.SetModelAliasRequest(name=CHAMPION, model_version=first.name))

    view = await served.GetModel(pb.GetModelRequest(name=PROJECT))
    assert view.model_version.name == first.name
    assert view.training_run.results["sft.last_loss"] == 0.5
    assert [gate.gate for gate in view.model_version.gates] == ["release"]
    assert [(each.deployment, each.HasField("stop_time")) for each in view.deployments] == [(CHAT, False)]
    assert [alias.name for alias in view.aliases] == [CHAMPION]
    assert view.transitions[0].to_stage == "live"
    newest = await served.GetModel(pb.GetModelRequest(name=PROJECT, version="2"))
    assert (newest.model_version.name, list(newest.deployments)) == (second.name, [])
    champion = await served.GetModel(pb.GetModelRequest(name=PROJECT, version="@champion"))
    assert champion.model_version.name == first.name
    for version in ("9", "@nobody"):
        request = pb.GetModelRequest(name=PROJECT, version=version)
        assert (await refusal(served.GetModel(request))).reason == "NOT_FOUND"
