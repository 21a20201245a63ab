"""A reward model behind `/v1/score`: scores the last answer of a conversation, on the scale that RLHF uses."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from actors.model.chat import Chat
from actors.rewards.model import ModelReward
from actors.types import NO_EPOCH, Failure, Prompt, RolloutId, Sample, Verdict
from cluster.errors import UserError
from cluster.run.versions import Version
from cluster.runtime.plan import Allocation
from serve.errors import RequestError, error_body
from serve.http.openapi import REFERENCE
from serve.replica.request_bounds import RequestBounds, longest_token
from serve.transport.messages import CompleteResponse, Endpoint, Part, PromotionResult, ResponseStart

MOST_CONVERSATIONS = 128


class ScoreMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ScoreRequest(BaseModel):
    """The body of a request to `/v1/score`. Every conversation ends with the answer to score."""

    model: str
    conversations: Annotated[
        list[Annotated[list[ScoreMessage], Field(min_length=1)]], Field(min_length=1, max_length=MOST_CONVERSATIONS)
    ]


class RewardScorer:
    """A reward model as a `ServedModel`.

    Args:
        name: the name that clients use.
        version: its directory and the version of its weights.
        context: the most tokens of a conversation.
        allocation: its resources.
    """

    def __init__(self, name: str, version: Version, context: int, allocation: Allocation) -> None:
        self.name, self.context, self.threads, self.weights = name, context, allocation.threads, version.weights
        self.chat, self.reward = Chat.of(version.folder), ModelReward(version.folder, allocation.threads)
        self.bounds = RequestBounds(context, longest_token(self.chat.tokenizer), ())
        # One batch uses all threads of this replica.
        self.lock = asyncio.Lock()
        self.running = 0

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Yields a `ResponseStart` and one `CompleteResponse`: a normalized reward for every conversation, in order."""
        if endpoint != "score":
            yield _refusal(f"{self.name} is a reward model: it scores (/v1/score) and does not write", "model")
            return
        try:
            self.bounds.check(endpoint, body)
            request = ScoreRequest.model_validate(body)
        except RequestError as error:
            yield CompleteResponse(error.status_code, error.body)
            return
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            yield _refusal(f"{where}: {first['msg']}", str(first["loc"][0]))
            return
        self.running += 1
        try:
            async with self.lock:
                yield ResponseStart(self.weights, sorted(set(body) - ScoreRequest.model_fields.keys()))
                yield await run_in_threadpool(self.score, request)
        finally:
            self.running -= 1

    def score(self, request: ScoreRequest) -> CompleteResponse:
        """Scores conversations, rendered the same as in training."""
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
        prompts = [Prompt(str(number), ids, f"conversations.{number}") for number, ids in enumerate(rows)]
        # The whole conversation goes in as the prompt, with an empty answer: the reward is read at the last token.
        empty = Sample(RolloutId(NO_EPOCH, "", 0), [], [], [], "stop", "")
        verdicts = [verdict for (verdict,) in self.reward.score(prompts, [[empty]] * len(rows))]
        data = [{"index": i, "object": "score"} | _entry(verdict) for i, verdict in enumerate(verdicts)]
        tokens = sum(map(len, rows))
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return CompleteResponse(200, {"object": "list", "model": self.name, "data": data, "usage": usage})

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """Loads another version of the weights, between two requests."""
        reward = await run_in_threadpool(ModelReward, folder, self.threads)
        start = time.monotonic()
        async with self.lock:
            self.reward, self.weights = reward, weights
        return PromotionResult(time.monotonic() - start)

    async def card(self) -> dict[str, Any]:
        """Returns the model's entry in `/v1/models`."""
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "triptych"}
        return card | {"max_model_len": self.context, "chat": False, "score": True}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """Returns the JSON schema of a request for scores."""
        return {"score": ScoreRequest.model_json_schema(ref_template=REFERENCE)}

    def weights_version(self) -> str:
        """Returns the version of its weights."""
        return self.weights

    def requests(self) -> int:
        """Returns how many requests wait or run."""
        return self.running

    def engine_state(self) -> None:
        """Returns None: it has no engine."""

    async def check_health(self) -> None:
        """Does nothing: it answers as long as its process lives."""

    def close(self) -> None:
        """Does nothing: it has nothing outside of this process."""


def _entry(verdict: Verdict) -> dict[str, Any]:
    # Only this conversation has no score: the others of the request keep theirs.
    if isinstance(verdict, Failure):
        return {"score": None, "error": verdict.reason}
    return {"score": verdict}


def _refusal(message: str, param: str) -> CompleteResponse:
    return CompleteResponse(400, error_body(400, message, "BadRequestError", param))
