"""Rewards from a server, over HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from actors.functions.values import ValueRefusedError, as_number
from actors.rewards.function import shown
from actors.types import Failure, Prompt, RewardInput, Sample, Scores, Verdict

# How often one request is sent while the server is busy or not there, and the pause before the second time; the third
# comes after twice as long.
SENDS = 3
PAUSE_SECONDS = 0.5
BUSY = 429
# Requests for single answers that are open at once.
AT_ONCE = 32
# The caller waits so much longer than the timeouts here, whose errors say more.
GRACE_SECONDS = 30.0
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class _AnswerToScore:
    """One answer, with its prompt and the turns between the two."""

    prompt: Prompt
    input: RewardInput
    text: str
    history: list[dict[str, Any]]


class _RequestError(Exception):
    """A request that gave no verdict; `alone` says whether requests for single answers may succeed."""

    def __init__(self, how: str, alone: bool = True) -> None:
        super().__init__(how)
        self.alone = alone


class HttpReward:
    """Asks a server for the rewards of many answers in one request, and again for each answer that got none, alone.

    The server has to answer `POST url` with the body
    `{"prompts": [{"id", "messages", "metadata", "answers": [text, …]}, …]}` by
    `{"rewards": [[number, …], …]}`, prompts and answers in the same order. null stands for a reward that it cannot
    give.

    Args:
        url: the server's address.
        timeout: the most seconds for one request, however often it is sent.
        attempts: the most requests about one answer: the first is about all answers, the others are about it alone.
    """

    def __init__(self, url: str, timeout: float, attempts: int) -> None:
        self.url, self.timeout, self.attempts = url, timeout, attempts

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], inputs: Sequence[RewardInput]
    ) -> Scores:
        """Returns the verdicts of the samples of each prompt.

        A request is sent up to three times: again if there is no connection, or the server answers 429 or 5xx. A
        verdict is a `Failure`, which names server, prompt and answer, if no request brought a finite number for it; or,
        at once, if there is no connection.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            inputs: what the server sees of each.
        """
        answers = [
            _AnswerToScore(prompt, own, sample.text, sample.history)
            for prompt, group, own in zip(prompts, groups, inputs, strict=True)
            for sample in group
        ]
        if not answers:
            return [[] for _ in groups]
        verdicts = iter(asyncio.run(self._verdicts(answers, _row_sizes(groups))))
        return [list(islice(verdicts, len(group))) for group in groups]

    async def _verdicts(self, answers: Sequence[_AnswerToScore], sizes: Sequence[int]) -> list[Verdict]:
        async with httpx.AsyncClient() as client:
            try:
                found = await self._request(client, answers, sizes)
            except _RequestError as error:
                found = [self._failure(one, str(error)) for one in answers]
                if not error.alone:
                    return found
            gate = asyncio.Semaphore(AT_ONCE)
            for _ in range(self.attempts - 1):
                missing = [index for index, verdict in enumerate(found) if isinstance(verdict, Failure)]
                again = await asyncio.gather(*(self._alone(client, gate, answers[index]) for index in missing))
                for index, verdict in zip(missing, again, strict=True):
                    found[index] = verdict
        return found

    async def _alone(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, answer: _AnswerToScore) -> Verdict:
        try:
            async with gate:
                (verdict,) = await self._request(client, [answer], [1])
        except _RequestError as error:
            return self._failure(answer, str(error))
        return verdict

    async def _request(
        self, client: httpx.AsyncClient, answers: Sequence[_AnswerToScore], sizes: Sequence[int]
    ) -> list[Verdict]:
        """Posts the answers to prompts, and returns their verdicts; a prompt may have several answers. Raises a
        _RequestError."""
        texts = iter(answers)
        groups = [list(islice(texts, size)) for size in sizes if size]
        rows = [
            {
                "id": group[0].prompt.id,
                "messages": [*group[0].input.messages, *group[0].history],
                "metadata": dict(group[0].input.metadata),
                "answers": [one.text for one in group],
            }
            for group in groups
        ]
        response = await self._post(client, {"prompts": rows})
        try:
            rewards = response.json()["rewards"]
            shape = [len(row) for row in rewards]
        except (ValueError, KeyError, TypeError) as error:
            raise _RequestError(f"answered without rewards: {_shown(response)}") from error
        if shape != [len(group) for group in groups]:
            raise _RequestError("gave rewards for other answers than those it was asked about")
        values = (value for row in rewards for value in row)
        return [self._verdict(one, value) for one, value in zip(answers, values, strict=True)]

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        failure = ""
        try:
            async with asyncio.timeout(self.timeout):
                for send in range(SENDS):
                    if send:
                        await asyncio.sleep(PAUSE_SECONDS * 2 ** (send - 1))
                    try:
                        # The time is bounded here, as a whole; httpx would bound each read.
                        response = await client.post(self.url, json=body, timeout=None)
                    except httpx.TransportError as error:
                        failure, connected = str(error) or type(error).__name__, False
                        continue
                    if response.is_success:
                        return response
                    failure, connected = f"it answered {response.status_code}: {_shown(response)}", True
                    if response.status_code != BUSY and not response.is_server_error:
                        raise _RequestError(f"refused: {failure}")
        except TimeoutError as error:
            raise _RequestError(f"took longer than {self.timeout:g} s" + (failure and f"; {failure}")) from error
        raise _RequestError(f"failed {SENDS} times; the last: {failure}", alone=connected)

    def _verdict(self, answer: _AnswerToScore, value: Any) -> Verdict:
        try:
            return as_number(value)
        except ValueRefusedError as error:
            return self._failure(answer, str(error))

    def _failure(self, answer: _AnswerToScore, how: str) -> Failure:
        where = f"for prompt {answer.prompt.name!r} and answer {shown(answer.text)}"
        return Failure(f"reward endpoint {self.url} {how}, {where}")


def _row_sizes(groups: Sequence[Sequence[Sample]]) -> list[int]:
    """Returns how many answers share a row of the request: those to a prompt, unless they have turns before them."""
    sizes: list[int] = []
    for group in groups:
        sizes += [1] * len(group) if any(sample.history for sample in group) else [len(group)]
    return sizes


def http_seconds(timeout: float, attempts: int) -> Callable[[int], float]:
    """Returns the most seconds that `HttpReward.score` takes, as a function of the number of answers."""
    return lambda answers: GRACE_SECONDS + timeout * (1 + (attempts - 1) * -(-answers // AT_ONCE))


def _shown(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:SHOWN_CHARACTERS]
