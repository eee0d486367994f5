"""Answers of applications, in the same shape as those of replicas."""

from __future__ import annotations

from argosy.app.v1 import app_service_pb2, app_service_pb2_grpc, chat_service_pb2, chat_service_pb2_grpc
from argosy.deploy.v1 import inference_service_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients.backends import StubSource
from services.gateway.http.caller import Caller

_LIST_SECONDS = 3.0
_PAGE = 1000
_CHAT_SECONDS = 600.0

Metadata = tuple[tuple[str, str], ...]


class ApplicationAnswer:
    """One running answer. `read` gives messages until None; `close` must be called."""

    def __init__(
        self, stub: chat_service_pb2_grpc.ChatServiceStub, request: chat_service_pb2.ChatRequest, metadata: Metadata
    ):
        self._answers = stub.Chat(request, metadata=metadata, timeout=_CHAT_SECONDS)
        self.model_version = ""

    async def read(self) -> inference_service_pb2.GenerateResponse | None:
        """The next message; None at the end. Raises the ArgosyError that the application raised."""
        answer = await anext(self._answers, None)
        if answer is None:
            return None
        self.model_version = answer.model_version or self.model_version
        return answer.response

    async def close(self) -> None:
        """Ends the answer; one that is not complete is cancelled."""
        await self._answers.aclose()


class Applications:
    """The way to applications.

    Args:
        channels: to the service app.
    """

    def __init__(self, channels: StubSource) -> None:
        self._chat: chat_service_pb2_grpc.ChatServiceStub = channels.stub(chat_service_pb2_grpc.ChatServiceStub, "app")
        self._app: app_service_pb2_grpc.AppServiceStub = channels.stub(app_service_pb2_grpc.AppServiceStub, "app")

    def chat(self, request: chat_service_pb2.ChatRequest, caller: Caller, metadata: Metadata) -> ApplicationAnswer:
        """Begins an answer; what is wrong shows at the first `read`."""
        return ApplicationAnswer(self._chat, request, (caller.authorization, *metadata))

    async def published(self, caller: Caller, metadata: Metadata) -> list[tuple[str, int]]:
        """Ids of the published applications of the caller's organization, with their time of creation in UNIX seconds.

        Gives none while app is away: what can be asked without it is still worth listing.
        """
        request = app_service_pb2.ListApplicationsRequest(parent=f"orgs/{caller.org}", page_size=_PAGE)
        try:
            listed = await self._app.ListApplications(
                request, metadata=(caller.authorization, *metadata), timeout=_LIST_SECONDS
            )
        except ArgosyError as error:
            if error.is_reason("PEER_UNAVAILABLE", "DEADLINE_EXCEEDED"):
                return []
            raise
        return [
            (application.name.rpartition("/")[2], application.create_time.seconds)
            for application in listed.applications
            if application.published_version
        ]
