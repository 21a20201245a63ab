"""Environments of tests, which run in processes of their own and import nothing heavy."""

import asyncio
import json
import time
from typing import Any

from actors.types import Reply, RewardInput, Trajectory


class Counting:
    """Replies twice after a wait, counts its replies, and rewards each answer."""

    def __init__(self) -> None:
        self.replies = 0
        self.question: RewardInput | None = None

    async def reset(self, question: RewardInput) -> None:
        """Keeps the question."""
        self.question = question

    async def step(self, trajectory: Trajectory) -> Reply:
        """Replies with its count and the trajectory that it got."""
        assert trajectory.question == self.question
        await asyncio.sleep(0.05)
        self.replies += 1
        assert self.replies == len(trajectory.answers)
        drawn = sum(trajectory.loss_mask)
        message = {"role": "user", "content": json.dumps([self.replies, len(trajectory.messages), drawn])}
        return Reply([message] if self.replies < 3 else [], reward=float(self.replies))


class Unsound:
    """Fails as the prompt says."""

    tools = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)

    async def reset(self, question: RewardInput) -> None:
        """Keeps nothing."""

    async def step(self, trajectory: Trajectory) -> Any:
        """Fails."""
        fate = trajectory.question.metadata["fate"]
        if fate == "raise":
            raise KeyError("no such tool")
        if fate == "hang":
            await asyncio.sleep(60)
        if fate == "block":
            time.sleep(60)
        if fate == "number":
            return 3
        if fate == "object":
            return Reply([{"role": "tool", "content": "3", "tool": self}])
        if fate == "half":
            return Reply([{"role": "user", "content": "\ud83d"}])
        return Reply([], float("nan") if fate == "nan" else 1.0)


def fails_once(question: RewardInput, answers: list[str]) -> str | None:
    """Fails the first time that it is called."""
    if not hasattr(fails_once, "called"):
        fails_once.called = True  # type: ignore[attr-defined]
        raise ConnectionError("not yet")
    return "sure?" if len(answers) == 1 else None
