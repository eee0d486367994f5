"""MLflow's REST API, word for word as its client 3.17 says it, before a real gateway and a real training service.

The real client is asked in `tests/bench/mlflow_door.py`, in an environment of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.training.v1 import outside_run_service_pb2 as pb
from argosy.training.v1 import run_service_pb2, training_pb2

from deploy.local import postgres
from libs.common.clock import SYSTEM_CLOCK
from libs.common.ids import uuid7
from libs.common.tasks import store as task_store
from services.training.domain.trainings import Training, TrainingRun
from services.training.store.repositories import TrainingRuns, Trainings
from tests.integration.training.mlflow_door import mlflow_door
from tests.integration.training.peers import Caller
from tests.unit.training.samples import tiny_spec

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

API = "/api/2.0/mlflow/"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
NOW = 1_790_000_000_000


class Client:
    """What `mlflow` sends, with the key of an organization as MLFLOW_TRACKING_TOKEN."""

    def __init__(self, url: str, org: str = "acme") -> None:
        self.http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer ak_{org}"}, timeout=30, trust_env=False
        )

    async def post(self, path: str, /, **body: Any) -> Any:
        return self.read(await self.http.post(API + path, json=body))

    async def send(self, method: str, path: str, /, **body: Any) -> Any:
        return self.read(await self.http.request(method, API + path, json=body))

    async def get(self, path: str, /, **query: Any) -> Any:
        return self.read(await self.http.get(API + path, params=query))

    def read(self, answer: httpx.Response) -> Any:
        if answer.status_code != 200:
            raise Refused(answer.status_code, **answer.json())
        return answer.json()

    async def run(self, experiment_id: str, **fields: Any) -> str:
        made = await self.post("runs/create", experiment_id=experiment_id, start_time=NOW, **fields)
        return made["run"]["info"]["run_id"]


class Refused(Exception):
    """An error in MLflow's form."""

    def __init__(self, status: int, error_code: str, message: str) -> None:
        super().__init__(f"{status} {error_code}: {message}")
        self.status, self.code, self.message = status, error_code, message


async def refused(call: Any) -> Refused:
    with pytest.raises(Refused) as error:
        await call
    return error.value


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres.Server
) -> AsyncIterator[tuple[Client, Caller]]:
    """A client of acme, and a caller of training."""
    folder = tmp_path_factory.mktemp("mlflow")
    async with mlflow_door(folder, postgres_server, artifact_max_bytes=20_000_000) as (url, caller):
        client = Client(url)
        yield client, caller
        await client.http.aclose()


def metric(key: str, value: Any, step: int = 0, timestamp: int = NOW) -> dict[str, Any]:
    return {"key": key, "value": value, "timestamp": timestamp, "step": step}


def values(run: dict[str, Any], kind: str) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in run["data"][kind]}


async def ours(caller: Caller) -> TrainingRun:
    """A run of our own that has succeeded, as the platform leaves it."""
    now = SYSTEM_CLOCK.now()
    fields: dict[str, Any] = {"create_time": now, "update_time": now, "spec": tiny_spec(), "creator": "users/u1"}
    training = Training(uid=uuid7(), name="orgs/acme/trainings/packages", **fields)
    run = TrainingRun(
        uid=uuid7(), name=f"{training.name}/runs/1", state="SUCCEEDED", results={"sft.last_loss": 0.5}, **fields
    )
    assert caller.service is not None
    app: Any = caller.service.app
    async with app.database.system() as uow:
        await Trainings(uow).insert(training)
        await TrainingRuns(uow).insert(run)
    return run


