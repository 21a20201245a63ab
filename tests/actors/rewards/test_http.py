"""Rewards over HTTP, from a real server on the loopback interface."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.rewards.http import HttpReward
from actors.types import Prompt, RewardInput, RolloutId, Sample
from cluster.errors import DeadlineError, EngineError, StageError
from cluster.recipe.rlhf import Reward
from tests.helpers import free_port

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


class Server(ThreadingHTTPServer):
    """Answers as `reply` says and keeps what it was asked."""

    reply: Reply

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        status, text = self.server.reply(body, len(self.server.asked) - 1)
        # One that had no more patience is gone.
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.reply = lengths
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def lengths(body: dict[str, Any], _: int) -> tuple[int, str]:
    return 200, json.dumps({"rewards": [[len(text) for text in prompt["answers"]] for prompt in body["prompts"]]})


def test_the_server_sees_prompts_and_answers_and_gives_their_rewards(server: Server):
    assert HttpReward(server.url, 10).score(PROMPTS, GROUPS, ASKED) == [[1.0, 3.0], [2.0]]
    (asked,) = server.asked
    assert asked["prompts"][0] == {
        "id": "b",
        "messages": [{"role": "user", "content": "b"}],
        "metadata": {"answer": "4"},
        "answers": ["x", "xyz"],
    }


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_asked_again(server: Server, status: int):
    server.reply = lambda body, before: lengths(body, before) if before else (status, "later")
    assert HttpReward(server.url, 10).score(PROMPTS, GROUPS, ASKED) == [[1.0, 3.0], [2.0]]
    assert server.asked[0] == server.asked[1]


def test_a_server_that_fails_three_times_is_not_asked_a_fourth(server: Server):
    server.reply = lambda *_: (500, "out of memory")
    with pytest.raises(EngineError, match=f"{server.url} failed 3 times; the last: it answered 500: out of memory"):
        HttpReward(server.url, 10).score(PROMPTS, GROUPS, ASKED)
    assert len(server.asked) == 3


def test_a_server_that_does_not_answer_in_time_is_named(server: Server):
    done = threading.Event()
    server.reply = lambda *_: (200, str(done.wait(30)))
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"waited 0.3 s for reward endpoint http"):
        HttpReward(server.url, 0.3).score(PROMPTS, GROUPS, ASKED)
    assert time.monotonic() - begun < 10
    done.set()


def test_a_server_that_is_not_there_is_named():
    url = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(EngineError, match=f"{url} failed 3 times; the last: .*refused"):
        HttpReward(url, 10).score(PROMPTS, GROUPS, ASKED)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (404, "no such page", "refused: it answered 404: no such page"),
        (200, "<html>", "answered without rewards: <html>"),
        (200, '{"rewards": 3}', "answered without rewards"),
        (200, '{"rewards": [[1.0, 2.0]]}', "rewards for other answers"),
        (200, '{"rewards": [[1.0], [2.0]]}', "rewards for other answers"),
        (200, '{"rewards": [[1.0, NaN], [2.0]]}', "gave nan: a reward must be a finite number"),
        (200, '{"rewards": [[1.0, null], [2.0]]}', "gave None: a reward must be a finite number"),
    ],
)
def test_what_is_no_reward_is_refused_at_once(server: Server, status: int, text: str, message: str):
    server.reply = lambda *_: (status, text)
    with pytest.raises(StageError, match=message):
        HttpReward(server.url, 10).score(PROMPTS, GROUPS, ASKED)
    assert len(server.asked) == 1


def test_the_recipe_wants_a_url_for_http_and_for_nothing_else():
    assert Reward(kind="http", url="http://127.0.0.1:1/").url
    for wrong in ({"kind": "http"}, {"url": "http://127.0.0.1:1/"}, {"kind": "http", "url": "ftp://x"}):
        with pytest.raises(ValueError, match="url"):
            Reward(**wrong)
