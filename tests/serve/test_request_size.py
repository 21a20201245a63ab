"""The reserved tokens are an upper bound of those used, by prompts and answers of every kind."""

from typing import Any

import pytest

from serve.request_size import most_tokens
from serve.transport.messages import Endpoint

CONTEXT = 100
CHAT = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        ("completions", {"prompt": "four", "max_tokens": 10}, 14),
        ("completions", {"prompt": "four", "max_tokens": 10, "n": 3}, 34),
        ("completions", {"prompt": "four"}, 20),
        ("completions", {"prompt": "four", "max_tokens": None}, CONTEXT),
        ("completions", {"prompt": ["four", "five5"], "max_tokens": 10, "n": 2}, 24 + 25),
        ("completions", {"prompt": [7, 8, 9], "max_tokens": 10}, 13),
        ("completions", {"prompt": [[7, 8, 9], [7]], "max_tokens": 10}, 13 + 11),
        ("completions", {"prompt": "東京", "max_tokens": 0}, 6),
        ("completions", {"prompt": "x" * 1000, "max_tokens": 10**9, "n": 20}, 20 * CONTEXT),
        ("chat/completions", {"messages": CHAT}, CONTEXT),
        ("chat/completions", {"messages": CHAT, "max_completion_tokens": 10, "max_tokens": 90, "n": 2}, 48 + 2 * 10),
        ("chat/completions", {"messages": CHAT, "n": 20}, 20 * CONTEXT),
        ("tokenize", {"prompt": "four"}, 4),
        ("tokenize", {"prompt": "x" * 300}, 300),
        ("detokenize", {"tokens": [1] * 30}, 30),
        ("score", {"conversations": [CHAT, CHAT * 9]}, 34 + CONTEXT),
        # Fields of other endpoints, which vLLM ignores, reserve nothing less.
        ("chat/completions", {"messages": CHAT, "max_tokens": 90, "max_output_tokens": 1}, CONTEXT),
        ("completions", {"prompt": ["four", "five5"], "max_tokens": 10, "messages": []}, 14 + 15),
        ("responses", {"input": "four", "messages": [], "max_tokens": 1}, CONTEXT),
        ("tokenizer_info", {}, 0),
        # Requests that the validation will refuse.
        ("completions", {}, 20),
        ("completions", {"prompt": 5, "max_tokens": "many", "n": -1}, CONTEXT),
        ("score", {"conversations": "x"}, 0),
    ],
)
def test_the_most_tokens(endpoint: Endpoint, body: dict[str, Any], tokens: int) -> None:
    assert most_tokens(endpoint, body, CONTEXT) == tokens
