"""The stage `collect`: the fine-tuned model answers each prompt several times, and annotators rank the answers.

Annotators are people, who rank on the label page, or a function that stands in for them. Rankings may also come from
files, without sampling.
"""

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

# Prompts whose answers are stored at once: an interruption loses at most these, and each store is a write to the disk.
STORE_BATCH = 32
QUEUE_BATCH = 2 * STORE_BATCH
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class CollectedPrompts:
    """The prompts of one round of collection, by name.

    Names depend on the weights and the sampling, so that no ranking mixes answers of different ones.

    Attributes:
        rows: for the database.
        token_ids: rendered, for the engines.
    """

    rows: dict[str, feedback.FeedbackPrompt]
    token_ids: dict[str, list[int]]


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Runs the stage: samples answers, waits for rankings and writes `rankings.parquet`.

    Answers and rankings are kept in the run's feedback database.

    Raises:
        UserError: there are too few prompts, or the synthetic annotator cannot judge one.
        StageError: people had not ranked enough by the deadline, or the synthetic annotator failed.
    """
    settings, console = recipe.collect, Console()
    chat = Chat.of(run.path("sft"))
    if settings.annotator == "imported":
        return _import_rankings(recipe, run, out, chat)
    weights = run.require("sft").weights or ""
    synthetic = SyntheticAnnotator.of(settings.annotator) if isinstance(settings.annotator, Call) else None
    prompts = plan_round(recipe, chat, weights)
    if synthetic:
        synthetic.check({name: row.details for name, row in prompts.rows.items()})
    with open_feedback(run.feedback_url) as database:
        database.add_prompts(list(prompts.rows.values()))
        sample_missing(recipe, run, out, database, prompts, weights)
        if synthetic:
            console.print(
                "[bold]A synthetic annotator ranks the answers, in place of people[/bold]: "
                f"{synthetic.name.removeprefix(feedback.CODE).removesuffix(')')}"
            )
            rank_synthetically(synthetic, recipe.seed, chat, database, prompts)
        else:
            wait_for_people(database, prompts, settings.min_rankings, recipe.cluster.deadline_seconds)
        rows = ranking_rows(synthetic, chat, database, prompts)
        counts = stored_completions(database, prompts)
        excluded = database.excluded()
    sampled = read_metrics(out)
    seconds = sum(row["seconds"] for row in sampled)
    return Result(
        metrics={
            "prompts": len(prompts.rows),
            "completions": sum(map(len, counts.values())),
            **_write_rankings(rows, out),
            "excluded": excluded,
            "annotator": settings.annotator.function if isinstance(settings.annotator, Call) else settings.annotator,
            "annotator_arguments": settings.annotator.arguments if isinstance(settings.annotator, Call) else {},
            "stands_in_for_people": synthetic is not None,
            "sampling_seconds": seconds,
            "tokens_per_second": sum(row["tokens"] for row in sampled) / seconds if seconds else 0.0,
        }
    )


def _import_rankings(recipe: Recipe, run: RunFolder, out: Path, chat: Chat) -> Result:
    """Runs the stage with rankings imported from files, without sampling."""
    with open_feedback(run.feedback_url) as database:
        imported = imported_rankings(database, chat, recipe.model.context)
        excluded = database.excluded()
    return Result(
        metrics={
            "prompts": len({row["prompt_id"] for row in imported.rows}),
            **_write_rankings(imported.rows, out),
            "too_long": imported.too_long,
            "excluded": excluded,
            "annotator": recipe.collect.annotator,
            "stands_in_for_people": False,
        }
    )


def _write_rankings(rows: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Writes rankings.parquet, and returns the figures on it for the manifest."""
    rankings.write_rankings(rows, out / "rankings.parquet")
    return {
        "rankings": len(rows),
        "rankings_digest": rankings.rankings_digest(rows),
        "rankings_by": dict(sorted(Counter(row["annotator"] for row in rows).items())),
        "tie_share": rankings.tie_share(rows),
    }