async def test_experiments_are_trainings_of_outside_runs(door: tuple[Client, Caller]) -> None:
    client, _ = door
    made = (await client.post("experiments/create", name="Vision: a first try", tags=[{"key": "a", "value": "b"}]))[
        "experiment_id"
    ]
    assert made.startswith("exp-vision-a-first-try-")
    shown = (await client.get("experiments/get-by-name", experiment_name="Vision: a first try"))["experiment"]
    assert shown == (await client.get("experiments/get", experiment_id=made))["experiment"]
    assert (shown["lifecycle_stage"], shown["artifact_location"]) == ("active", f"mlflow-artifacts:/{made}")
    assert shown["tags"] == [{"key": "a", "value": "b"}]
    error = await refused(client.post("experiments/create", name="Vision: a first try"))
    assert (error.status, error.code) == (400, "RESOURCE_ALREADY_EXISTS")
    await client.post("experiments/set-experiment-tag", experiment_id=made, key="c", value="d")
    await client.post("experiments/delete-experiment-tag", experiment_id=made, key="a")
    await client.post("experiments/update", experiment_id=made, new_name="Vision")
    found = await client.post("experiments/search", filter="name ILIKE 'vis%' AND tags.c = 'd'", max_results=1)
    assert [one["name"] for one in found["experiments"]] == ["Vision"]
    kept, before = await client.run(made), await client.run(made)
    await client.post("runs/delete", run_id=before)
    await client.post("experiments/delete", experiment_id=made)
    assert (await client.get("experiments/get", experiment_id=made))["experiment"]["lifecycle_stage"] == "deleted"
    assert (await client.post("experiments/search", filter="name = 'Vision'"))["experiments"] == []
    # Its runs go with it, and come back with it; one that went before stays away.
    assert (await client.post("runs/search", experiment_ids=[made]))["runs"] == []
    assert (await refused(client.post("runs/log-metric", run_id=kept, **metric("a", 1.0)))).status == 404
    await client.post("experiments/restore", experiment_id=made)
    found = (await client.post("runs/search", experiment_ids=[made]))["runs"]
    assert [one["info"]["run_id"] for one in found] == [kept]
    # Where nobody chose one.
    assert (await client.get("experiments/get", experiment_id="0"))["experiment"]["name"] == "Default"
    run = await client.run("0")
    assert run.startswith("mlflow-default_")
    assert (await refused(client.get("experiments/get", experiment_id="nothing"))).code == "RESOURCE_DOES_NOT_EXIST"
    assert (await refused(client.get("experiments/get-by-name", experiment_name="x"))).status == 404


async def test_a_run_from_its_beginning_to_its_end(door: tuple[Client, Caller]) -> None:
    client, caller = door
    experiment = (await client.post("experiments/create", name="runs"))["experiment_id"]
    tags = [{"key": "mlflow.user", "value": "me"}, {"key": "mlflow.runName", "value": "first"}]
    made = (await client.post("runs/create", experiment_id=experiment, start_time=NOW, run_name="first", tags=tags))[
        "run"
    ]
    run = made["info"]["run_id"]
    assert (made["info"]["status"], made["info"]["start_time"], made["info"]["user_id"]) == ("RUNNING", NOW, "me")
    batch = {
        "run_id": run,
        "metrics": [metric("loss", 3.0), metric("loss", "NaN", 1), metric("loss", 1.0, 2), metric("acc", 0.5)],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "team", "value": "nlp"}],
    }
    await client.post("runs/log-batch", **batch)
    await client.post("runs/log-metric", run_id=run, **metric("acc", 0.75, 1))
    # A batch that is sent again, because its answer was lost, changes nothing behind it.
    await client.post("runs/set-tag", run_id=run, key="team", value="vision")
    await client.post("runs/log-metric", run_id=run, **metric("loss", 0.5, 2, NOW + 1))
    await client.post("runs/log-batch", **batch)
    await client.post("runs/log-parameter", run_id=run, key="depth", value="3")
    answer = (await client.post("runs/update", run_id=run, status="FINISHED", end_time=NOW + 5))["run_info"]
    assert (answer["status"], answer["end_time"]) == ("FINISHED", NOW + 5)

    found = (await client.get("runs/get", run_id=run))["run"]
    assert values(found, "metrics") == {"acc": 0.75, "loss": 0.5}
    assert values(found, "params") == {"depth": "3", "lr": "0.1"}
    shown = values(found, "tags")
    assert (shown["team"], shown["mlflow.runName"]) == ("vision", "first")
    history = (await client.get("metrics/get-history", run_id=run, metric_key="loss"))["metrics"]
    assert [(one["step"], one["value"]) for one in history] == [(0, 3.0), (1, "NaN"), (2, 0.5)]
    assert history[2]["timestamp"] == NOW + 1
    name = shown["argosy.run"]
    keys = await caller.ListRunMetricKeys(run_service_pb2.ListRunMetricKeysRequest(parent=name))
    assert {key.key: key.point_count for key in keys.metric_keys} == {"acc": 2, "loss": 4}
    curves = await caller.GetRunCurves(
        run_service_pb2.GetRunCurvesRequest(parent="orgs/acme", runs=[name], keys=["loss"])
    )
    assert math.isnan(curves.curves[0].values[1])

    error = await refused(client.post("runs/log-parameter", run_id=run, key="lr", value="0.2"))
    assert (error.status, error.code) == (400, "INVALID_PARAMETER_VALUE")
    assert "parameters.lr: is '0.1' and cannot become '0.2'" in error.message
    await client.post("runs/delete-tag", run_id=run, key="team")
    assert (await refused(client.post("runs/delete-tag", run_id=run, key="team"))).code == "RESOURCE_DOES_NOT_EXIST"
    await client.post("runs/delete", run_id=run)
    assert (await client.get("runs/get", run_id=run))["run"]["info"]["lifecycle_stage"] == "deleted"
    assert (await refused(client.post("runs/log-metric", run_id=run, **metric("acc", 1.0)))).status == 404
    await client.post("runs/restore", run_id=run)
    await client.post("runs/update", run_id=run, status="RUNNING", run_name="again")
    info = (await client.get("runs/get", run_id=run))["run"]["info"]
    assert (info["run_name"], info["status"]) == ("again", "RUNNING")
    assert "end_time" not in info


