"""The compare page: several models answer a prompt side by side, a person votes, and only then learns their names.

The answers and the vote are stored as a prompt with completions and a ranking, and give the models' ratings.
"""

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

from cluster.feedback import COMPARED, Completion, Feedback, FeedbackPrompt, Ranking, is_person
from cluster.feedback.bradley_terry import Vote, ratings
from cluster.feedback.live import KINDS
from cluster.personal_data import replace_in_all
from cluster.recipe.serve import CANARY
from serve.errors import RequestError
from serve.http.auth import annotator_dependency
from serve.http.request_context import RequestContext
from serve.pages.markdown import parse_markdown
from serve.pages.render import page, routes_of
from serve.request_size import most_tokens
from serve.transport.messages import CompleteResponse, Endpoint, Part
from serve.transport.pool import ModelEndpoint

MAX_SIDES = 4
TEMPERATURE = 0.7
# At most half of a model's context, the prompt has the other half; and no more than people read of several answers.
MAX_TOKENS = 1_024
MAX_PROMPT = 100_000
# While a new policy is on trial, the share of comparisons that certainly show it and the live one.
TRIAL_SHARE, LIVE = 0.5, "policy"
Ask = Callable[[Endpoint, dict[str, Any]], AsyncGenerator[Part]]


class ComparePrompt(BaseModel):
    """A prompt, and the number of models that shall answer it."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    sides: Annotated[int, Field(ge=2, le=MAX_SIDES)] = 2


class VoteRequest(BaseModel):
    """A vote on the answers.

    Attributes:
        comparison: the name that ended the stream of the answers.
        ranks: the rank of every side, from left to right; 1 is best, equal ranks tie. None if all are bad.
        seconds: the time between the end of the answers and the vote.
    """

    model_config = ConfigDict(extra="forbid")

    comparison: Annotated[str, Field(max_length=200)]
    ranks: list[Annotated[int, Field(ge=1, le=MAX_SIDES)]] | None
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


@dataclass(frozen=True)
class Side:
    """One of the compared models.

    Attributes:
        model: its name.
        chat: whether it is tuned to chat.
        max_tokens: the most tokens of its answer.
        context: the most tokens of the prompt and its answer together.
    """

    model: str
    chat: bool
    max_tokens: int
    context: int

    def question(self, prompt: str) -> tuple[Endpoint, dict[str, Any]]:
        """Returns the endpoint and the body of the request for its answer to a prompt."""
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        options = {"model": self.model, "stream": True, "temperature": TEMPERATURE, "max_tokens": self.max_tokens}
        return "chat/completions" if self.chat else "completions", options | asked


class AnswerError(Exception):
    """A model gave no complete answer. The message does not name it."""


def compare_router(
    database: Feedback,
    models: Mapping[str, ModelEndpoint],
    weights: Mapping[str, str | None],
    ask: Callable[[RequestContext, Endpoint, dict[str, Any]], AsyncGenerator[Part]],
    annotator_of_key: Callable[[str], str | None] = lambda _: None,
    is_open: Callable[[], bool] = lambda: False,
    on_trial: Callable[[], bool] = lambda: False,
) -> APIRouter:
    """Returns the page at /compare and the routes under it.

    Args:
        database: stores prompts, answers and votes.
        models: the models by name. Those tuned to chat are compared, or all that generate if those are too few.
        weights: the version of every model's weights, if it is known.
        ask: returns the response parts of the model that the body names.
        annotator_of_key: returns the name behind a key that allows judging, or None.
        is_open: whether requests are admitted without a key, and so guests.
        on_trial: whether the model `CANARY` is a new policy on trial, which is compared then.
    """
    router = APIRouter(prefix="/compare")
    Annotator = Annotated[str, Depends(annotator_dependency(database, annotator_of_key, is_open))]

    def compared() -> list[str]:
        return [name for name in models if name != CANARY or on_trial()]

    @router.get("")
    def compare_page(request: Request) -> HTMLResponse:
        return page("compare.html", routes_of(request.app))

    @router.get("/models")
    async def max_models(annotator: Annotator) -> dict[str, int]:
        del annotator
        cards = await asyncio.gather(*(models[name].card() for name in compared()))
        return {"most": min(MAX_SIDES, sum(not card.get("score") for card in cards))}

    @router.post("/answers")
    async def answers(request: Request, annotator: Annotator, asked: ComparePrompt) -> StreamingResponse:
        context: RequestContext = request.state.context
        chosen = await _sample_models({name: models[name] for name in compared()}, asked.sides)
        context.reserve(sum(most_tokens(*side.question(asked.prompt), side.context) for side in chosen))
        events = _events(database, annotator, asked.prompt, chosen, weights, partial(ask, context))
        context.cleanup.push_async_callback(events.aclose)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.post("/vote")
    def vote(annotator: Annotator, body: VoteRequest) -> dict[str, Any]:
        prompt = database.prompt(body.comparison)
        if prompt is None or prompt.details.get("compare") != annotator:
            raise HTTPException(404, "there is no such comparison of yours: ask again")
        sides = _sides(prompt)
        if body.ranks is not None and len(body.ranks) != len(sides):
            raise HTTPException(422, f"{len(sides)} answers were shown and {len(body.ranks)} ranked")
        ranking = _ranking(annotator, body, sides)
        if not database.add_ranking(ranking):
            found = database.judgement(prompt.id, annotator)
            # A repeated request is not a second vote; a different vote would no longer be blind.
            if found is None or (found.ranks, found.all_bad) != (ranking.ranks, ranking.all_bad):
                raise HTTPException(409, "you have voted on this comparison")
        return {"models": [side.model for side in sides]}

    @router.get("/ratings")
    def ratings_page(request: Request) -> HTMLResponse:
        return page("ratings.html", routes_of(request.app))

    @router.get("/figures")
    def figures(annotator: Annotator) -> dict[str, Any]:
        del annotator
        ballots, bad = all_ballots(database)
        raw, controlled = ratings(ballots), ratings(ballots, control_length=True)
        return {"votes": len(ballots), "bad": bad, "raw": asdict(raw), "controlled": asdict(controlled)}

    return router


def all_ballots(database: Feedback) -> tuple[list[list[Vote]], int]:
    """Returns the votes of people who are not excluded, in order, each as one `Vote` for every pair of its models; and
    how often they called all answers bad, which compares no models."""
    excluded = set(database.excluded())
    # The policy on trial is another one in each round: its votes are not those of one model.
    prompts = {
        prompt.id: [side for side in _sides(prompt) if side.model != CANARY]
        for prompt in database.prompts(prefix=COMPARED)
    }
    ballots, bad = [], 0
    for row in database.judgements():
        if row.prompt_id not in prompts or row.annotator in excluded or not is_person(row.annotator):
            continue
        if row.ranks and len(prompts[row.prompt_id]) > 1:
            ballots.append([_vote(row.ranks, pair) for pair in combinations(prompts[row.prompt_id], 2)])
        bad += row.all_bad
    return ballots, bad


def _vote(ranks: Mapping[str, int], pair: tuple[Completion, Completion]) -> Vote:
    first, second = (ranks[str(side.id)] for side in pair)
    won = 0.5 if first == second else float(first < second)
    return Vote((pair[0].model, pair[1].model), won, (len(pair[0].text), len(pair[1].text)))


async def _sample_models(models: Mapping[str, ModelEndpoint], sides: int) -> list[Side]:
    """Draws models at random, from left to right."""
    cards = dict(zip(models, await asyncio.gather(*(model.card() for model in models.values())), strict=True))
    generating = [name for name in models if not cards[name].get("score")]
    chat = [name for name in generating if cards[name].get("chat", True)]
    able = chat if len(chat) >= sides else generating
    if len(able) < sides:
        raise HTTPException(
            409, f"comparing takes {sides} models, and {len(able)} {'is' if len(able) == 1 else 'are'} served"
        )
    chance = secrets.SystemRandom()
    names = chance.sample(able, sides)
    if CANARY in able and LIVE in able and chance.random() < TRIAL_SHARE:
        # The trial is about these two.
        others = [name for name in names if name not in (CANARY, LIVE)]
        names = chance.sample([CANARY, LIVE, *others][:sides], sides)
    # The same for all: a limit of its own would give a model away.
    max_tokens = min(MAX_TOKENS, *(int(cards[name]["max_model_len"]) // 2 for name in names))
    return [Side(name, name in chat, max_tokens, int(cards[name]["max_model_len"])) for name in names]


async def _events(
    database: Feedback,
    annotator: str,
    prompt: str,
    chosen: Sequence[Side],
    weights: Mapping[str, str | None],
    ask: Ask,
) -> AsyncGenerator[str]:
    """Yields the events of the stream: the texts of all answers as they come, `{"side", "text"}`; then `{"comparison"}`
    with the stored comparison's name and the parsed texts, or `{"error"}`, and nothing is stored.

    The models' own events contain their names and are not passed on.
    """
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
        # The error's message may name the model.
        yield _event(error="a model cannot answer just now; try again")
        return
    name = f"{COMPARED}{secrets.token_hex(16)}"
    # As in prompts of live traffic: the page goes on showing what was written.
    (asked, *answers), _ = await asyncio.to_thread(replace_in_all, [prompt, *texts], KINDS)
    messages = [{"role": "user", "content": asked}]
    completions = [
        Completion(
            prompt_id=name,
            index=side,
            text=answers[side],
            token_ids=[],
            model=chosen[side].model,
            weights=weights.get(chosen[side].model) or "",
            sampling={"temperature": TEMPERATURE, "max_tokens": chosen[side].max_tokens},
        )
        for side in range(len(chosen))
    ]
    stored = FeedbackPrompt(id=name, messages=messages, details={"compare": annotator})
    await asyncio.to_thread(database.add_prompts, [stored])
    await asyncio.to_thread(database.add_completions, completions)
    yield _event(comparison=name, markdown=await asyncio.to_thread(lambda: [parse_markdown(text) for text in texts]))


async def _merged(streams: Sequence[AsyncGenerator[str]]) -> AsyncGenerator[tuple[int, str]]:
    """Yields the items of all streams as they come, each with the number of its stream."""
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
        # Also when the client has disconnected: the models then stop.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _text(ask: Ask, side: Side, prompt: str) -> AsyncGenerator[str]:
    async with aclosing(ask(*side.question(prompt))) as parts:
        async for part in parts:
            if isinstance(part, CompleteResponse):
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


def _sides(prompt: FeedbackPrompt) -> list[Completion]:
    return sorted(prompt.completions, key=lambda row: row.index)


def _ranking(annotator: str, body: VoteRequest, sides: Sequence[Completion]) -> Ranking:
    keys = [str(side.id) for side in sides]
    return Ranking(
        prompt_id=body.comparison,
        annotator=annotator,
        ranks=dict(zip(keys, body.ranks or (), strict=False)),
        all_bad=body.ranks is None,
        presented=[side.id for side in sides if side.id is not None],
        seconds=body.seconds,
    )


def _event(**values: Any) -> str:
    return f"data: {json.dumps(values)}\n\n"
