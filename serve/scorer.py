"""The reward model over HTTP: how good the last answer of a conversation is, on the scale that RLHF uses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from cluster.failures import UserError
from cluster.plan import Share
from serve.errors import error_body
from serve.replica import Endpoint, Part, Reply

MOST_CONVERSATIONS = 128


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ScoreRequest(BaseModel):
    """What `/v1/score` takes: every conversation ends with the answer to judge."""

    model: str
    conversations: Annotated[
        list[Annotated[list[Message], Field(min_length=1)]], Field(min_length=1, max_length=MOST_CONVERSATIONS)
    ]


class ScorerReplica:
    """Serves one reward model as a Ray Serve deployment, with the methods of `Replica`."""

    def __init__(self, name: str, model: Path, context: int, share: Share) -> None:
        # Torch and transformers take seconds to import, and the gateway imports this file too.
        from actors.model.chat import Chat
        from actors.reward_model import ModelReward

        self.name, self.context = name, context
        self.chat, self.reward = Chat.of(model), ModelReward(model, share.threads)
        # One batch uses all threads that this replica may use.
        self.turn = asyncio.Lock()
        self.running = 0

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[Part]:
        """One `Reply`: a normalised reward for every conversation, in order."""
        if endpoint != "score":
            yield _refusal(f"{self.name} is a reward model: it scores (/v1/score) and does not write", "model")
            return
        try:
            request = ScoreRequest.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            yield _refusal(f"{where}: {first['msg']}", str(first["loc"][0]))
            return
        self.running += 1
        try:
            async with self.turn:
                yield await run_in_threadpool(self.score, request)
        finally:
            self.running -= 1

    def score(self, request: ScoreRequest) -> Reply:
        """Scores whole conversations, rendered as in training."""
        from actors.sample import Prompt, Sample

        rows = []
        for number, conversation in enumerate(request.conversations):
            if conversation[-1].role != "assistant":
                return _refusal(f"conversations.{number}: the last message must be the assistant's", "conversations")
            try:
                ids = self.chat.conversation([message.model_dump() for message in conversation]).token_ids
            except UserError as error:
                return _refusal(f"conversations.{number}: {error}", "conversations")
            if len(ids) > self.context:
                message = f"conversations.{number}: the maximum context length is {self.context} tokens, not {len(ids)}"
                return _refusal(message, "conversations")
            rows.append(ids)
        prompts = [Prompt(str(number), ids) for number, ids in enumerate(rows)]
        # All of a conversation counts as its prompt: the reward is read at its last token.
        nothing = Sample("", 0, [], [], [], "stop", "")
        rewards = self.reward.score(prompts, [[nothing]] * len(rows))
        data = [{"index": i, "object": "score", "score": reward} for i, (reward,) in enumerate(rewards)]
        tokens = sum(map(len, rows))
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return Reply(200, {"object": "list", "model": self.name, "data": data, "usage": usage})

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "triptych"}
        return card | {"max_model_len": self.context, "chat": False, "score": True}

    async def requests(self) -> int:
        """How many requests wait or run."""
        return self.running


def _refusal(message: str, param: str) -> Reply:
    return Reply(400, error_body(400, message, "BadRequestError", param))
