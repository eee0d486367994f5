"""Conversations as rows hold them: OpenAI's messages. https://platform.openai.com/docs/guides/supervised-fine-tuning"""

from __future__ import annotations

import json
from typing import Any, cast

# `developer` is the newer name of `system`, `function` the older one of `tool`.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_MOST_MESSAGES = 4096

Message = dict[str, Any]


class ConversationError(ValueError):
    """A row holds no conversation to learn from; the message begins with the place at fault."""


def parse_conversation(text: str, column: str) -> list[Message]:
    """The messages of a row, checked.

    Args:
        text: JSON of a list of messages.
        column: for errors, which read `messages[2].role: ...`.

    Returns:
        Messages with `role` (one of four) and `content` (text), an assistant's with `weight` 0 or 1, and what else the
        row says of them.

    Raises:
        ConversationError: This is no conversation, or no turn of it counts.
    """
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise ConversationError(f"{column}: must be a list of messages")
    if len(found) > _MOST_MESSAGES:
        raise ConversationError(f"{column}: has more than {_MOST_MESSAGES} messages")
    messages = [_message(message, f"{column}[{at}]") for at, message in enumerate(cast(list[Any], found))]
    if not any(counts(message) for message in messages):
        raise ConversationError(f"{column}: no assistant turn with a weight of 1")
    return messages


def counts(message: Message) -> bool:
    """Whether a message is to be learned."""
    return message["role"] == "assistant" and message["weight"] != 0


def without_oldest(messages: list[Message]) -> list[Message] | None:
    """A conversation without its oldest turn; system messages at its head stay.

    Returns:
        Messages from the next one of the user on, behind those of the system; None if no turn that counts would be
        left.
    """
    head = 0
    while messages[head]["role"] == "system":
        head += 1
    begin = next((at for at in range(head + 1, len(messages)) if messages[at]["role"] == "user"), None)
    if begin is None or not any(counts(message) for message in messages[begin:]):
        return None
    return messages[:head] + messages[begin:]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise ConversationError(f"{place}: must be an object")
    message: Message = {name: inner for name, inner in cast(Message, value).items() if inner is not None}
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ConversationError(f"{place}.role: must be one of {', '.join(_ROLES)}")
    message["role"] = _ROLES[role]
    message["content"] = _content(message, f"{place}.content")
    weight = message.pop("weight", 1)
    if weight not in (0, 1) or (role != "assistant" and weight != 1):
        raise ConversationError(f"{place}.weight: must be 0 or 1, and is for assistant messages only")
    if message["role"] == "assistant":
        message["weight"] = int(weight)
    return message


def _content(message: Message, place: str) -> str:
    content = message.get("content")
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConversationError(f"{place}: is missing" if content is None else f"{place}: must be a text")
    texts: list[str] = []
    for at, part in enumerate(cast(list[Any], content)):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ConversationError(f"{place}[{at}]: only parts of type text can be learned")
        texts.append(part["text"])
    return "".join(texts)