async def test_limits_are_those_of_mlflow(door: tuple[Client, Caller]) -> None:
    client, _ = door
    run = await client.run("0")
    pair = {"key": "a", "value": "b"}
    for field, entries in (
        ("metrics", [metric("a", 1.0, step) for step in range(1001)]),
        ("params", [{**pair, "key": str(number)} for number in range(101)]),
        ("tags", [pair] * 101),
    ):
        error = await refused(client.post("runs/log-batch", run_id=run, **{field: entries}))
        assert (error.code, error.message[: len(field)]) == ("INVALID_PARAMETER_VALUE", field)
    for body, named in (
        ({"metrics": [metric("a", "one")]}, "metrics[0].value"),
        ({"metrics": [metric("a", 1.0), metric("a", 1.0, -1)]}, "series[0].steps[1]"),
        ({"metrics": [metric("a:b", 1.0)]}, "series[0].key"),
        ({"metrics": [{"value": 1.0}]}, "metrics[0].key"),
        ({"metrics": [metric("a", 1.0, timestamp=1 << 62)]}, "series[0].times[0]"),
        ({"params": [{"key": "k", "value": "x" * 6001}]}, "params[0].value"),
        ({"tags": {"key": "k"}}, "tags"),
    ):
        error = await refused(client.post("runs/log-batch", run_id=run, **body))
        assert (error.status, error.code) == (400, "INVALID_PARAMETER_VALUE"), body
        assert named in error.message
    assert (await client.get("runs/get", run_id=run))["run"]["data"]["metrics"] == []
    answer = await client.http.post(f"{API}runs/log-batch", content=b"{")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "MALFORMED_REQUEST")


async def test_runs_of_ours_are_seen_and_not_written(door: tuple[Client, Caller]) -> None:
    client, caller = door
    started = await ours(caller)
    run = await client.run("0", run_name="elsewhere")
    await client.post("runs/log-metric", run_id=run, **metric("sft.last_loss", 0.7))
    await client.post("runs/log-parameter", run_id=run, key="lr", value="0.3")
    both = ["packages", "0"]

    async def search(filter_string: str, **more: Any) -> list[str]:
        found = await client.post("runs/search", experiment_ids=both, filter=filter_string, **more)
        return [one["info"]["run_name"] for one in found["runs"]]

    assert await search("metrics.`sft.last_loss` < 0.6") == ["packages/1"]
    assert await search("metrics.sft.last_loss < 1", order_by=["metrics.sft.last_loss DESC"]) == [
        "elsewhere",
        "packages/1",
    ]
    assert await search("params.spec.seed = '7'") == ["packages/1"]
    assert await search("params.lr = '0.3' and status = 'RUNNING'") == ["elsewhere"]
    assert await search("run_id IN ('packages_1', 'nothing')") == ["packages/1"]
    assert await search("status != 'RUNNING' and attributes.start_time > 5") == ["packages/1"]
    assert await search("tags.mlflow.runName = 'elsewhere'") == ["elsewhere"]
    shown = (await client.get("runs/get", run_id="packages_1"))["run"]
    assert values(shown, "metrics") == {"sft.last_loss": 0.5}
    assert shown["info"]["status"] == "FINISHED"
    assert shown["info"]["user_id"] == started.creator
    assert (await client.get("experiments/get-by-name", experiment_name="packages"))["experiment"]

    for call in (
        client.post("runs/log-metric", run_id="packages_1", **metric("a", 1.0)),
        client.post("runs/set-tag", run_id="packages_1", key="a", value="b"),
        client.post("runs/update", run_id="packages_1", status="FAILED"),
        client.post("runs/delete", run_id="packages_1"),
    ):
        error = await refused(call)
        assert (error.status, error.code) == (400, "INVALID_STATE")
        assert "was started by Argosy and can only be read here" in error.message
    for call in (
        client.post("runs/create", experiment_id="packages"),
        client.post("experiments/delete", experiment_id="packages"),
        client.post("experiments/set-experiment-tag", experiment_id="packages", key="a", value="b"),
    ):
        assert (await refused(call)).code == "NOT_IMPLEMENTED"


