"""What was used reaches identity once, whatever dies on the way."""

from __future__ import annotations

import os

from libs.common.clock import ManualClock
from libs.common.errors import ArgosyError
from services.gateway.clients.ledger import Entry, Ledger

HELLO = {"model": "llm", "messages": [{"role": "user", "content": "Hi"}]}


class _Usage:
    """Stands for the stub of identity; fails while `away`."""

    def __init__(self) -> None:
        self.away = False
        self.got: list[str] = []

    def stub(self, stub_class, service):
        return self

    async def RecordUsage(self, request, timeout):
        if self.away:
            raise ArgosyError("PEER_UNAVAILABLE", "away")
        self.got += [entry.id for entry in request.entries]


async def test_request_is_recorded_once(world):
    answer = await world.http.post("/v1/chat/completions", json=HELLO, headers={"x-request-id": "r-1"})
    assert answer.status_code == 200
    await world.app.ledger.flush()
    await world.app.ledger.flush()
    (entry,) = world.identity.usage.values()
    assert (entry.org, entry.subject, entry.api_key) == ("orgs/acme", "users/alice", "orgs/acme/apiKeys/test")
    assert (entry.prompt_tokens, entry.completion_tokens, entry.outcome) == (7, 3, "ok")
    assert (entry.model, entry.model_version) == ("llm", "orgs/acme/modelProjects/m/versions/1")
    assert entry.request_id == "r-1"
    assert entry.time_to_first_token_seconds > 0
    assert world.identity.records == 1


async def test_entries_wait_while_identity_is_away(tmp_path):
    usage = _Usage()
    ledger = Ledger(usage, tmp_path, ManualClock())
    ledger.open()
    usage.away = True
    for number in range(3):
        ledger.add(Entry(id=str(number)))
        await ledger.flush()
    usage.away = False
    await ledger.flush()
    assert usage.got == ["0", "1", "2"]
    ledger.close()
    assert list(tmp_path.iterdir()) == []


async def test_killed_process_leaves_nothing_behind_unsent(tmp_path):
    # The child dies by SIGKILL right after `add`, as the gateway may.
    child = os.fork()
    if child == 0:
        try:
            ledger = Ledger(_Usage(), tmp_path, ManualClock())
            ledger.open()
            ledger.add(Entry(id="kept", prompt_tokens=4))
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    (segment,) = tmp_path.iterdir()
    with segment.open("ab") as file:
        file.write(b"\x40\x00\x00\x00torn")
    usage = _Usage()
    ledger = Ledger(usage, tmp_path, ManualClock())
    ledger.open()
    await ledger.flush()
    assert usage.got == ["kept"]
    ledger.close()
