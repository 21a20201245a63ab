"""Collecting judgement: the fine-tuned model answers each prompt several times, and people, or an annotator written in
code that stands in for them, rank the answers from best to worst."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sample, Sampling
from cluster import feedback
from cluster.errors import StageError, UserError
from cluster.feedback import Feedback, Ranking, open_feedback
from cluster.recipe.base import Call
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder, fingerprint
from cluster.run.metrics import MetricsWriter, read_metrics
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from pipelines.data import rankings
from pipelines.data.annotators import SyntheticAnnotator
from pipelines.data.rankings import imported_rankings

# Prompts that are stored at once: what a kill may cost, against one write to the database each.
STORED_TOGETHER = 32
QUEUED_TOGETHER = 2 * STORED_TOGETHER
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class CollectedPrompts:
    """The prompts of one collection, by their names in the database.

    Other weights or other sampling give other names: no ranking mixes answers of both, and each may be ranked.
    """

    rows: dict[str, feedback.Prompt]
    token_ids: dict[str, list[int]]


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Samples, waits for rankings and writes `rankings.parquet`. All that is drawn or said is kept in the database."""
    settings, console = recipe.collect, Console()
    chat = Chat.of(run.path("sft"))
    if settings.annotator == "imported":
        return _import(recipe, run, out, chat)
    weights = run.require("sft").weights or ""
    synthetic = SyntheticAnnotator.of(settings.annotator) if isinstance(settings.annotator, Call) else None
    prompts = plan_round(recipe, chat, weights)
    if synthetic:
        synthetic.check({name: row.details for name, row in prompts.rows.items()})
    with open_feedback(run.feedback_url) as database:
        database.add_prompts(list(prompts.rows.values()))
        sample(recipe, run, out, database, prompts, weights)
        if synthetic:
            console.print(
                "[bold]The rankings are made by a synthetic annotator, which stands in for people[/bold]: "
                f"{synthetic.name.removeprefix(feedback.CODE).removesuffix(')')}"
            )
            rank_synthetically(synthetic, recipe.seed, chat, database, prompts)
        else:
            wait_for_people(database, prompts, settings.min_rankings, recipe.cluster.deadline_seconds)
        rows = ranking_rows(synthetic, chat, database, prompts)
        counts = stored(database, prompts)
        excluded = database.excluded()
    drawn = read_metrics(out)
    seconds = sum(row["seconds"] for row in drawn)
    return Result(
        metrics={
            "prompts": len(prompts.rows),
            "completions": sum(map(len, counts.values())),
            **_write(rows, out),
            "excluded": excluded,
            "annotator": settings.annotator.function if isinstance(settings.annotator, Call) else settings.annotator,
            "annotator_arguments": settings.annotator.arguments if isinstance(settings.annotator, Call) else {},
            "stands_in_for_people": synthetic is not None,
            "sampling_seconds": seconds,
            "tokens_per_second": sum(row["tokens"] for row in drawn) / seconds if seconds else 0.0,
        }
    )


def _import(recipe: Recipe, run: RunFolder, out: Path, chat: Chat) -> Result:
    """The stage where nothing is sampled: rankings that came from files."""
    with open_feedback(run.feedback_url) as database:
        found = imported_rankings(database, chat, recipe.model.context)
        excluded = database.excluded()
    return Result(
        metrics={
            "prompts": len({row["prompt_id"] for row in found.rows}),
            **_write(found.rows, out),
            "too_long": found.too_long,
            "excluded": excluded,
            "annotator": recipe.collect.annotator,
            "stands_in_for_people": False,
        }
    )


