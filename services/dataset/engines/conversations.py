"""Conversations and preferences between Argosy's form and those of training tools, row by row.

Argosy's form of a conversation is OpenAI's: `messages`, a list of objects with `role` and `content` (and `tool_calls`,
`tool_call_id`, `name`), and `tools`. A preference has `prompt`, `chosen` and `rejected`, each a list of such messages.
Null fields are left out. All other columns travel beside them.

- Alpaca: https://github.com/tatsu-lab/stanford_alpaca, with the `system` and `history` of LLaMA-Factory, which joins
  `instruction` and `input` by a line feed.
- ShareGPT: `conversations` of `from` and `value` as FastChat, Axolotl and LLaMA-Factory read them, with LLaMA-Factory's
  `function_call` and `observation` for tools.
- DPO: the preference formats of TRL, https://huggingface.co/docs/trl/dataset_formats, plain and conversational; that of
  OpenAI, https://platform.openai.com/docs/guides/direct-preference-optimization, is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from libs.compute.versions import Row, to_json
from services.dataset.engines.losses import Inexpressible

# A record, and how it would come back otherwise.
Written = tuple[Row, list[str]]
Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FROM_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "function_call",
}
_TO_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
_ALPACA = ("instruction", "input", "output", "system", "history")

RENUMBERED = "ids of tool calls are numbered anew"
REWRITTEN = "arguments of tool calls are written anew: spaces, order, numbers beyond 64 bits"


# What every form shares.


def _messages(value: Any, field: str) -> list[Message]:
    """Messages as Argosy keeps them. Raises `Inexpressible`, naming the place at fault."""
    if not isinstance(value, list) or not value:
        raise Inexpressible(f"{field}: not a list with messages")
    return [_message(one, f"{field}[{at}]") for at, one in enumerate(value)]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise Inexpressible(f"{place}: not an object")
    message = {name: inner for name, inner in value.items() if inner is not None}
    if message.get("role") not in _ROLES:
        raise Inexpressible(f"{place}.role: not one of {', '.join(_ROLES)}")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise Inexpressible(f"{place}.content: is missing")
    if content is not None and not isinstance(content, str | list):
        raise Inexpressible(f"{place}.content: neither text nor a list of parts")
    return message


def _beside(row: Row, *names: str) -> Row:
    """The columns that travel beside those of a form."""
    return {name: value for name, value in row.items() if name not in names}


def _with(row: Row, others: Row) -> Row:
    """A record and what travels beside it, which must not be called as a part of the form is."""
    for name in others:
        if name in row:
            raise Inexpressible(f"{name}: there is a column of this name already")
    return {**row, **others}


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Inexpressible(f"{name}: not a text")
    return value


def _plain(message: Message, what: str) -> str:
    """The text of a message that has nothing but a role and a text. Raises `Inexpressible`."""
    if not isinstance(message.get("content"), str):
        raise Inexpressible(f"{what} has no text for a message of several parts or without text")
    more = sorted(message.keys() - {"role", "content"})
    if more:
        raise Inexpressible(f"{what} has no place for {', '.join(more)} of a message")
    return message["content"]


def conversation_of(row: Row) -> Row:
    """A row of any of the forms as `messages` and what travels beside them. Raises `Inexpressible`."""
    if row.get("messages") is not None:
        return read_openai(row)
    if row.get("conversations") is not None:
        return read_sharegpt(row)
    if row.get("instruction") is not None:
        return read_alpaca(row)
    raise Inexpressible("neither messages nor conversations nor instruction")


# OpenAI.


def read_openai(row: Row) -> Row:
    """A record of OpenAI's fine-tuning format as a row."""
    return {**row, "messages": _messages(row.get("messages"), "messages")}


def write_openai(row: Row) -> Written:
    """A row as a record of OpenAI's fine-tuning format; `content` is null beside tool calls, as OpenAI wants it."""
    row = conversation_of(row)
    return {**row, "messages": [{**message, "content": message.get("content")} for message in row["messages"]]}, []


# Alpaca.


def read_alpaca(row: Row) -> Row:
    """A record as a row; `input` is kept beside the messages, so that it can be told from the instruction again."""
    instruction, given, output = (_text(row, name) for name in ("instruction", "input", "output"))
    if row.get("instruction") is None or row.get("output") is None:
        raise Inexpressible("instruction or output is missing")
    turns = [text for pair in _history(row) for text in pair]
    turns += ["\n".join(text for text in (instruction, given) if text), output]
    messages = [{"role": "system", "content": row["system"]}] if _text(row, "system") else []
    messages += [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(turns)]
    beside = {"input": given} if given else {}
    return _with({"messages": messages, **beside}, _beside(row, *_ALPACA))


