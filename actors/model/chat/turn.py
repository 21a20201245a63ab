"""The text of an assistant's turn: its reasoning and its calls, and whether a template has left a part of them out."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from actors.model.tokenizer import REASONING_FIELDS

THINK, END_THINK = "<think>", "</think>"


def reasoning_of(message: dict[str, Any]) -> str:
    """Returns the reasoning of a turn, whatever its field is called; empty where there is none."""
    return next((str(message[name]) for name in REASONING_FIELDS if message.get(name)), "")


def lost_part(message: dict[str, Any], written: str) -> str:
    """Names the part of an assistant's turn that is not in its text; the template may have changed white space."""
    found = _squeezed(written)
    if _squeezed(reasoning_of(message)) not in found:
        return "the reasoning"
    if any(_squeezed(word) not in found for call in message.get("tool_calls") or () for word in _words(call)):
        return "the tool_calls"
    return "" if _squeezed(message["content"]) in found else "a part of the assistant's turn"


def with_reasoning(message: dict[str, Any], prompt: str, content: str) -> str:
    """Returns the text of an assistant's turn with its reasoning between <think> and </think> before the content."""
    reasoning = reasoning_of(message)
    if not reasoning and END_THINK in content:
        reasoning, _, content = content.partition(END_THINK)
        reasoning = reasoning.removeprefix(THINK)
    thought = f"{THINK}\n{reasoning.strip()}\n{END_THINK}\n\n" if reasoning.strip() else f"{THINK}\n\n{END_THINK}\n\n"
    text = thought + content.strip()
    # Where the prompt has begun the thought, the model goes on with it.
    for opened in (f"{THINK}\n", THINK):
        if prompt.endswith(opened):
            return text.removeprefix(opened)
    return text


def _words(call: Any) -> Iterator[str]:
    """Yields the names and texts of a tool call that every notation writes alike."""
    function = call.get("function", call)
    yield str(function["name"])
    waiting = [function.get("arguments")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.isascii() and value.isalnum():
            yield value


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
