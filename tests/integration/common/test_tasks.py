"""Tasks with a real PostgreSQL and a real Ray: what happens to the work, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from argosy.common.v1 import task_pb2, task_service_pb2
from sqlalchemy import Connection, text

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK
from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.tasks import Tasks, TaskServiceHandlers, tables
from libs.common.tasks.wake import Wake
from libs.common.testing.database import apply
from libs.common.testing.ray import RunningRay, ray_head
from libs.common.testing.task_worker import SERVICE, make_worker, migrate
from libs.compute.client import RayDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running:
        yield running


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await apply(database_url, migrate)
    database = Database(create_engine(database_url), SERVICE)
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def driver(ray: RunningRay) -> AsyncIterator[RayDriver]:
    """One child for the tests that do not kill it."""
    async with RayDriver(ray.address, service=SERVICE, environment=ray.environment) as driver:
        yield driver


class Shared:
    """A driver that a worker may close without harm to the next test."""

    def __init__(self, driver: RayDriver) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def close(self) -> None:
        return None


@asynccontextmanager
async def working(database: Database, driver: RayDriver, blobs: BlobStore | None = None) -> AsyncGenerator[None]:
    worker = make_worker(database, Shared(driver), blobs)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        try:
            yield
        finally:
            await worker.stop()


@asynccontextmanager
async def worker_process(url: str, ray: RunningRay) -> AsyncGenerator[subprocess.Popen[bytes]]:
    """A jobs process of its own, with its own driver child; killed at the end."""
    command = [sys.executable, "-m", "libs.common.testing.task_worker", url, ray.address]
    environment = {**os.environ, **ray.environment}
    process = await asyncio.to_thread(lambda: subprocess.Popen(command, env=environment))
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def create(database: Database, kind: str, **spec: Any) -> str:
    async with database.unit_of_work("acme", "users/alice") as uow:
        task = await Tasks(SERVICE).create(uow, "acme", f"test.{kind}", "orgs/acme/things/one", spec, "users/alice")
    assert task.state == task_pb2.Task.STATE_QUEUED
    return task.name


def call_of(database: Database, org: str) -> Call[Any]:
    call: Call[Any] = Call("/test", None, SYSTEM_CLOCK)
    call.org = org
    call.use_uow(lambda _: database.unit_of_work(org, "users/alice"))
    return call


async def ask(database: Database, handler: str, request: Any, org: str = "acme") -> Any:
    """Calls a handler as the binder does."""
    call = call_of(database, org)
    try:
        answer = await getattr(TaskServiceHandlers(database, SERVICE), handler)(request, call)
        await call.uow.commit()
        return answer
    finally:
        await call.uow.rollback()


async def get(database: Database, name: str) -> task_pb2.Task:
    return await ask(database, "get_task", task_service_pb2.GetTaskRequest(name=name))


async def until(
    database: Database, name: str, wanted: Callable[[task_pb2.Task], bool], seconds: float = 60
) -> task_pb2.Task:
    async with asyncio.timeout(seconds):
        while True:
            # A machine that runs other things too may need longer than the pool waits for a new connection.
            with suppress(DomainError):
                if wanted(task := await get(database, name)):
                    return task
            await asyncio.sleep(0.1)


def ended(task: task_pb2.Task) -> bool:
    return task.state >= task_pb2.Task.STATE_SUCCEEDED


def ended_for_good(task: task_pb2.Task) -> bool:
    return ended(task) and task.state != task_pb2.Task.STATE_PAUSED


def beyond(fraction: float) -> Callable[[task_pb2.Task], bool]:
    return lambda task: task.progress >= fraction or ended(task)


async def effects(database: Database) -> list[tuple[str, str]]:
    async with database.reading() as connection:
        rows = await connection.execute(text("SELECT effect, detail FROM effects ORDER BY ctid"))
        return [(row.effect, row.detail) for row in rows]


async def watch(database: Database, name: str, after: int = 0, most: int | None = None) -> list[task_pb2.TaskEvent]:
    events: list[task_pb2.TaskEvent] = []
    request = task_service_pb2.WatchTaskRequest(name=name, after_sequence=after)
    async for event in TaskServiceHandlers(database, SERVICE).watch_task(request, call_of(database, "acme")):
        events.append(event)
        if most is not None and len(events) >= most:
            break
    return events


def ran(marks: Path) -> list[tuple[int, int]]:
    """(attempt, step) in the order in which the engine ran them."""
    if not marks.exists():
        return []
    return [(int(attempt), int(step)) for attempt, step, _ in map(str.split, marks.read_text().splitlines())]


def engine_pid(marks: Path) -> int:
    return int(marks.read_text().split()[-1])


async def test_success_with_progress_logs_metrics_and_outputs(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    blobs = BlobStore(f"file://{tmp_path}/blobs")
    name = await create(database, "steps", steps=6, seconds=0.1, marks=str(tmp_path / "marks"), blobs=True)
    async with working(database, driver, blobs):
        events = await watch(database, name)
    task = await get(database, name)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED
    assert (task.progress, task.attempt, task.result["steps"], task.cost["rows"]) == (1.0, 1, 6, 6)
    assert task.cost["cpu_seconds"] > 0
    assert task.HasField("start_time")
    assert task.HasField("end_time")
    assert blobs.read_sync(str(task.result["blob"])) == b"counted"
    assert [effect for effect, _ in await effects(database)] == ["started", "applied"]
    assert [event.log.body for event in events if event.HasField("log")] == [f"step {step}" for step in range(6)]
    assert [event.metrics.values["value"] for event in events if event.HasField("metrics")] == [*range(6)]
    assert events[0].task.state == task_pb2.Task.STATE_QUEUED
    assert events[-1].task.state == task_pb2.Task.STATE_SUCCEEDED
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    assert await _alive(driver) == [], "the carrier was dismissed"

    resumed: list[task_pb2.TaskEvent] = []
    for start in (0, 3, sequences[len(sequences) // 2]):
        resumed = await watch(database, name, start)
        told = [event.sequence for event in resumed[1:] if not event.HasField("task")]
        expected = [event.sequence for event in events if not event.HasField("task") and event.sequence > start]
        assert told == expected, "no gap and no repetition after a resume"

    request = task_service_pb2.ListTaskLogsRequest(parent=name, page_size=4)
    first = await ask(database, "list_task_logs", request)
    request.page_token = first.next_page_token
    second = await ask(database, "list_task_logs", request)
    assert [log.body for log in (*first.logs, *second.logs)] == [f"step {step}" for step in range(6)]
    assert not second.next_page_token
    newest = task_service_pb2.ListTaskLogsRequest(parent=name, page_size=3, before_sequence=second.logs[1].sequence)
    first = await ask(database, "list_task_logs", newest)
    newest.page_token = first.next_page_token
    second = await ask(database, "list_task_logs", newest)
    assert [log.body for log in (*first.logs, *second.logs)] == [f"step {step}" for step in (4, 3, 2, 1, 0)]
    assert not second.next_page_token
    metrics = await ask(database, "list_task_metrics", task_service_pb2.ListTaskMetricsRequest(parent=name))
    assert [point.step for point in metrics.metrics] == [*range(6)]


async def _alive(driver: RayDriver) -> list[str]:
    """Carriers that Ray still knows; a killed actor needs a moment to be forgotten."""
    names: list[str] = []
    for _ in range(50):
        if not (names := await driver.list("argosy-")):
            break
        await asyncio.sleep(0.1)
    return names


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("refuse", "CONTENT_INVALID", "line 3 is not JSON"),
        ("crash", "INTERNAL", "the engine failed with ZeroDivisionError; see the log"),
    ],
)
async def test_an_error_of_the_engine_is_final(
    database: Database, driver: RayDriver, kind: str, reason: str, message: str
) -> None:
    name = await create(database, kind)
    async with working(database, driver):
        task = await until(database, name, ended)
    assert task.state == task_pb2.Task.STATE_FAILED
    assert (task.attempt, task.error.reason, task.error.message) == (1, reason, message)
    assert await effects(database) == [("started", "1"), ("failed", reason)]


async def test_what_was_interrupted_is_tried_again(database: Database, driver: RayDriver) -> None:
    name = await create(database, "interrupted")
    async with working(database, driver):
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 3)


@pytest.mark.parametrize(("how", "state"), [("gets_on", "SUCCEEDED"), ("neither", "FAILED"), ("stays", "FAILED")])
async def test_attempts_count_from_the_newest_checkpoint(
    database: Database, driver: RayDriver, how: str, state: str
) -> None:
    """It may be started twice, and needs three attempts. A checkpoint without advance gives no more of them."""
    async with database.unit_of_work("acme", "users/alice") as uow:
        given = ("acme", "test.interrupted", "orgs/acme/things/one", {how: True}, "users/alice")
        name = (await Tasks(SERVICE).create(uow, *given, max_attempts=2)).name
    async with working(database, driver):
        task = await until(database, name, ended)
    assert task_pb2.Task.State.Name(task.state) == f"STATE_{state}"


async def test_a_cooperative_cancel_and_a_retry_that_resumes(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=20, seconds=0.15, marks=str(marks))
    async with working(database, driver):
        await until(database, name, beyond(0.2))
        asked = await ask(database, "cancel_task", task_service_pb2.CancelTaskRequest(name=name))
        assert asked.cancel_requested
        task = await until(database, name, ended, 9)
        assert task.state == task_pb2.Task.STATE_CANCELLED
        done = len(ran(marks))
        assert done < 20
        assert await effects(database) == [("started", "1"), ("failed", "CANCELLED")]
        again = await ask(database, "retry_task", task_service_pb2.RetryTaskRequest(name=name))
        assert again.state == task_pb2.Task.STATE_QUEUED
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 2)
    assert len(ran(marks)) <= 20 + 2, "only what lay behind the last checkpoint ran again"
    late = await ask(database, "cancel_task", task_service_pb2.CancelTaskRequest(name=name))
    assert late.state == task_pb2.Task.STATE_SUCCEEDED


async def test_a_cancel_is_forced_after_ten_seconds(database: Database, driver: RayDriver, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=1000, seconds=0.1, marks=str(marks), deaf=True)
    async with working(database, driver):
        await until(database, name, lambda task: task.progress > 0)
        await ask(database, "cancel_task", task_service_pb2.CancelTaskRequest(name=name))
        started = SYSTEM_CLOCK.monotonic()
        task = await until(database, name, ended, 30)
        assert 9 < SYSTEM_CLOCK.monotonic() - started < 25
    assert task.state == task_pb2.Task.STATE_CANCELLED
    assert await _alive(driver) == []


async def test_a_paused_task_keeps_its_checkpoint_and_goes_on(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", marks=str(marks), steps=6, seconds=0.3)
    async with working(database, driver):
        await until(database, name, beyond(0.3))
        async with database.unit_of_work("acme", "users/alice") as uow:
            assert (await Tasks(SERVICE).pause(uow, name)).pause_requested
        paused = await until(database, name, lambda task: task.state == task_pb2.Task.STATE_PAUSED)
        assert not paused.pause_requested
        assert not paused.HasField("end_time")
        assert await driver.list("argosy-test-") == []
        done = len(marks.read_text().splitlines())
        assert 2 <= done < 6
        with pytest.raises(DomainError, match="only a waiting or running task can be paused"):
            async with database.unit_of_work("acme", "users/alice") as uow:
                await Tasks(SERVICE).pause(uow, name)
        async with database.unit_of_work("acme", "users/alice") as uow:
            await Tasks(SERVICE).resume(uow, name)
        task = await until(database, name, ended_for_good)
    assert (task.state, task.attempt, task.result["first"]) == (task_pb2.Task.STATE_SUCCEEDED, 2, done)
    # No step was done twice.
    assert [int(line.split()[1]) for line in marks.read_text().splitlines()] == list(range(6))
    kinds = [effect for effect, _ in await effects(database)]
    assert kinds == ["started", "paused", "started", "applied"]


async def test_a_waiting_task_is_paused_without_a_start_and_then_cancelled(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    name = await create(database, "steps", marks=str(tmp_path / "marks"), steps=3, seconds=0.0)
    async with database.unit_of_work("acme", "users/alice") as uow:
        await Tasks(SERVICE).pause(uow, name)
    async with working(database, driver):
        await until(database, name, lambda task: task.state == task_pb2.Task.STATE_PAUSED)
        async with database.unit_of_work("acme", "users/alice") as uow:
            await Tasks(SERVICE).cancel(uow, name)
        task = await until(database, name, ended_for_good)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_CANCELLED, 0)
    assert await effects(database) == [("paused", "None"), ("failed", "CANCELLED")]


async def test_numbers_are_told_once_and_can_end_the_task(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    spec = {"marks": str(tmp_path / "marks"), "steps": 50, "seconds": 0.1, "tell": True, "limit": 2}
    name = await create(database, "steps", **spec)
    async with working(database, driver):
        task = await until(database, name, ended_for_good)
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "TRAINING_DIVERGED")
    told = [detail for effect, detail in await effects(database) if effect == "metric"]
    assert told == [f"{step} value {float(step)}" for step in range(4)]
    # What was reported stays, the number that ended it too.
    request = task_service_pb2.ListTaskMetricsRequest(parent=name)
    assert [point.step for point in (await ask(database, "list_task_metrics", request)).metrics][:4] == [0, 1, 2, 3]


async def test_a_waiting_task_is_cancelled_without_a_start(database: Database, driver: RayDriver) -> None:
    name = await create(database, "refuse")
    await ask(database, "cancel_task", task_service_pb2.CancelTaskRequest(name=name))
    async with working(database, driver):
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_CANCELLED, 0)
    assert await effects(database) == [("failed", "CANCELLED")]


async def test_a_killed_worker_process_is_replaced_and_the_engine_runs_once(
    database: Database, database_url: str, ray: RunningRay, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=40, seconds=0.2, marks=str(marks))
    async with worker_process(database_url, ray) as first:
        await until(database, name, beyond(0.05))
        children = [int(pid) for pid in _children(first.pid)]
        assert children, "the driver is a child of the worker"
        first.send_signal(signal.SIGKILL)
    before = len(ran(marks))
    assert before < 30
    async with working(database, driver):
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 1)
    assert ran(marks) == [(1, step) for step in range(40)]
    assert [effect for effect, _ in await effects(database)] == ["started", "applied"]
    logs = [event.log.body for event in await watch(database, name) if event.HasField("log")]
    assert logs == [f"step {step}" for step in range(40)], "nothing that the engine told was lost or told twice"
    assert not [pid for pid in children if _lives(pid)], "a driver ends with its worker"


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_killed_driver_is_replaced(database: Database, driver: RayDriver, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=20, seconds=0.2, marks=str(marks))
    async with working(database, driver):
        await until(database, name, beyond(0.05))
        assert driver.child_pid is not None
        os.kill(driver.child_pid, signal.SIGKILL)
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 1)
    assert ran(marks) == [(1, step) for step in range(20)]


async def test_a_killed_carrier_is_replaced_from_its_checkpoint(
    database: Database, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=15, seconds=0.2, marks=str(marks))
    async with working(database, driver):
        await until(database, name, beyond(0.3))
        os.kill(engine_pid(marks), signal.SIGKILL)
        task = await until(database, name, ended)
    _resumed(task, marks, 15)


def _resumed(task: task_pb2.Task, marks: Path, steps: int) -> None:
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 2)
    first = [step for attempt, step in ran(marks) if attempt == 1]
    second = [step for attempt, step in ran(marks) if attempt == 2]
    assert second[0] > 0, "it resumed"
    assert second[0] <= first[-1] + 1, "and left nothing out"
    assert second[-1] == steps - 1


async def test_a_stale_worker_cannot_write(database: Database, driver: RayDriver, tmp_path: Path) -> None:
    """A worker that is stopped longer than its lease finds, when it goes on, that the task is somebody else's."""
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=15, seconds=0.2, marks=str(marks))
    async with working(database, driver):
        await until(database, name, beyond(0.1))
        async with database.system() as uow:
            await (await uow.connection()).execute(
                text("UPDATE tasks SET lease_token = gen_random_uuid(), lease_expires_at = now() + interval '4 s'")
            )
        taken = await get(database, name)
        await asyncio.sleep(2)
        assert (await get(database, name)).etag == taken.etag, "nobody writes while a stranger holds the lease"
        task = await until(database, name, ended)
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 1)
    assert [effect for effect, _ in await effects(database)] == ["started", "applied"]


