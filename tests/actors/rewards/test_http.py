"""Rewards over HTTP, from a real server on the loopback interface."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.rewards.http import HttpReward
from actors.types import Failure, Prompt, RewardInput, RolloutId, Sample, Verdict
from cluster.recipe.rlhf.rewards import Reward
from tests.helpers import fastest, free_port

INPUTS = {name: RewardInput([{"role": "user", "content": name}], {"answer": "4"}) for name in "ab"}
PROMPTS = [Prompt("b", [1]), Prompt("a", [2])]
ASKED = [INPUTS[prompt.id] for prompt in PROMPTS]
TEXTS = [["x", "xyz"], ["xy"]]
GROUPS = [
    [Sample(RolloutId(0, prompt.id, i), [5], [-0.1], [0], "stop", text) for i, text in enumerate(texts)]
    for prompt, texts in zip(PROMPTS, TEXTS, strict=True)
]
# From the request's body and how many came before, to the status and the body of the answer.
Reply = Callable[[dict[str, Any], int], tuple[int, str]]


class Endpoint(ThreadingHTTPServer):
    """A reward endpoint that answers with `reply` and keeps the requests' bodies."""

    reply: Reply
    # Seconds between two characters of an answer.
    trickle = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        status, text = self.server.reply(body, len(self.server.asked) - 1)
        # A client whose time was up has closed the connection.
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.end_headers()
            for part in text if self.server.trickle else [text]:
                self.wfile.write(part.encode())
                time.sleep(self.server.trickle)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        running.reply = lengths
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def lengths(body: dict[str, Any], _: int) -> tuple[int, str]:
    return 200, json.dumps({"rewards": [[len(text) for text in prompt["answers"]] for prompt in body["prompts"]]})


def scored(endpoint: Endpoint, timeout: float = 10, attempts: int = 2) -> list[list[Verdict]]:
    return HttpReward(endpoint.url, timeout, attempts).score(PROMPTS, GROUPS, ASKED)


def reasons(verdicts: list[list[Verdict]]) -> list[str]:
    assert [len(row) for row in verdicts] == [2, 1]
    return [verdict.reason for row in verdicts for verdict in row if isinstance(verdict, Failure)]


def test_the_server_sees_prompts_and_answers_and_gives_their_rewards(endpoint: Endpoint):
    assert scored(endpoint) == [[1.0, 3.0], [2.0]]
    (asked,) = endpoint.asked
    assert asked["prompts"][0] == {
        "id": "b",
        "messages": [{"role": "user", "content": "b"}],
        "metadata": {"answer": "4"},
        "answers": ["x", "xyz"],
    }


def test_answers_with_turns_before_them_are_asked_about_with_their_own_conversations(endpoint: Endpoint):
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "sure?"}]
    groups = [[GROUPS[0][0], replace(GROUPS[0][1], history=turns)], GROUPS[1]]
    assert HttpReward(endpoint.url, 10, 1).score(PROMPTS, groups, ASKED) == [[1.0, 3.0], [2.0]]
    (asked,) = endpoint.asked
    assert [len(row["messages"]) for row in asked["prompts"]] == [1, 3, 1]
    assert [row["answers"] for row in asked["prompts"]] == [["x"], ["xyz"], ["xy"]]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_asked_again(endpoint: Endpoint, status: int):
    endpoint.reply = lambda body, before: lengths(body, before) if before else (status, "later")
    assert scored(endpoint) == [[1.0, 3.0], [2.0]]
    assert endpoint.asked[0] == endpoint.asked[1]


def answers_of(body: dict[str, Any]) -> list[str]:
    return [answer for prompt in body["prompts"] for answer in prompt["answers"]]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 500])
def test_an_answer_that_the_server_cannot_judge_takes_no_other_with_it(endpoint: Endpoint, status: int):
    endpoint.reply = lambda body, _: (status, "no z") if "xyz" in answers_of(body) else lengths(body, 0)
    (first, failed), (other,) = scored(endpoint)
    assert (first, other) == (1.0, 2.0)
    assert "for prompt 'b' and answer 'xyz'" in failed.reason
    assert f"it answered {status}: no z" in failed.reason


@pytest.mark.slow
def test_a_server_that_fails_three_times_is_not_asked_a_fourth(endpoint: Endpoint):
    endpoint.reply = lambda *_: (500, "out of memory")
    found = reasons(scored(endpoint, attempts=1))
    assert len(found) == 3
    message = f"reward endpoint {endpoint.url} failed 3 times; the last: it answered 500: out of memory, for prompt 'b'"
    assert found[0].startswith(message)
    assert len(endpoint.asked) == 3


def test_a_server_that_does_not_answer_in_time_is_named(endpoint: Endpoint):
    done = threading.Event()
    endpoint.reply = lambda *_: (200, str(done.wait(30)))
    begun = time.monotonic()
    found = reasons(scored(endpoint, timeout=0.3))
    assert len(found) == 3
    assert f"reward endpoint {endpoint.url} took longer than 0.3 s" in found[0]
    assert time.monotonic() - begun < 20
    done.set()


def test_an_answer_that_comes_in_trickles_is_late_all_the_same(endpoint: Endpoint):
    # The whole answer takes more than 10 s, and no pause in it is as long as the deadline.
    endpoint.trickle = 0.4
    begun = time.monotonic()
    assert "took longer than 0.5 s" in reasons(scored(endpoint, timeout=0.5, attempts=1))[0]
    assert time.monotonic() - begun < 7


def test_a_server_that_is_not_there_is_named_at_once():
    url = f"http://127.0.0.1:{free_port()}/"

    def fails() -> None:
        (failed, _), (_,) = HttpReward(url, 10, 3).score(PROMPTS, GROUPS, ASKED)
        assert f"{url} failed 3 times; the last: " in failed.reason

    # Three times for all, and not for each.
    assert fastest(fails, below=3) < 3


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (404, "no such page", "refused: it answered 404: no such page"),
        (200, "<html>", "answered without rewards: <html>"),
        (200, '{"rewards": 3}', "answered without rewards"),
        (200, '{"rewards": [[1.0, 2.0]]}', "rewards for other answers"),
        (200, '{"rewards": [[1.0], [2.0]]}', "rewards for other answers"),
    ],
)
def test_a_reply_without_verdicts_is_a_failure(endpoint: Endpoint, status: int, text: str, message: str):
    endpoint.reply = lambda *_: (status, text)
    found = reasons(scored(endpoint, attempts=1))
    assert len(found) == 3
    assert all(message in reason for reason in found)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("value", "message"), [("NaN", "gave nan: it must be a finite number"), ("null", "gave None: it must be a number")]
)
def test_a_reward_that_is_no_number_is_asked_for_again_alone(endpoint: Endpoint, value: str, message: str):
    without_one = (200, f'{{"rewards": [[1.0, {value}], [2.0]]}}')
    endpoint.reply = lambda body, before: lengths(body, 0) if before else without_one
    assert scored(endpoint) == [[1.0, 3.0], [2.0]]
    assert answers_of(endpoint.asked[1]) == ["xyz"]
    endpoint.asked.clear()
    (failed,) = reasons(scored(endpoint, attempts=1))
    assert message in failed


def test_the_recipe_wants_a_url_for_http_and_for_nothing_else():
    assert Reward(kind="http", url="http://127.0.0.1:1/").url
    for wrong in ({"kind": "http"}, {"url": "http://127.0.0.1:1/"}, {"kind": "http", "url": "ftp://x"}):
        with pytest.raises(ValueError, match="url"):
            Reward(**wrong)
