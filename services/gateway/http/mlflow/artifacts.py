"""Files of runs, by MLflow's proxy: `/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/{path}`.

They are kept and given back as they came; nothing of them is opened or run here.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from urllib.parse import unquote

import orjson
from argosy.training.v1 import run_artifact_service_pb2 as pb

from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.domain import mlflow_names as names
from services.gateway.http.caller import Authenticator
from services.gateway.http.door import Handler
from services.gateway.http.exchange import BYTES, Exchange
from services.gateway.http.mlflow.errors import MissingError, ParameterError
from services.gateway.http.mlflow.given import Json
from services.gateway.http.mlflow.guard import Answer, Visit, admit, guarded
from services.gateway.http.uploads import PART_BYTES, cut

PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_ROUTE = f"{PROXY}/{{experiment}}/{{run}}/artifacts/{{path}}"
_DOWNLOAD = ((b"content-disposition", b"attachment"),)


class Artifacts:
    """Answers about files, and handlers of their bytes.

    Args:
        authenticator: knows keys and tokens.
        backend: training.
    """

    def __init__(self, authenticator: Authenticator, backend: OutsideRuns) -> None:
        self._authenticator = authenticator
        self._backend = backend

    def answers(self) -> dict[str, dict[str, Answer]]:
        """Path below `/api/2.0/mlflow/` -> HTTP method -> answer."""
        return {"artifacts/list": {"GET": self.listed}}

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """Path -> HTTP method -> handler."""
        return {PROXY: {"GET": self._handler(self._list)}}

    def prefixed(self) -> dict[str, dict[str, Handler]]:
        """Path prefix -> HTTP method -> handler."""
        by_method: dict[str, Handler] = {"GET": self._get, "PUT": self._put, "DELETE": self._delete}
        return {f"{PROXY}/": {method: self._handler(work) for method, work in by_method.items()}}

    async def listed(self, visit: Visit) -> Json:
        """A page of what lies right in a folder of a run."""
        given = visit.given.run_id()
        run = names.run(visit.org, given)
        if run is None:
            raise MissingError("run", given)
        folder = visit.given.text("path", most=1000).strip("/")
        page = await self._backend.children(run, folder, visit.given.text("page_token", most=1024), visit.call)
        files = [_child(one, one.path) for one in page.run_artifacts]
        found: Json = {"root_uri": names.artifact_root(run), "files": files}
        return found | ({"next_page_token": page.next_page_token} if page.next_page_token else {})

    def _handler(self, work: Handler) -> Handler:
        async def handler(exchange: Exchange) -> None:
            exchange.route = f"{exchange.method} {_ROUTE}"
            await guarded(exchange, work(exchange))

        return handler

    async def _list(self, exchange: Exchange) -> None:
        visit = await admit(exchange, self._authenticator)
        run, folder = _placed(visit.given.text("path", most=2000, needed=True), visit)
        # The client puts its folder before what it gets, and asks for no second page.
        files, token = list[Json](), ""
        while True:
            page = await self._backend.children(run, folder.strip("/"), token, visit.call)
            files += [_child(one, one.path.rpartition("/")[2]) for one in page.run_artifacts]
            token = page.next_page_token
            if not token:
                break
        await exchange.respond(200, orjson.dumps({"files": files}))

    async def _get(self, exchange: Exchange) -> None:
        visit = await admit(exchange, self._authenticator)
        run, path = _asked(exchange, visit)
        pieces = self._backend.content(run, path, visit.call)
        # What is wrong shows at the first piece, before the status is sent.
        first = await anext(pieces, b"")
        await exchange.start(200, BYTES, _DOWNLOAD)
        await exchange.write(first)
        async for piece in pieces:
            await exchange.write(piece)
        await exchange.write(b"", more=False)

    async def _put(self, exchange: Exchange) -> None:
        visit = await admit(exchange, self._authenticator)
        run, path = _asked(exchange, visit)
        if exchange.query:
            # The client writes the names of files as they are.
            raise ParameterError("path", "a `?` in a name must be written as %3F")
        upload_id, offset, held = secrets.token_hex(16), 0, b""

        async def append(data: bytes, last: bool) -> None:
            request = pb.AppendRunArtifactRequest(
                name=run,
                path=path,
                upload_id=upload_id,
                offset=offset,
                data=data,
                last=last,
                request_id=f"{upload_id}-{offset}",
            )
            # An upload may take longer than a token lives.
            caller = await self._authenticator.authenticate(exchange.headers.get(b"authorization"))
            await self._backend.artifacts.AppendRunArtifact(request, **replace(visit, caller=caller).call)

        async for part in cut(exchange.stream(), PART_BYTES):
            if held:
                await append(held, last=False)
                offset += len(held)
            held = part
        await append(held, last=True)
        await exchange.respond(200, b"{}")

    async def _delete(self, exchange: Exchange) -> None:
        visit = await admit(exchange, self._authenticator)
        run, path = _asked(exchange, visit)
        request = pb.RemoveRunArtifactsRequest(name=run, path=path)
        await self._backend.artifacts.RemoveRunArtifacts(request, **visit.call)
        await exchange.respond(200, b"{}")


def _child(artifact: pb.RunArtifact, path: str) -> Json:
    return {"path": path, "is_dir": artifact.folder} | ({} if artifact.folder else {"file_size": artifact.size})


def _asked(exchange: Exchange, visit: Visit) -> tuple[str, str]:
    """Run and path that a URL names."""
    given = exchange.path[len(PROXY) + 1 :]
    try:
        decoded = unquote(given, errors="strict")
    except UnicodeDecodeError:
        raise ParameterError("path", "is not UTF-8") from None
    run, path = _placed(decoded, visit)
    if not path:
        raise ParameterError("path", "names no file")
    return run, path


def _placed(path: str, visit: Visit) -> tuple[str, str]:
    """Run and path below it of `{experiment}/{run}/artifacts/{path}`."""
    experiment_id, _, rest = path.partition("/")
    given, _, rest = rest.partition("/")
    head, _, below = rest.partition("/")
    run = names.run(visit.org, given)
    if run is None or names.experiment_id(run) != experiment_id or head != "artifacts":
        raise MissingError("run", f"{experiment_id}/{given}")
    return run, below
