"""`/v1/files` and `/v1/fine_tuning/jobs` with OpenAI's own client, in front of the real dataset and training."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest
import pytest_asyncio
from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, deploy_service_pb2_grpc
from argosy.identity.v1 import quota_service_pb2_grpc, token_service_pb2_grpc
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from deploy.local import nats, postgres
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay
from libs.common.testing.service import running_service
from services.dataset.app import DEFINITION as DATASET
from services.gateway.app import DEFINITION as GATEWAY
from services.gateway.domain import openai_names as names
from tests.integration.app.stubs import Add, Identity, served
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, Caller
from tests.quota import RoomForAll

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}


class Deploy(deploy_service_pb2_grpc.DeployServiceServicer):
    """Has no deployment."""

    async def GetDeployment(self, request: Any, context: Any) -> deploy_pb2.Deployment:
        await context.abort(grpc.StatusCode.NOT_FOUND, "")
        raise AssertionError

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncIterator[deploy_service_pb2.EndpointSet]:
        yield deploy_service_pb2.EndpointSet()
        await asyncio.Event().wait()


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two questions each, the second about the same country."""
    choose = random.Random(seed)
    found = []
    for number in range(count):
        country, capital = choose.choice(sorted(CAPITALS.items()))
        messages = [
            {"role": "system", "content": f"Be short, {number + 1000 * seed}."},
            {"role": "user", "content": f"Capital of {country}?"},
            {"role": "assistant", "content": capital},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": f"Yes, {capital}.", "weight": number % 2},
        ]
        found.append({"messages": messages})
    return found


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: postgres.Server,
    nats_server: nats.Server,
    ray: RunningRay,
) -> AsyncIterator[tuple[str, Caller]]:
    """Address of a gateway in front of real services, and a caller of training."""
    folder = tmp_path_factory.mktemp("door")
    mesh = Mesh(folder)
    mesh.peers["app"] = "127.0.0.1:1"  # nobody asks for an application
    urls = [
        await postgres_server.create_service_database(f"door_{secrets.token_hex(4)}", secrets.token_urlsafe())
        for _ in range(2)
    ]
    settings = {"nats_url": nats_server.url(), "role": "all", "ray_address": ray.address}
    blobs = f"file://{folder}/dataset"

    def add_identity(server: grpc.aio.Server) -> None:
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(Identity(mesh), server)
        quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(RoomForAll(), server)

    add: dict[str, Add] = {
        "identity": add_identity,
        "deploy": lambda server: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(Deploy(), server),
    }
    dataset = dataclasses.replace(DATASET, jwks=lambda _: mesh.jwks())
    async with (
        served(mesh, add),
        running_service(dataset, mesh, database_url=urls[0], blob_root=blobs, **settings),
        training_service(mesh, folder, urls[1], **settings) as training,
        running_service(GATEWAY, mesh, http_listen="127.0.0.1:0") as gateway,
    ):
        assert gateway.app is not None
        caller = Caller(mesh, service=training)
        yield f"http://127.0.0.1:{gateway.app.http.port}/v1", caller
        await caller.close()


def client_of(url: str, org: str = "acme") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=f"ak_{org}", max_retries=0)


async def upload(client: openai.AsyncOpenAI, rows: list[Any], name: str = "rows.jsonl") -> Any:
    """A file that has been read; the first one waits for the processes of Ray."""
    file = await client.files.create(file=(name, lines(rows)), purpose="fine-tune")
    return await client.files.wait_for_processing(file.id, poll_interval=0.2)


