"""The label page: people sign in with their token, get prompts with several answers, and rank the answers.

`label_router` is a part of the gateway. `serve_labels` serves the page alone, without any model, so that people can
rank while a stage samples, trains or waits for them.
"""

import asyncio
import random
import statistics
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from starlette.types import ASGIApp

from cluster.errors import UserError
from cluster.feedback import (
    COMPARED,
    Completion,
    Feedback,
    FeedbackPrompt,
    Ranking,
    distinct_completions,
    open_feedback,
)
from cluster.feedback.quality import agreement_report
from cluster.recipe.serve import Tls
from cluster.run.folder import RunFolder
from cluster.runtime.session import require_free_port
from serve.http.application import new_application
from serve.http.auth import Authorizer, admits_guests, annotator_dependency, anonymous_access, bearer
from serve.http.listener import Listener, encryption
from serve.http.metrics import GatewayMetrics
from serve.http.middleware import Middleware
from serve.pages.label_tasks import TaskAssigner
from serve.pages.markdown import with_markdown
from serve.pages.render import page, routes_of, url_host

STOP_SECONDS = 5
# A rank is one digit on the keyboard.
MAX_ANSWERS = 9
# Judgements that the page offers to change, and the characters of their prompts.
RECENT, MAX_ASKED = 20, 200
MAX_TEXT = 100_000
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class JudgementRequest(BaseModel):
    """A judgement of one prompt: ranks, "all bad", or a skip.

    Attributes:
        prompt: the prompt's id.
        answers: the ids of the answers in the presented order.
        ranks: the rank of each answer, 1 is best; gaps have no meaning and are closed.
        skipped: the reason for a skip.
        marks: by answer id, the marks of an answer, such as helpful.
        better: a better answer, written by the annotator.
        seconds: how long the annotator looked at the page.
        again: whether this is the annotator's second judgement of the prompt.
        seen: when the judgement was made that the page showed, or None for none; a newer one, from another page, is not
            overwritten. A client that leaves this out overwrites any.
        save: an id that the client makes up for a save, and repeats with it if no reply comes.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answers: Annotated[list[int], Field(min_length=2, max_length=MAX_ANSWERS)]
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=MAX_ANSWERS)]], Field(max_length=MAX_ANSWERS)] = []
    skipped: Text | None = None
    all_bad: bool = False
    marks: dict[int, dict[str, bool]] = {}
    better: Text | None = None
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    again: bool = False
    seen: float | None = None
    save: Annotated[str, Field(pattern=r"^[\w.-]{8,64}$")] | None = None


def label_router(
    database: Feedback,
    people: int = 1,
    annotator_of_key: Callable[[str], str | None] = lambda _: None,
    is_admin: Callable[[str], bool] = lambda _: False,
    is_open: Callable[[], bool] = lambda: False,
) -> APIRouter:
    """Returns the page at /label and the routes under it.

    Args:
        database: the prompts and judgements.
        people: how many annotators shall judge each prompt.
        annotator_of_key: returns the name behind a key that allows judging, or None.
        is_admin: whether a token is a key with the scope admin, whose holder sees every annotator's figures.
        is_open: whether requests are admitted without a key, and so guests.
    """
    router = APIRouter(prefix="/label")
    assigner = TaskAssigner(database, people)

    Annotator = Annotated[str, Depends(annotator_dependency(database, annotator_of_key, is_open))]

    @router.get("")
    def label_page(request: Request) -> HTMLResponse:
        return page("label.html", routes_of(request.app))

    @router.get("/guest")
    def guests() -> dict[str, bool]:
        return {"guest": admits_guests(database, is_open)}

    @router.get("/next")
    def next_task(annotator: Annotator) -> dict[str, Any]:
        judged = database.judgements(annotator)
        done = len(judged) + len(database.repeats(annotator))
        chosen, left = assigner.next_task(annotator, done)
        prompt = database.prompt(chosen.prompt) if chosen is not None else None
        task = task_for(annotator, prompt, None, chosen.again) if chosen and prompt else None
        seconds = [row.seconds for row in judged if row.skipped is None]
        progress = {"done": done, "left": left, "seconds": statistics.median(seconds) if seconds else None}
        return {"annotator": annotator, "task": task, "progress": progress}

    @router.get("/task")
    def one_task(annotator: Annotator, prompt: str, again: bool = False) -> dict[str, Any]:
        found = database.prompt(prompt)
        # A comparison is shown by the page that has made it.
        if found is None or found.id.startswith(COMPARED):
            raise HTTPException(404, f"there is no prompt {prompt}")
        return task_for(annotator, found, None if again else database.judgement(prompt, annotator), again)

    @router.get("/recent")
    def recent(annotator: Annotator) -> list[dict[str, Any]]:
        return recent_judgements(database, annotator)

    @router.post("/judgement", status_code=204)
    def judge(annotator: Annotator, judgement: JudgementRequest) -> Response:
        try:
            row = ranking_of(annotator, judgement)
            _check_shown(database, annotator, judgement)
            if judgement.again:
                database.save_repeat(row)
            elif "seen" not in judgement.model_fields_set:
                database.save_ranking(row)
            elif not database.replace_ranking(row, judgement.seen):
                raise HTTPException(409, "you judged this prompt on another page meanwhile")
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        return Response(status_code=204)

    @router.get("/quality")
    def quality_page(request: Request) -> HTMLResponse:
        return page("quality.html", routes_of(request.app))

    @router.get("/agreement")
    def agreement_figures(request: Request, annotator: Annotator) -> dict[str, Any]:
        whole = is_admin(bearer(request.headers.get("authorization", "")) or "")
        return agreement_report(database, None if whole else annotator)

    return router


def task_for(annotator: str, prompt: FeedbackPrompt, judgement: Ranking | None, again: bool = False) -> dict[str, Any]:
    """Returns the data of a task for the page: the conversation and the answers, in this annotator's order and without
    the models' names.

    Args:
        annotator: the annotator's name.
        prompt: the prompt with its completions.
        judgement: the annotator's judgement so far.
        again: whether it is given to them a second time.
    """
    return {
        "prompt": prompt.id,
        "again": again,
        "messages": [with_markdown(message, "content") for message in prompt.messages],
        "answers": [
            with_markdown({"id": row.id, "text": row.text}, "text") for row in presented(annotator, prompt, again)
        ],
        "judgement": judgement
        and judgement.model_dump(include={"ranks", "skipped", "all_bad", "marks", "better", "seconds", "created"}),
    }


def presented(annotator: str, prompt: FeedbackPrompt, again: bool = False) -> list[Completion]:
    """Returns at most nine of the prompt's different completions, in an order that depends only on annotator and
    prompt, and is reversed if they get it again."""
    completions = distinct_completions(sorted(prompt.completions, key=lambda row: row.id or 0))
    rng = random.Random(f"presented {annotator} {prompt.id}")
    chosen = rng.sample(completions, min(len(completions), MAX_ANSWERS))
    return chosen[::-1] if again else chosen


def recent_judgements(database: Feedback, annotator: str) -> list[dict[str, Any]]:
    """Returns the annotator's last judgements of this page, the newest first, each with the end of its prompt and its
    ranks, in the order in which the answers were shown."""
    own = [row for row in database.judgements(annotator) if not row.prompt_id.startswith(COMPARED)]
    found = []
    for row in sorted(own, key=lambda one: one.created, reverse=True)[:RECENT]:
        prompt = database.prompt(row.prompt_id)
        said = "skipped" if row.skipped else "all bad" if row.all_bad else ""
        ranks = " ".join(str(row.ranks[str(answer)]) for answer in row.presented if str(answer) in row.ranks)
        asked = prompt.messages[-1]["content"][:MAX_ASKED] if prompt and prompt.messages else ""
        found.append({"prompt": row.prompt_id, "asked": asked, "said": said or ranks})
    return found


def ranking_of(annotator: str, judgement: JudgementRequest) -> Ranking:
    """Returns the row to store.

    Raises:
        UserError: the numbers of ranks and answers differ, or a rank is larger than their number.
    """
    if max(judgement.ranks, default=1) > len(judgement.answers):
        raise UserError(f"rank {max(judgement.ranks)} is larger than the number of answers, {len(judgement.answers)}")
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
        save_id=judgement.save,
    )


def _check_shown(database: Feedback, annotator: str, judgement: JudgementRequest) -> None:
    """Refuses a judgement of a prompt or answers that this page does not show the annotator, such as a comparison whose
    models they know.

    Raises:
        UserError: there is no such prompt to rank, it has other answers, or it comes for a second time and was not
            judged before.
    """
    prompt = database.prompt(judgement.prompt)
    if prompt is None or prompt.id.startswith(COMPARED):
        raise UserError(f"there is no prompt {judgement.prompt} to rank")
    if sorted(judgement.answers) != sorted(row.id or 0 for row in presented(annotator, prompt)):
        raise UserError(f"{judgement.prompt} was shown with other answers: load the page again")
    if judgement.again and database.judgement(prompt.id, annotator) is None:
        raise UserError(f"{judgement.prompt} has no first judgement of yours")


def label_app(run: RunFolder, database: Feedback, host: str, people: int) -> ASGIApp:
    """Returns the application of the label page alone, behind the same `Middleware` as the gateway's.

    Args:
        run: the run folder, with the keys and the log.
        database: the prompts and judgements.
        host: the address that it will be served on.
        people: how many annotators shall judge each prompt.
    """
    authorizer = Authorizer(run.root, anonymous_access(host))
    app = new_application("Triptych labels")
    app.include_router(label_router(database, people, authorizer.annotator, authorizer.is_admin, authorizer.is_open))
    app.get("/")(lambda: RedirectResponse("/label"))
    return Middleware(app, authorizer, GatewayMetrics({}), run.root / "label-access.jsonl")


def serve_labels(run: RunFolder, host: str, port: int, people: int, tls: Tls | None = None) -> None:
    """Serves the label page of a run until SIGINT or SIGTERM.

    Args:
        run: the run folder.
        host: the address to listen on.
        port: the port to listen on.
        people: how many annotators shall judge each prompt.
        tls: the certificate to encrypt with; None for plain HTTP.

    Raises:
        UserError: the port is taken, or the certificate or the database cannot be used.
    """
    require_free_port(host, port)
    encryption(tls)
    with open_feedback(run.feedback_url) as database:
        console = Console(soft_wrap=True)
        console.print(f"label page at {'https' if tls else 'http'}://{url_host(host)}:{port}/label; Ctrl-C ends it")
        if not database.annotators():
            guests = "" if anonymous_access(host) == "never" else ", or start as a guest"
            console.print(f"nobody has a token yet: `triptych annotator add NAME --run {run.root}` gives one{guests}")

        async def serve() -> None:
            await Listener(label_app(run, database, host, people), host, port, STOP_SECONDS, tls=tls).wait()

        with suppress(KeyboardInterrupt):
            asyncio.run(serve())
