"""Conversations as rows hold them: OpenAI's messages. https://platform.openai.com/docs/guides/supervised-fine-tuning

Turns of `from` and `value`, as ShareGPT has them, are read as well. A preference is a prompt and two answers of such
messages. https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
# The speakers of ShareGPT. Its calls of tools are no text; the dataset service imports them as messages.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
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
    found = _list(text)
    if not found:
        raise ConversationError(f"{column}: must be a list of messages")
    messages = _messages(found, column)
    if not any(counts(message) for message in messages):
        raise ConversationError(f"{column}: no assistant turn with a weight of 1")
    return messages


@dataclass(frozen=True)
class Preference:
    """A pair of answers.

    Attributes:
        prompt: what was said before, at least one message.
        chosen, rejected: the better answer and the worse one, each at least one message of the assistant.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def parse_preference(texts: tuple[str, ...], columns: tuple[str, ...]) -> Preference:
    """The pair of a row, checked.

    Args:
        texts: prompt, better and worse answer: JSON of a list of messages each, or the text of one.
        columns: of these, for errors.

    Raises:
        ConversationError: A part is empty or no list of messages, or an answer is none.
    """
    parts: list[list[Message]] = []
    for text, column, role in zip(texts, columns, ("user", "assistant", "assistant"), strict=True):
        found = _list(text) if text.strip() else []
        if found == []:
            raise ConversationError(f"{column}: is empty")
        parts.append(_messages([{"role": role, "content": text}] if found is None else found, column))
    for answer, column in zip(parts[1:], columns[1:], strict=True):
        if answer[0]["role"] != "assistant":
            raise ConversationError(f"{column}[0].role: must be assistant, as it is an answer")
    return Preference(*parts)


def counts(message: Message) -> bool:
    """Whether a message is to be learned."""
    return message["role"] == "assistant" and message["weight"] != 0


def without_oldest(messages: list[Message]) -> list[Message] | None:
    """A conversation without its oldest turn; system messages at its head stay.

    Returns:
        Messages from the next one of the user on, behind those of the system; None if no turn that counts would be
        left.
    """
    shorter = without_first_turn(messages)
    return shorter if shorter is not None and any(counts(message) for message in shorter) else None


def without_first_turn(messages: list[Message]) -> list[Message] | None:
    """The same, whether or not a turn that counts is left; None if no question would be left."""
    head = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    begin = next((at for at in range(head + 1, len(messages)) if messages[at]["role"] == "user"), None)
    return None if begin is None else messages[:head] + messages[begin:]


def _list(text: str) -> list[Any] | None:
    """The list that a text is the JSON of; None if it is no list."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast(list[Any], found) if isinstance(found, list) else None


def _messages(found: list[Any], column: str) -> list[Message]:
    if len(found) > _MOST_MESSAGES:
        raise ConversationError(f"{column}: has more than {_MOST_MESSAGES} messages")
    return [_message(message, f"{column}[{at}]") for at, message in enumerate(found)]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise ConversationError(f"{place}: must be an object")
    message: Message = {name: inner for name, inner in cast(Message, value).items() if inner is not None}
    if "role" not in message and "from" in message:
        message["role"], message["content"] = _speaker(message.pop("from")), message.pop("value", None)
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


def _speaker(value: Any) -> Any:
    """The role of a speaker; one that is not known stays as it is."""
    return _SPEAKERS.get(value, value) if isinstance(value, str) else value
