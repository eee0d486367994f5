"""What `/v1/files` and `/v1/fine_tuning/jobs` refuse before any service is asked."""

from __future__ import annotations

import pytest

from services.gateway.http.openai import files

FORM = {"content-type": "multipart/form-data; boundary=xyz"}


def form(*parts: bytes) -> bytes:
    return b"".join(b"--xyz\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


async def test_a_file_has_a_limit(world, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    body = form(b'name="purpose"\r\n\r\nfine-tune') + b"x" * 2000
    answer = await world.http.post("/v1/files", content=body, headers=FORM)
    assert answer.status_code == 413, answer.text
    assert "larger than 1000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(b'name="purpose"\r\n\r\nassistants'), "purpose"),
        (form(b'name="purpose"\r\n\r\nfine-tune'), "file"),
        (form(b'name="file"\r\n\r\n{}'), "file"),
        (form(b'name="file"; filename="../a.jsonl"\r\n\r\n{}'), "file"),
        (form(b'name="expires_after[anchor]"\r\n\r\ncreated_at'), "expires_after[anchor]"),
        (form(), "purpose"),
    ],
)
async def test_a_wrong_field_is_named(world, body, param):
    answer = await world.http.post("/v1/files", content=body, headers=FORM)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_what_is_no_form_is_refused(world):
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary="):
        answer = await world.http.post("/v1/files", content=b"{}", headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["type"]) == (415, "invalid_request_error")
    cut = await world.http.post("/v1/files", content=form(b'name="purpose"\r\n\r\nx')[:40], headers=FORM)
    assert cut.status_code == 400


async def test_results_belong_to_their_job(world):
    answer = await world.http.delete("/v1/files/file-results-0123456789abcdef")
    assert answer.status_code == 400
    assert "belong to their job" in answer.json()["error"]["message"]


async def test_ids_that_cannot_be_are_not_looked_for(world):
    for method, path in (
        ("GET", "/v1/files/file-x"),
        ("GET", "/v1/files/file-0123456789ABCDEF/content"),
        ("DELETE", "/v1/files/..%2f"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-x"),
        ("POST", "/v1/fine_tuning/jobs/ftjob-x/cancel"),
        ("POST", "/v1/fine_tuning/jobs/ftjob-0123456789abcdef/events"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-0123456789abcdef/secrets"),
    ):
        answer = await world.http.request(method, path)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.json()["error"]["message"]
