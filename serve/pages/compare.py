"""The compare page: one prompt to several models, blind and side by side, and a vote; then it says which they were."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster.feedback import COMPARED, Completion, Feedback, Prompt, Ranking, is_person
from cluster.feedback.bradley_terry import Vote, ratings
from serve.errors import RequestError
from serve.http.auth import annotator_of_request
from serve.http.request_context import RequestContext
from serve.pages.render import page, routes_of
from serve.transport.messages import Endpoint, Part, Reply
from serve.transport.pool import ModelEndpoint

MOST_SIDES = 4
TEMPERATURE = 0.7
# The prompt has the other half of what a model can read; nobody reads more of several answers than this.
MOST_TOKENS = 1_024
LONGEST_PROMPT = 100_000
Ask = Callable[[Endpoint, dict[str, Any]], AsyncGenerator[Part]]


class ComparePrompt(BaseModel):
    """What a person asks, and how many models."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT)]
    sides: Annotated[int, Field(ge=2, le=MOST_SIDES)] = 2


class Voted(BaseModel):
    """What a person says of the answers.

    Attributes:
        comparison: the name that came at the end of the stream.
        ranks: of every side, from left to right; 1 is best, equal ranks tie. None where all are bad.
    """

    model_config = ConfigDict(extra="forbid")

    comparison: Annotated[str, Field(max_length=200)]
    ranks: list[Annotated[int, Field(ge=1, le=MOST_SIDES)]] | None
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


@dataclass(frozen=True)
class Side:
    """One of the models that are compared, whether it chats, and how many tokens it may write."""

    model: str
    chat: bool
    room: int


class AnswerError(Exception):
    """A model gave no whole answer. The message does not tell which."""


def compare_router(
    database: Feedback,
    models: Mapping[str, ModelEndpoint],
    weights: Mapping[str, str | None],
    ask: Callable[[RequestContext, Endpoint, dict[str, Any]], AsyncGenerator[Part]],
    known: Callable[[str], str | None] = lambda _: None,
) -> APIRouter:
    """The page at /compare and the paths under it.

    Args:
        database: where prompts, answers and votes go.
        models: by name. Those tuned to chat are compared; where they are too few, all that write are.
        weights: the checksum of every model's weights, where it is known.
        ask: gives the parts of an answer of the model that the body names.
        known: as `annotator_of_request`.
    """
    router = APIRouter(prefix="/compare")
    Annotator = Annotated[str, Depends(annotator_of_request(database, known))]

    @router.get("")
    def compare_page(request: Request) -> HTMLResponse:
        return page("compare.html", routes_of(request.app))

    @router.get("/models")
    async def most_models(annotator: Annotator) -> dict[str, int]:
        del annotator
        cards = await asyncio.gather(*(model.card() for model in models.values()))
        return {"most": min(MOST_SIDES, sum(not card.get("score") for card in cards))}

    @router.post("/answers")
    async def answers(request: Request, annotator: Annotator, asked: ComparePrompt) -> StreamingResponse:
        visit: RequestContext = request.state.visit
        chosen = await _draw(models, asked.sides)
        events = _events(database, annotator, asked.prompt, chosen, weights, partial(ask, visit))
        visit.held.push_async_callback(events.aclose)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.post("/vote")
    def vote(annotator: Annotator, voted: Voted) -> dict[str, Any]:
        prompt = database.prompt(voted.comparison)
        if prompt is None or prompt.details.get("compare") != annotator:
            raise HTTPException(404, "there is no such comparison of yours: ask again")
        sides = _sides(prompt)
        if voted.ranks is not None and len(voted.ranks) != len(sides):
            raise HTTPException(422, f"{len(sides)} answers were shown and {len(voted.ranks)} ranked")
        given = _ranking(annotator, voted, sides)
        if not database.add_ranking(given):
            found = database.judgement(prompt.id, annotator)
            # Sending the same again is no second vote; another one comes after the models were told.
            if found is None or (found.ranks, found.all_bad) != (given.ranks, given.all_bad):
                raise HTTPException(409, "you have voted on this comparison")
        return {"models": [side.model for side in sides]}

    @router.get("/ratings")
    def ratings_page(request: Request) -> HTMLResponse:
        return page("ratings.html", routes_of(request.app))

    @router.get("/figures")
    def figures(annotator: Annotator) -> dict[str, Any]:
        del annotator
        ballots, bad = ballots_in(database)
        raw, controlled = ratings(ballots), ratings(ballots, control_length=True)
        return {"votes": len(ballots), "bad": bad, "raw": asdict(raw), "controlled": asdict(controlled)}

    return router


def ballots_in(database: Feedback) -> tuple[list[list[Vote]], int]:
    """All votes of people who are not excluded, in the order given, each as what it says of every pair of models; and
    how often they called all answers bad, which says nothing of which is better."""
    excluded = set(database.excluded())
    prompts = {prompt.id: _sides(prompt) for prompt in database.prompts(prefix=COMPARED)}
    ballots, bad = [], 0
    for row in database.judgements():
        if row.prompt_id not in prompts or row.annotator in excluded or not is_person(row.annotator):
            continue
        if row.ranks:
            ballots.append([_vote(row.ranks, pair) for pair in combinations(prompts[row.prompt_id], 2)])
        bad += row.all_bad
    return ballots, bad


