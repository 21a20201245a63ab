"""A scripted person who ranks, votes, chats and gives thumbs over HTTP, by a hidden rule that scores answers."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import httpx

from infra.bench.rounds.world import Rule

REPLY_SECONDS = 120.0
PAUSE_SECONDS = 0.5


@dataclass
class RequestLog:
    """The requests to a server, and how they ended.

    Attributes:
        answered: the number of answers by the name of the model that gave them.
        weights: the versions that the answers named.
        failed: the reason of every request that was not answered.
    """

    answered: Counter[str] = field(default_factory=Counter)
    weights: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)


class Person:
    """A person with a token, who judges by a rule.

    Args:
        url: the server's address.
        token: the token of an annotator.
        rule: scores an answer, more is better.
        reversed_rule: whether the person prefers the answers that the rule scores lower.
    """

    def __init__(self, url: str, token: str, rule: Rule, reversed_rule: bool = False) -> None:
        self._http = httpx.Client(base_url=url, timeout=REPLY_SECONDS, headers={"Authorization": f"Bearer {token}"})
        self._sign = -1.0 if reversed_rule else 1.0
        self._rule = rule

    def rank(self, count: int) -> int:
        """Ranks so many prompts, or as many as there are; returns how many. Prompts that come a second time do not
        count, as their rankings are no new judgements."""
        done = 0
        while done < count and (task := self._get("/label/next")["task"]):
            ranks = self._ranks([answer["text"] for answer in task["answers"]])
            said = {"prompt": task["prompt"], "again": task["again"], "ranks": ranks, "seconds": 3.0}
            answers = [answer["id"] for answer in task["answers"]]
            self._http.post("/label/judgement", json=said | {"answers": answers}).raise_for_status()
            done += not task["again"]
        return done

    def vote(self, prompts: Sequence[str]) -> None:
        """Compares two models' answers to each prompt."""
        for prompt in prompts:
            texts, name = ["", ""], ""
            with self._http.stream("POST", "/compare/answers", json={"prompt": prompt, "sides": 2}) as reply:
                reply.raise_for_status()
                for line in reply.iter_lines():
                    event = json.loads(line.removeprefix("data: ")) if line else {}
                    if "error" in event:
                        raise RuntimeError(event["error"])
                    name = event.get("comparison", name)
                    if "side" in event:
                        texts[event["side"]] += event["text"]
            body = {"comparison": name, "ranks": self._ranks(texts), "seconds": 2.0}
            self._http.post("/compare/vote", json=body).raise_for_status()

    def _ranks(self, texts: Sequence[str]) -> list[int]:
        scores = [self._sign * self._rule(text) for text in texts]
        return [1 + sum(other > score for other in scores) for score in scores]

    def _get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()


class Chatter:
    """Somebody who chats all the time, and while `rates` is set gives a thumb for each answer: up from a score on.

    Args:
        url: the server's address.
        rule: scores an answer.
        prompts: the prompts to ask, again and again.
        good: the least score for a thumb up.
    """

    def __init__(self, url: str, rule: Rule, prompts: Sequence[str], good: float) -> None:
        self.seen = RequestLog()
        self.rates = False
        self._url, self._rule, self._good = url, rule, good
        self._prompts: Iterator[str] = cycle(prompts)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Chatter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(REPLY_SECONDS)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=REPLY_SECONDS) as http:
            while not self._stop.wait(PAUSE_SECONDS):
                try:
                    self._ask(http, next(self._prompts))
                except httpx.HTTPError as error:
                    self.seen.failed.append(f"{type(error).__name__}: {error}")

    def _ask(self, http: httpx.Client, prompt: str) -> None:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "latest", "messages": messages, "temperature": 1.0, "max_tokens": 24}
        reply = http.post("/v1/chat/completions", json=body).raise_for_status()
        answer = reply.json()["choices"][0]["message"]["content"] or ""
        model, weights = reply.headers.get("x-triptych-model", "latest"), reply.headers["x-triptych-weights"]
        self.seen.answered[model] += 1
        self.seen.weights.add(weights)
        if not self.rates:
            return
        thumb = {
            "request": reply.headers["x-request-id"],
            "model": model,
            "weights": weights,
            "messages": messages,
            "answer": answer,
            "good": self._rule(answer) >= self._good,
        }
        http.post("/thumbs", json=thumb).raise_for_status()


def sample(url: str, model: str, prompts: Sequence[str], samples: int, seed: int) -> list[list[str]]:
    """Asks a served model for so many answers to each prompt, with fixed seeds; returns them as [prompts][samples]."""
    found: list[list[str]] = []
    with httpx.Client(base_url=url, timeout=REPLY_SECONDS) as http:
        for number, prompt in enumerate(prompts):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "n": samples,
                "seed": seed + number,
                "temperature": 1.0,
                "max_tokens": 24,
            }
            choices = http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"]
            found.append([choice["message"]["content"] or "" for choice in choices])
    return found
