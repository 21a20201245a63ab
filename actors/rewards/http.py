"""Rewards that a server gives over HTTP."""

import math
import time
from collections.abc import Sequence
from typing import Any

import httpx

from actors.rewards.pool import Scores
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import DeadlineError, EngineError, StageError

ATTEMPTS = 3
# Before the second attempt, and twice as long before the third.
PAUSE_SECONDS = 0.5
BUSY = 429


class HttpReward:
    """Asks a server for the rewards of a step's answers, in one request.

    `POST url` with `{"prompts": [{"id", "messages", "metadata", "answers": [text, …]}, …]}` is to be answered with
    `{"rewards": [[number, …], …]}`, in that order.

    Args:
        url: where.
        seconds: most time for one step, all attempts together.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url, self.seconds = url, seconds

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], questions: Sequence[RewardInput]
    ) -> Scores:
        """Rewards of the samples of each prompt.

        A server that is not there, does not answer or answers 429 or 5xx is asked again, three times in all.

        Args:
            questions: what is sent of each prompt.

        Raises:
            DeadlineError: it did not answer in time.
            EngineError: it could not be asked, or said three times that it was not able to.
            StageError: it refused the request, or answered with something else than a finite number for each answer.
        """
        asked = [
            {
                "id": prompt.id,
                "messages": question.messages,
                "metadata": dict(question.metadata),
                "answers": [sample.text for sample in group],
            }
            for prompt, group, question in zip(prompts, groups, questions, strict=True)
        ]
        return self._checked(self._post({"prompts": asked}), groups)

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        end = time.monotonic() + self.seconds
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(min(PAUSE_SECONDS * 2 ** (attempt - 1), max(0.0, end - time.monotonic())))
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                response = httpx.post(self.url, json=body, timeout=left)
            except httpx.TimeoutException:
                break
            except httpx.TransportError as error:
                failure = str(error) or type(error).__name__
                continue
            if response.is_success:
                return response
            failure = f"it answered {response.status_code}: {response.text.strip()[:200]}"
            if response.status_code != BUSY and not response.is_server_error:
                raise StageError(f"reward endpoint {self.url} refused: {failure}")
        else:
            raise EngineError(f"reward endpoint {self.url} failed {ATTEMPTS} times; the last: {failure}")
        raise DeadlineError(f"waited {self.seconds:g} s for reward endpoint {self.url}" + (failure and f"; {failure}"))

    def _checked(self, response: httpx.Response, groups: Sequence[Sequence[Sample]]) -> Scores:
        try:
            rewards = response.json()["rewards"]
            shape = [len(row) for row in rewards]
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(f"reward endpoint {self.url} answered without rewards: {response.text[:200]}") from error
        if shape != [len(group) for group in groups]:
            raise StageError(f"reward endpoint {self.url} gave rewards for other answers than those it was asked about")
        broken = [value for row in rewards for value in row if not _is_finite_number(value)]
        if broken:
            raise StageError(f"reward endpoint {self.url} gave {broken[0]!r}: a reward must be a finite number")
        return [[float(value) for value in row] for row in rewards]


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