async def base_model(caller: Caller, file_id: str) -> str:
    """A model of twenty thousand parameters with a tokenizer of its own, made from the conversations of a file; made
    once.
    """
    version = f"{PROJECT}/versions/1"
    with contextlib.suppress(grpc.RpcError):
        return (await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=version))).name
    await caller.project()
    phase = training_pb2.Phase(
        method=training_pb2.Phase.METHOD_SFT, steps=4, batch_size=8, learning_rate=0.01, messages_column="messages"
    )
    shape = training_pb2.Architecture(
        vocabulary_size=400, hidden_size=32, intermediate_size=64, layers=1, heads=2, sequence_length=64
    )
    spec = training_pb2.TrainingSpec(phases=[phase], architecture=shape, seed=1)
    learned = f"orgs/acme/datasets/{file_id}/versions/v1"
    training = await caller.training(dataset_version=learned, validation_version="", spec=spec)
    run = await caller.RunTraining(pb.RunTrainingRequest(name=training.name))
    task = await caller.finish(run.task)
    assert task.result["model_version"] == version, task
    return version


async def until(client: openai.AsyncOpenAI, job_id: str, *wanted: str) -> Any:
    async with asyncio.timeout(120):
        while (job := await client.fine_tuning.jobs.retrieve(job_id)).status not in wanted:
            await asyncio.sleep(0.2)
    return job


async def refused(call: Any, kind: type[openai.APIStatusError] = openai.BadRequestError) -> Any:
    """The body of the error that a call ends with."""
    with pytest.raises(kind) as error:
        await call
    return error.value.body


