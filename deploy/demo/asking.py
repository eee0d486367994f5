"""Asking a model at the door with the clients that people have: the official `openai` package, and curl."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Answer_ = TypeVar("Answer_")

# A replica that was killed is back within this.
_PATIENCE = 180.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    trace_id: str
    # 0: not streamed.
    first_token_seconds: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)


def _trace() -> tuple[str, dict[str, str]]:
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


def with_openai(url: str, key: str, model: str, text: str) -> Answer:
    """Asks with the official client, streaming. Asked again while the replica is away.

    Raises:
        openai.OpenAIError: it was refused.
    """
    import openai

    def ask() -> Answer:
        trace_id, headers = _trace()
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            began, first, parts, usage = time.monotonic(), 0.0, [], {}
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=headers,
            )
            for chunk in stream:
                if chunk.usage:
                    usage = chunk.usage.model_dump(exclude_none=True)
                part = chunk.choices[0].delta.content if chunk.choices else None
                if part:
                    first = first or time.monotonic() - began
                    parts.append(part)
        return Answer("".join(parts).strip(), trace_id, round(first, 4), usage)

    return _patiently(ask, (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError))


def with_curl(url: str, key: str, model: str, text: str) -> Answer:
    """Asks with curl. Without curl on the machine the answer is empty.

    Raises:
        RuntimeError: it was refused.
    """
    if shutil.which("curl") is None:
        return Answer("", "")
    trace_id, headers = _trace()
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--config", "-", f"{url}/v1/chat/completions"]
    command += ["--noproxy", "*", "--header", "content-type: application/json"]
    command += ["--header", f"traceparent: {headers['traceparent']}", "--data-raw", json.dumps(body)]

    def ask() -> Answer:
        # The key comes by standard input: everybody on the machine can read the arguments of a process.
        config = f'header = "authorization: Bearer {key}"\n'
        done = subprocess.run(command, input=config, capture_output=True, text=True, check=False)
        try:
            answer = json.loads(done.stdout)
            choice = answer["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError):
            raise RuntimeError(f"curl: {done.stderr.strip() or done.stdout[:300]}") from None
        return Answer(choice.strip(), trace_id, usage=answer.get("usage", {}))

    return _patiently(ask, (RuntimeError,))


def _patiently(ask: Callable[[], Answer_], passing: tuple[type[Exception], ...]) -> Answer_:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except passing:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
