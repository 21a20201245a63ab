"""Rewards from a server, over HTTP."""

import math
import time
from collections.abc import Sequence
from typing import Any

import httpx

from actors.rewards.pool import Scores
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import DeadlineError, EngineError, StageError

ATTEMPTS = 3
# The pause before the second attempt; the third comes after twice as long.
PAUSE_SECONDS = 0.5
BUSY = 429


class HttpReward:
    """Asks a server for the rewards of many answers in one request.

    The server has to answer `POST url` with the body
    `{"prompts": [{"id", "messages", "metadata", "answers": [text, …]}, …]}` by
    `{"rewards": [[number, …], …]}`, prompts and answers in the same order.

    Args:
        url: the server's address.
        timeout: the most seconds for one request, all attempts together.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], inputs: Sequence[RewardInput]
    ) -> Scores:
        """Returns the rewards of the samples of each prompt.

        The request is sent up to three times: again if there is no connection, or the server answers 429 or 5xx.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            inputs: what the server sees of each.

        Raises:
            DeadlineError: the server did not answer in time.
            EngineError: all attempts failed.
            StageError: the server refused the request, or sent something else than a finite number for each answer.
        """
        rows = [
            {
                "id": prompt.id,
                "messages": own.messages,
                "metadata": dict(own.metadata),
                "answers": [sample.text for sample in group],
            }
            for prompt, group, own in zip(prompts, groups, inputs, strict=True)
        ]
        return self._checked(self._post({"prompts": rows}), groups)

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        end = time.monotonic() + self.timeout
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
        raise DeadlineError(f"waited {self.timeout:g} s for reward endpoint {self.url}" + (failure and f"; {failure}"))

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