def _vote(ranks: Mapping[str, int], pair: tuple[Completion, Completion]) -> Vote:
    first, second = (ranks[str(side.id)] for side in pair)
    won = 0.5 if first == second else float(first < second)
    return Vote((pair[0].model, pair[1].model), won, (len(pair[0].text), len(pair[1].text)))


async def _draw(models: Mapping[str, ModelEndpoint], sides: int) -> list[Side]:
    """Models at random, from left to right."""
    cards = dict(zip(models, await asyncio.gather(*(model.card() for model in models.values())), strict=True))
    writing = [name for name in models if not cards[name].get("score")]
    chat = [name for name in writing if cards[name].get("chat", True)]
    able = chat if len(chat) >= sides else writing
    if len(able) < sides:
        raise HTTPException(
            409, f"comparing takes {sides} models, and {len(able)} {'is' if len(able) == 1 else 'are'} served"
        )
    names = secrets.SystemRandom().sample(able, sides)
    # All may write equally much: a limit of its own would tell which model it is.
    room = min(MOST_TOKENS, *(int(cards[name]["max_model_len"]) // 2 for name in names))
    return [Side(name, name in chat, room) for name in names]


async def _events(
    database: Feedback,
    annotator: str,
    prompt: str,
    chosen: Sequence[Side],
    weights: Mapping[str, str | None],
    ask: Ask,
) -> AsyncGenerator[str]:
    """Pieces of all answers as they come, `{"side", "text"}`; then `{"comparison"}`, or `{"error"}` and nothing is
    stored. Models' own events name them, so none is passed on."""
    texts = [""] * len(chosen)
    try:
        async with aclosing(_merged([_text(ask, one, prompt) for one in chosen])) as merged:
            async for side, text in merged:
                texts[side] += text
                yield _event(side=side, text=text)
    except AnswerError as error:
        yield _event(error=str(error))
        return
    except RequestError:
        # It may name the model.
        yield _event(error="a model cannot answer just now; try again")
        return
    name = f"{COMPARED}{secrets.token_hex(16)}"
    messages = [{"role": "user", "content": prompt}]
    completions = [
        Completion(
            prompt_id=name,
            index=side,
            text=texts[side],
            token_ids=[],
            model=chosen[side].model,
            weights=weights.get(chosen[side].model) or "",
            sampling={"temperature": TEMPERATURE, "max_tokens": chosen[side].room},
        )
        for side in range(len(chosen))
    ]
    stored = Prompt(id=name, messages=messages, details={"compare": annotator})
    await asyncio.to_thread(database.add_prompts, [stored])
    await asyncio.to_thread(database.add_completions, completions)
    yield _event(comparison=name)


async def _merged(streams: Sequence[AsyncGenerator[str]]) -> AsyncGenerator[tuple[int, str]]:
    """The items of all streams as they come, each with the number of its stream."""
    queue: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

    async def read(side: int, stream: AsyncGenerator[str]) -> None:
        try:
            async for text in stream:
                queue.put_nowait((side, text))
        finally:
            queue.put_nowait((side, None))

    tasks = [asyncio.create_task(read(side, stream)) for side, stream in enumerate(streams)]
    reading = len(tasks)
    try:
        while reading:
            side, text = await queue.get()
            if text is None:
                reading -= 1
                await tasks[side]
            else:
                yield side, text
    finally:
        # Also when the client has gone: the models stop writing.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _text(ask: Ask, side: Side, prompt: str) -> AsyncGenerator[str]:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if side.chat else {"prompt": prompt}
    body = {"model": side.model, "stream": True, "temperature": TEMPERATURE, "max_tokens": side.room, **asked}
    async with aclosing(ask("chat/completions" if side.chat else "completions", body)) as parts:
        async for part in parts:
            if isinstance(part, Reply):
                raise AnswerError(part.body.get("error", {}).get("message", "a model gave no answer"))
            for event in _events_in(part) if isinstance(part, str) else ():
                if "error" in event:
                    raise AnswerError(event["error"]["message"])
                for choice in event["choices"]:
                    if text := (choice.get("delta", {}).get("content") or choice.get("text") or ""):
                        yield text


def _events_in(part: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in part.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _sides(prompt: Prompt) -> list[Completion]:
    return sorted(prompt.completions, key=lambda row: row.index)


def _ranking(annotator: str, voted: Voted, sides: Sequence[Completion]) -> Ranking:
    keys = [str(side.id) for side in sides]
    return Ranking(
        prompt_id=voted.comparison,
        annotator=annotator,
        ranks=dict(zip(keys, voted.ranks or (), strict=False)),
        all_bad=voted.ranks is None,
        presented=[side.id for side in sides if side.id is not None],
        seconds=voted.seconds,
    )


def _event(**values: Any) -> str:
    return f"data: {json.dumps(values)}\n\n"