async def test_a_worker_that_slept_through_its_lease_changes_nothing(
    database: Database, database_url: str, ray: RunningRay, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=25, seconds=0.2, marks=str(marks))
    async with worker_process(database_url, ray) as zombie:
        await until(database, name, beyond(0.05))
        zombie.send_signal(signal.SIGSTOP)
        async with working(database, driver):
            task = await until(database, name, ended)
            zombie.send_signal(signal.SIGCONT)
            await asyncio.sleep(2)
        assert zombie.poll() is None, "it goes on and looks for other work"
    assert (task.state, task.attempt) == (task_pb2.Task.STATE_SUCCEEDED, 1)
    assert (await get(database, name)).etag == task.etag
    assert ran(marks) == [(1, step) for step in range(25)]
    assert [effect for effect, _ in await effects(database)] == ["started", "applied"]


async def test_a_commit_wakes_the_worker_and_nothing_else_does(database: Database) -> None:
    async def waited() -> float:
        started = SYSTEM_CLOCK.monotonic()
        await wake.wait(20)
        return SYSTEM_CLOCK.monotonic() - started

    wake = Wake(database, SYSTEM_CLOCK)
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(wake.run())
        assert await waited() < 15, "it rings when it begins to listen"
        waiting = group.create_task(waited())
        async with database.unit_of_work("acme", "users/alice") as uow:
            await Tasks(SERVICE).create(uow, "acme", "test.refuse", "orgs/acme/things/one", {}, "users/alice")
            await asyncio.sleep(0.5)
            assert not waiting.done()
        assert await waiting < 15
        listening.cancel()


