"""Rollouts of several turns: after each answer a function plays the user, or a tool, or ends the conversation.

Tokens are kept as the engine drew them, and nothing is tokenized twice: what the function says is put between them.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.model.chat import Chat
from actors.rewards.function import load_function
from actors.types import Prompt, RewardInput, Sample, Sampling
from cluster.errors import UserError

Message = dict[str, str]
# Draws the completions of every prompt.
Draw = Callable[[list[Prompt], list[Sampling]], list[list[Sample]]]


@dataclass(frozen=True)
class MultiTurnSettings:
    """What answers are answered with.

    Attributes:
        function: module:function of a question and the answers so far; what it gives is said next, by the user if it is
            a text and else a message `{"role", "content"}`; None ends the conversation.
        questions: what the function sees of each prompt, by the prompt's id.
        turns: the most answers in a conversation.
    """

    function: str
    questions: Mapping[str, RewardInput]
    turns: int


@dataclass
class _Talk:
    """A conversation in work."""

    prompt: Prompt
    question: RewardInput
    sample: Sample
    answers: list[str] = field(default_factory=list)


class MultiTurnRunner:
    """Goes on with the answers of an engine.

    Args:
        environment: what they are answered with.
        chat: renders it.
        context: the most tokens of a conversation.
    """

    def __init__(self, environment: MultiTurnSettings, chat: Chat, context: int) -> None:
        self._environment, self._chat, self._context = environment, chat, context
        self._function = load_function(environment.function, "environment")
        # An actor draws in several threads, of which the function need not know.
        self._asking = threading.Lock()

    def go_on(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], sampling: Sampling, draw: Draw
    ) -> list[list[Sample]]:
        """The samples with all turns of their conversations; `sampling.max_tokens` is for all that is drawn of one.

        Raises:
            ValueError: the function raised, or gave no message; function and prompt are named.
        """
        talks: dict[tuple[int, int], _Talk] = {}
        for row, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            epoch, _, name = prompt.id.partition(":")
            # In training a prompt's id begins with the pass over the prompts. What is drawn for something else than
            # its reward has a name of its own, and one turn.
            if question := self._environment.questions.get(name if epoch.isdigit() else prompt.id):
                talks |= {(row, sample.index): _Talk(prompt, question, sample) for sample in group}
        going = list(talks.values())
        for turn in range(1, self._environment.turns):
            said = [(talk, self._reply(talk)) for talk in going if talk.sample.finish_reason == "stop"]
            asked = [(talk, between, self._room(talk, between, sampling)) for talk, between in said if between]
            for talk, _, room in asked:
                if room < 1:
                    talk.sample = replace(talk.sample, finish_reason="length")
            going = self._draw(turn, [one for one in asked if one[2] > 0], sampling, draw)
        return [
            [talks[row, sample.index].sample if (row, sample.index) in talks else sample for sample in group]
            for row, group in enumerate(groups)
        ]

    def _draw(
        self, turn: int, asked: Sequence[tuple[_Talk, list[int], int]], sampling: Sampling, draw: Draw
    ) -> list[_Talk]:
        if not asked:
            return []
        prompts = [
            Prompt(
                f"{talk.prompt.id} answer {talk.sample.index} turn {turn}",
                talk.prompt.token_ids + talk.sample.token_ids + between,
            )
            for talk, between, _ in asked
        ]
        found = draw(prompts, [replace(sampling, count=1, max_tokens=room) for _, _, room in asked])
        for (talk, between, _), (more,) in zip(asked, found, strict=True):
            talk.sample = joined(talk.sample, between, more)
        return [talk for talk, _, _ in asked]

    def _room(self, talk: _Talk, between: list[int], sampling: Sampling) -> int:
        so_far = len(talk.prompt.token_ids) + len(talk.sample.token_ids) + len(between)
        return min(sampling.max_tokens - talk.sample.length, self._context - so_far)

    def _reply(self, talk: _Talk) -> list[int] | None:
        """The tokens of what is said next, or None if nothing is."""
        talk.answers.append(talk.sample.text)
        where = f"for prompt {talk.prompt.id!r} and answers {talk.answers!r}"
        try:
            with self._asking:
                reply = self._function(talk.question, list(talk.answers))
        except Exception as error:
            what = f"{type(error).__name__} {where}: {error}"
            raise ValueError(f"environment {self._environment.function} raised {what}") from error
        if reply is None:
            return None
        message = {"role": "user", "content": reply} if isinstance(reply, str) else reply
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"environment {self._environment.function} gave {reply!r} {where}: it must be a text, a message or None"
            )
        try:
            return self._chat.between(message)
        except UserError as error:
            raise ValueError(f"environment {self._environment.function} {where}: {error}") from error


def joined(sample: Sample, between: list[int], more: Sample) -> Sample:
    """One sample of two turns, with what was said between them."""
    given = len(between)
    return replace(
        more,
        prompt_id=sample.prompt_id,
        index=sample.index,
        token_ids=sample.token_ids + between + more.token_ids,
        logprobs=sample.logprobs + [0.0] * given + more.logprobs,
        weight_versions=sample.weight_versions + more.weight_versions[:1] * given + more.weight_versions,
        drawn=sample.mask + [False] * given + more.mask,
    )