async def test_what_cannot_be_read_is_named(door: tuple[Client, Caller]) -> None:
    client, _ = door
    for filter_string, named in (
        ("metrics.a >", "at character 12: expected a number or a text in quotes"),
        ("metrics.a > 'x'", "a is a number"),
        ("params.a = 5", "a is a text; put it in quotes"),
        ("colour = 'red'", "there is no attribute 'colour'"),
        ("datasets.name = 'x'", "'datasets' is not one of metrics, params, tags, attributes"),
        ("status = 'ASLEEP'", "'ASLEEP' is no status"),
        ("tags.a = 'b' OR tags.a = 'c'", "expected AND"),
        ("tags.a IS NULL", "IS NULL"),
        ("run_id IN 'a'", "expected a list in brackets"),
    ):
        error = await refused(client.post("runs/search", experiment_ids=["0"], filter=filter_string))
        assert (error.status, error.code) == (400, "INVALID_PARAMETER_VALUE")
        assert named in error.message
    error = await refused(client.post("runs/search", experiment_ids=["0"], order_by=["what is this"]))
    assert "order_by" in error.message
    error = await refused(client.post("logged-models", experiment_id="0"))
    assert (error.status, error.code) == (400, "NOT_IMPLEMENTED")
    assert "safetensors" in error.message
    error = await refused(client.get("workspaces"))
    assert "GET /api/2.0/mlflow/workspaces is not supported" in error.message


async def test_other_organizations_have_other_experiments(door: tuple[Client, Caller]) -> None:
    client, _ = door
    run = await client.run("0")
    stranger = Client(str(client.http.base_url), "globex")
    for call in (
        stranger.get("runs/get", run_id=run),
        stranger.post("runs/log-metric", run_id=run, **metric("a", 1.0)),
        stranger.get("experiments/get-by-name", experiment_name="runs"),
    ):
        assert (await refused(call)).code == "RESOURCE_DOES_NOT_EXIST"
    assert (await stranger.post("runs/search", experiment_ids=["0"]))["runs"] == []
    await stranger.http.aclose()
    nobody = httpx.AsyncClient(base_url=client.http.base_url, trust_env=False)
    answer = await nobody.get(f"{API}runs/get", params={"run_id": run})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHENTICATED")
    await nobody.aclose()


async def test_files_go_through_the_proxy(door: tuple[Client, Caller]) -> None:
    client, _ = door
    run = await client.run("0")
    root = f"{PROXY}/0/{run}/artifacts"
    large = bytes(range(256)) * 40_000  # two parts
    for path, content in (
        ("large.bin", large),
        ("conf/x.json", b"{}"),
        ("conf/my%20file.txt", b""),
        ("conf/a/b", b"1"),
    ):
        assert (await client.http.put(f"{root}/{path}", content=content)).status_code == 200
    assert (await client.http.get(f"{root}/large.bin")).content == large
    answer = await client.http.get(f"{root}/conf/my%20file.txt")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-disposition"] == "attachment"
    found = (await client.http.get(PROXY, params={"path": f"0/{run}/artifacts/conf"})).json()["files"]
    assert found == [
        {"path": "a", "is_dir": True},
        {"path": "my file.txt", "is_dir": False, "file_size": 0},
        {"path": "x.json", "is_dir": False, "file_size": 2},
    ]
    listed = await client.get("artifacts/list", run_id=run, path="conf")
    assert [one["path"] for one in listed["files"]] == ["conf/a", "conf/my file.txt", "conf/x.json"]
    assert [one["path"] for one in (await client.get("artifacts/list", run_id=run))["files"]] == ["conf", "large.bin"]
    assert (await client.http.delete(f"{root}/conf")).status_code == 200
    assert (await client.http.get(f"{root}/conf/x.json")).status_code == 404

    for path in ("a/%2e%2e/b", "%2fetc/passwd", "a%5cb", "a%00b", "%ff"):
        answer = await client.http.put(f"{root}/{path}", content=b"x")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), path
    answer = await client.http.put(f"{root}/what?.txt", content=b"x")
    assert "must be written as %3F" in answer.json()["message"]
    answer = await client.http.put(f"{root}/huge", content=b"x" * 20_000_001)
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "20,000,000 bytes" in answer.json()["message"]
    # Another experiment's folder does not hold this run.
    assert (await client.http.put(f"{PROXY}/runs/{run}/artifacts/a", content=b"x")).status_code == 404
    # A run of ours keeps its own files.
    answer = await client.http.put(f"{PROXY}/packages/packages_1/artifacts/a", content=b"x")
    assert answer.json()["error_code"] in ("INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")


