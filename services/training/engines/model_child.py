"""The process in which a stranger's tokenizer is loaded and chat template rendered: one file, one process.

It reads one request (JSON) from standard input and writes one answer to standard output. Its memory, its processor
time and its descriptors are limited; it has no secrets in its environment and, where the kernel lets a process give up
its network, no network. The wall clock is its parent's (`model_limits.py`).
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from libs.compute import confine

# Address space: the largest vocabularies of today need a quarter of it.
MEMORY_BYTES = 2 * 1024**3
_OPEN_FILES = 32
# Of a rendered conversation; the ones below have some hundred characters.
_MOST_OUTPUT = 1_000_000
_MOST_ERROR = 300
_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How are you?"},
    ],
)
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def _load_tokenizer(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode("Hello, 世界")


def _render(text: str) -> None:
    """Renders each conversation; a template may refuse one (a system message, say), but not all.

    Raises:
        Exception: Whatever is wrong with it.
    """
    from services.training.engines.template_sandbox import environment, forbidden_name

    engine = environment()
    if name := forbidden_name(engine, text):
        raise PermissionError(f"it reaches for {name!r}, which no template may see")
    template = engine.from_string(text)
    failures: list[Exception] = []
    for messages in _CONVERSATIONS:
        length = 0
        try:
            for piece in template.generate(messages=messages, add_generation_prompt=True, tools=None, **_TOKENS):
                length += len(piece)
                if length > _MOST_OUTPUT:
                    raise OverflowError(f"it writes more than {_MOST_OUTPUT:,} characters")
        except (OverflowError, MemoryError, RecursionError, PermissionError):
            raise
        except Exception as error:
            failures.append(error)
    if len(failures) == len(_CONVERSATIONS):
        raise failures[0]


_WORK = {"tokenizer": _load_tokenizer, "template": _render}


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    confine.leave_network()
    confine.limit_resources(MEMORY_BYTES, _OPEN_FILES, 0)
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    error = ""
    try:
        _WORK[request["kind"]](request["text"])
    except MemoryError:
        error = f"it needs more than {MEMORY_BYTES // 1024**2:,} MiB of memory"
    except RecursionError:
        error = "it calls itself without end"
    # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
    except BaseException as fault:
        error = str(fault)[:_MOST_ERROR] or type(fault).__name__
    answers.write(json.dumps({"error": error}).encode())
    answers.flush()


if __name__ == "__main__":
    main()
