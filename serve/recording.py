"""Stores prompts of live traffic in the feedback database: only by consent, without personal data, and for a time."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from cluster.feedback import Feedback, LivePrompt
from cluster.feedback.live import KINDS
from cluster.personal_data import replace_in_all
from cluster.recipe.serve import RecordMode
from serve.http.metrics import GatewayMetrics
from serve.http.request_context import RequestContext
from serve.transport.messages import Endpoint

logger = logging.getLogger("ray.serve")

# A client's word on whether its prompt may be stored: yes or no.
CONSENT_HEADER = "X-Triptych-Record"
# Set on the response to a request whose prompt waits to be stored. The response does not wait for the database.
RECORDED_HEADER = "X-Triptych-Recorded"
DAY_SECONDS = 24 * 60 * 60.0
# How often expired prompts are looked for.
EXPIRY_SECONDS = 60.0
# The most prompts that wait for the database; of a store that is too slow further ones are left out, and counted.
MAX_WAITING = 1_000
# The most seconds to wait for these when the server ends.
FINISH_SECONDS = 10.0
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Recording:
    """Whose prompts are stored, and for how many days."""

    mode: RecordMode = "off"
    days: float = 30.0


class Recorder:
    """Stores the prompts of one gateway.

    Args:
        settings: whose prompts are stored, and for how long.
        database: where they are stored.
        metrics: count them.
    """

    def __init__(self, settings: Recording, database: Feedback, metrics: GatewayMetrics) -> None:
        self._settings, self._database, self._metrics = settings, database, metrics
        self._storing: set[asyncio.Task[None]] = set()

    def record(self, endpoint: Endpoint, body: Mapping[str, Any], consent: str, context: RequestContext) -> None:
        """Has the prompt of a request that a model answers stored, if that is allowed. It does not wait for it.

        Args:
            endpoint: the endpoint; prompts of chats alone are stored.
            body: the request.
            consent: the value of its `CONSENT_HEADER`; empty without one.
            context: gets the header that tells the client that it is to be stored.
        """
        if not self._may_store(consent, context):
            return
        messages = conversation(endpoint, body)
        if messages is None:
            self._metrics.recorded.labels("no conversation of text").inc()
            return
        if len(self._storing) >= MAX_WAITING:
            self._metrics.recorded.labels("too many at once").inc()
            return
        context.headers[RECORDED_HEADER] = f"to be stored for {self._settings.days:g} days"
        task = asyncio.create_task(self._store(messages, context))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def finish(self) -> None:
        """Waits until all prompts so far are stored, but `FINISH_SECONDS` at most; logs how many are not."""
        if self._storing:
            _, left = await asyncio.wait(self._storing, timeout=FINISH_SECONDS)
            if left:
                logger.error("%d prompts were not stored: the database took too long", len(left))

    async def expire_regularly(self, every: float = EXPIRY_SECONDS) -> None:
        """Deletes prompts that have expired until it is canceled, also where none are stored any more.

        Those that an earlier server stored for more days expire after the days that are set now.

        Args:
            every: seconds between two looks.
        """
        limited = self._settings.mode == "off"
        while True:
            try:
                if not limited:
                    await run_in_threadpool(self._database.limit_live, self._settings.days * DAY_SECONDS)
                    limited = True
                await run_in_threadpool(self._database.delete_expired_live)
            except SQLAlchemyError as error:
                logger.error("expired prompts were not deleted, which is tried again: %s", type(error).__name__)
            await asyncio.sleep(every)

    def _may_store(self, consent: str, context: RequestContext) -> bool:
        mode, said = self._settings.mode, consent.strip().lower()
        if mode == "off" or said == "no":
            return False
        if mode == "ask":
            return said == "yes"
        return mode == "all" or (context.caller.key is not None and context.caller.key.record)

    async def _store(self, messages: Messages, context: RequestContext) -> None:
        try:
            await run_in_threadpool(self._add, messages, context)
        except SQLAlchemyError as error:
            # Its text would hold the prompt.
            logger.error("the prompt of request %s was not stored: %s", context.id, type(error).__name__)
            self._metrics.recorded.labels("failed").inc()
        else:
            self._metrics.recorded.labels("stored").inc()

    def _add(self, messages: Messages, context: RequestContext) -> None:
        texts, _ = replace_in_all([message["content"] for message in messages], KINDS)
        now = time.time()
        prompt = LivePrompt(
            request=context.id,
            caller=context.caller.name,
            model=context.model,
            messages=[{**message, "content": text} for message, text in zip(messages, texts, strict=True)],
            consent=self._settings.mode,
            created=now,
            expires=now + self._settings.days * DAY_SECONDS,
        )
        self._database.add_live(prompt)


def conversation(endpoint: Endpoint, body: Mapping[str, Any]) -> Messages | None:
    """Returns the conversation of a request up to its last user message, or None.

    There is none in a request to continue a text, and none that can be asked again in one with tools or images.

    Args:
        endpoint: the endpoint.
        body: the request; its values may be of any type.
    """
    if body.get("tools"):
        return None
    if endpoint == "responses":
        given, system = body.get("input"), body.get("instructions")
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given
    elif endpoint in ("chat/completions", "messages"):
        given, system = body.get("messages"), body.get("system") if endpoint == "messages" else None
    else:
        return None
    if not isinstance(given, list):
        return None
    turns = [*([{"role": "system", "content": system}] if system else []), *given]
    messages: Messages = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("tool_calls"):
            return None
        role, text = turn.get("role"), _text(turn.get("content"))
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant") or text is None:
            return None
        messages.append({"role": role, "content": text})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages if messages and messages[-1]["role"] == "user" and messages[-1]["content"].strip() else None


def _text(content: Any) -> str | None:
    """Returns the text of a message whose content is a text or a list of parts that are texts, else None."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        part.get("text")
        for part in content
        if isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text")
    ]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(str(text) for text in texts)