async def test_a_model_is_fine_tuned_by_the_official_client(door: tuple[str, Caller]) -> None:
    url, caller = door
    client = client_of(url)
    rows = conversations(40)
    training, validation = await upload(client, rows), await upload(client, conversations(10, 7), "valid.jsonl")
    assert (training.status, training.purpose, training.filename) == ("processed", "fine-tune", "rows.jsonl")
    assert training.bytes == len(lines(rows))
    content = (await client.files.content(training.id)).content
    assert [json.loads(line) for line in content.splitlines()] == rows

    base = await base_model(caller, training.id)
    asked: dict[str, Any] = {
        "model": "packages",
        "training_file": training.id,
        "validation_file": validation.id,
        "suffix": "capitals",
        "seed": 5,
        "metadata": {"team": "maps"},
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}},
        },
    }
    same = {"Idempotency-Key": "first"}
    job = await client.fine_tuning.jobs.create(**asked, extra_headers=same)
    assert (await client.fine_tuning.jobs.create(**asked, extra_headers=same)).id == job.id
    assert job.status in ("queued", "running")
    assert (await refused(client.files.delete(training.id), openai.ConflictError))["code"] == "file_in_use"

    done = await until(client, job.id, "succeeded", "failed", "cancelled")
    assert done.status == "succeeded", done
    name = f"ft:packages:acme:capitals:{job.id.removeprefix('ftjob-')}"
    assert (done.fine_tuned_model, done.seed, done.error) == (name, 5, None)
    assert done.metadata == {"team": "maps"}
    assert done.hyperparameters.n_epochs == 3
    assert done.trained_tokens
    assert done.finished_at

    version = await caller.GetModelVersion(
        model_service_pb2.GetModelVersionRequest(name=f"orgs/acme/modelProjects/{job.id}/versions/1")
    )
    parents = {parent.name: parent.relation for parent in version.lineage.parents}
    assert parents[f"orgs/acme/datasets/{training.id}/versions/v1"] == "trained_on"
    assert version.base_model_version == base
    run = await caller.GetTrainingRun(pb.GetTrainingRunRequest(name=version.training_run))
    # Measured: 4.9 before, 1.1 after three epochs.
    assert run.results["sft.heldout_loss_after"] < run.results["sft.heldout_loss_before"] - 2

    events = await client.fine_tuning.jobs.list_events(job.id, limit=3)
    assert name in events.data[0].message
    assert events.has_more
    everything = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=3)]
    assert everything[-1].message == f"Created the job {job.id}."
    assert len({event.id for event in everything}) == len(everything) > 6
    at_once = await client.fine_tuning.jobs.list_events(job.id, limit=1000)
    assert [event.id for event in at_once.data] == [event.id for event in everything]
    assert {event.type for event in everything} == {"message", "metrics"}
    (checkpoint,) = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (30, name)
    assert checkpoint.metrics.full_valid_loss == pytest.approx(run.results["sft.heldout_loss_after"])
    (results,) = done.result_files
    table = (await client.files.content(results)).text.splitlines()
    assert table[0].startswith("step,train_loss")
    assert [line.split(",")[0] for line in table[1:]] == ["9", "10", "18", "20", "27", "30"]
    assert (await client.files.retrieve(results)).purpose == "fine-tune-results"

    body = await refused(client.chat.completions.create(model=name, messages=[]), openai.APIStatusError)
    assert body["param"] == "messages"
    asking = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "?"}])
    assert "is not deployed" in (await refused(asking, openai.NotFoundError))["message"]
    # It can be tuned further under its name, deployed or not.
    again = await client.fine_tuning.jobs.create(
        model=name, training_file=training.id, hyperparameters={"n_epochs": 50, "batch_size": 1}
    )
    assert [one.id async for one in client.fine_tuning.jobs.list(limit=1)] == [again.id, job.id]
    wanted = await client.fine_tuning.jobs.list(extra_query={"metadata[team]": "maps"})
    assert [one.id for one in wanted.data] == [job.id]
    await client.fine_tuning.jobs.pause(again.id)
    assert (await until(client, again.id, "paused", "succeeded")).status == "paused"
    assert (await refused(client.fine_tuning.jobs.pause(again.id)))["code"] == "job_cannot_be_paused"
    assert (await client.fine_tuning.jobs.resume(again.id)).status in ("queued", "running")
    await client.fine_tuning.jobs.cancel(again.id)
    assert (await until(client, again.id, "cancelled", "succeeded")).status == "cancelled"
    assert (await refused(client.fine_tuning.jobs.cancel(job.id)))["code"] == "job_not_cancellable"
    assert (await refused(client.fine_tuning.jobs.pause(job.id)))["code"] == "job_cannot_be_paused"

    assert [file.id async for file in client.files.list(limit=1, order="asc")] == [training.id, validation.id]
    assert [file.id async for file in client.files.list(limit=1)] == [validation.id, training.id]
    assert (await client.files.delete(validation.id)).deleted
    # Who deletes while going through a list goes on behind what is gone.
    assert [file.id for file in (await client.files.list(after=validation.id)).data] == [training.id]
    absent = names.new_id("file", "", ""), names.new_id("ftjob", "", "")
    for listing in (
        client.files.list(after=absent[0]),
        client.fine_tuning.jobs.list(after=absent[1]),
        client.fine_tuning.jobs.list(after="x"),
        client.fine_tuning.jobs.list_events(job.id, after=f"ftevent-{absent[1]}-1"),
        client.fine_tuning.jobs.checkpoints.list(job.id, after="x"),
    ):
        assert (await refused(listing))["param"] == "after"
    assert not (await client.fine_tuning.jobs.checkpoints.list(job.id, after=checkpoint.id)).data
    last = everything[-1].id
    assert not (await client.fine_tuning.jobs.list_events(job.id, after=last)).data
    assert [file.id for file in (await client.files.list()).data] == [training.id]
    await refused(client.files.retrieve(validation.id), openai.NotFoundError)


def preferences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The right capital, and an answer that knows none, as OpenAI's preference file has them."""
    choose = random.Random(seed)
    found = []
    for number in range(count):
        country, capital = choose.choice(sorted(CAPITALS.items()))
        asked = [
            {"role": "system", "content": f"Be short, {number + 1000 * seed}."},
            {"role": "user", "content": f"Capital of {country}?"},
        ]
        answers = ([{"role": "assistant", "content": text}] for text in (capital, "No idea."))
        names = ("preferred_output", "non_preferred_output")
        found.append({"input": {"messages": asked}, **dict(zip(names, answers, strict=True))})
    return found


