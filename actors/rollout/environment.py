"""Rolls out conversations of several turns: after each answer an environment plays the user or a tool, or ends it.

Tokens are kept as the engine drew them, and nothing is tokenized twice: the environment's replies are put between them.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from actors.model.chat import Chat
from actors.rollout.environment_process import EnvironmentProcess, StepError
from actors.types import Answer, Prompt, Reply, RewardInput, Sample, Sampling, Trajectory
from cluster.errors import UserError

# Draws one completion of a prompt.
Draw = Callable[[Prompt, Sampling], Awaitable[Sample]]


@dataclass(frozen=True)
class MultiTurnSettings:
    """Settings of conversations of several turns.

    Attributes:
        function: module:name of a class of `Environment`s; or of a function of a `RewardInput` and the answers so far,
            which returns the next turn, as a text of the user or a message `{"role", "content"}`, or None to end the
            conversation.
        inputs: what the environment sees of each prompt, by the prompt's id. Completions of other prompts have one
            turn.
        turns: the most answers in a conversation.
        seconds: the most for one reply.
    """

    function: str
    inputs: Mapping[str, RewardInput]
    turns: int
    seconds: float = 60.0


class MultiTurnRunner:
    """Continues the completions of an engine, each conversation for itself. Several threads may use it.

    Args:
        settings: how they are continued.
        chat: renders replies.
        context: the most tokens of a conversation.

    Raises:
        UserError: the environment cannot be imported.
    """

    def __init__(self, settings: MultiTurnSettings, chat: Chat, context: int) -> None:
        self._settings, self._chat, self._context = settings, chat, context
        self._process = EnvironmentProcess(settings.function, settings.seconds)
        self._numbers = itertools.count()

    def close(self) -> None:
        """Ends the environment's process."""
        self._process.close()

    async def run(self, prompt: Prompt, first: Sequence[Sample], sampling: Sampling, draw: Draw) -> list[Sample]:
        """Returns the samples of a prompt with all turns of their conversations.

        A conversation with which the environment cannot go on ends there; its sample says why in `failure`.

        Args:
            prompt: the prompt.
            first: its samples, with one turn.
            sampling: its `max_tokens` is for all that is drawn in one conversation.
            draw: draws the next turns.
        """
        if prompt.id not in self._settings.inputs:
            return list(first)
        return await asyncio.gather(*(self._converse(prompt, sample, sampling, draw) for sample in first))

    async def _converse(self, prompt: Prompt, sample: Sample, sampling: Sampling, draw: Draw) -> Sample:
        name = f"{next(self._numbers)}"
        try:
            return await self._continued(name, prompt, sample, sampling, draw)
        finally:
            await self._process.end(name)

    async def _continued(self, name: str, prompt: Prompt, sample: Sample, sampling: Sampling, draw: Draw) -> Sample:
        question, answers = self._settings.inputs[prompt.id], []
        for turn in range(1, self._settings.turns + 1):
            answers.append(Answer(sample.text, sample.raw_text, sample.finish_reason == "stop"))
            over = turn == self._settings.turns or not answers[-1].finished
            if over and not self._process.gives_rewards:
                break
            turns = [*sample.history, {"role": "assistant", "content": sample.text}]
            seen = Trajectory(question, [*question.messages, *turns], answers, sample.token_ids, sample.loss_mask)
            try:
                reply = await self._process.step(name, asdict(seen))
                between = self._chat.between(reply.messages) if reply.messages and not over else []
            except (StepError, UserError) as error:
                where = f"for prompt {prompt.label!r} after answer {turn}"
                return replace(sample, failure=f"environment {self._settings.function} {error}, {where}")
            sample = replace(sample, reward=_sum(sample, reply))
            if over or not reply.messages:
                break
            so_far = [*prompt.token_ids, *sample.token_ids, *between]
            room = min(sampling.max_tokens - sample.length, self._context - len(so_far))
            if room < 1:
                return replace(sample, finish_reason="length")
            drawn = await draw(
                replace(prompt, token_ids=so_far, name=f"{prompt.name} answer {sample.id.sample} turn {turn}"),
                replace(sampling, count=1, max_tokens=room),
            )
            sample = joined(sample, between, replace(drawn, history=[*turns, *reply.messages]))
        return sample


def _sum(sample: Sample, reply: Reply) -> float | None:
    return sample.reward if reply.reward is None else (sample.reward or 0.0) + reply.reward


def joined(first: Sample, between: list[int], second: Sample) -> Sample:
    """Returns one sample of two turns with the tokens of a reply between them, which the loss leaves out."""
    count = len(between)
    return replace(
        second,
        id=first.id,
        token_ids=first.token_ids + between + second.token_ids,
        logprobs=first.logprobs + [0.0] * count + second.logprobs,
        weight_versions=first.weight_versions + second.weight_versions[:1] * count + second.weight_versions,
        loss_mask=first.loss_mask + [False] * count + second.loss_mask,
        reward=first.reward,
    )