def _write(rows: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Writes the table of rankings. Gives what the manifest says of it."""
    rankings.write_rankings(rows, out / "rankings.parquet")
    return {
        "rankings": len(rows),
        "rankings_digest": rankings.digest(rows),
        "rankings_by": dict(sorted(Counter(row["annotator"] for row in rows).items())),
        "tie_share": rankings.tie_share(rows),
    }


def plan_round(recipe: Recipe, chat: Chat, weights: str) -> CollectedPrompts:
    """Chooses, renders and splits the prompts.

    Raises:
        UserError: there are too few.
    """
    settings = recipe.collect
    chosen = rankings.chosen_prompts(recipe, chat, rankings.every_prompt(recipe))
    if len(chosen) < 2:
        room = recipe.model.context - settings.max_tokens
        raise UserError(
            f"collect.sources hold {len(chosen)} prompts of at most {room} tokens (model.context - max_tokens), "
            "and two are the least: one to train on and one to hold out"
        )
    split = rankings.splits([text.id for text, _ in chosen], settings.held_out_share, recipe.seed)
    sampling = [settings.samples_per_prompt, settings.temperature, settings.max_tokens, recipe.seed]
    mark = fingerprint([weights, sampling])[:8]
    rows, token_ids = {}, {}
    for number, (text, rendered) in enumerate(chosen):
        # Prompts are drawn and judged in the order of their names or its reverse: the number keeps the kinds in turn.
        name = f"{mark} {number:05d} {text.id}"
        details = {**text.metadata, "prompt": text.id}
        rows[name] = feedback.Prompt(id=name, messages=text.messages, details=details, split=split[text.id])
        token_ids[name] = rendered
    return CollectedPrompts(rows, token_ids)


def stored(database: Feedback, prompts: CollectedPrompts) -> dict[str, list[feedback.Completion]]:
    """The completions in the database of every prompt of the round, in the order they were drawn."""
    return {
        row.id: sorted(row.completions, key=lambda completion: completion.index)
        for row in database.prompts()
        if row.id in prompts.rows
    }


def sample(
    recipe: Recipe, run: RunFolder, out: Path, database: Feedback, prompts: CollectedPrompts, weights: str
) -> None:
    """Draws the answers that the database lacks. A draw depends on seed and prompt alone, so a resumed collection holds
    the same answers as one that was never interrupted."""
    settings, plan = recipe.collect, make_plan(recipe)
    have = stored(database, prompts)
    missing = [name for name in prompts.rows if len(have[name]) < settings.samples_per_prompt]
    metrics = MetricsWriter(out, resume_at=len(prompts.rows) - len(missing) + 1)
    if not missing:
        return
    sampling = Sampling(settings.samples_per_prompt, settings.temperature, settings.max_tokens, recipe.seed)
    fleet = Fleet(
        run.path("sft"),
        recipe.rlhf.fleet.rollout_actors,
        plan.rollout,
        recipe.model.context,
        recipe.seed,
        recipe.cluster.deadline_seconds,
    )
    with fleet, _progress() as progress:
        task = progress.add_task("sampling", total=len(prompts.rows), completed=len(prompts.rows) - len(missing))
        clock = time.monotonic()
        for begin in range(0, len(missing), QUEUED_TOGETHER):
            names = missing[begin : begin + QUEUED_TOGETHER]
            fleet.submit([Prompt(name, prompts.token_ids[name]) for name in names], sampling)
        done = len(prompts.rows) - len(missing)
        while done < len(prompts.rows):
            groups = fleet.collect(min(STORED_TOGETHER, len(prompts.rows) - done))
            database.add_completions(_completions(groups, sampling, weights))
            done += len(groups)
            seconds, clock = time.monotonic() - clock, time.monotonic()
            metrics.write(done, seconds=seconds, tokens=sum(len(s.token_ids) for group in groups for s in group))
            progress.update(task, completed=done)


def _completions(groups: Sequence[Sequence[Sample]], sampling: Sampling, weights: str) -> list[feedback.Completion]:
    return [
        feedback.Completion(
            prompt_id=drawn.id.prompt,
            index=drawn.id.sample,
            text=drawn.text,
            token_ids=drawn.token_ids,
            model="sft",
            weights=weights,
            sampling=vars(sampling) | {"finish_reason": drawn.finish_reason},
        )
        for group in groups
        for drawn in group
    ]


def rank_synthetically(
    annotator: SyntheticAnnotator, seed: int, chat: Chat, database: Feedback, prompts: CollectedPrompts
) -> None:
    """Adds the rankings of a synthetic annotator that are not there yet."""
    database.add_rankings(
        [
            rankings.rank_completions(prompts.rows[name], completions, chat.end_of_turn_id, annotator, seed)
            for name, completions in stored(database, prompts).items()
        ]
    )


def wait_for_people(database: Feedback, prompts: CollectedPrompts, minimum: int, seconds: float) -> None:
    """Waits until people have ranked enough.

    Raises:
        StageError: they had not by the deadline; nothing is lost and the same command waits on.
    """
    end = time.monotonic() + seconds
    with _progress() as progress:
        task = progress.add_task("rankings by people", total=minimum)
        while (found := len(_rankings(database, prompts, None))) < minimum:
            progress.update(task, completed=found)
            if time.monotonic() >= end:
                raise StageError(
                    f"{found} of {minimum} rankings by people are in after {seconds / 60:.0f} min of waiting "
                    "(cluster.deadline_minutes); they are kept, and the same command goes on from there"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        progress.update(task, completed=found)


def ranking_rows(
    annotator: SyntheticAnnotator | None, chat: Chat, database: Feedback, prompts: CollectedPrompts
) -> list[dict[str, Any]]:
    """The rows of rankings.parquet, in the order of the prompts: a synthetic annotator's, or people's without one."""
    completions = stored(database, prompts)
    return [
        rankings.ranking_row(
            prompts.rows[ranking.prompt_id],
            completions[ranking.prompt_id],
            ranking,
            prompts.token_ids[ranking.prompt_id],
            chat.end_of_turn_id,
            annotator,
        )
        for ranking in sorted(
            _rankings(database, prompts, annotator), key=lambda ranking: (ranking.prompt_id, ranking.annotator)
        )
    ]


def _rankings(database: Feedback, prompts: CollectedPrompts, annotator: SyntheticAnnotator | None) -> list[Ranking]:
    found = [ranking for ranking in database.rankings() if ranking.prompt_id in prompts.rows]
    if annotator:
        return [ranking for ranking in found if ranking.annotator == annotator.name]
    return [ranking for ranking in found if feedback.is_person(ranking.annotator)]


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