def _history(row: Row) -> list[list[str]]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise Inexpressible("history: not a list of pairs of texts")
    return history


def write_alpaca(row: Row) -> Written:
    """A row as a record: a system message or none, then users and assistants in turn."""
    row = conversation_of(row)
    messages = row["messages"]
    system = ""
    if messages[0]["role"] == "system":
        system = _plain(messages[0], "Alpaca")
        messages = messages[1:]
        if not system:
            raise Inexpressible("Alpaca has no place for a system message without text")
    if len(messages) % 2 or [message["role"] for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise Inexpressible("Alpaca has turns of user and assistant only, the user's first and the assistant's last")
    if not messages:
        raise Inexpressible("Alpaca has no conversation without an answer")
    texts = [_plain(message, "Alpaca") for message in messages]
    instruction, given = _parted(texts[-2], _text(row, "input"))
    record: Row = {"instruction": instruction, "input": given, "output": texts[-1]}
    if system:
        record["system"] = system
    if len(texts) > 2:
        record["history"] = [texts[at : at + 2] for at in range(0, len(texts) - 2, 2)]
    return _with(record, _beside(row, "messages", "input")), []


def _parted(text: str, given: str) -> tuple[str, str]:
    """Instruction and input of the last question."""
    if not given:
        return text, ""
    if text == given:
        return "", given
    instruction = text.removesuffix(f"\n{given}")
    if instruction in (text, ""):
        raise Inexpressible("input: is not the end of the last message of the user")
    return instruction, given


# ShareGPT.


def read_sharegpt(row: Row) -> Row:
    """A record as a row."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise Inexpressible("conversations: not a list with turns")
    messages = [{"role": "system", "content": row["system"]}] if _text(row, "system") else []
    calls, answered = 0, 0
    for at, turn in enumerate(turns):
        role, value = _turn(turn, f"conversations[{at}]")
        if role == "function_call":
            found = _calls(value, f"conversations[{at}].value", calls)
            calls += len(found)
            messages.append({"role": "assistant", "tool_calls": found})
        elif role == "tool":
            answered += 1
            messages.append({"role": "tool", "tool_call_id": f"call_{answered}", "content": value})
        else:
            messages.append({"role": role, "content": value})
    tools = _tools(row.get("tools"))
    return _with({"messages": messages, **tools}, _beside(row, "conversations", "system", "tools"))


def _turn(turn: Any, place: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Inexpressible(f"{place}: not an object")
    speaker = turn.get("from")
    role = _FROM_SHAREGPT.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Inexpressible(f"{place}.from: not one of {', '.join(_FROM_SHAREGPT)}")
    if not isinstance(turn.get("value"), str):
        raise Inexpressible(f"{place}.value: not a text")
    more = sorted(turn.keys() - {"from", "value"})
    if any(turn[name] is not None for name in more):
        raise Inexpressible(f"{place}: no place for {', '.join(more)}")
    return role, turn["value"]


def _calls(text: str, place: str, before: int) -> list[Message]:
    """The calls of a `function_call`: one object or a list of them, with `name` and `arguments`."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Inexpressible(f"{place}: a function call must be JSON") from None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise Inexpressible(f"{place}: a function call has a name and arguments")
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": to_json(call.get("arguments", {}))},
        }
        for number, call in enumerate(calls, before + 1)
    ]


def _tools(value: Any) -> Row:
    """The tools, which LLaMA-Factory wants as JSON text."""
    if not value:
        return {}
    try:
        tools = orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        raise Inexpressible("tools: is text that is no JSON") from None
    if not isinstance(tools, list):
        raise Inexpressible("tools: not a list")
    return {"tools": tools} if tools else {}


def write_sharegpt(row: Row) -> Written:
    """A row as a record."""
    row = conversation_of(row)
    messages, changes = row["messages"], dict.fromkeys(_tool_changes(row["messages"]))
    turns = [{"from": _sharegpt_role(message), "value": _sharegpt_value(message)} for message in messages]
    if any(message["role"] == "system" for message in messages[1:]):
        raise Inexpressible("ShareGPT has a system message at the beginning only")
    tools = _tools(row.get("tools"))
    record: Row = {"conversations": turns}
    if tools:
        record["tools"] = to_json(tools["tools"])
    return _with(record, _beside(row, "messages", "tools")), list(changes)


