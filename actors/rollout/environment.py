"""Rolls out conversations of several turns: after each completion a function plays the user or a tool, or ends it.

Tokens are kept as the engine drew them, and nothing is tokenized twice: the function's replies are put between them.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.model.chat import Chat
from actors.types import Prompt, RewardInput, Sample, Sampling
from cluster.errors import UserError
from cluster.recipe.functions import load_function

# Draws the completions of every prompt.
Draw = Callable[[list[Prompt], list[Sampling]], list[list[Sample]]]


@dataclass(frozen=True)
class MultiTurnSettings:
    """How completions are continued.

    Attributes:
        function: module:function of a `RewardInput` and the answers so far. It returns the next turn, as a text of the
            user or a message `{"role", "content"}`, or None to end the conversation.
        inputs: what the function sees of each prompt, by the prompt's id. Completions of other prompts have one turn.
        turns: the most answers in a conversation.
    """

    function: str
    inputs: Mapping[str, RewardInput]
    turns: int


@dataclass
class _Conversation:
    """One sample that may get further turns."""

    prompt: Prompt
    input: RewardInput
    sample: Sample
    answers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reply:
    """The tokens of a reply, and how many the policy may draw after it; less than 1 if there is no room."""

    conversation: _Conversation
    token_ids: list[int]
    room: int


class MultiTurnRunner:
    """Continues the completions of an engine.

    Args:
        settings: how they are continued.
        chat: renders replies.
        context: the most tokens of a conversation.

    Raises:
        UserError: the function cannot be imported.
    """

    def __init__(self, settings: MultiTurnSettings, chat: Chat, context: int) -> None:
        self._settings, self._chat, self._context = settings, chat, context
        self._function = load_function(settings.function, "environment")
        # An actor draws in several threads, of which the function need not know.
        self._lock = threading.Lock()

    def run(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], sampling: Sampling, draw: Draw
    ) -> list[list[Sample]]:
        """Returns the samples with all turns of their conversations.

        Args:
            prompts: P prompts.
            groups: the samples of each, with one turn.
            sampling: its `max_tokens` is for all that is drawn in one conversation.
            draw: draws the next turns.

        Raises:
            ValueError: the function raised or returned no message; function and prompt are named.
        """
        conversations = {
            sample.id: _Conversation(prompt, self._settings.inputs[prompt.id], sample)
            for prompt, group in zip(prompts, groups, strict=True)
            if prompt.id in self._settings.inputs
            for sample in group
        }
        active = list(conversations.values())
        for turn in range(1, self._settings.turns):
            ended = [conversation for conversation in active if conversation.sample.finish_reason == "stop"]
            replies = [reply for conversation in ended if (reply := self._reply(conversation, sampling))]
            for reply in replies:
                if reply.room < 1:
                    reply.conversation.sample = replace(reply.conversation.sample, finish_reason="length")
            replies = [reply for reply in replies if reply.room > 0]
            self._draw(turn, replies, sampling, draw)
            active = [reply.conversation for reply in replies]
        return [
            [conversations[sample.id].sample if sample.id in conversations else sample for sample in group]
            for group in groups
        ]

    def _draw(self, turn: int, replies: Sequence[_Reply], sampling: Sampling, draw: Draw) -> None:
        if not replies:
            return
        prompts = [
            replace(
                reply.conversation.prompt,
                token_ids=[
                    *reply.conversation.prompt.token_ids,
                    *reply.conversation.sample.token_ids,
                    *reply.token_ids,
                ],
                name=f"{reply.conversation.prompt.name} answer {reply.conversation.sample.id.sample} turn {turn}",
            )
            for reply in replies
        ]
        drawn = draw(prompts, [replace(sampling, count=1, max_tokens=reply.room) for reply in replies])
        for reply, (sample,) in zip(replies, drawn, strict=True):
            reply.conversation.sample = joined(reply.conversation.sample, reply.token_ids, sample)

    def _reply(self, conversation: _Conversation, sampling: Sampling) -> _Reply | None:
        """Asks the function for the next turn; returns None if it ends the conversation."""
        prompt, sample = conversation.prompt, conversation.sample
        conversation.answers.append(sample.text)
        function = self._settings.function
        where = f"for prompt {prompt.label!r} and answers {conversation.answers!r}"
        try:
            with self._lock:
                reply = self._function(conversation.input, list(conversation.answers))
        except Exception as error:
            raise ValueError(f"environment {function} raised {type(error).__name__} {where}: {error}") from error
        if reply is None:
            return None
        message = {"role": "user", "content": reply} if isinstance(reply, str) else reply
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"environment {function} gave {reply!r} {where}: it must be a text, a message or None")
        try:
            between = self._chat.between(message)
        except UserError as error:
            raise ValueError(f"environment {function} {where}: {error}") from error
        so_far = len(prompt.token_ids) + len(sample.token_ids) + len(between)
        return _Reply(conversation, between, min(sampling.max_tokens - sample.length, self._context - so_far))


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
    )
