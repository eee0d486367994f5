"""Answers in OpenAI's JSON, whole or as events. The bytes of an event are made around the text, not from a
dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from argosy.deploy.v1 import inference_service_pb2

Response = inference_service_pb2.GenerateResponse
Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"


class Choice:
    """One answer as it grows."""

    __slots__ = ("finish_reason", "index", "logprobs", "texts")

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[str] = []
        self.finish_reason = ""
        self.logprobs: list[inference_service_pb2.TokenLogprob] = []

    def add(self, response: Response) -> None:
        """Takes the next message of this answer."""
        if response.text:
            self.texts.append(response.text)
        if response.finish_reason:
            self.finish_reason = response.finish_reason
        if response.logprobs:
            self.logprobs.extend(response.logprobs)


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """What a request used."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_completion(
    answer_id: str, created: int, model: str, choices: Iterable[Choice], used: Json, tools: bool
) -> bytes:
    """A whole answer to a conversation."""
    listed = [
        {
            "index": choice.index,
            "message": _message("".join(choice.texts), choice.finish_reason, tools),
            "logprobs": _chat_logprobs(choice.logprobs) if choice.logprobs else None,
            "finish_reason": choice.finish_reason or "stop",
        }
        for choice in choices
    ]
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": listed,
            "usage": used,
            "system_fingerprint": None,
        }
    )


def completion(answer_id: str, created: int, model: str, choices: Iterable[Choice], used: Json) -> bytes:
    """A whole continuation of texts."""
    listed = [
        {
            "index": choice.index,
            "text": "".join(choice.texts),
            "logprobs": _text_logprobs(choice.logprobs) if choice.logprobs else None,
            "finish_reason": choice.finish_reason or "stop",
        }
        for choice in choices
    ]
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": listed,
            "usage": used,
        }
    )


def tool_calls(text: str) -> list[Json] | None:
    """The tool calls that a model wrote as JSON; None if it wrote something else.

    Chat templates make models write `{"name": ..., "arguments": {...}}`, one object or an array; some write OpenAI's
    form itself.
    """
    try:
        written = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    calls: list[Json] = []
    for index, item in enumerate(written if isinstance(written, list) else [written]):
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        arguments = function.get("arguments", function.get("parameters", {}))
        text_arguments = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        call_id = item.get("id") or f"call_{index}"
        calls.append(
            {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": text_arguments}}
        )
    return calls or None


def _message(text: str, finish_reason: str, tools: bool) -> Json:
    calls = tool_calls(text) if tools and finish_reason == "tool_calls" else None
    if calls is not None:
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    return {"role": "assistant", "content": text, "refusal": None}


def _chat_logprobs(logprobs: Iterable[inference_service_pb2.TokenLogprob]) -> Json:
    return {"content": [_token(one) for one in logprobs], "refusal": None}


def _token(one: inference_service_pb2.TokenLogprob) -> Json:
    top = sorted(one.top.items(), key=lambda item: -item[1])
    return {
        "token": one.token,
        "logprob": one.logprob,
        "bytes": list(one.token.encode()),
        "top_logprobs": [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in top],
    }


def _text_logprobs(logprobs: Iterable[inference_service_pb2.TokenLogprob]) -> Json:
    listed = list(logprobs)
    offsets, place = [], 0
    for one in listed:
        offsets.append(place)
        place += len(one.token)
    return {
        "tokens": [one.token for one in listed],
        "token_logprobs": [one.logprob for one in listed],
        "top_logprobs": [dict(one.top) for one in listed],
        "text_offset": offsets,
    }


class Events:
    """Makes the events of one streamed answer.

    Args:
        chat: whether it answers a conversation.
        answer_id: of all events.
        created: UNIX time.
        model: as the caller named it.
        tools: whether the model was given tools.
        include_usage: whether the last event tells what was used.
    """

    def __init__(
        self, *, chat: bool, answer_id: str, created: int, model: str, tools: bool, include_usage: bool
    ) -> None:
        self._chat = chat
        self._tools = tools
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = orjson.dumps({"id": answer_id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        # With include_usage every event but the last has `usage: null`.
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._begun: set[int] = set()
        self._held: dict[int, list[str]] = {}

    def of(self, response: Response) -> bytes:
        """The events of one message; empty if it has nothing to show."""
        if self._chat:
            return self._chat_events(response)
        if not response.text and not response.finish_reason:
            return b""
        logprobs = orjson.dumps(_text_logprobs(response.logprobs)) if response.logprobs else b"null"
        reason = orjson.dumps(response.finish_reason or None)
        text = orjson.dumps(response.text)
        return b'%s{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}%s' % (
            self._head,
            response.index,
            text,
            logprobs,
            reason,
            self._tail,
        )

    def usage(self, used: Json) -> bytes:
        """The last event before the end, with include_usage."""
        return self._head + b'],"usage":' + orjson.dumps(used) + b"}\n\n"

    def _chat_events(self, response: Response) -> bytes:
        index = response.index
        events = b""
        if index not in self._begun:
            self._begun.add(index)
            events = self._delta(index, b'{"role":"assistant","content":"","refusal":null}')
        if self._tools:
            return events + self._with_tools(response)
        if response.text:
            events += self._content(index, response.text, response)
        if response.finish_reason:
            events += self._delta(index, b"{}", reason=orjson.dumps(response.finish_reason))
        return events

    def _with_tools(self, response: Response) -> bytes:
        """Whether a text is a call of a tool is only known at its end, so it is held until then."""
        held = self._held.setdefault(response.index, [])
        held.append(response.text)
        if not response.finish_reason:
            return b""
        text = "".join(held)
        calls = tool_calls(text) if response.finish_reason == "tool_calls" else None
        if calls is not None:
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            shown = self._delta(response.index, orjson.dumps({"tool_calls": numbered}))
        else:
            shown = self._content(response.index, text, response) if text else b""
        return shown + self._delta(response.index, b"{}", reason=orjson.dumps(response.finish_reason))

    def _content(self, index: int, text: str, response: Response) -> bytes:
        logprobs = orjson.dumps(_chat_logprobs(response.logprobs)) if response.logprobs else b"null"
        return self._delta(index, b'{"content":%s}' % orjson.dumps(text), logprobs)

    def _delta(self, index: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return b'%s{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s}%s' % (
            self._head,
            index,
            delta,
            logprobs,
            reason,
            self._tail,
        )
