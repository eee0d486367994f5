"""How every service is put together and taken apart, so that all look the same.

    run(ServiceDefinition(
        name="dataset",
        protos=[dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]],
        settings=DatasetSettings,
        build=build,                       # async (Runtime) -> App
        handlers=[datasets, uploads],      # modules with one async function an RPC
        subscriptions=lambda app: {...},   # event type pattern -> async (event, uow)
        task_kinds=lambda app: [...],      # long work
        migrations=Path(__file__).parent / "migrations",
    ))

Order of the start: telemetry, database and migrations (waiting for it as long as it is away), the service's own
`build`, the bus with relay and subscribers, the task worker, the port. Readiness means: the database answers and is
migrated. It does not ask for the bus, because events wait in the outbox.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from argosy.common.v1 import event_pb2, task_service_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc
from google.protobuf.descriptor import ServiceDescriptor

from libs.common.aio import Background
from libs.common.auth.revocations import follow_revocations
from libs.common.auth.tokens import Jwk, JwksCache, TokenVerifier
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.config import CommonSettings, describe
from libs.common.domain import DomainError
from libs.common.obs import setup_telemetry
from libs.common.pki import Certificates
from libs.common.rpc.bind import BindingError
from libs.common.rpc.client import Channels, TokenSource
from libs.common.rpc.method import Host, Load
from libs.common.rpc.server import Server

if TYPE_CHECKING:
    from libs.common.blobs import BlobStore
    from libs.common.bus import Bus
    from libs.common.db.uow import Database
    from libs.common.tasks import QuotaLedger, TaskKind, Tasks, TaskWorker
    from libs.compute.client import RayDriver

App = TypeVar("App")

ROLES = ("rpc", "jobs", "all")
# A database that is down is asked again after these seconds, one that is up after the others.
_DATABASE_BEAT, _READY_BEAT = 1.0, 3.0
# Calls make few cycles: the collector's look every 700 allocations, its default, took 3 % of a busy gateway.
_GC_ALLOCATIONS = 10_000

_log = logging.getLogger(__name__)


@dataclass
class Runtime:
    """What a service's `build` gets.

    Attributes:
        name: of the service.
        role: `rpc`, `jobs` or `all`.
        settings: of the type that the definition names.
        clock: the clock to use everywhere.
        certificates: this service's, for sockets of its own.
        channels: the ways to other services.
        resources: what `build` opens and pushes here is closed at the end, in reverse order.
        background: runs coroutines of the service until its end; one that fails ends the process.
        verifier: verifies tokens.
    """

    name: str
    role: str
    settings: Any
    clock: Clock
    certificates: Certificates
    channels: Channels
    resources: AsyncExitStack
    background: Background
    verifier: TokenVerifier
    _database: Database | None = None
    _bus: Bus | None = None
    _blobs: BlobStore | None = None
    _tasks: Tasks | None = None
    _driver: RayDriver | None = None

    @property
    def driver(self) -> RayDriver:
        """Ray, through a child process that starts at the first use."""
        if self._driver is None:
            # Ray's side is loaded only where there is long work; nothing else of libs.common knows it.
            from libs.compute.client import RayDriver

            settings: CommonSettings = self.settings
            self._driver = RayDriver(
                settings.ray_address, service=self.name, otlp=settings.otlp, pki_dir=settings.pki_dir
            )
            self.resources.push_async_callback(self._driver.close)
        return self._driver

    @property
    def quota(self) -> QuotaLedger | None:
        """Identity's ledger of what jobs hold; None in a mesh without identity."""
        from libs.common.tasks import QuotaLedger

        settings: CommonSettings = self.settings
        return QuotaLedger(self.channels) if "identity" in settings.peers else None

    @property
    def database(self) -> Database:
        """The service's own database."""
        return _present(self._database, "no migrations are defined, so there is no database")

    @property
    def bus(self) -> Bus:
        """The bus; events are published through the outbox, not here."""
        return _present(self._bus, "a service without a database has no outbox and no bus")

    @property
    def blobs(self) -> BlobStore:
        """The service's blob store."""
        return _present(self._blobs, "ARGOSY_BLOB_ROOT is not set")

    @property
    def tasks(self) -> Tasks:
        """Creates tasks inside a unit of work."""
        return _present(self._tasks, "no task kinds are defined")


