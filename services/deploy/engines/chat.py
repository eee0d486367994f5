"""Chat messages to one prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.deploy.engines.errors import RequestRefused

if TYPE_CHECKING:
    from argosy.deploy.v1 import inference_service_pb2


def render_chat(
    tokenizer: Any, messages: Sequence[inference_service_pb2.ChatMessage], tools_json: Sequence[str]
) -> tuple[str, bool]:
    """The prompt of a conversation, and whether special tokens still have to be added.

    With a chat template the template decides. Without one a single user message is the prompt as it stands, which is
    what a base model expects; a longer conversation becomes one line a message (`User: ...`) and ends with
    `Assistant:`.

    Raises:
        RequestRefused: the template does not take these messages, or a tool is not a JSON object.
    """
    tools = [_json_object(text, f"tools_json[{i}]") for i, text in enumerate(tools_json)]
    if getattr(tokenizer, "chat_template", None) is None:
        return _plain(messages), True
    conversation = [_as_dict(message, i) for i, message in enumerate(messages)]
    try:
        prompt = tokenizer.apply_chat_template(
            conversation, tools=tools or None, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template raises whatever it likes, mostly TemplateError for a wrong order of roles
        raise RequestRefused("messages", "the chat template of the model does not take these messages") from error
    return prompt, False


def _plain(messages: Sequence[inference_service_pb2.ChatMessage]) -> str:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    lines = [f"{message.role.capitalize()}: {message.content}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


def _as_dict(message: inference_service_pb2.ChatMessage, position: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls_json:
        fields["tool_calls"] = _json_array(message.tool_calls_json, f"messages[{position}].tool_calls_json")
    return fields


def _json_object(text: str, field: str) -> dict[str, Any]:
    value = _parse(text, field)
    if not isinstance(value, dict):
        raise RequestRefused(field, "must be a JSON object")
    return value


def _json_array(text: str, field: str) -> list[Any]:
    value = _parse(text, field)
    if not isinstance(value, list):
        raise RequestRefused(field, "must be a JSON array")
    return value


def _parse(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(field, "is not valid JSON") from error
