"""The most tokens that a request may use, told from its body before any model reads it."""

import json
from typing import Any

from serve.http.openapi import GET_ENDPOINTS
from serve.transport.messages import Endpoint

# OpenAI's default of `max_tokens` for completions, and vLLM's.
COMPLETION_TOKENS = 16
# The fields that limit an answer, by endpoint; vLLM ignores those of other endpoints. Elsewhere it is max_tokens.
LIMITS: dict[Endpoint, tuple[str, ...]] = {
    "chat/completions": ("max_tokens", "max_completion_tokens"),
    "responses": ("max_output_tokens",),
}


def most_tokens(endpoint: Endpoint, body: dict[str, Any], context: int) -> int:
    """Returns an upper bound of the tokens of a request: those of its prompts, and n · max_tokens for each.

    A token of a prompt has a byte at least; a prompt and one answer fit into the context together.

    Args:
        endpoint: the endpoint.
        body: the request, which has not been validated.
        context: the most tokens of a prompt and its answer together.
    """
    if endpoint in GET_ENDPOINTS:
        return 0
    prompts = _prompts(endpoint, body)
    if endpoint in ("tokenize", "detokenize", "messages/count_tokens"):
        # These alone take more than the context.
        return sum(map(_size, prompts))
    if endpoint == "score":
        return sum(min(context, _size(prompt)) for prompt in prompts)
    answers = max(1, _number(body.get("n"), 1))
    default = COMPLETION_TOKENS if endpoint == "completions" and "max_tokens" not in body else context
    asked = default
    for name in LIMITS.get(endpoint, ("max_tokens",)):
        asked = _number(body.get(name), asked)
    return sum(min(answers * context, min(context, _size(prompt)) + answers * max(0, asked)) for prompt in prompts)


def _prompts(endpoint: Endpoint, body: dict[str, Any]) -> list[Any]:
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


def _size(prompt: Any) -> int:
    """Returns the number of token ids, or the bytes of a text or of anything else as JSON."""
    if isinstance(prompt, str):
        return len(prompt.encode())
    if isinstance(prompt, list) and all(isinstance(one, int) for one in prompt):
        return len(prompt)
    return len(json.dumps(prompt, ensure_ascii=False).encode())


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