async def test_preferences_are_learned_by_the_official_client(door: tuple[str, Caller]) -> None:
    url, caller = door
    client = client_of(url)
    base = await base_model(caller, (await upload(client, conversations(40))).id)
    training, validation = (
        await upload(client, preferences(40)),
        await upload(client, preferences(12, 7), "valid.jsonl"),
    )
    hyperparameters: dict[str, Any] = {
        "n_epochs": 4,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
        "beta": 0.5,
    }
    job = await client.fine_tuning.jobs.create(
        model=base,
        training_file=training.id,
        validation_file=validation.id,
        seed=5,
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
    )
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.5
    done = await until(client, job.id, "succeeded", "failed", "cancelled")
    assert done.status == "succeeded", done
    run = await caller.GetTrainingRun(pb.GetTrainingRunRequest(name=f"orgs/acme/trainings/{job.id}/runs/1"))
    # Measured: accuracy 0.5 before, by definition, and above 0.8 after.
    assert run.results["dpo.heldout_accuracy_before"] == 0.5
    assert run.results["dpo.heldout_accuracy_after"] > 0.8
    (checkpoint,) = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert checkpoint.metrics.full_valid_loss == pytest.approx(run.results["dpo.heldout_loss_after"])


async def test_what_is_wrong_is_named(door: tuple[str, Caller]) -> None:
    url, caller = door
    client, stranger = client_of(url), client_of(url, "globex")
    good = await upload(client, conversations(4))
    before = [job.id async for job in client.fine_tuning.jobs.list()]
    bad = await upload(client, [*conversations(2), {"messages": [{"role": "bot", "content": "x"}]}, ["no object"]])
    assert bad.status == "error"
    assert bad.status_details.startswith("Line 3: messages[0].role: not one of system, developer")
    assert bad.status_details.endswith("Lines at fault: 2.")
    nothing = await upload(client, ["no object"])
    assert nothing.status == "error"
    assert "line 1" in nothing.status_details
    jobs, files = client.fine_tuning.jobs, client.files
    body = await refused(jobs.create(model="nothing", training_file=good.id), openai.NotFoundError)
    assert (body["param"], body["code"]) == ("model", "not_found")
    base = await base_model(caller, good.id)

    body = await refused(jobs.create(model=base, training_file=bad.id))
    assert (body["param"], body["code"]) == ("training_file", "invalid_training_file")
    assert "Line 3" in body["message"]
    body = await refused(jobs.create(model=base, training_file=good.id, hyperparameters={"n_epochs": 0}))
    assert body["param"] == "hyperparameters.n_epochs"
    body = await refused(jobs.create(model=base, training_file=good.id, method={"type": "reinforcement"}))
    assert body["code"] == "unsupported_method"
    body = await refused(jobs.create(model=base, training_file=good.id, method={"type": "dpo"}))
    assert "does not hold preferences" in body["message"]
    silent = await upload(client, [{"messages": [{"role": "user", "content": "?"}]}])
    body = await refused(jobs.create(model=base, training_file=silent.id))
    assert "row 1: messages: no assistant turn" in body["message"]
    # What was refused left nothing.
    assert [job.id async for job in jobs.list()] == before

    preference = {
        "input": {"messages": [{"role": "user", "content": "Capital?"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "Paris"}],
        "non_preferred_output": [{"role": "assistant", "content": "Rome"}],
    }
    pairs = await upload(client, [preference] * 2)
    assert pairs.status == "processed"
    assert [json.loads(line) for line in (await files.content(pairs.id)).content.splitlines()] == [preference] * 2
    body = await refused(jobs.create(model=base, training_file=pairs.id))
    assert "does not hold conversations" in body["message"]

    for call in (
        stranger.files.retrieve(good.id),
        stranger.files.content(good.id),
        stranger.files.delete(good.id),
        stranger.fine_tuning.jobs.create(model=base, training_file=good.id),
        jobs.retrieve("ftjob-0123456789abcdef01234567"),
        files.retrieve("file-nothing"),
    ):
        await refused(call, openai.NotFoundError)
    assert (await stranger.files.list()).data == []
    for wrong in ({"purpose": "assistants"}, {"file": b""}):
        with pytest.raises(openai.BadRequestError) as error:
            await files.create(**{"file": ("a.jsonl", b"{}"), "purpose": "fine-tune", **wrong})  # type: ignore[arg-type]
        assert error.value.param in ("purpose", "file")