def plan_round(recipe: Recipe, chat: Chat, weights: str) -> CollectedPrompts:
    """Chooses, renders and splits the prompts of a round.

    Args:
        recipe: names the sources.
        chat: renders prompts.
        weights: checksum of the model that answers.

    Raises:
        UserError: fewer than two prompts fit.
    """
    settings = recipe.collect
    chosen = rankings.select_prompts(recipe, chat, rankings.all_prompts(recipe))
    if len(chosen) < 2:
        room = recipe.model.context - settings.max_tokens
        raise UserError(
            f"collect.sources hold {len(chosen)} prompts of at most {room} tokens (model.context - max_tokens), "
            "and at least two are needed: one to train on and one to hold out"
        )
    split = rankings.split_prompts([text.id for text, _ in chosen], settings.held_out_share, recipe.seed)
    sampling = [settings.samples_per_prompt, settings.temperature, settings.max_tokens, recipe.seed]
    mark = fingerprint([weights, sampling])[:8]
    rows, token_ids = {}, {}
    for number, (text, rendered) in enumerate(chosen):
        # Prompts are sampled and ranked in the order of their names or its reverse: the number interleaves the kinds.
        name = f"{mark} {number:05d} {text.id}"
        details = {**text.metadata, "prompt": text.id}
        rows[name] = feedback.FeedbackPrompt(id=name, messages=text.messages, details=details, split=split[text.id])
        token_ids[name] = rendered
    return CollectedPrompts(rows, token_ids)


def stored_completions(database: Feedback, prompts: CollectedPrompts) -> dict[str, list[feedback.Completion]]:
    """Reads from the database the completions of every prompt of the round, by its name, in order of their index."""
    return {
        row.id: sorted(row.completions, key=lambda completion: completion.index)
        for row in database.prompts()
        if row.id in prompts.rows
    }


def sample_missing(
    recipe: Recipe, run: RunFolder, out: Path, database: Feedback, prompts: CollectedPrompts, weights: str
) -> None:
    """Samples the answers that the database lacks.

    An answer depends on the seed and its prompt alone, so that a resumed round has the same answers as an uninterrupted
    one.
    """
    settings, plan = recipe.collect, make_plan(recipe)
    have = stored_completions(database, prompts)
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
        for begin in range(0, len(missing), QUEUE_BATCH):
            names = missing[begin : begin + QUEUE_BATCH]
            fleet.submit([Prompt(name, prompts.token_ids[name]) for name in names], sampling)
        done = len(prompts.rows) - len(missing)
        while done < len(prompts.rows):
            groups = fleet.collect(min(STORE_BATCH, len(prompts.rows) - done))
            database.add_completions(_completions(groups, sampling, weights))
            done += len(groups)
            seconds, clock = time.monotonic() - clock, time.monotonic()
            metrics.write(done, seconds=seconds, tokens=sum(len(s.token_ids) for group in groups for s in group))
            progress.update(task, completed=done)


def _completions(groups: Sequence[Sequence[Sample]], sampling: Sampling, weights: str) -> list[feedback.Completion]:
    return [
        feedback.Completion(
            prompt_id=answer.id.prompt,
            index=answer.id.sample,
            text=answer.text,
            token_ids=answer.token_ids,
            model="sft",
            weights=weights,
            sampling=vars(sampling) | {"finish_reason": answer.finish_reason},
        )
        for group in groups
        for answer in group
    ]


def rank_synthetically(
    annotator: SyntheticAnnotator, seed: int, chat: Chat, database: Feedback, prompts: CollectedPrompts
) -> None:
    """Adds a synthetic annotator's rankings of all prompts to the database, which ignores those that it has."""
    database.add_rankings(
        [
            rankings.rank_completions(prompts.rows[name], completions, chat.end_of_turn_id, annotator, seed)
            for name, completions in stored_completions(database, prompts).items()
        ]
    )


def wait_for_people(database: Feedback, prompts: CollectedPrompts, minimum: int, seconds: float) -> None:
    """Waits until people have made enough rankings.

    Args:
        database: where their rankings arrive.
        prompts: of the round.
        minimum: rankings to wait for.
        seconds: the longest wait.

    Raises:
        StageError: there were fewer at the deadline; the same command continues the wait.
    """
    end = time.monotonic() + seconds
    with _progress() as progress:
        task = progress.add_task("rankings by people", total=minimum)
        while (count := len(_rankings(database, prompts, None))) < minimum:
            progress.update(task, completed=count)
            if time.monotonic() >= end:
                raise StageError(
                    f"after {seconds / 60:.0f} minutes (cluster.deadline_minutes) people have made {count} of "
                    f"{minimum} rankings; these are kept, and the same command continues the wait"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        progress.update(task, completed=count)


def ranking_rows(
    annotator: SyntheticAnnotator | None, chat: Chat, database: Feedback, prompts: CollectedPrompts
) -> list[dict[str, Any]]:
    """Makes the rows of rankings.parquet, in the order of the prompts: a synthetic annotator's, or people's without
    one."""
    completions = stored_completions(database, prompts)
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
    rankings_of_round = [ranking for ranking in database.rankings() if ranking.prompt_id in prompts.rows]
    if annotator:
        return [ranking for ranking in rankings_of_round if ranking.annotator == annotator.name]
    return [ranking for ranking in rankings_of_round if feedback.is_person(ranking.annotator)]


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
