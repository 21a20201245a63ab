"""Limits on the size of a request, by the context of its model.

The gateway counts values before it does anything else with a request, and a replica values and characters before it
validates, renders or tokenizes. To read 20,000 messages, reserve tokens for them and send them on takes the gateway
15 ms, in which no client gets a token; to count them takes 1.
"""

from typing import Any

from serve.errors import RequestError
from serve.transport.messages import Endpoint

# Values of a request besides its messages, such as those of a JSON schema.
OTHER_VALUES = 10_000
# Values of a message with one part: an object, its role, a list, a part, its type and its text.
VALUES_PER_TOKEN = 6
# Fields with one prompt or a list of them, each of which has the whole context for itself.
PROMPTS: dict[Endpoint, str] = {"detokenize": "tokens", "score": "conversations"}


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
