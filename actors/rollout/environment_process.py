"""The process of the environment, which all conversations of a rollout actor share."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from actors.functions.caller import GRACE_SECONDS, START_SECONDS
from actors.functions.conversations import ENVIRONMENT
from actors.functions.process import FunctionProcess
from actors.types import Reply
from cluster.errors import DeadlineError, EngineError, UserError

# The most seconds that a process that was killed may take to end.
END_SECONDS = 10.0


class StepError(Exception):
    """An environment gave no reply; the message says why."""


class EnvironmentProcess:
    """Runs an environment in a process of its own, so that none can stop an engine. Several threads may use it.

    A process that does not answer in time is replaced; the conversations that it was at lose their state, and fail.

    Args:
        function: module:name of a class of `Environment`s, or of a function.
        seconds: the most for one reply.

    Attributes:
        gives_rewards: whether it is a class, which is shown the last answer too.

    Raises:
        UserError: the environment cannot be imported.
        DeadlineError: the import takes too long.
    """

    def __init__(self, function: str, seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._process = FunctionProcess(function, ENVIRONMENT)
        self._replacing = threading.Lock()
        # A plain function answers one conversation after the other.
        self._turn = threading.Lock()
        try:
            kind = self._process.ready.result(START_SECONDS)
        except TimeoutError as error:
            self._process.kill()
            raise DeadlineError(f"waited {START_SECONDS:.0f} s for environment {function} to be imported") from error
        except EngineError as error:
            raise UserError(f"environment {function} {error} while it was imported") from error
        self.gives_rewards = kind["objects"]
        self._one_by_one = not kind["asynchronous"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()

    async def step(self, conversation: str, trajectory: dict[str, Any]) -> Reply:
        """Returns the reply to the last answer.

        Args:
            conversation: a name of its own.
            trajectory: a `Trajectory` as JSON values.

        Raises:
            StepError: the environment raised, took too long, ended its process or returned no reply.
        """
        row = await self._call({"conversation": conversation, "trajectory": trajectory})
        if not self.gives_rewards and "value" not in row:
            # A function has no state that a second call could find changed.
            row = await self._call({"conversation": conversation, "trajectory": trajectory})
        if row.get("late"):
            raise StepError(f"took longer than {self._seconds:g} s")
        if "failure" in row:
            raise StepError(row["failure"])
        return Reply(**row["value"])

    async def end(self, conversation: str) -> None:
        """Ends a conversation in the environment, without waiting for a reply."""
        if self.gives_rewards and self._process.takes_calls:
            self._process.call({"conversation": conversation}, self._seconds)

    async def _call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not self._one_by_one:
            return await self._answer(arguments)
        await asyncio.to_thread(self._turn.acquire)
        try:
            return await self._answer(arguments)
        finally:
            self._turn.release()

    async def _answer(self, arguments: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.to_thread(self._living) if self._process.ended else self._process
        answer: Future[dict[str, Any]] = process.call(arguments, self._seconds)
        waiting = asyncio.wrap_future(answer)
        # Not `wait_for`, which would cancel the answer: the process gives it all the same.
        await asyncio.wait({waiting}, timeout=self._seconds + GRACE_SECONDS)
        if not waiting.done():
            process.kill()
            await asyncio.wait({waiting}, timeout=END_SECONDS)
            if waiting.done():
                waiting.exception()
            return {"late": True}
        try:
            return waiting.result()
        except EngineError as error:
            return {"failure": str(error)}

    def _living(self) -> FunctionProcess:
        """Returns the process, or another in place of one that has ended."""
        with self._replacing:
            if self._process.ended:
                self._process = FunctionProcess(self._function, ENVIRONMENT)
                try:
                    self._process.ready.result(START_SECONDS)
                except (TimeoutError, UserError, EngineError) as error:
                    raise StepError(f"could not be started again: {error}") from error
            return self._process