T = TypeVar("T")


def _present(value: T | None, otherwise: str) -> T:
    if value is None:
        raise RuntimeError(otherwise)
    return value


@dataclass(frozen=True)
class ServiceDefinition(Generic[App]):
    """All that distinguishes one service from another.

    Attributes:
        name: `dataset`.
        build: makes the service's own parts; its result is `call.deps`. May start work with `runtime.background.start`.
        protos: the proto services that it serves, beside those that every service has.
        handlers: modules (or objects) whose public async functions serve the RPCs.
        settings: class of its settings.
        migrations: alembic folder; None: the service keeps no rows.
        subscriptions: event type pattern -> async (event, uow), such as `training.model_version.*`.
        producers: services whose outboxes the subscriptions reconcile with; empty: the first parts of the patterns.
        task_kinds: its long work.
        servicers: adds servicers of foreign protos (OTLP) to the raw server; their callers show a certificate,
            nothing else.
        jwks: the public keys, where the service has them itself (identity); others ask identity.
        token_source: issues tokens for background work, where the service can (identity); others ask identity.
    """

    name: str
    build: Callable[[Runtime], Awaitable[App]]
    protos: Sequence[ServiceDescriptor] = ()
    handlers: Sequence[object] = ()
    settings: type[CommonSettings] = CommonSettings
    migrations: Path | None = None
    subscriptions: Callable[[App], Mapping[str, Any]] | None = None
    producers: Sequence[str] = ()
    task_kinds: Callable[[App], Sequence[TaskKind]] | None = None
    servicers: Callable[[App, grpc.aio.Server], None] | None = None
    jwks: Callable[[App], Awaitable[Sequence[Jwk]]] | None = None
    token_source: Callable[[App], TokenSource] | None = None


