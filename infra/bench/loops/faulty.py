"""Rewards and an environment of two-digit addition that fail, and the same without a fault.

What fails is decided by a hash of the question and the answer: drawn again, the same answer fails again.
"""

import asyncio
import math
import time
from typing import Literal

import xxhash

from actors.types import Reply, RewardInput, Trajectory
from infra.bench.loops.addition import last_number, sum_is_right

Fault = Literal["raises", "hangs", "nan"]
# The shares of answers on which a reward, or a reply of the environment, raises, hangs and is not a number.
SHARES: dict[Fault, float] = {"raises": 0.01, "hangs": 0.005, "nan": 0.005}
# Of a call that hangs: longer than any deadline.
HANG_SECONDS = 3600.0


def fault_of(*words: str) -> Fault | None:
    """Returns what goes wrong over these words; None for nothing."""
    chance = xxhash.xxh3_64_intdigest("\n".join(words).encode()) / 2**64
    for fault, share in SHARES.items():
        if chance < share:
            return fault
        chance -= share
    return None


def faulty_sum(question: RewardInput, answer: str) -> float:
    """Rewards as `sum_is_right` does, where it does not fail."""
    fault = fault_of("reward", question.text, answer)
    if fault == "raises":
        raise ArithmeticError("the checker found no number that it can parse")
    if fault == "hangs":
        time.sleep(HANG_SECONDS)
    return math.nan if fault == "nan" else sum_is_right(question, answer)


class SecondTry:
    """Asks once more after a wrong answer, and rewards a right one."""

    async def reset(self, question: RewardInput) -> None:
        """Begins the conversation."""
        self.question = question

    async def step(self, trajectory: Trajectory) -> Reply:
        """Ends the conversation after a right answer."""
        if last_number(trajectory.answers[-1].text) == self.question.metadata["sum"]:
            return Reply(reward=1.0)
        return Reply([{"role": "user", "content": self.question.text}], reward=0.0)


class FaultySecondTry(SecondTry):
    """A `SecondTry` that fails as often as the reward does."""

    async def step(self, trajectory: Trajectory) -> Reply:
        """Ends the conversation after a right answer, where it does not fail."""
        fault = fault_of("environment", self.question.text, *(answer.text for answer in trajectory.answers))
        if fault == "raises":
            raise ConnectionError("the tool's server closed the connection")
        if fault == "hangs":
            await asyncio.sleep(HANG_SECONDS)
        return Reply(reward=math.nan) if fault == "nan" else await super().step(trajectory)