def _sharegpt_role(message: Message) -> str:
    if message.get("tool_calls"):
        return "function_call"
    if message["role"] not in _TO_SHAREGPT:
        raise Inexpressible(f"ShareGPT has no {message['role']} messages")
    return _TO_SHAREGPT[message["role"]]


def _sharegpt_value(message: Message) -> str:
    if not message.get("tool_calls"):
        # The id of the call that a tool answers is told by the order.
        return _plain({name: value for name, value in message.items() if name != "tool_call_id"}, "ShareGPT")
    more = sorted(name for name in message.keys() - {"role", "tool_calls"} if message[name])
    if more or message["role"] != "assistant":
        raise Inexpressible(f"ShareGPT has no place for {', '.join(more) or message['role']} beside tool calls")
    calls = [{"name": name, "arguments": arguments} for name, arguments, _ in map(_call, message["tool_calls"])]
    return to_json(calls[0] if len(calls) == 1 else calls)


def _call(call: Any) -> tuple[str, Any, str]:
    """Name, arguments and text of the arguments of an OpenAI tool call."""
    try:
        name, text = call["function"]["name"], call["function"]["arguments"]
        if isinstance(name, str) and isinstance(text, str):
            return name, orjson.loads(text), text
    except (TypeError, KeyError, orjson.JSONDecodeError):
        pass
    raise Inexpressible("a tool call has no name, or arguments that are no JSON")


def _tool_changes(messages: list[Message]) -> Iterator[str]:
    """How tool calls come back otherwise: ShareGPT has no ids, and arguments as values instead of text."""
    calls = [call for message in messages for call in message.get("tool_calls") or []]
    answers = [message.get("tool_call_id") for message in messages if message["role"] == "tool"]
    for number, call in enumerate(calls, 1):
        name, arguments, text = _call(call)
        if to_json(arguments) != text:
            yield REWRITTEN
        made = {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": text}}
        if call != made:
            yield RENUMBERED
    if answers != [f"call_{number}" for number in range(1, len(answers) + 1)]:
        yield RENUMBERED


# Preferences.


def read_dpo(row: Row) -> Row:
    """A record as a row: plain, or conversational with the prompt apart or as the common beginning of both answers, or
    OpenAI's.
    """
    row = _openai_preference(row) if "preferred_output" in row else row
    chosen, rejected = (_answer(row.get(name), name) for name in ("chosen", "rejected"))
    prompt = row.get("prompt")
    if prompt is None:
        prompt = _common_beginning(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    else:
        prompt = _messages(prompt, "prompt")
    if not prompt or not chosen or not rejected:
        raise Inexpressible("prompt, chosen or rejected is empty")
    return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _openai_preference(row: Row) -> Row:
    """OpenAI's names of a preference in ours; what `input` says beside its messages travels beside them."""
    given = row.get("input")
    if not isinstance(given, dict):
        raise Inexpressible("input: not an object with messages")
    renamed = {
        "prompt": _messages(given.get("messages"), "input.messages"),
        "chosen": _messages(row.get("preferred_output"), "preferred_output"),
        "rejected": _messages(row.get("non_preferred_output"), "non_preferred_output"),
    }
    beside = _beside(row, "input", "preferred_output", "non_preferred_output")
    return _with(renamed, {**_beside(given, "messages"), **beside})


def _answer(value: Any, field: str) -> list[Message]:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else _messages(value, field)


def _common_beginning(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """As TRL's `extract_prompt`: the messages that both begin with; each keeps at least one of its own."""
    most = min(len(chosen), len(rejected)) - 1
    same = next((at for at in range(most) if chosen[at] != rejected[at]), max(0, most))
    return chosen[:same]


def write_dpo(row: Row) -> Written:
    """A preference between two texts after one question, as three texts."""
    row = read_dpo(row)
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    for name, role in roles.items():
        if [message["role"] for message in row[name]] != [role]:
            raise Inexpressible(f"plain DPO has one {role} message as {name}; dpo-conversational has any")
    return {**row, **{name: _plain(row[name][0], "plain DPO") for name in roles}}, []


def write_dpo_conversational(row: Row) -> Written:
    """A preference with prompt and answers as messages."""
    return read_dpo(row), []


READERS: dict[str, Callable[[Row], Row]] = {
    "openai": read_openai,
    "alpaca": read_alpaca,
    "sharegpt": read_sharegpt,
    "dpo": read_dpo,
}
WRITERS: dict[str, Callable[[Row], Written]] = {
    "openai": write_openai,
    "alpaca": write_alpaca,
    "sharegpt": write_sharegpt,
    "dpo": write_dpo,
    "dpo-conversational": write_dpo_conversational,
}