async def test_a_folder_is_listed_page_by_page(door: tuple[Client, Caller], monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = door
    monkeypatch.setattr("services.gateway.clients.outside_runs._PAGE", 2)
    run = await client.run("0")
    root = f"{PROXY}/0/{run}/artifacts"
    names = ["a", "b/deep/1", "b/deep/2", "c", "d", "folder/x", "folders/y"]
    for name in names:
        assert (await client.http.put(f"{root}/{name}", content=b"12")).status_code == 200
    pages: list[list[dict[str, Any]]] = []
    token = ""
    while not pages or token:
        page = await client.get("artifacts/list", run_id=run, page_token=token)
        pages.append(page["files"])
        token = page.get("next_page_token", "")
    assert [len(page) for page in pages] == [2, 2, 2]
    assert [(one["path"], one["is_dir"]) for page in pages for one in page] == [
        ("a", False),
        ("b", True),
        ("c", False),
        ("d", False),
        ("folder", True),
        ("folders", True),
    ]
    # Word for word the proxy has no pages: all of a folder, and nothing of one whose name begins like it.
    for path, found in (
        ("", ["a", "b", "c", "d", "folder", "folders"]),
        ("/folder", ["x"]),
        ("/b", ["deep"]),
        ("/a", []),
    ):
        answer = await client.http.get(PROXY, params={"path": f"0/{run}/artifacts{path}"})
        assert [one["path"] for one in answer.json()["files"]] == found


async def test_a_body_that_drips_is_given_up(door: tuple[Client, Caller], monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = door
    monkeypatch.setattr("services.gateway.http.exchange.BODY_SECONDS", 0.5)
    monkeypatch.setattr("services.gateway.http.exchange._DISCARD_SECONDS", 0.2)
    run = await client.run("0")

    async def put(piece: bytes, count: int) -> tuple[bytes, int]:
        """The status line of the answer to a body that comes in pieces, and how many were sent before it."""
        reader, writer = await asyncio.open_connection(client.http.base_url.host, client.http.base_url.port)
        head = f"PUT {PROXY}/0/{run}/artifacts/slow HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ak_acme\r\n"
        writer.write(f"{head}content-length: {len(piece) * count}\r\n\r\n".encode())
        answer, sent = asyncio.ensure_future(reader.readline()), 0
        while sent < count and not answer.done():
            writer.write(piece)
            sent += 1
            await asyncio.sleep(0.05)
        line = await answer
        writer.close()
        return line, sent

    # Faster than the least rate, it may take as long as it likes.
    assert await put(b"x" * 1000, 20) == (b"HTTP/1.1 200 OK\r\n", 20)
    line, sent = await put(b"x", 100)
    assert line.startswith(b"HTTP/1.1 408")
    assert sent < 50


async def test_a_version_is_made_once(door: tuple[Client, Caller], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody carries the imports here; that each ends in one version is tested with the models."""
    client, caller = door
    monkeypatch.setattr("services.gateway.http.mlflow.models._IMPORT_SECONDS", 0.3)
    await client.post("registered-models/create", name="once")
    run = await client.run("0")
    root = f"{PROXY}/0/{run}/artifacts/model"
    await client.http.put(f"{root}/model.safetensors", content=b"weights")
    asked = {"name": "once", "source": f"runs:/{run}/model", "run_id": run}

    async def tasks() -> list[task_pb2.Task]:
        request = task_service_pb2.ListTasksRequest(parent="orgs/acme/training", target="orgs/acme/modelProjects/once")
        return list((await caller.ListTasks(request)).tasks)

    errors = await asyncio.gather(*(refused(client.post("model-versions/create", **asked)) for _ in range(2)))
    assert {error.code for error in errors} == {"INVALID_STATE"}
    (task,) = await tasks()
    assert all(task.name in error.message for error in errors)

    async def end(state: str) -> None:
        assert caller.service is not None
        app: Any = caller.service.app
        async with app.database.system() as uow:
            found = await task_store.get(uow, task.name, for_update=True)
            await task_store.change(uow, found, state=state, error={"reason": "INTERNAL", "message": "no Ray"})

    # One that has failed is tried again, when it is asked for again.
    await end("FAILED")
    await refused(client.post("model-versions/create", **asked))
    (again,) = await tasks()
    assert (again.name, again.state) == (task.name, task_pb2.Task.STATE_QUEUED)
    # Other files, or other words, are another version.
    await client.http.put(f"{root}/model.safetensors", content=b"other weights")
    await refused(client.post("model-versions/create", **asked))
    await refused(client.post("model-versions/create", **asked, description="The second."))
    assert len(await tasks()) == 3


async def test_models_and_their_aliases(door: tuple[Client, Caller]) -> None:
    client, _ = door
    await client.post("registered-models/create", name="names", description="What names mean")
    assert (await refused(client.post("registered-models/create", name="names"))).code == "RESOURCE_ALREADY_EXISTS"
    assert (await refused(client.post("registered-models/create", name="No Id"))).code == "INVALID_PARAMETER_VALUE"
    found = await client.get("registered-models/search", filter="name LIKE 'na%'")
    assert [one["name"] for one in found["registered_models"]] == ["names"]
    shown = (await client.get("registered-models/get", name="names"))["registered_model"]
    assert (shown["description"], shown["latest_versions"], shown["aliases"]) == ("What names mean", [], [])
    assert (await client.get("model-versions/search", filter="name='names'"))["model_versions"] == []
    await client.send("PATCH", "registered-models/update", name="names", description="Names")
    await client.post("registered-models/set-tag", name="names", key="team", value="nlp")
    shown = (await client.get("registered-models/get", name="names"))["registered_model"]
    assert (shown["description"], shown["tags"]) == ("Names", [{"key": "team", "value": "nlp"}])
    await client.send("DELETE", "registered-models/delete-tag", name="names", key="team")
    assert (await client.get("registered-models/get", name="names"))["registered_model"]["tags"] == []
    for method, path in (("PATCH", "update"), ("DELETE", "delete"), ("POST", "set-tag"), ("DELETE", "delete-tag")):
        named = {"name": "names", "version": "1", "key": "k", "value": "v", "description": "x"}
        assert (await refused(client.send(method, f"model-versions/{path}", **named))).status == 404
    await client.post("registered-models/create", name="gone")
    await client.send("DELETE", "registered-models/delete", name="gone")
    assert (await refused(client.get("registered-models/get", name="gone"))).code == "RESOURCE_DOES_NOT_EXIST"
    assert (await refused(client.get("registered-models/get", name="none"))).code == "RESOURCE_DOES_NOT_EXIST"
    assert (await refused(client.get("model-versions/get", name="names", version="1"))).status == 404
    error = await refused(client.get("registered-models/alias", name="names", alias="champion"))
    assert error.message == "No such alias: 'champion'."
    run = await client.run("0")
    await client.http.put(f"{PROXY}/0/{run}/artifacts/model/model.pkl", content=b"\x80\x04N.")
    error = await refused(client.post("model-versions/create", name="names", source=f"runs:/{run}/model", run_id=run))
    assert (error.status, error.code) == (400, "NOT_IMPLEMENTED")
    assert error.message.startswith("model/model.pkl has no weights as safetensors")
    assert "save_pretrained" in error.message


async def test_names_of_runs_are_found_by_those_who_may_read(door: tuple[Client, Caller]) -> None:
    client, caller = door
    run = await client.run("0", run_name="for viewers")
    name = f"orgs/acme/trainings/{run.replace('_', '/runs/')}"
    viewer = caller.other(role=2)
    record = await viewer.GetRunRecord(pb.GetRunRecordRequest(name=name))
    assert record.run.outside
    assert record.run.secrecy == (await viewer.GetRunRecord(pb.GetRunRecordRequest(name=name))).run.secrecy
    assert record.run.state == training_pb2.TrainingRun.STATE_RUNNING
    await viewer.close()
