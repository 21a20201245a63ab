"""The size of a request, computed from its body before any model reads it: limits by the context of its model, and the
most tokens that it may use.

The gateway counts values before it does anything else with a request, and a replica values and characters before it
validates, renders or tokenizes. To read 20,000 messages, reserve tokens for them and send them on takes the gateway
15 ms, in which no client gets a token; to count them takes 1.
"""

import json
from collections.abc import Sequence
from typing import Any

from serve.errors import RequestError
from serve.http.openapi import GET_ENDPOINTS
from serve.transport.messages import Endpoint

# Values of a request besides its messages, such as those of a JSON schema.
OTHER_VALUES = 10_000
# Values of a message with one part: an object, its role, a list, a part, its type and its text.
VALUES_PER_TOKEN = 6
# Fields with one prompt or a list of them, each of which has the whole context for itself.
PROMPTS: dict[Endpoint, str] = {"detokenize": "tokens", "score": "conversations"}
# OpenAI's default of `max_tokens` for completions, and vLLM's.
COMPLETION_TOKENS = 16
# The fields of a prompt by which it can be counted without an answer.
CHAT_FIELDS = frozenset(
    {"messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"}
)
MESSAGE_FIELDS = frozenset({"messages", "system", "tools"})
# The most prompts of a request that are counted.
MAX_COUNTED = 16
# The fields that limit an answer, by endpoint; vLLM ignores those of other endpoints. Elsewhere it is max_tokens.
LIMITS: dict[Endpoint, tuple[str, ...]] = {
    "chat/completions": ("max_tokens", "max_completion_tokens"),
    "responses": ("max_output_tokens",),
}


def most_values(context: int) -> int:
    """Returns the most JSON values of a request whose model has that many tokens of context."""
    return OTHER_VALUES + VALUES_PER_TOKEN * context


def without_prompts(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request that share one context."""
    apart = {"prompt", PROMPTS.get(endpoint)}
    return {field: value for field, value in body.items() if field not in apart}


def check_size(value: Any, context: int, characters: int | None = None) -> None:
    """Checks the number of values and characters in a request, or in one of its prompts.

    Args:
        value: JSON.
        context: the most tokens of a request, prompt and answer together.
        characters: the most characters of all texts; None for no limit.

    Raises:
        RequestError: 400, it cannot fit into the context.
    """
    found_characters, found_values, most = 0, 0, most_values(context)
    stack = [value]
    while stack:
        one = stack.pop()
        found_values += 1
        if isinstance(one, str):
            found_characters += len(one)
        elif isinstance(one, dict):
            stack += one.values()
        elif isinstance(one, list):
            stack += one
        if characters is not None and found_characters > characters:
            raise _refusal(context, f"{characters:,} characters")
        if found_values + len(stack) > most:
            raise _refusal(context, f"{most:,} values")


def _refusal(context: int, most: str) -> RequestError:
    message = f"the maximum context length is {context} tokens: the request has more than the {most} that can be of use"
    return RequestError(400, message, "BadRequestError")


def most_tokens(endpoint: Endpoint, body: dict[str, Any], context: int, counted: Sequence[int] | None = None) -> int:
    """Returns an upper bound of the tokens of a request: those of its prompts, and n · max_tokens for each.

    A token of a prompt has a byte at least; a prompt and one answer fit into the context together.

    Args:
        endpoint: the endpoint.
        body: the request, which has not been validated.
        context: the most tokens of a prompt and its answer together.
        counted: the tokens of each prompt, where they were counted.
    """
    if endpoint in GET_ENDPOINTS:
        return 0
    sizes = counted if counted is not None else [*map(_size, prompts_of(endpoint, body))]
    if endpoint in ("tokenize", "detokenize", "messages/count_tokens"):
        # Only these endpoints take prompts longer than the context.
        return sum(sizes)
    if endpoint == "score":
        return sum(min(context, size) for size in sizes)
    answers = max(1, _number(body.get("n"), 1))
    default = COMPLETION_TOKENS if endpoint == "completions" and "max_tokens" not in body else context
    asked = default
    for name in LIMITS.get(endpoint, ("max_tokens",)):
        asked = _number(body.get(name), asked)
    return sum(min(answers * context, min(context, size) + answers * max(0, asked)) for size in sizes)


def prompts_of(endpoint: Endpoint, body: dict[str, Any]) -> list[Any]:
    """Returns the prompts of a request, each as the fields of it that a model reads."""
    if endpoint == "score":
        given = body.get("conversations")
        return given if isinstance(given, list) else []
    if endpoint == "detokenize":
        return [body.get("tokens")]
    if endpoint == "responses":
        return [[body.get("input"), body.get("instructions"), body.get("tools")]]
    if "messages" in body and endpoint != "completions":
        system = [body["system"]] if "system" in body else []
        return [[body["messages"], body.get("tools"), body.get("documents"), *system]]
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]


def counting_requests(endpoint: Endpoint, body: dict[str, Any]) -> list[tuple[Endpoint, dict[str, Any]]] | None:
    """Returns the requests that count the tokens of a request's prompts; None if there are none, or too many."""
    if endpoint == "messages":
        return [("messages/count_tokens", {name: body[name] for name in MESSAGE_FIELDS & body.keys()})]
    if endpoint == "chat/completions":
        return [("tokenize", {name: body[name] for name in CHAT_FIELDS & body.keys()})]
    if endpoint != "completions":
        return None
    prompts = prompts_of(endpoint, body)
    if len(prompts) > MAX_COUNTED or not all(isinstance(prompt, str) for prompt in prompts):
        return None
    return [("tokenize", {"prompt": prompt}) for prompt in prompts]


def _size(prompt: Any) -> int:
    """Returns the number of token ids, or the bytes of a text or of anything else as JSON."""
    if isinstance(prompt, str):
        return len(prompt.encode())
    if isinstance(prompt, list) and all(isinstance(one, int) for one in prompt):
        return len(prompt)
    return len(json.dumps(prompt, ensure_ascii=False).encode())


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