async def test_migration_and_tables_are_the_same(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found = compare_metadata(context, tables.metadata)
        return [change for change in found if change[0] not in ("remove_table", "remove_index")]

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_tasks_of_another_organization_do_not_exist(database: Database) -> None:
    name = await create(database, "refuse")
    mine = await ask(database, "list_tasks", task_service_pb2.ListTasksRequest(parent="orgs/acme/test"))
    assert [task.name for task in mine.tasks] == [name]
    assert not (
        await ask(database, "list_tasks", task_service_pb2.ListTasksRequest(parent="orgs/acme/test"), "evil")
    ).tasks
    for handler, request in (
        ("get_task", task_service_pb2.GetTaskRequest(name=name)),
        ("cancel_task", task_service_pb2.CancelTaskRequest(name=name)),
        ("list_task_logs", task_service_pb2.ListTaskLogsRequest(parent=name)),
    ):
        with pytest.raises(Exception, match="does not exist"):
            await ask(database, handler, request, "evil")


async def test_lists_page_and_filter(database: Database) -> None:
    names = [await create(database, "refuse") for _ in range(5)]
    request = task_service_pb2.ListTasksRequest(
        parent="orgs/acme/test", page_size=2, state=task_pb2.Task.STATE_QUEUED, target="orgs/acme/things/one"
    )
    seen: list[str] = []
    while True:
        page = await ask(database, "list_tasks", request)
        seen += [task.name for task in page.tasks]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == names[::-1]
    none = task_service_pb2.ListTasksRequest(parent="orgs/acme/test", state=task_pb2.Task.STATE_FAILED)
    assert not (await ask(database, "list_tasks", none)).tasks


async def test_a_killed_ray_head_is_waited_for_and_the_work_resumes(
    database: Database, ray: RunningRay, driver: RayDriver, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    name = await create(database, "steps", steps=25, seconds=0.2, marks=str(marks))
    async with working(database, driver):
        await until(database, name, beyond(0.2))
        await asyncio.to_thread(ray.kill)
        await asyncio.sleep(1)
        assert not ended(await get(database, name))
        await asyncio.to_thread(ray.start)
        task = await until(database, name, ended, 80)
    _resumed(task, marks, 25)
