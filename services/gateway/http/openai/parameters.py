"""What OpenAI's clients send, checked and turned into what a replica takes. A parameter that cannot be honoured is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from argosy.deploy.v1 import inference_service_pb2

from services.gateway.http.json_message import kind_of
from services.gateway.http.openai.errors import ParameterError

Sampling = inference_service_pb2.SamplingParameters
Message = inference_service_pb2.ChatMessage

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MAX_MESSAGES = 4096
_MAX_STOPS = 4
_MAX_STOP_LENGTH = 256
_MAX_TOOLS = 128
_MAX_TOKENS = 1_048_576
_MAX_CHOICES = 16
_MAX_MODEL_LENGTH = 512
_MAX_SCHEMA_LENGTH = 65_536
_INT64 = (1 << 63) - 1
# A token of English is about four characters; what a request without a limit may produce is not known before.
_CHARACTERS_PER_TOKEN = 4
_ASSUMED_ANSWER = 256


@dataclass(slots=True)
class Request:
    """One request, ready to be asked.

    Attributes:
        chat: whether it is a conversation; else a text to continue.
        model: as the caller named it.
        messages: of the conversation.
        prompts: texts to continue.
        sampling: how to choose tokens.
        tools: JSON of each tool.
        stream: whether to answer in events.
        include_usage: whether the last event tells what was used.
        characters: length of all texts of the request.
    """

    chat: bool
    model: str = ""
    messages: list[Message] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    tools: list[str] = field(default_factory=list)
    stream: bool = False
    include_usage: bool = False
    characters: int = 0
    top_logprobs: int | None = None

    @property
    def choices(self) -> int:
        """How many answers come."""
        return (self.sampling.n or 1) * max(1, len(self.prompts))

    def estimate(self) -> int:
        """Tokens that this may cost, for the reservation."""
        answer = self.sampling.max_tokens or _ASSUMED_ANSWER
        return self.characters // _CHARACTERS_PER_TOKEN + answer * self.choices

    @property
    def whole(self) -> bool:
        """Whether the answer may come from the replica in one message, which holds at most 16 MiB."""
        return not self.stream and len(self.prompts) <= 1 and not self.sampling.HasField("logprobs")

    def to_generate(self) -> inference_service_pb2.GenerateRequest:
        """The request to a replica."""
        prompts = self.prompts
        request = inference_service_pb2.GenerateRequest(
            messages=self.messages, sampling=self.sampling, tools_json=self.tools
        )
        if len(prompts) == 1:
            request.prompt = prompts[0]
        elif prompts:
            request.prompts.extend(prompts)
        return request


_Setter = Callable[[Request, str, Any], None]


def parse_chat(data: Any) -> Request:
    """A request to /v1/chat/completions. Raises ParameterError."""
    request = _parse(Request(chat=True), data, _CHAT)
    if not request.messages:
        raise ParameterError("messages", "messages: at least one is needed.", "missing_required_parameter")
    return request


def parse_completion(data: Any) -> Request:
    """A request to /v1/completions. Raises ParameterError."""
    request = _parse(Request(chat=False), data, _COMPLETION)
    if not request.prompts:
        raise ParameterError("prompt", "prompt: it is needed.", "missing_required_parameter")
    return request


def _parse(request: Request, data: Any, setters: Mapping[str, _Setter]) -> Request:
    if not isinstance(data, dict):
        raise ParameterError(None, f"The body must be a JSON object, not {kind_of(data)}.")
    for name, value in data.items():
        setter = setters.get(name)
        if setter is None:
            raise ParameterError(name[:64], f"Unknown parameter: {name[:64]!r}.", "unknown_parameter")
        if value is not None:
            setter(request, name, value)
    if not request.model:
        raise ParameterError("model", "model: it is needed.", "missing_required_parameter")
    if request.include_usage and not request.stream:
        raise ParameterError("stream_options", "stream_options needs stream.")
    if request.chat and data.get("top_logprobs") is not None and not data.get("logprobs"):
        raise ParameterError("top_logprobs", "top_logprobs needs logprobs.")
    return request


def _wrong(param: str, message: str) -> ParameterError:
    return ParameterError(param, f"{param}: {message}.", "invalid_type" if message.startswith("must be a") else None)


def _text(param: str, value: Any, longest: int | None = None) -> str:
    if not isinstance(value, str):
        raise _wrong(param, f"must be a string, not {kind_of(value)}")
    if longest is not None and len(value) > longest:
        raise _wrong(param, f"is longer than {longest} characters")
    return value


def _flag(param: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(param, f"must be a boolean, not {kind_of(value)}")
    return value


def _whole(param: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(param, f"must be a whole number, not {kind_of(value)}")
    if not least <= value <= most:
        raise _wrong(param, f"must lie between {least} and {most}")
    return value


def _number(param: str, value: Any, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(param, f"must be a number, not {kind_of(value)}")
    if not least <= value <= most:
        raise _wrong(param, f"must lie between {least:g} and {most:g}")
    return float(value)


def _set_model(request: Request, param: str, value: Any) -> None:
    request.model = _text(param, value, _MAX_MODEL_LENGTH)


def _set_stream(request: Request, param: str, value: Any) -> None:
    request.stream = _flag(param, value)


def _set_stream_options(request: Request, param: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong(param, f"must be an object, not {kind_of(value)}")
    for name, item in value.items():
        if name == "include_usage":
            request.include_usage = _flag("stream_options.include_usage", item)
        elif name != "include_obfuscation":
            raise ParameterError(
                f"{param}.{name[:64]}", f"Unknown parameter: '{param}.{name[:64]}'.", "unknown_parameter"
            )


def _set_max_tokens(request: Request, param: str, value: Any) -> None:
    request.sampling.max_tokens = _whole(param, value, 1, _MAX_TOKENS)


def _set_temperature(request: Request, param: str, value: Any) -> None:
    request.sampling.temperature = _number(param, value, 0, 2)


def _set_top_p(request: Request, param: str, value: Any) -> None:
    number = _number(param, value, 0, 1)
    if number == 0:
        raise _wrong(param, "must be greater than 0")
    request.sampling.top_p = number


def _set_penalty(request: Request, param: str, value: Any) -> None:
    setattr(request.sampling, param, _number(param, value, -2, 2))


def _set_n(request: Request, param: str, value: Any) -> None:
    request.sampling.n = _whole(param, value, 1, _MAX_CHOICES)


def _set_seed(request: Request, param: str, value: Any) -> None:
    request.sampling.seed = _whole(param, value, -_INT64 - 1, _INT64)


def _set_stop(request: Request, param: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise _wrong(param, f"must be a string or an array, not {kind_of(value)}")
    if len(stops) > _MAX_STOPS:
        raise _wrong(param, f"holds more than {_MAX_STOPS} texts")
    for stop in stops:
        if not _text(param, stop, _MAX_STOP_LENGTH):
            raise _wrong(param, "holds an empty text")
        request.sampling.stop.append(stop)


def _set_logprobs(request: Request, param: str, value: Any) -> None:
    if _flag(param, value) and not request.sampling.HasField("logprobs"):
        request.sampling.logprobs = 0


def _set_top_logprobs(request: Request, param: str, value: Any) -> None:
    request.sampling.logprobs = _whole(param, value, 0, 20)


def _set_completion_logprobs(request: Request, param: str, value: Any) -> None:
    request.sampling.logprobs = _whole(param, value, 0, 5)


def _set_response_format(request: Request, param: str, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    if kind == "json_object":
        request.sampling.json_schema = '{"type":"object"}'
        return
    if kind != "json_schema":
        raise _wrong(f"{param}.type", "must be text, json_object or json_schema")
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise _wrong(f"{param}.json_schema.schema", f"must be an object, not {kind_of(schema)}")
    text = orjson.dumps(schema).decode()
    if len(text) > _MAX_SCHEMA_LENGTH:
        raise _wrong(f"{param}.json_schema.schema", f"is longer than {_MAX_SCHEMA_LENGTH} characters")
    request.sampling.json_schema = text


def _set_tools(request: Request, param: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _wrong(param, f"must be an array, not {kind_of(value)}")
    if len(value) > _MAX_TOOLS:
        raise _wrong(param, f"holds more than {_MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(f"{param}[{index}]", "must be a function with a name")
        request.tools.append(orjson.dumps(tool).decode())


def _set_tool_choice(request: Request, param: str, value: Any) -> None:
    if value == "none":
        request.tools.clear()
    elif value != "auto":
        raise ParameterError(param, f"{param}: only auto and none are supported.", "unsupported_value")


def _set_messages(request: Request, param: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _wrong(param, f"must be an array, not {kind_of(value)}")
    if len(value) > _MAX_MESSAGES:
        raise _wrong(param, f"holds more than {_MAX_MESSAGES} messages")
    request.messages = [_message(request, f"{param}[{index}]", item) for index, item in enumerate(value)]


def _message(request: Request, param: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise _wrong(param, f"must be an object, not {kind_of(value)}")
    role = value.get("role")
    actual = _ROLES.get(role) if isinstance(role, str) else None
    if actual is None:
        raise _wrong(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    content = _content(f"{param}.content", value.get("content"), actual == "assistant")
    request.characters += len(content)
    message = Message(role=actual, content=content)
    if len(value) > 2:
        _fill_message(message, param, value)
    return message


def _fill_message(message: Message, param: str, value: Mapping[str, Any]) -> None:
    """What few messages have."""
    for name, item in value.items():
        if name in ("role", "content") or item is None:
            continue
        if name in ("name", "tool_call_id"):
            setattr(message, name, _text(f"{param}.{name}", item, 256))
        elif name == "tool_calls" and isinstance(item, list):
            message.tool_calls_json = orjson.dumps(item).decode()
        elif name not in ("refusal", "annotations", "audio", "function_call"):
            where = f"{param}.{name[:64]}"
            raise ParameterError(where, f"Unknown parameter: '{where}'.", "unknown_parameter")


def _content(param: str, value: Any, may_lack: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and may_lack:
        return ""
    if not isinstance(value, list):
        raise _wrong(param, f"must be a string or an array, not {kind_of(value)}")
    texts: list[str] = []
    for index, part in enumerate(value):
        where = f"{param}[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ParameterError(
                f"{where}.type", f"{where}: only parts of type text are supported.", "unsupported_value"
            )
        texts.append(_text(f"{where}.text", part.get("text")))
    return "".join(texts)


def _set_prompt(request: Request, param: str, value: Any) -> None:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list):
        raise _wrong(param, f"must be a string or an array, not {kind_of(value)}")
    if len(prompts) > _MAX_MESSAGES:
        raise _wrong(param, f"holds more than {_MAX_MESSAGES} texts")
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, int | list):
            raise ParameterError(param, "prompt: token numbers are not supported; send text.", "unsupported_value")
        request.prompts.append(_text(f"{param}[{index}]", prompt))
        request.characters += len(prompt)


def _ignored(request: Request, param: str, value: Any) -> None:
    """For whom the caller asks, and notes of its own: they change nothing in the answer."""


def _only(*allowed: Any) -> _Setter:
    """A parameter that is supported only with the value that changes nothing."""

    def setter(request: Request, param: str, value: Any) -> None:
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise ParameterError(param, f"Unsupported parameter: {param!r}.", "unsupported_parameter")

    return setter


_COMMON: dict[str, _Setter] = {
    "model": _set_model,
    "stream": _set_stream,
    "stream_options": _set_stream_options,
    "max_tokens": _set_max_tokens,
    "temperature": _set_temperature,
    "top_p": _set_top_p,
    "presence_penalty": _set_penalty,
    "frequency_penalty": _set_penalty,
    "n": _set_n,
    "seed": _set_seed,
    "stop": _set_stop,
    "user": _ignored,
    "logit_bias": _only({}),
}
_CHAT: dict[str, _Setter] = {
    **_COMMON,
    "messages": _set_messages,
    "max_completion_tokens": _set_max_tokens,
    "logprobs": _set_logprobs,
    "top_logprobs": _set_top_logprobs,
    "response_format": _set_response_format,
    "tools": _set_tools,
    "tool_choice": _set_tool_choice,
    "parallel_tool_calls": _ignored,
    "metadata": _ignored,
    "store": _only(False),
    "modalities": _only(["text"]),
    "service_tier": _only("auto", "default"),
    "functions": _only([]),
}
_COMPLETION: dict[str, _Setter] = {
    **_COMMON,
    "prompt": _set_prompt,
    "logprobs": _set_completion_logprobs,
    "echo": _only(False),
    "best_of": _only(1),
}
