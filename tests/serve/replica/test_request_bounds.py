"""Limits on the size of a request: whatever may fit into the context passes, and nothing that cannot fit."""

from typing import Any

import pytest

from serve.errors import RequestError
from serve.replica.request_bounds import MAX_SEQUENCES, OTHER_CHARACTERS, RequestBounds
from serve.request_size import OTHER_VALUES, VALUES_PER_TOKEN, check_size, without_prompts
from serve.transport.messages import Endpoint

CONTEXT, LONGEST = 100, 10
BOUNDS = RequestBounds(CONTEXT, LONGEST, {"messages", "tools", "enable_thinking", "add_generation_prompt"})
FULL = "x" * (CONTEXT * LONGEST + OTHER_CHARACTERS)
MESSAGES = [{"role": "user", "content": "x"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
VALUES = OTHER_VALUES + VALUES_PER_TOKEN * CONTEXT


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("tokenize", {"prompt": FULL}),
        ("completions", {"prompt": [FULL] * MAX_SEQUENCES}),
        ("completions", {"prompt": [[1] * CONTEXT] * MAX_SEQUENCES}),
        ("completions", {"prompt": [1] * CONTEXT, "n": MAX_SEQUENCES}),
        ("detokenize", {"tokens": [1] * CONTEXT}),
        ("score", {"conversations": [MESSAGES * CONTEXT] * 128}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * CONTEXT}),
        ("chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": False}}),
        ("chat/completions", {"messages": MESSAGES, "chat_template_kwargs": None, "n": None, "stop": None}),
        ("chat/completions", {"messages": MESSAGES, "stop": ["x"] * 32}),
    ],
)
def test_requests_within_the_bounds_pass(endpoint: Endpoint, body: dict[str, Any]) -> None:
    BOUNDS.check(endpoint, body)


@pytest.mark.parametrize(
    ("endpoint", "body", "words"),
    [
        ("tokenize", {"prompt": FULL + "x"}, "100 tokens"),
        ("tokenize", {"messages": [{"role": "user", "content": FULL}]}, "51,000 characters"),
        ("tokenize", {"messages": MESSAGES * VALUES}, "values"),
        ("tokenize", {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * VALUES}]}, "values"),
        ("tokenize", {"messages": MESSAGES, "tools": [{}] * VALUES}, "values"),
        ("detokenize", {"tokens": [1] * VALUES}, "values"),
        ("score", {"conversations": [[{"role": "user", "content": FULL}]]}, "characters"),
        ("completions", {"prompt": ["", FULL + "x"]}, "characters"),
        ("completions", {"prompt": [""] * (MAX_SEQUENCES + 1)}, "256 answers"),
        ("completions", {"prompt": ["", ""], "n": MAX_SEQUENCES}, "not 512"),
        ("chat/completions", {"messages": MESSAGES, "n": 10**9}, "256 answers"),
        ("chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}, "'image_url', and this model reads"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "reads text alone"),
        ("chat/completions", {"messages": MESSAGES, "stop": ["x"] * 33}, "stop"),
        ("chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, "messages"),
        ("chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {"padding": "max_length"}}, "padding"),
        ("tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"max_length": 1}}, "reads only add_generation"),
    ],
)
def test_requests_that_no_model_can_use_are_refused(endpoint: Endpoint, body: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        BOUNDS.check(endpoint, body)
    assert refused.value.status_code == 400
    assert len(refused.value.body["error"]["message"]) < 400


def test_deep_values_are_counted_without_recursion() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    BOUNDS.check("chat/completions", {"messages": MESSAGES, "x": deep})


def test_the_gateway_refuses_too_many_values_but_leaves_each_prompt_its_own_context() -> None:
    with pytest.raises(RequestError, match="values that can be of use"):
        check_size(without_prompts("tokenize", {"messages": MESSAGES * VALUES}), CONTEXT)
    check_size(without_prompts("completions", {"prompt": ["x"] * VALUES}), CONTEXT)
    check_size(without_prompts("detokenize", {"tokens": [1] * VALUES}), CONTEXT)