@dataclass
class RunningService(Generic[App]):
    """A service in this process. `stop` asks it to drain; `wait` returns when it has ended."""

    definition: ServiceDefinition[App]
    settings: CommonSettings
    role: str
    clock: Clock = SYSTEM_CLOCK
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    app: App | None = None
    server: Server | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _starting: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Begins the drain; a service that is still starting gives up at once."""
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()

    @property
    def serves(self) -> bool:
        """Whether this process answers calls."""
        return self.role in ("rpc", "all")

    @property
    def works(self) -> bool:
        """Whether this process runs long work."""
        return self.role in ("jobs", "all") and self.definition.task_kinds is not None

    async def serve(self) -> None:
        """Starts everything, runs until `stop`, drains and closes everything."""
        self._starting = asyncio.current_task()
        try:
            await self._serve()
        except asyncio.CancelledError:
            if not self._stop.is_set() or self._starting is None:
                raise
            self._starting.uncancel()

    async def _serve(self) -> None:
        async with AsyncExitStack() as resources, Background(self.definition.name) as background:
            runtime = await self._prepare(resources, background)
            app = self.app = await self.definition.build(runtime)
            worker = self._start_parts(runtime, app)
            if self.serves:
                self.server = await self._listen(runtime, app)
                self.port = self.server.port
                background.start(self._watch_readiness(runtime, self.server), name="readiness")
            else:
                self.ready.set()
            _log.info("%s is up", self.definition.name, extra={"argosy.role": self.role, "argosy.port": self.port})
            self._starting = None
            # What lives now lives to the end: the collector need not look at it again at every call.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_ALLOCATIONS)
            await self._stop.wait()
            _log.info("%s drains", self.definition.name)
            if worker is not None:
                await worker.stop()
            if self.server is not None:
                await self.server.drain(self.settings.drain_seconds)

    async def _prepare(self, resources: AsyncExitStack, background: Background) -> Runtime:
        definition, settings = self.definition, self.settings
        certificates = Certificates(settings.pki_dir, definition.name)

        async def issue(org: str, subject: str, role: int, audience: tuple[str, ...]) -> tuple[str, float]:
            assert definition.token_source is not None
            return await definition.token_source(_present(self.app, "not built yet"))(org, subject, role, audience)

        token_source = issue if definition.token_source is not None else None
        channels = Channels(settings, definition.name, token_source, certificates=certificates, clock=self.clock)
        resources.push_async_callback(channels.close)
        keys = JwksCache(settings.home / "run" / f"jwks-{definition.name}.json", self._jwks_source(channels))
        verifier = TokenVerifier(keys, definition.name, now=lambda: self.clock.now().timestamp())
        runtime = Runtime(
            name=definition.name,
            role=self.role,
            settings=settings,
            clock=self.clock,
            certificates=certificates,
            channels=channels,
            resources=resources,
            background=background,
            verifier=verifier,
        )
        await self._open_stores(runtime)
        return runtime

    def _jwks_source(self, channels: Channels) -> Callable[[], Awaitable[Sequence[Jwk]]]:
        definition = self.definition

        async def local() -> Sequence[Jwk]:
            assert definition.jwks is not None
            return await definition.jwks(_present(self.app, "not built yet"))

        async def remote() -> Sequence[Jwk]:
            stub = channels.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
            answer = await stub.GetJwks(token_service_pb2.GetJwksRequest())
            return [
                {"kid": k.kid, "kty": k.kty, "crv": k.crv, "x": k.x, "alg": k.alg, "use": k.use} for k in answer.keys
            ]

        return remote if definition.jwks is None else local

    async def _open_stores(self, runtime: Runtime) -> None:
        """Database (migrated), bus and blobs, as far as the service has them. Waits while the database is away."""
        definition, settings = self.definition, self.settings
        if definition.migrations is not None:
            from libs.common.bus import Bus
            from libs.common.db.engine import create_engine
            from libs.common.db.uow import Database

            url = settings.database_url.get_secret_value()
            database = Database(create_engine(url, f"{definition.name}-{self.role}"), definition.name, self.clock)
            runtime.resources.push_async_callback(database.close)
            runtime._database = database
            await self._migrate(url, definition.migrations)
            runtime._bus = Bus(settings.nats_url.get_secret_value(), definition.name)
        if definition.task_kinds is not None:
            from libs.common.tasks import Tasks

            runtime._tasks = Tasks(definition.name)
        if settings.blob_root:
            from libs.common.blobs import BlobStore
            from libs.common.secrets import Keyring

            keyring = Keyring.from_file(settings.blob_key_file) if settings.blob_key_file is not None else None
            runtime._blobs = BlobStore(settings.blob_root, keyring)

    async def _migrate(self, url: str, folder: Path) -> None:
        """Brings the database to the newest schema; asks again while it does not answer."""
        from libs.common.db.migrate import migrate

        while not self._stop.is_set():
            try:
                return await migrate(url, folder)
            except DomainError as error:
                if error.reason != "DATABASE_UNAVAILABLE":
                    raise
                _log.warning("waiting for the database")
                await self.clock.sleep(_DATABASE_BEAT)

    def _start_parts(self, runtime: Runtime, app: App) -> TaskWorker | None:
        """Relay, subscribers and revocations belong to the role that serves; the task worker to the one that works."""
        definition, background = self.definition, runtime.background
        if self.serves:
            if definition.jwks is None:
                revocations = follow_revocations(runtime.channels, runtime.verifier, self.clock)
                background.start(revocations, name="revocations")
            if runtime._database is not None:
                self._start_events(runtime, app)
        if not self.works:
            return None
        from libs.common.tasks import TaskWorker

        assert definition.task_kinds is not None
        kinds = definition.task_kinds(app)
        worker = TaskWorker(runtime.database, kinds, runtime.driver, runtime, blobs=runtime._blobs, quota=runtime.quota)
        background.start(worker.run(), name="tasks")
        return worker

    def _start_events(self, runtime: Runtime, app: App) -> None:
        from libs.common.bus import Relay, Subscriber

        definition, background = self.definition, runtime.background
        background.start(runtime.bus.run(), name="bus")
        background.start(Relay(runtime.database, runtime.bus, self.clock).run(), name="relay")
        if definition.subscriptions is not None:
            handlers = definition.subscriptions(app)
            subscriber = Subscriber(
                runtime.database,
                runtime.bus,
                runtime.channels,
                definition.name,
                handlers,
                definition.producers,
                self.clock,
            )
            background.start(subscriber.run(), name="subscriber")

    async def _listen(self, runtime: Runtime, app: App) -> Server:
        """Binds everything and opens the port. Raises BindingError when handlers and protos do not fit."""
        definition, settings = self.definition, self.settings
        load = Load(settings.max_concurrent_calls, settings.max_concurrent_streams)
        host = Host(definition.name, app, self.clock, runtime.verifier, runtime._database, load)
        server = Server(host, runtime.certificates, settings.listen)
        runtime.resources.push_async_callback(server.raw.stop, 0)
        server.mount(definition.protos, definition.handlers)
        if runtime._database is not None:
            from libs.common.bus import EventServiceHandlers

            events = event_pb2.DESCRIPTOR.services_by_name["EventService"]
            server.mount([events], [EventServiceHandlers(runtime.database)])
        if definition.task_kinds is not None:
            from libs.common.tasks import TaskServiceHandlers

            tasks = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
            kinds = definition.task_kinds(app)
            server.mount([tasks], [TaskServiceHandlers(runtime.database, definition.name, self.clock, kinds)])
        if definition.servicers is not None:
            definition.servicers(app, server.raw)
        await server.start()
        return server

    async def _watch_readiness(self, runtime: Runtime, server: Server) -> None:
        """Health follows the database: a service that cannot reach its rows asks callers to go elsewhere, and stays."""
        known = False
        while True:
            ready = await self._answers(runtime)
            if ready != known:
                await server.set_ready(ready)
                _log.info("ready" if ready else "not ready: the database does not answer")
                known = ready
            if ready:
                self.ready.set()
            await self.clock.sleep(_READY_BEAT if ready else _DATABASE_BEAT)

    @staticmethod
    async def _answers(runtime: Runtime) -> bool:
        if runtime._database is None:
            return True
        try:
            await runtime.database.ping()
        except DomainError:
            return False
        return True


async def serve(definition: ServiceDefinition[Any], settings: CommonSettings, role: str) -> None:
    """Runs a service in this process until SIGTERM or SIGINT."""
    telemetry = setup_telemetry(definition.name, role=role, endpoint=settings.otlp, pki_dir=settings.pki_dir)
    try:
        _log.info("%s starts", definition.name, extra={"argosy.settings": str(describe(settings))})
        service: RunningService[Any] = RunningService(definition, settings, role)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        await service.serve()
    finally:
        await asyncio.to_thread(telemetry.close)


def run(definition: ServiceDefinition[Any], arguments: Sequence[str] | None = None) -> None:
    """The whole of a service's `__main__`: reads `--role` and the environment, and serves.

    Args:
        definition: what the service is.
        arguments: command line without the program's name; None takes that of the process.

    Exits with a message and without a traceback when handlers and protos do not fit.
    """
    parser = argparse.ArgumentParser(prog=f"services.{definition.name}")
    parser.add_argument("--role", choices=ROLES, default="all", help="rpc answers calls, jobs runs long work")
    role = parser.parse_args(arguments).role
    try:
        asyncio.run(serve(definition, definition.settings(), role))
    except* BindingError as faults:
        sys.exit("\n".join(str(fault) for fault in faults.exceptions))
