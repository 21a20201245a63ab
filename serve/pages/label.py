"""The label page and what it asks for: people sign in, get prompts to judge, and say which answer is better."""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from cluster.errors import UserError
from cluster.feedback import COMPARED, GOLD, Completion, Feedback, Prompt, Ranking, is_person, open_feedback
from cluster.feedback.agreement import agreement, reliability
from cluster.run.folder import RunFolder
from cluster.runtime.session import require_free_port
from serve.http.auth import annotator_of_request
from serve.http.listener import KEEP_ALIVE_SECONDS
from serve.pages.render import page, routes_of, url_host

# A digit ranks an answer.
MOST_ANSWERS = 9
# How long a prompt is kept for the person who got it; then another may get it too, and both judgements count.
HOLD_SECONDS = 30 * 60.0
# Of what a person gets: items whose right ranking is known, and prompts that they have ranked, though not of late.
GOLD_SHARE = 0.1
REPEAT_SHARE = 0.05
REPEAT_AFTER = 10
LONGEST_TEXT = 100_000
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]


class Judgement(BaseModel):
    """What the page sends: ranks, "all bad", or a skip.

    Attributes:
        prompt: the prompt's name.
        answers: the ids of the answers in the order shown.
        ranks: the rank of each, 1 is best; gaps mean nothing and are closed.
        marks: answer id to what was said of it.
        seconds: how long the page was looked at.
        again: the prompt was given to this person before, and this is the second ranking of it.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answers: Annotated[list[int], Field(min_length=2, max_length=MOST_ANSWERS)]
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=MOST_ANSWERS)]], Field(max_length=MOST_ANSWERS)] = []
    skipped: Text | None = None
    all_bad: bool = False
    marks: dict[int, dict[str, bool]] = {}
    better: Text | None = None
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    again: bool = False


@dataclass(frozen=True)
class Task:
    """The name of a prompt to judge, and whether its annotator has judged it before."""

    prompt: str
    again: bool = False


class TaskAssigner:
    """Hands out prompts: two people who ask at once get different ones while there are enough.

    Gold items and repeats come in between. Whether one is due depends on the person and on how much they have judged
    alone, so that looking away, or a restart, does not pass it over.
    """

    def __init__(self, database: Feedback, people: int) -> None:
        self._database, self._people = database, people
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def next_task(self, annotator: str, done: int) -> tuple[Task | None, int]:
        """What to judge next, the same until it is judged, and how many open prompts there are; None at the end.

        A restart forgets who held what; the order of prompts then gives most people theirs again.

        Args:
            annotator: who asks.
            done: how many they have judged.
        """
        with self._lock:
            now = time.monotonic()
            self._held = {name: held for name, held in self._held.items() if held[1] > now}
            others = Counter(prompt for name, (prompt, _) in self._held.items() if name != annotator)
            tasks = self._database.open_tasks(annotator, self._people)
            free = [name for name, judged in tasks if judged + others[name] < self._people]
            mine = self._held.pop(annotator, ("", 0.0))[0]
            chosen = mine if mine in free else next(iter(free), None)
            if chosen is not None:
                self._held[annotator] = (chosen, now + HOLD_SECONDS)
        check = self._check(annotator, done) if chosen is not None else None
        return check or (Task(chosen) if chosen is not None else None), len(free)

    def _check(self, annotator: str, done: int) -> Task | None:
        chance = random.Random(f"check {annotator} {done}")
        kind = chance.random()
        if kind < GOLD_SHARE and (gold := self._database.gold_tasks(annotator)):
            return Task(chance.choice(gold))
        if kind > 1 - REPEAT_SHARE and (own := self._database.repeatable_tasks(annotator, REPEAT_AFTER)):
            return Task(own[0], again=True)
        return None


def label_router(database: Feedback, people: int = 1, known: Callable[[str], str | None] = lambda _: None) -> APIRouter:
    """The page at /label and the paths under it.

    Args:
        database: where prompts come from and judgements go.
        people: how many people are to judge each prompt.
        known: the name that another kind of token than an annotator's stands for, or None.
    """
    router = APIRouter(prefix="/label")
    desk = TaskAssigner(database, people)

    Annotator = Annotated[str, Depends(annotator_of_request(database, known))]

    @router.get("")
    def label_page(request: Request) -> HTMLResponse:
        return page("label.html", routes_of(request.app))

    @router.get("/next")
    def next_task(annotator: Annotator) -> dict[str, Any]:
        said = database.judgements(annotator)
        done = len(said) + len(database.repeats(annotator))
        chosen, left = desk.next_task(annotator, done)
        prompt = database.prompt(chosen.prompt) if chosen is not None else None
        task = task_for(annotator, prompt, None, chosen.again) if chosen and prompt else None
        seconds = [row.seconds for row in said if row.skipped is None]
        progress = {"done": done, "left": left, "seconds": statistics.median(seconds) if seconds else None}
        return {"annotator": annotator, "task": task, "progress": progress}

    @router.get("/task")
    def one_task(annotator: Annotator, prompt: str, again: bool = False) -> dict[str, Any]:
        found = database.prompt(prompt)
        if found is None:
            raise HTTPException(404, f"there is no prompt {prompt}")
        return task_for(annotator, found, None if again else database.judgement(prompt, annotator), again)

    @router.post("/judgement", status_code=204)
    def judge(annotator: Annotator, judgement: Judgement) -> Response:
        try:
            row = ranking_of(annotator, judgement)
            if judgement.again:
                database.save_repeat(row)
            else:
                database.save_ranking(row)
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        return Response(status_code=204)

    @router.get("/quality")
    def quality_page(request: Request) -> HTMLResponse:
        return page("quality.html", routes_of(request.app))

    @router.get("/agreement")
    def agreement_figures(annotator: Annotator) -> dict[str, Any]:
        del annotator
        excluded = database.excluded()
        judgements = database.judgements()
        # What the compare page asked is another task.
        ranked = [row for row in judgements if not row.prompt_id.startswith(COMPARED)]
        people = [row for row in ranked if is_person(row.annotator) and row.annotator not in excluded]
        counts = {
            "rankings": sum(bool(row.ranks) for row in people),
            "all_bad": sum(row.all_bad for row in people),
            "skipped": sum(row.skipped is not None for row in people),
        }
        # Of the excluded too: it says why they are.
        persons = [row for row in judgements if is_person(row.annotator) or row.annotator == GOLD]
        return {
            "counts": counts,
            "agreement": [asdict(row) for row in agreement(people)],
            "reliability": {row.annotator: asdict(row) for row in reliability(persons, database.repeats())},
            "excluded": excluded,
        }

    return router


def task_for(annotator: str, prompt: Prompt, said: Ranking | None, again: bool = False) -> dict[str, Any]:
    """What the page shows: the conversation and its answers, in an order of this annotator's own, and nothing that
    tells which model gave which."""
    return {
        "prompt": prompt.id,
        "again": again,
        "messages": prompt.messages,
        "answers": [{"id": row.id, "text": row.text} for row in presented(annotator, prompt, again)],
        "said": said and said.model_dump(include={"ranks", "skipped", "all_bad", "marks", "better", "seconds"}),
    }


def presented(annotator: str, prompt: Prompt, again: bool = False) -> list[Completion]:
    """At most nine of the prompt's completions, in an order that depends on annotator and prompt alone; the other way
    round when they get it again."""
    completions = sorted(prompt.completions, key=lambda row: row.id or 0)
    chance = random.Random(f"presented {annotator} {prompt.id}")
    chosen = chance.sample(completions, min(len(completions), MOST_ANSWERS))
    return chosen[::-1] if again else chosen


def ranking_of(annotator: str, judgement: Judgement) -> Ranking:
    """The row to store.

    Raises:
        UserError: there is not one rank for every answer.
    """
    if judgement.ranks and len(judgement.ranks) != len(judgement.answers):
        raise UserError(f"{len(judgement.answers)} answers were shown and {len(judgement.ranks)} ranked")
    order = sorted(set(judgement.ranks))
    ranks = [order.index(rank) + 1 for rank in judgement.ranks]
    return Ranking(
        prompt_id=judgement.prompt,
        annotator=annotator,
        ranks={str(answer): rank for answer, rank in zip(judgement.answers, ranks, strict=False)},
        skipped=judgement.skipped,
        all_bad=judgement.all_bad,
        marks={str(answer): marks for answer, marks in judgement.marks.items() if marks},
        better=judgement.better,
        presented=judgement.answers,
        seconds=judgement.seconds,
    )


# The label page alone, without any model: people can rank while a stage samples, trains or waits for them.
STOP_SECONDS = 5


def serve_labels(run: RunFolder, host: str, port: int, people: int) -> None:
    """Serves the label page of a run until SIGINT or SIGTERM.

    Raises:
        UserError: the port is taken, or the database cannot be opened.
    """
    require_free_port(host, port)
    app = FastAPI(title="Triptych labels", docs_url=None, redoc_url=None, openapi_url=None)
    with open_feedback(run.feedback_url) as database:
        app.include_router(label_router(database, people))
        app.get("/")(lambda: RedirectResponse("/label"))
        console = Console(soft_wrap=True)
        console.print(f"label page at http://{url_host(host)}:{port}/label; Ctrl-C ends it")
        if not database.annotators():
            console.print(f"nobody can sign in yet: `triptych annotator add NAME --run {run.root}` gives a token")
        config = uvicorn.Config(
            app,
            host,
            port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        uvicorn.Server(config).run()
